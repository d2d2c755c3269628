"""``noise:CxHxW``, random images, for measuring and for trying settings without data."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import torch

from bionas_fast.data import memory
from bionas_fast.data.dataset import Dataset
from bionas_fast.data.registry import register_dataset
from bionas_fast.errors import InputError

_FORM = re.compile(r"(\d{1,6})x(\d{1,6})x(\d{1,6}),classes=(\d{1,6}),images=(\d{1,9})")


@register_dataset("noise:")
def noise(argument: str, data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Random uint8 images, as many for training as for testing: ``noise:3x32x32,classes=10,images=50000``.

    Raises:
        InputError: another form, a number of 0, or more than fits into memory.
    """
    name = f"noise:{argument}"
    found = _FORM.fullmatch(argument)
    numbers = [int(number) for number in found.groups()] if found else []
    if not numbers or min(numbers) < 1:
        raise InputError(f"dataset {name!r}: expected a form such as noise:3x32x32,classes=10,images=50000")
    *image, classes, images = numbers
    memory.require(2 * images * prod(image), f"the images of dataset {name!r}")
    generator = torch.Generator().manual_seed(seed)

    def part() -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randint(256, (images, *image), generator=generator, dtype=torch.uint8)
        return x, torch.arange(images) % classes

    return Dataset.from_tensors(name, part(), part(), classes)
