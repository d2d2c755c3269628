"""ImageNet (Russakovsky et al. 2015) and Tiny ImageNet, from folders that the user has."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bionas_fast.data import memory
from bionas_fast.data.cache import read_arrays, write_arrays
from bionas_fast.data.dataset import Dataset, Source
from bionas_fast.data.file_dataset import FileDataset, Files
from bionas_fast.data.files import readable
from bionas_fast.data.images import read_image
from bionas_fast.data.registry import default_folder, register_dataset
from bionas_fast.errors import InputError

#: Names of image files end in this, in any case.
EXTENSION = ".jpeg"

IMAGENET = "imagenet"
IMAGENET_CLASSES = 1000
#: Numbers of training and validation images.
IMAGENET_COUNTS = (1_281_167, 50_000)

TINY = "tiny-imagenet"
TINY_CLASSES = 200
TINY_COUNTS = (100_000, 10_000)
_SIDE = 64
_ANNOTATIONS = "val/val_annotations.txt"
#: The decoded images, beside the folders they come from.
_DECODED = "tiny-imagenet.npz"

logger = logging.getLogger("bionas_fast.data")


@register_dataset(IMAGENET)
def imagenet(data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> FileDataset:
    """Photographs of 1000 classes, 1,281,167 + 50,000 (O. Russakovsky et al., IJCV 115, 2015).

    Read from ``train/<WordNet id>/*.JPEG`` and ``val/<WordNet id>/*.JPEG``, the layout in which torchvision unpacks the
    archives; the images stay in their files.

    Raises:
        InputError: a folder is missing, another number of classes or images; ``download``, which needs an account.
    """
    if download:
        raise InputError(f"dataset {IMAGENET!r}: cannot be downloaded without an account of image-net.org")
    layouts, needed = (".", IMAGENET, "ILSVRC2012", "ILSVRC/Data/CLS-LOC"), ("train", "val")
    root = _find(layouts, needed, data_dir)
    if root is None:
        raise _missing(IMAGENET, layouts, needed, data_dir)
    classes = _folders(root / "train")
    if loose := _images(root / "val"):
        raise InputError(
            f"dataset {IMAGENET!r}: {root / 'val'} holds {len(loose)} images outside the class folders; "
            "move each into the folder of its class, val/<WordNet id>/"
        )
    if (tested := _folders(root / "val")) != classes:
        odd = sorted(set(classes) ^ set(tested))
        raise InputError(f"dataset {IMAGENET!r}: class {odd[0]!r} is in only one of {root}/train and {root}/val")
    _expect(IMAGENET, "classes", len(classes), IMAGENET_CLASSES, root / "train")
    parts = []
    for part, count in zip(("train", "val"), IMAGENET_COUNTS, strict=True):
        names = [[f"{part}/{name}/{image}" for image in _images(root / part / name)] for name in classes]
        labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(some) for some in names]))
        _expect(IMAGENET, "images", len(labels), count, root / part)
        parts.append(Files(root, [name for some in names for name in some], labels))
    train, test = parts
    return FileDataset(IMAGENET, train, test, IMAGENET_CLASSES, Source(tuple(classes), ("from train/ and val/",)))


@register_dataset(TINY)
def tiny_imagenet(data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Photographs of 200 classes, 64×64 colour, 100,000 + 10,000 (Stanford CS231N, 2015).

    Read from ``train/<WordNet id>/images/*.JPEG``, ``val/images/*.JPEG`` and ``val/val_annotations.txt``. The decoded
    images are then kept in ``tiny-imagenet.npz`` beside these folders, which suffices from then on.

    Raises:
        InputError: a folder or file is missing or damaged, another number of classes or images, an image of another
            size; ``download``, as it must be fetched from cs231n.stanford.edu.
    """
    layouts = (".", f"{TINY}-200", TINY)
    if download:
        raise InputError(f"dataset {TINY!r}: get cs231n.stanford.edu/tiny-imagenet-200.zip and unpack it")
    needed = ("train", "val/images", _ANNOTATIONS)
    root = _find(layouts, (_DECODED,), data_dir) or _find(layouts, needed, data_dir)
    if root is None:
        raise _missing(TINY, layouts, needed, data_dir)
    kept = read_arrays(root / _DECODED) if os.path.isfile(root / _DECODED) else None
    if kept is None:
        kept = _read_tiny(root)
        write_arrays(root / _DECODED, kept)
    for part, count in zip(("train", "test"), TINY_COUNTS, strict=True):
        images, labels = kept.get(f"x_{part}"), kept.get(f"y_{part}")
        shape = (count, 3, _SIDE, _SIDE)
        if images is None or labels is None or images.shape != shape or labels.shape != shape[:1]:
            got = "nothing" if images is None else list(images.shape)
            raise InputError(f"{root / _DECODED}: expected {list(shape)} {part} images, got {got}; remove it")
    (x, y), test = ((_tensor(kept[f"x_{part}"]), _tensor(kept[f"y_{part}"]).long()) for part in ("train", "test"))
    return Dataset.from_tensors(TINY, (x, y), test, TINY_CLASSES)


def _read_tiny(root: Path) -> dict[str, np.ndarray]:
    classes = _folders(root / "train")
    _expect(TINY, "classes", len(classes), TINY_CLASSES, root / "train")
    number = {name: label for label, name in enumerate(classes)}
    train = [(root / "train" / name / "images" / image, number[name]) for name in classes
             for image in _images(root / "train" / name / "images")]  # fmt: skip
    test = _read_annotations(root, number)
    arrays = {}
    for part, where, files, count in zip(("train", "test"), ("train", "val"), (train, test), TINY_COUNTS, strict=True):
        _expect(TINY, "images", len(files), count, root / where)
        arrays[f"x_{part}"] = _decode([path for path, _ in files])
        arrays[f"y_{part}"] = np.array([label for _, label in files], dtype=np.uint8)
    return arrays


def _read_annotations(root: Path, number: dict[str, int]) -> list[tuple[Path, int]]:
    """Read the file and the label of each validation image."""
    path = root / _ANNOTATIONS
    with readable(path, "text"):
        lines = path.read_text().splitlines()
    files = []
    for line, text in enumerate(lines, start=1):
        name, _, rest = text.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in number or os.path.basename(name) != name:
            raise InputError(f"{path}, line {line}: expected a file and one of the classes of train/, got {text!r:.60}")
        files.append((root / "val/images" / name, number[wnid]))
    repeated = next((file for file, count in Counter(file for file, _ in files).items() if count > 1), None)
    if repeated is not None:
        raise InputError(f"{path}: {repeated.name} has two classes")
    return files


def _decode(paths: Sequence[Path]) -> np.ndarray:
    """Decode images: uint8 [N, 3, 64, 64]."""
    memory.require(2 * len(paths) * 3 * _SIDE**2, f"dataset {TINY!r}: {len(paths)} images")
    logger.info("decoding %d images of %s once", len(paths), TINY)
    images = np.empty((len(paths), 3, _SIDE, _SIDE), dtype=np.uint8)
    for into, path in zip(images, paths, strict=True):
        image = read_image(path)
        if image.size != (_SIDE, _SIDE):
            raise InputError(f"{path}: expected {_SIDE}×{_SIDE} pixels, got {'×'.join(map(str, image.size))}")
        into[:] = np.asarray(image).transpose(2, 0, 1)
    return images


def _find(layouts: Iterable[str], entries: Sequence[str], data_dir: Path | None) -> Path | None:
    """Find the folder with these entries."""
    folders = (_base(data_dir) / layout for layout in layouts)
    return next((f for f in folders if all(os.path.exists(f / entry) for entry in entries)), None)


def _missing(name: str, layouts: Iterable[str], entries: Sequence[str], data_dir: Path | None) -> InputError:
    folders = ", ".join(str(_base(data_dir) / layout) for layout in layouts)
    return InputError(
        f"dataset {name!r}: expected {' and '.join(entries)} in one of {folders}; name its folder with data_dir "
        "(--data-dir)"
    )


def _base(data_dir: Path | None) -> Path:
    return data_dir or default_folder()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with readable(folder, "a folder"), os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _images(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.name.lower().endswith(EXTENSION)]


def _expect(name: str, what: str, got: int, expected: int, place: Path) -> None:
    if got != expected:
        raise InputError(f"dataset {name!r}: expected {expected:,} {what} in {place}, got {got:,}")


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
