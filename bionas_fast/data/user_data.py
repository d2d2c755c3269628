"""User data: ``folder:PATH``, one image folder per class, and ``npz:FILE``, arrays.

Both are read into memory. Without separate test images, one image in five of each class, always the same ones, is
held out.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bionas_fast.data.batches import Batch, split
from bionas_fast.data.registry import Dataset, register_dataset
from bionas_fast.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

TRAIN_FRACTION = 0.8
ARRAYS = ("x_train", "y_train", "x_test", "y_test")

_SIZE = ",size="
_GREY = ("1", "L", "LA", "La")


@register_dataset("folder:")
def folder(argument: str, data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Load images from ``PATH/train/<class>/`` and ``PATH/test/<class>/``, or from ``PATH/<class>/``.

    The layout is that of torchvision's ``ImageFolder``. Classes are numbered in the order of their names. Images have
    one channel if all of them are greyscale, otherwise three; transparency is dropped. All must have the same size,
    unless one is set: ``folder:PATH,size=32`` scales the shorter side to 32 pixels and crops the central square.

    Raises:
        InputError: no such folder, a class without images, a single class, a test class missing from the training
            classes, a file that is damaged or has more than 8 bits per channel, images of different sizes.
    """
    name = f"folder:{argument}"
    path, size = _read_size(argument)
    root = _absolute(path, data_dir)
    if not os.path.isdir(root):
        raise InputError(f"dataset {name!r}: no folder {root}")
    parts = [root / "train", root / "test"]
    missing = [part for part in parts if not os.path.isdir(part)]
    if len(missing) == 1:
        raise InputError(f"dataset {name!r}: no folder {missing[0]}; train and test are both required")
    roots = [root] if missing else parts
    classes = _classes(roots[0])
    for test_class in _classes(roots[-1]):
        if test_class not in classes:
            raise InputError(f"dataset {name!r}: class {test_class!r} is in {roots[-1]}, but not in {roots[0]}")
    files = [_image_files(part, classes) for part in roots]
    images = _read_images([path for part in files for path, _ in part], size, name)
    labels = torch.tensor([label for part in files for _, label in part], dtype=torch.int64)
    lengths = [len(part) for part in files]
    return _dataset(name, list(zip(images.split(lengths), labels.split(lengths), strict=True)), classes)


@register_dataset("npz:")
def npz(argument: str, data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Load arrays ``x_train, y_train, x_test, y_test``, or ``x, y``, from a file written by :func:`numpy.savez`.

    Images are uint8, or floating point in [0, 1]: [N, H, W], [N, H, W, C] or [N, C, H, W]. C is whichever of the two
    axes has length 1 to 4. Labels are integers from 0, [N] or [N, 1].

    Raises:
        InputError: no such file, a damaged one, one that holds Python objects (nothing is unpickled), or arrays
            of another format.
    """
    name = f"npz:{argument}"
    path = _absolute(argument, data_dir)
    if not os.path.isfile(path):
        raise InputError(f"dataset {name!r}: no file {path}")
    with _readable(path, "a file"), open(path, "rb"):
        pass
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an .npz file, or a damaged one")
    with _readable(path, "an .npz file"), np.load(path, allow_pickle=False) as file:
        groups = (ARRAYS, ("x", "y"))
        keys = next((keys for keys in groups if all(key in file.files for key in keys)), None)
        if keys is None:
            content = ", ".join(file.files) or "nothing"
            raise InputError(f"{path}: needs {', '.join(ARRAYS)}, or x, y; it holds {content}")
        arrays = {key: _read_array(file, key, path) for key in keys}
    pairs = zip(keys[::2], keys[1::2], strict=True)
    return _dataset(name, [_pair(path, x, arrays[x], y, arrays[y]) for x, y in pairs])


def _dataset(name: str, parts: Sequence[Batch], classes: Sequence[str] | None = None) -> Dataset:
    """Create a dataset from (training, test) parts, or from one part to split; every class needs training images."""
    train, test = parts if len(parts) == 2 else split(*parts[0], TRAIN_FRACTION, seed=0)
    trained = set(train[1].unique().tolist())
    if min(trained) < 0:
        raise InputError(f"dataset {name!r}: labels must be 0 or more, not {min(trained)}")
    num_classes = int(parts[0][1].max()) + 1 if classes is None else len(classes)
    missing = next((label for label in range(num_classes) if label not in trained), None)
    if missing is not None:
        which = f"{missing} of 0 to {num_classes - 1}" if classes is None else repr(classes[missing])
        held_out = "; one image in five of every class is held out for testing" if len(parts) == 1 else ""
        raise InputError(f"dataset {name!r}: no training image of class {which}{held_out}")
    if num_classes < 2:
        raise InputError(f"dataset {name!r}: there is only one class")
    return Dataset.from_tensors(name, train, test, num_classes)


def _absolute(path: str, data_dir: Path | None) -> Path:
    return ((data_dir or Path()) / os.path.expanduser(path)).absolute()


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # on a damaged file the reader raises nearly anything
        raise InputError(f"{path}: cannot be read as {what}: {str(error).partition(chr(10))[0]}") from error


def _read_size(argument: str) -> tuple[str, int | None]:
    path, separator, size = argument.rpartition(_SIZE)
    if not separator:
        return argument, None
    if not (size.isascii() and size.isdigit() and 0 < int(size) < 10_000):
        raise InputError(f"dataset 'folder:{argument}': size must be a number of pixels, not {size!r}")
    return path, int(size)


def _classes(root: Path) -> list[str]:
    with _readable(root, "a folder"):
        return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_files(root: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """List (file, label) of every image, class by class; a class without a folder has none."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    pairs = []
    for label, name in enumerate(classes):
        tree = sorted(os.walk(root / name, followlinks=True))
        files = [Path(place, file) for place, _, names in tree for file in sorted(names) if not file.startswith(".")]
        images = [file for file in files if file.suffix.lower() in IMG_EXTENSIONS]
        if tree and not images:
            raise InputError(f"no images in {root / name}; images end in {', '.join(IMG_EXTENSIONS)}")
        pairs += [(file, label) for file in images]
    if not pairs:
        raise InputError(f"no images in {root}: expected one folder per class")
    return pairs


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    from PIL import Image

    with _readable(path, "an image"), Image.open(path) as image:
        yield image


def _read_images(paths: Sequence[Path], size: int | None, name: str) -> Tensor:
    """Read images as uint8 [N, 1 or 3, H, W]. Headers are checked before any image is decoded."""
    from PIL import Image, ImageOps

    grey, shape = True, (size, size) if size else None
    for path in paths:
        with _open_image(path) as image:
            if image.mode[0] in "IF":
                raise InputError(f"{path}: more than 8 bits per channel ({image.mode}); make it 8, or use npz:FILE")
            grey = grey and image.mode in _GREY
            shape = shape or image.size
            if not size and image.size != shape:
                one, other = ("×".join(map(str, pixels)) for pixels in (shape, image.size))
                raise InputError(
                    f"{paths[0]} has {one} pixels, but {path} has {other}; {name}{_SIZE}{min(shape)} resizes them"
                )
    assert shape is not None
    width, height = shape
    images = torch.empty(len(paths), 1 if grey else 3, height, width, dtype=torch.uint8)
    for into, path in zip(images, paths, strict=True):
        with _open_image(path) as image:
            pixels = image.convert("L" if grey else "RGB")
            if size:
                pixels = ImageOps.fit(pixels, shape, Image.Resampling.BILINEAR)
            into.copy_(torch.from_numpy(np.array(pixels)).view(height, width, -1).permute(2, 0, 1))
    return images


def _read_array(file: Any, key: str, path: Path) -> np.ndarray:
    try:
        array = file[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise InputError(f"{path}: {key} holds Python objects, which are not unpickled; save plain arrays") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: {key} is not an array")
    return array


def _pair(path: Path, x: str, images: np.ndarray, y: str, labels: np.ndarray) -> Batch:
    if len(labels.shape) not in (1, 2) or labels.size != len(labels) or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: {y} must be integers [N], not {labels.dtype} {list(labels.shape)}")
    if labels.size and labels.max() >= 2**63:
        raise InputError(f"{path}: {y} holds {labels.max()}, which is not a label")
    pixels = _pixels(images, f"{path}: {x}")
    if len(pixels) != len(labels):
        raise InputError(f"{path}: {x} has {len(pixels)} images, but {y} has {len(labels)} labels")
    return pixels, torch.from_numpy(labels.reshape(-1).astype(np.int64))


def _pixels(array: np.ndarray, what: str) -> Tensor:
    """Convert an array of images to uint8 or float32 [N, C, H, W]."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputError(f"{what} must be uint8, or floating point in [0, 1], not {array.dtype}")
    if array.ndim not in (3, 4) or not array.size:
        raise InputError(f"{what} must be [N, H, W], [N, H, W, C] or [N, C, H, W], not {list(array.shape)}")
    if array.ndim == 3:
        array = array[:, None]
    else:
        channels = [axis for axis in (1, 3) if array.shape[axis] <= 4]
        if len(channels) != 1:
            raise InputError(
                f"{what} is {list(array.shape)}: either the second axis or the last must be the channels, 1 to 4"
            )
        array = np.moveaxis(array, channels[0], 1)
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array))
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise InputError(f"{what}: image {int(finite.argmin())} holds NaN or infinity")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
