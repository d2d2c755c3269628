"""ImageNet16-120 (Chrabaszcz et al. 2017; Dong and Yang 2020): 120 classes of ImageNet at 16×16.

Its files are pickled; they are read by an unpickler that knows nothing but plain values and NumPy arrays.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bionas_fast.data.cache import read_arrays, write_arrays
from bionas_fast.data.files import default_folder
from bionas_fast.data.registry import Dataset, register_dataset
from bionas_fast.errors import InputError

NAME = "imagenet16-120"
CLASSES = 120
#: The files, and how many of their images are of the first 120 classes.
TRAIN_FILES = tuple(f"train_data_batch_{number}" for number in range(1, 11))
TEST_FILES = ("val_data",)
COUNTS = (151_700, 6_000)
_SIDE = 16
#: The published statistics, of NAS-Bench-201.
MEAN = tuple(value / 255 for value in (122.68, 116.66, 104.01))
STD = tuple(value / 255 for value in (63.22, 61.26, 65.09))
#: The selected images, beside the files they come from.
_SELECTED = "imagenet16-120.npz"


@register_dataset(NAME)
def imagenet16_120(data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Photographs of 120 classes, 16×16 colour, 151,700 + 6,000 (P. Chrabaszcz, I. Loshchilov and F. Hutter, 2017).

    The ten files ``train_data_batch_…`` and ``val_data`` are read once; the images of the first 120 classes are then
    kept in ``imagenet16-120.npz`` beside them, which suffices from then on.

    Raises:
        InputError: a file is missing, damaged, or holds other values than arrays of images and labels; another number
            of images; ``download``, as the files must be requested from image-net.org.
    """
    root = default_folder() if data_dir is None else data_dir
    folders = (root, root / "ImageNet16", root / NAME)
    folder = next((f for f in folders if any(os.path.isfile(f / n) for n in (_SELECTED, *TRAIN_FILES))), None)
    if folder is None:
        wanted = f"{TRAIN_FILES[0]} to {TRAIN_FILES[-1]} and {TEST_FILES[0]}"
        how = "they cannot be downloaded without an account: get the 16×16 images from image-net.org (Downsampled)"
        raise InputError(f"dataset {NAME!r}: no files {wanted} in {', '.join(map(str, folders))}; {how}")
    kept = read_arrays(folder / _SELECTED) if os.path.isfile(folder / _SELECTED) else None
    if kept is None:
        parts = [_read_part(folder, files) for files in (TRAIN_FILES, TEST_FILES)]
        kept = dict(zip(("x_train", "y_train", "x_test", "y_test"), (a for part in parts for a in part), strict=True))
        _expect_counts(kept, folder)
        write_arrays(folder / _SELECTED, kept)
    else:
        _expect_counts(kept, folder / _SELECTED)
    images, labels, test_images, test_labels = (
        _tensor(kept[name]) for name in ("x_train", "y_train", "x_test", "y_test")
    )
    return Dataset(NAME, images, labels.long(), test_images, test_labels.long(), CLASSES, MEAN, STD)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _expect_counts(arrays: Mapping[str, np.ndarray], place: Path) -> None:
    for part, count in zip(("train", "test"), COUNTS, strict=True):
        images, labels = arrays.get(f"x_{part}"), arrays.get(f"y_{part}")
        expected = (count, 3, _SIDE, _SIDE)
        if images is None or labels is None or images.shape != expected or labels.shape != (count,):
            got = "nothing" if images is None else list(images.shape)
            raise InputError(
                f"{place}: expected {list(expected)} {part} images of classes 1 to {CLASSES}, got {got}; "
                "the files are incomplete, or of another selection"
            )


def _read_part(folder: Path, files: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Read the images [N, 3, 16, 16] and labels [N] from 0 of the first 120 classes."""
    images, labels = [], []
    for name in files:
        data, numbers = _read_file(folder / name)
        chosen = (numbers >= 1) & (numbers <= CLASSES)
        images.append(data[chosen].reshape(-1, 3, _SIDE, _SIDE))
        labels.append((numbers[chosen] - 1).astype(np.uint8))
    return np.concatenate(images), np.concatenate(labels)


def _read_file(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not os.path.isfile(path):
        raise InputError(f"dataset {NAME!r}: no file {path}")
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
    except InputError as error:
        raise error.at(str(path)) from None
    except Exception as error:  # on damaged files the unpickler raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged or truncated: {reason:.200}") from None
    data, labels = (content.get(key) for key in ("data", "labels")) if isinstance(content, dict) else (None, None)
    pixels = 3 * _SIDE**2
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != pixels:
        raise InputError(f"{path}: expected 'data' to be uint8 [N, {pixels}]")
    try:
        numbers = np.asarray(labels)
    except ValueError:
        numbers = np.empty(0)
    if numbers.shape != (len(data),) or numbers.dtype.kind not in "iu":
        raise InputError(f"{path}: expected 'labels' to be {len(data)} integers, one per image")
    return data, numbers


class _Unpickler(pickle.Unpickler):
    """An unpickler of plain values and NumPy arrays."""

    _ALLOWED = frozenset(
        (module, name)
        for package in ("numpy.core", "numpy._core")
        for module, name in ((f"{package}.multiarray", "_reconstruct"), (f"{package}.numeric", "_frombuffer"))
    ) | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise InputError(f"it holds {module}.{name}, which is not read from a file")
        if name == "dtype":
            return _plain_dtype
        return super().find_class(module, name)


def _plain_dtype(name: Any, *arguments: Any) -> np.dtype:
    """Build a dtype of numbers; arrays of objects would hold anything."""
    dtype = np.dtype(name, *arguments)
    if dtype.kind not in "iuf":
        raise InputError(f"it holds an array of {dtype}, not of numbers")
    return dtype
