"""User data: ``folder:PATH``, one image folder per class, and ``npz:FILE``, arrays.

Both are read into memory; a large folder is not (:class:`FileDataset`). Without separate test images, one image in five
of each class, always the same ones, is held out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bionas_fast.data.arrays import Archive, Header
from bionas_fast.data.batches import Batch, check_range, split
from bionas_fast.data.dataset import LISTED, Dataset, Source
from bionas_fast.data.file_dataset import FileDataset, Files
from bionas_fast.data.images import image_size, read_images
from bionas_fast.data.registry import register_dataset
from bionas_fast.data.tree import Tree, read_tree
from bionas_fast.errors import InputError

TRAIN_FRACTION = 0.8
HELD_OUT = "one image in five of each class held out for testing"
ARRAYS = ("x_train", "y_train", "x_test", "y_test")

#: Bytes of images beyond which those of a folder are not read into memory by default.
LARGE = 2**31

_SIZE = ",size="


@register_dataset("folder:")
def folder(argument: str, data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> FileDataset:
    """List images from ``PATH/train/<class>/`` and ``PATH/test/<class>/``, or from ``PATH/<class>/``.

    The layout is that of torchvision's ``ImageFolder``; the splits may have other usual names (``tree.ROLES``). Classes
    are numbered in the order of their names. Images are upright, as EXIF says, and have one channel if all of them are
    greyscale, otherwise three; transparency is dropped. All must have the same size, unless one is set:
    ``folder:PATH,size=32`` scales the shorter side to 32 pixels and crops the central square. Without that setting,
    images that need more than :data:`LARGE` bytes in memory stay in their files.

    Raises:
        InputError: no such folder, a class without images, a single class, a test class missing from the training
            classes, a file in two classes or in both splits, a file that is damaged, has several frames or more than 8
            bits per channel, images of different sizes, or more than fits into memory.
    """
    name = f"folder:{argument}"
    path, size = _read_size(argument)
    root = _absolute(path, data_dir)
    if not os.path.isdir(root):
        raise InputError(f"dataset {name!r}: no folder {root}")
    return open_folder(name, root, size)


def open_folder(name: str, root: Path, size: int | None = None) -> FileDataset:
    """List the images of a folder, as of :func:`folder`.

    Args:
        name: name of the dataset.
        root: the folder.
        size: the size to which images are scaled in memory.
    """
    tree = read_tree(root, name)
    lengths = [len(part) for part in tree.parts]
    names = [os.path.relpath(path, root) for part in tree.parts for path, _ in part]
    files = Files(root, names, torch.tensor([label for part in tree.parts for _, label in part]))
    listed = torch.arange(sum(lengths)).split(lengths)
    train, test = (files.take(part) for part, _ in _split(name, [(i, files.labels[i]) for i in listed], tree.classes))
    source = Source(tuple(tree.classes), (tree.split or HELD_OUT,), _left_out(tree, Counter()))

    def load() -> Dataset:
        paths = [part.path(index) for part in (train, test) for index in range(len(part))]
        images, dropped = read_images(paths, size, name)
        train_images, test_images = images.split([len(train), len(test)])
        taken = replace(source, left_out=_left_out(tree, dropped))
        return Dataset.from_tensors(
            name, (train_images, train.labels), (test_images, test.labels), len(tree.classes), taken
        )

    large = False
    if size is None:
        width, height = image_size(files.path(0))
        large = 3 * width * height * len(files) > LARGE
    return FileDataset(name, train, test, len(tree.classes), source, load, large)


@register_dataset("npz:")
def npz(argument: str, data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Load arrays ``x_train, y_train, x_test, y_test``, or ``x, y``, from a file written by :func:`numpy.savez`.

    Images are uint8, or floating point in [0, 1]: [N, H, W], [N, H, W, C] or [N, C, H, W]. C is whichever of the two
    axes has length 1 to 4. Labels are integers from 0 without gaps, [N] or [N, 1].

    Raises:
        InputError: no such file, a damaged one, one that holds Python objects (nothing is unpickled), arrays of another
            format, or more than fits into memory.
    """
    name = f"npz:{argument}"
    path = _absolute(argument, data_dir)
    if not os.path.exists(path):
        raise InputError(f"dataset {name!r}: no file {path}")
    with Archive.open(path) as file:
        keys = next((keys for keys in (ARRAYS, ("x", "y")) if all(key in file.keys for key in keys)), None)
        if keys is None:
            raise InputError(f"{path}: needs {', '.join(ARRAYS)}, or x, y; it holds {_listed(file.keys) or 'nothing'}")
        headers = file.headers(keys)
        for images, labels in zip(headers[::2], headers[1::2], strict=True):
            _check_pair(path, images, labels)
        arrays = [file.read(header) for header in headers]
        left_out = tuple(f"array {key}" for key in file.keys if key not in keys)
    batches = [
        (_pixels(x, f"{path}: {key}"), _labels(y, f"{path}: {other}"))
        for x, y, key, other in zip(arrays[::2], arrays[1::2], keys[::2], keys[1::2], strict=True)
    ]
    _check_labels(name, keys, batches)
    taken = f"from {keys[0]} and {keys[2]}" if len(keys) == 4 else HELD_OUT
    train, test = _split(name, batches)
    return Dataset.from_tensors(name, train, test, source=Source((), (taken,), left_out))


def _split(name: str, parts: Sequence[Batch], classes: Sequence[str] = ()) -> tuple[Batch, Batch]:
    """Return training and test part, or split a single part; every class needs training images."""
    num_classes = len(classes) or int(parts[0][1].max()) + 1
    if num_classes < 2:
        raise InputError(f"dataset {name!r}: there is only one class")
    images = len(parts[0][1])
    if len(parts) == 1 and round(TRAIN_FRACTION * images) in (0, images):
        raise InputError(
            f"dataset {name!r}: {images} images are too few to hold out one in five for testing; "
            "add images, or separate test images"
        )
    train, test = parts if len(parts) == 2 else split(*parts[0], TRAIN_FRACTION, seed=0)
    trained = set(train[1].unique().tolist())
    missing = next((label for label in range(num_classes) if label not in trained), None)
    if missing is not None:
        which = repr(classes[missing]) if classes else f"{missing} of 0 to {num_classes - 1}"
        held_out = f"; {HELD_OUT}" if len(parts) == 1 else ""
        raise InputError(f"dataset {name!r}: no training image of class {which}{held_out}")
    return train, test


def _left_out(tree: Tree, dropped: Counter[str]) -> tuple[str, ...]:
    left_out = [f"{what} ({count})" for what, count in (*sorted(tree.left_out.items()), *sorted(dropped.items()))]
    if tree.untested:
        left_out.append(f"no test images of {_listed(tree.untested)} ({len(tree.untested)})")
    return tuple(left_out)


def _listed(values: Sequence[object]) -> str:
    """List values for a message, at most :data:`LISTED` of them."""
    return ", ".join(map(str, values[:LISTED])) + (", …" if len(values) > LISTED else "")


def _absolute(path: str, data_dir: Path | None) -> Path:
    return ((data_dir or Path()) / os.path.expanduser(path)).absolute()


def _read_size(argument: str) -> tuple[str, int | None]:
    path, separator, size = argument.rpartition(_SIZE)
    if not separator:
        return argument, None
    if not (size.isascii() and size.isdigit() and 0 < int(size) < 10_000):
        raise InputError(f"dataset 'folder:{argument}': size must be a number of pixels, not {size!r}")
    return path, int(size)


def _check_pair(path: Path, images: Header, labels: Header) -> None:
    """Check the headers of images and their labels."""
    shape = list(labels.shape)
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1) or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: {labels.key} must be integers [N], not {labels.dtype} {shape}")
    what = f"{path}: {images.key}"
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise InputError(f"{what} must be uint8, or floating point in [0, 1], not {images.dtype}")
    if len(images.shape) not in (3, 4) or not images.nbytes:
        raise InputError(f"{what} must be [N, H, W], [N, H, W, C] or [N, C, H, W], not {list(images.shape)}")
    if len(images.shape) == 4 and len(_channel_axes(images.shape)) != 1:
        axes = "either the second axis or the last must be the channels, 1 to 4"
        raise InputError(f"{what} is {list(images.shape)}: {axes}")
    if images.shape[0] != shape[0]:
        raise InputError(f"{what} has {images.shape[0]} images, but {labels.key} has {shape[0]} labels")


def _channel_axes(shape: Sequence[int]) -> list[int]:
    return [axis for axis in (1, 3) if shape[axis] <= 4]


def _pixels(array: np.ndarray, what: str) -> Tensor:
    """Convert an array of images to uint8 or float32 [N, C, H, W]."""
    array = array[:, None] if array.ndim == 3 else np.moveaxis(array, _channel_axes(array.shape)[0], 1)
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array))
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and is then reported
        images = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    check_range(images, what)
    return images


def _labels(array: np.ndarray, what: str) -> Tensor:
    if array.max() >= 2**63:
        raise InputError(f"{what} holds {array.max()}, which is not a label")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))


def _check_labels(name: str, keys: Sequence[str], parts: Sequence[Batch]) -> None:
    """Raise an :class:`InputError` unless the training labels are 0 to K - 1, each at least once."""
    found = parts[0][1].unique()
    low, count = int(found[0]), len(found)
    if torch.equal(found, torch.arange(count)):
        return
    if int(found[-1]) - low == count - 1:
        labels = f"{low} to {int(found[-1])}"
        advice = f"subtract {low} from all labels" if low > 0 else f"add {-low} to all labels"
    else:
        labels = f"{_listed(found.tolist())} ({count} classes)"
        advice = f"renumber all labels: numpy.searchsorted(numpy.unique({keys[1]}), labels)"
    expected = f"{keys[1]} must hold the labels 0 to {count - 1}, each at least once"
    raise InputError(f"dataset {name!r}: {expected}, not {labels}; {advice}")
