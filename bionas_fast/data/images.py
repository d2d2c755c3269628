"""Image files: headers checked before any image is decoded, then all images in one tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bionas_fast.data import memory
from bionas_fast.data.depth import read_samples
from bionas_fast.data.files import readable, require_regular
from bionas_fast.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

#: Names of image files end in one of these, in any case.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif", ".tiff"),
    *(".webp", ".gif", ".jp2", ".j2k", ".avif"),
)

#: Pillow's names of the formats whose depth :func:`read_samples` reads; Pillow tries no other reader.
_FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "PPM", "AVIF", "WEBP", "GIF", "BMP")
_GREY = ("1", "L", "LA", "La")
_ORIENTATION = 0x0112  # the EXIF tag
_TURNED = (5, 6, 7, 8)  # orientations that exchange width and height

_TRANSPARENCY = "transparency of images"
_PREVIEWS = "embedded previews of images"

#: Bytes per pixel of one image while it is decoded: Pillow's image, its copies, and the array.
_DECODING = 16


class ImageSet(NamedTuple):
    """Images read from files: uint8 [N, 1 or 3, H, W], and the number of files by what was dropped from them."""

    images: Tensor
    dropped: Counter[str]


class _Header(NamedTuple):
    size: tuple[int, int]  # width and height, upright
    grey: bool
    previews: bool  # further frames that are no pictures of their own


def read_images(paths: Sequence[Path], size: int | None, name: str) -> ImageSet:
    """Read images upright, as EXIF says; greyscale if all of them are, otherwise RGB. Transparency is dropped.

    Args:
        paths: the files.
        size: scale the shorter side to this many pixels and crop the central square; None requires equal sizes.
        name: name of the dataset, for messages.

    Raises:
        InputError: a file is damaged, has more than 8 bits per channel or several frames; images of different sizes; or
            the images do not fit into memory.
    """
    from PIL import Image, ImageOps

    grey, shape, largest = True, (size, size) if size else None, 0
    dropped: Counter[str] = Counter()
    for path in paths:
        header = _read_header(path)
        grey = grey and header.grey
        shape = shape or header.size
        dropped[_PREVIEWS] += header.previews
        largest = max(largest, header.size[0] * header.size[1])
        if not size and header.size != shape:
            hint = f"; {name},size={min(shape)} resizes them, and in_memory=false crops them in training"
            raise InputError(f"{paths[0]} has {_pixels(shape)} pixels, but {path} has {_pixels(header.size)}{hint}")
    assert shape is not None
    (width, height), channels = shape, 1 if grey else 3
    # Twice, because a split copies the images.
    needed = 2 * len(paths) * channels * height * width + _DECODING * largest
    hint = "" if size else f"; {name},size=… reduces them"
    memory.require(needed, f"dataset {name!r}: {len(paths)} images of {channels}×{height}×{width}", hint)
    with memory.allocating(f"dataset {name!r}"):
        images = torch.empty(len(paths), channels, height, width, dtype=torch.uint8)
    for into, path in zip(images, paths, strict=True):
        with _open_image(path) as image:
            pixels, has_alpha = _flatten(ImageOps.exif_transpose(image), "L" if grey else "RGB")
            if size:
                pixels = ImageOps.fit(pixels, shape, Image.Resampling.BILINEAR)
            if pixels.size != shape:
                raise InputError(f"{path}: its header says {_pixels(shape)} pixels, but it has {_pixels(pixels.size)}")
            into.copy_(torch.from_numpy(np.array(pixels)).view(height, width, -1).permute(2, 0, 1))
            dropped[_TRANSPARENCY] += has_alpha
    return ImageSet(images, +dropped)


def _pixels(size: tuple[int, int]) -> str:
    return "×".join(map(str, size))


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    from PIL import Image

    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]  # a build of Pillow may lack one
    with readable(path, "an image"), Image.open(path, formats=formats) as image:
        yield image


@contextmanager
def _checked_image(path: Path) -> Iterator[tuple[Image.Image, int]]:
    """Open an image of 8 bits per channel and one frame; yield it and its number of embedded previews."""
    require_regular(path)
    with readable(path, "an image"), open(path, "rb") as file:
        samples = read_samples(file)
    if samples and (samples.bits > 8 or samples.kind != "unsigned"):
        more = f"more than 8 bits per channel ({samples})" if samples.bits > 8 else f"{samples} values"
        raise InputError(f"{path}: {more}; expected unsigned 8-bit values: convert the file, or use npz:FILE")
    with _open_image(path) as image:
        if not samples or image.mode[0] in "IF":
            raise InputError(f"{path}: a header without a known number of bits per channel ({image.mode})")
        frames, previews = _frames(image)
        if frames > 1:
            raise InputError(f"{path}: {frames} frames or pages; expected one image per file: store each in its own")
        yield image, previews


def _read_header(path: Path) -> _Header:
    with _checked_image(path) as (image, previews):
        width, height = _stored_size(image)
        size = (height, width) if _orientation(image) in _TURNED else (width, height)
        return _Header(size, image.mode in _GREY, previews > 0)


def read_image(path: Path) -> Image.Image:
    """Decode one image, upright and in RGB; transparency is dropped.

    Raises:
        InputError: the file is missing or damaged, has more than 8 bits per channel or several frames.
    """
    from PIL import ImageOps

    with _checked_image(path) as (image, _):
        return _flatten(ImageOps.exif_transpose(image), "RGB")[0]


def image_size(path: Path) -> tuple[int, int]:
    """Read the width and height of an image, upright, from its header; errors as of :func:`read_image`."""
    return _read_header(path).size


def _frames(image: Image.Image) -> tuple[int, int]:
    """Count the pictures of a file, and the previews and gain maps that cameras append to a photograph (MPO)."""
    count = int(getattr(image, "n_frames", 1)) if getattr(image, "is_animated", False) else 1
    if image.format != "MPO":
        return count, 0
    entries: Any = getattr(image, "mpinfo", {}).get(0xB002, ())
    kinds = [str(entry.get("Attribute", {}).get("MPType", "")) for entry in entries]
    pictures = max(1, sum(kind.startswith("Multi-Frame") for kind in kinds))
    return pictures, count - pictures


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) as stored; versions of Pillow differ in whether a TIFF's size is upright."""
    tags: Any = getattr(image, "tag_v2", None)
    return (int(tags[256]), int(tags[257])) if tags is not None else image.size


def _orientation(image: Image.Image) -> int:
    from PIL import Image

    if image.format == "PNG" and not _late_metadata(image):
        # PngImageFile.getexif would decode the image to look for metadata behind it.
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    return int(image.getexif().get(_ORIENTATION, 1))


def _late_metadata(image: Any) -> bool:
    """Whether a PNG has chunks with metadata after its pixels."""
    with open(image.filename, "rb") as file:
        file.seek(8)
        pixels = False
        while len(head := file.read(8)) == 8:
            pixels = pixels or head[4:] == b"IDAT"
            if pixels and head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)
    return False


def _flatten(image: Image.Image, mode: str) -> tuple[Image.Image, bool]:
    """Convert to L or RGB, the colours as stored; and whether a pixel is transparent."""
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert(mode), False
    image = image.convert("LA" if mode == "L" else "RGBA")
    opaque = np.array(image.getchannel("A")).min() == 255
    return image.convert(mode), not opaque
