"""Loading of datasets by their names, and the loaders of some: :func:`load_dataset`.

@bionas_fast.data.register_dataset("stripes")
def stripes(data_dir, *, download, seed):
    ...
    return Dataset.from_tensors("stripes", (images, labels), (test_images, test_labels))
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bionas_fast.data import memory
from bionas_fast.data.batches import split
from bionas_fast.data.dataset import Dataset
from bionas_fast.data.file_dataset import AnyDataset, FileDataset, Reading
from bionas_fast.data.files import default_folder, read_idx
from bionas_fast.data.names import register_dataset, registry
from bionas_fast.errors import InputError, expect_type, printable

#: Folder of Debian's package dataset-fashion-mnist.
DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"


D = TypeVar("D", bound=AnyDataset)

#: The beginning of the names of datasets that were given as objects in Python.
OBJECT = "python:"

#: Receives one line for each dataset loaded: a warning if something was left out, otherwise information.
logger = logging.getLogger("bionas_fast.data")
_silent: ContextVar[bool] = ContextVar("silent", default=False)


def load_dataset(name: str, data_dir: str | Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Load a dataset by its name, and log in one line what was taken (:meth:`Dataset.summary`).

    Args:
        name: one of :func:`dataset_names`; one that ends in a colon is followed by an argument, as in
            ``folder:photos`` or ``npz:digits.npz``.
        data_dir: the folder to search, in the layouts of torchvision and of plain files. By default
            :func:`default_folder`, and for fashion-mnist Debian's package before it. For ``folder:`` and ``npz:``,
            the base of relative paths.
        download: download a missing dataset through torchvision into that folder.
        seed: seed for randomly generated datasets; the built-in ones ignore it.

    Raises:
        InputError: an unknown name, a missing dataset (the message lists the folders searched and a source),
            damaged files, or more than fits into memory.
    """
    with memory.allocating(f"dataset {name!r}"):
        found = _load(name, data_dir, download=download, seed=seed)
        return _announced(_in_memory(found) if isinstance(found, FileDataset) else found)


def open_dataset(
    name: str,
    data_dir: str | Path | None = None,
    *,
    download: bool = False,
    seed: int = 0,
    in_memory: bool | None = None,
    reading: Reading | None = None,
) -> AnyDataset:
    """Load a dataset like :func:`load_dataset`, or leave it in its files if it is large.

    Args:
        in_memory: whether to read all images into memory; by default if they are a dataset of one size and need at most
            2 GiB (:data:`bionas_fast.data.user_data.LARGE`), whatever the memory of the machine.
        reading: the settings of images that stay in their files.

    Raises:
        InputError: as of :func:`load_dataset`; ``in_memory`` is not possible for this dataset.
    """
    with memory.allocating(f"dataset {name!r}"):
        found = _load(name, data_dir, download=download, seed=seed)
        if isinstance(found, FileDataset):
            read = not found.large if in_memory is None else in_memory
            return _announced(_in_memory(found) if read else found.read_by(reading or Reading()))
        if in_memory is False:
            raise InputError(f"in_memory: dataset {name!r} is always read into memory; only images in folders need not")
        return _announced(found)


def _load(name: str, data_dir: str | Path | None, **further: Any) -> AnyDataset:
    expect_type("dataset", name, str, f"such as {registry.names()[0]!r}")
    if name.startswith(OBJECT):
        raise InputError(f"dataset {name!r}: its images were given in Python; give them there again, as data=…")
    plain, colon, argument = name.partition(":")
    load = registry.get(plain + colon)
    if colon and not argument:
        raise InputError(f"dataset {name!r}: expected an argument after the colon, such as {name}PATH")
    folder = None if data_dir is None else Path(os.path.expanduser(data_dir))
    found = load(*(argument, folder) if colon else (folder,), **further)
    if not isinstance(found, (Dataset, FileDataset)):
        raise InputError(f"dataset {name!r}: its loader returned {type(found).__name__}, not a Dataset")
    return found


def _in_memory(files: FileDataset) -> Dataset:
    if files.load is None:
        raise InputError(f"dataset {files.name!r}: its images differ in size and are not read into memory")
    return files.load()


@contextmanager
def unannounced() -> Iterator[None]:
    """Load datasets without a message in the block, in this thread alone."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def _announced(dataset: D) -> D:
    if _silent.get():
        return dataset
    logger.log(logging.WARNING if dataset.source.left_out else logging.INFO, "%s", printable(dataset.summary()))
    return dataset


@register_dataset("digits")
def digits(data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """scikit-learn's 1797 handwritten digits, 8×8 grey, with a fixed stratified 80/20 split.

    Bundled with scikit-learn. It is the test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
    Digits, UCI repository, 1998.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    return Dataset.from_tensors("digits", *split(images, labels, 0.8, seed=0), num_classes=10)


@register_dataset("fashion-mnist")
def fashion_mnist(data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Clothing, 28×28 grey, 60,000 + 10,000 (H. Xiao, K. Rasul and R. Vollgraf, 2017, arXiv:1708.07747)."""
    roots = [data_dir] if data_dir else [Path(DEBIAN_FASHION_MNIST), default_folder()]
    return load_idx("fashion-mnist", "FashionMNIST", roots, download, "Debian's package dataset-fashion-mnist, or ")


@register_dataset("mnist")
def mnist(data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Handwritten digits, 28×28 grey, 60,000 + 10,000 (Y. LeCun et al., Proc. IEEE 86, 1998)."""
    return load_idx("mnist", "MNIST", [data_dir or default_folder()], download)


@register_dataset("cifar10")
def cifar10(data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Photographs of 10 classes, 32×32 colour, 50,000 + 10,000 (A. Krizhevsky, 2009)."""
    return _load_cifar("cifar10", "CIFAR10", 10, data_dir or default_folder(), download)


@register_dataset("cifar100")
def cifar100(data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Photographs of 100 classes, 32×32 colour, 50,000 + 10,000 (A. Krizhevsky, 2009)."""
    return _load_cifar("cifar100", "CIFAR100", 100, data_dir or default_folder(), download)


_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def load_idx(name: str, torchvision_name: str, roots: list[Path], download: bool, source: str = "") -> Dataset:
    """Load a dataset of four IDX files, plain or compressed.

    Args:
        name: name of the dataset.
        torchvision_name: its class in torchvision, which downloads it.
        roots: the folders to search; the last one receives a download.
        download: whether to download missing files.
        source: another source of the files, for the message.

    Raises:
        InputError: missing or damaged files, or a failed download.
    """
    layouts = (f"{torchvision_name}/raw", name, "raw", ".")
    by_folder = {root / layout: _idx_files(root / layout) for root in roots for layout in layouts}
    files = next((files for files in by_folder.values() if len(files) == len(_IDX_FILES)), None)
    if files is None and download:
        download_dataset(torchvision_name, roots[-1])
        files = _idx_files(roots[-1] / layouts[0])
    if files is None:
        incomplete = {
            folder: f" (lacks {', '.join(file for file in _IDX_FILES if file not in files)})" if files else ""
            for folder, files in by_folder.items()
        }
        searched = [f"{folder}{suffix}" for folder, suffix in incomplete.items()]
        raise missing(name, f"files {_IDX_FILES[0]}[.gz] and its three companions", searched, source)
    train_images, train_labels, test_images, test_labels = (files[file] for file in _IDX_FILES)
    train, test = _read_pair(train_images, train_labels), _read_pair(test_images, test_labels)
    return Dataset.from_tensors(name, train, test, num_classes=10)


def _idx_files(folder: Path) -> dict[str, Path]:
    """Find the four IDX files in a folder, uncompressed before ``.gz``."""
    candidates = ((file, folder / f"{file}{suffix}") for file in _IDX_FILES for suffix in (".gz", ""))
    # os.path, because Path.is_file raises if a folder is not readable.
    return {file: path for file, path in candidates if os.path.isfile(path)}


def _read_pair(image_file: Path, label_file: Path) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(image_file, ndim=3), read_idx(label_file, ndim=1)
    if len(images) != len(labels):
        raise InputError(f"{image_file} has {len(images)} images, but {label_file} has {len(labels)} labels")
    return images.unsqueeze(1), labels.long()


def _load_cifar(name: str, torchvision_name: str, num_classes: int, root: Path, download: bool) -> Dataset:
    import torchvision

    source = getattr(torchvision.datasets, torchvision_name)
    # The root is the folder that holds cifar-10-batches-py; that folder itself is also accepted.
    roots = [root, root / name, root.parent] if root.name == source.base_folder else [root, root / name]
    folder = next((r for r in roots if os.path.isdir(r / source.base_folder)), None)
    if folder is None and download:
        download_dataset(torchvision_name, root)
        folder = root
    if folder is None:
        raise missing(name, f"folder {source.base_folder}", map(str, roots))
    try:
        # torchvision unpickles these files, but only after comparing each with its known md5 sum.
        train, test = source(folder, train=True), source(folder, train=False)
    except OSError as error:
        raise InputError(f"dataset {name!r}: {folder / source.base_folder} cannot be read: {error}") from error
    except RuntimeError as error:
        raise InputError(
            f"dataset {name!r}: {folder / source.base_folder} is incomplete or damaged: its files do not have "
            "the known md5 sums; remove it and download it again"
        ) from error

    def tensors(part: Any) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)

    return Dataset.from_tensors(name, tensors(train), tensors(test), num_classes)


def missing(name: str, what: str, folders: Iterable[str], source: str = "") -> InputError:
    """Create the error about a dataset that was found in none of the folders.

    Args:
        name: name of the dataset.
        what: the file or folder that was looked for.
        folders: the folders that were searched.
        source: a source other than the network.
    """
    return InputError(
        f"dataset {name!r}: no {what} in {', '.join(folders)}; get it from {source}the network with "
        "download=True (--download), or name its folder with data_dir (--data-dir)"
    )


def download_dataset(torchvision_name: str, root: Path, splits: Sequence[str] = ()) -> None:
    """Download a dataset through torchvision, which verifies its md5 sum, into ``root``, atomically.

    Args:
        torchvision_name: its class in torchvision.
        root: the folder.
        splits: the splits to download, if the class takes one at a time.

    Raises:
        InputError: the download or writing failed.
    """
    import torchvision

    # Staged on the same file system as the root, so that complete files are moved into place.
    above = next((folder for folder in (root, *root.absolute().parents) if folder.is_dir()), Path("/"))
    try:
        with tempfile.TemporaryDirectory(prefix=".bionas-fast-", dir=above) as staging:
            source = getattr(torchvision.datasets, torchvision_name)
            for arguments in [{"split": split} for split in splits] or [{}]:
                source(staging, download=True, **arguments)
            for file in [path for path in Path(staging).rglob("*") if path.is_file()]:
                target = root / file.relative_to(staging)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    except (RuntimeError, OSError, HTTPException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{torchvision_name} could not be downloaded into {root}: {reason}") from error
