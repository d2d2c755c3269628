"""``small:NAME``, part of another dataset with smaller images, for experiments on two cores."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast.data.batches import split
from bionas_fast.data.dataset import Dataset
from bionas_fast.data.registry import load_dataset, register_dataset
from bionas_fast.errors import InputError

#: The name of the scheme.
SMALL = "small:"
_FORM = re.compile(r"([a-z0-9-]+),images=(\d{1,9})(?:,shrink=(\d{1,3}))?")


class Part(NamedTuple):
    """The part of a dataset that a name such as ``small:fashion-mnist,images=5000,shrink=2`` stands for.

    Attributes:
        name: the name of the whole dataset.
        images: number of training images.
        shrink: pixels that are averaged per direction.
    """

    name: str
    images: int
    shrink: int

    @classmethod
    def parse(cls, argument: str) -> Part:
        """Parse what follows the colon.

        Raises:
            InputError: another form.
        """
        found = _FORM.fullmatch(argument)
        if found is None:
            example = f"{SMALL}fashion-mnist,images=5000,shrink=2"
            raise InputError(f"dataset {SMALL + argument!r}: expected a form such as {example}")
        return cls(found[1], int(found[2]), int(found[3] or 1))


@register_dataset(SMALL)
def small(argument: str, data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Some training images of another dataset and all of its test images: ``small:fashion-mnist,images=5000,shrink=2``.

    The training images are drawn by a fixed seed, in the proportions of the classes. With ``shrink=2`` images have half
    the height and width: each pixel is the mean of a square of four.

    Raises:
        InputError: another form, or a size that does not divide that of the images; otherwise as of the dataset.
    """
    name, part = f"{SMALL}{argument}", Part.parse(argument)
    whole = load_dataset(part.name, data_dir, download=download, seed=seed)
    images, shrink = part.images, part.shrink
    if not 0 < images <= len(whole.labels):
        raise InputError(f"dataset {name!r}: images must be 1 to {len(whole.labels)}, not {images}")
    if shrink < 1 or any(side % shrink for side in whole.image_size):
        height, width = whole.image_size
        raise InputError(f"dataset {name!r}: shrink must divide the size of the images, {height}×{width}, not {shrink}")
    chosen = (whole.images, whole.labels)
    if images < len(whole.labels):
        chosen, _ = split(*chosen, images / len(whole.labels), seed=0)
    train, test = ((_shrunk(x, shrink), y) for x, y in (chosen, (whole.test_images, whole.test_labels)))
    return Dataset.from_tensors(name, train, test, whole.num_classes, whole.source)


def _shrunk(images: Tensor, factor: int) -> Tensor:
    """Average squares of ``factor`` pixels; uint8 images are rounded."""
    if factor == 1:
        return images
    means = F.avg_pool2d(images.float(), factor)
    return means.round().to(torch.uint8) if images.dtype == torch.uint8 else means
