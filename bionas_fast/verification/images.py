"""Checks of the augmentation of images by a compiled kernel, which must be bit-identical to plain PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bionas_fast.data.augment import Augment
from bionas_fast.verification.check import Check, Expected, Target

SHAPES = ((5, 1, 7, 9), (9, 3, 32, 32))
AUGMENTS = (Augment(flip=True), Augment(crop_padding=4, cutout=5), Augment(flip=True, crop_padding=2, cutout=16))


def checks(target: Target) -> Iterator[Check]:
    """Make the checks of crops, mirrored images and cutout."""
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        values = torch.randn(shape[1], 256, generator=generator)
        indices = torch.randint(shape[0], (2 * shape[0],), generator=generator)
        for augment in AUGMENTS:

            def run(images: Tensor, indices: Tensor, values: Tensor, augment: Augment = augment) -> list[Tensor]:
                return [augment.fused(images, indices, values, torch.Generator().manual_seed(1))]

            def expect(images: Tensor, indices: Tensor, values: Tensor, augment: Augment = augment) -> Expected:
                own = torch.Generator().manual_seed(1)
                drawn, size = augment.draw(len(indices), own), (images.shape[2], images.shape[3])
                levels = augment.crop(augment.prepare(images.double()), indices, size, drawn).long()
                normalised = values.gather(1, levels.transpose(0, 1).flatten(1)).view(len(values), len(levels), *size)
                right = augment.change(normalised.transpose(0, 1), own)
                return Expected([right], [torch.ones_like(right)], [0.0])

            words = [f"{name} {value}" for name, value in vars(augment).items() if value and name != "policy"]
            text = " ".join(["x".join(map(str, shape)), *words])
            yield Check("augmentation", text, (images, indices, values), run, expect)
