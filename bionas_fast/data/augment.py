"""Augmentation of training images in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from bionas_fast.choices import Policy
from bionas_fast.errors import InputError, unknown
from bionas_fast.runtime.device import to_device
from bionas_fast.runtime.isolation import seeded


class Drawn(NamedTuple):
    """Crops of n images.

    Attributes:
        mirrored: bool [n, 1]; None if none is.
        offsets: row and column in the padded image, int64 [2, n, 1]; None if nothing is cropped.
    """

    mirrored: Tensor | None
    offsets: Tensor | None


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images, drawn independently for every image.

    Attributes:
        flip: mirror left and right with probability 1/2.
        crop_padding: pad with this many black pixels on every side, then crop a window of the original size.
        cutout: side of the blanked square, which is centred anywhere in the image and clipped at its border
            (DeVries and Taylor, 2017, arXiv:1708.04552; DARTS trains with 16).
        policy: further random operations, between crop and cutout.

    Raises:
        InputError: a size is negative or not an integer; an unknown policy.
    """

    flip: bool = False
    crop_padding: int = 0
    cutout: int = 0
    policy: Policy = "none"

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 0:
                raise InputError(f"{name} must be a number of pixels, 0 or more, not {size!r}")
        if self.policy not in get_args(Policy):
            raise unknown("policy", self.policy, get_args(Policy))

    def __call__(self, images: Tensor, generator: torch.Generator, blank: Tensor | float = 0.0) -> Tensor:
        """Augment images; the input is not modified.

        Args:
            images: float [N, C, H, W].
            generator: a generator on the CPU, so that a seed gives the same images on every device.
            blank: fill value of cutout, broadcast to [N, C, H, W]; the mean gives 0 after normalisation.

        Returns:
            [N, C, H, W], contiguous.
        """
        size = (int(images.shape[2]), int(images.shape[3]))
        drawn = self.draw(len(images), generator)
        images = self.crop(self.prepare(images), torch.arange(len(images)), size, drawn)
        return self.change(images, generator, blank)

    def prepare(self, images: Tensor) -> Tensor:
        """Arrange images [N, C, H, W] for :meth:`crop`: padded, [N, positions, C], if there is a crop or a flip."""
        if not (self.flip or self.crop_padding):
            return images
        padded = torch.nn.functional.pad(images, (self.crop_padding,) * 4)
        return padded.permute(0, 2, 3, 1).flatten(1, 2).contiguous()

    def draw(self, n: int, generator: torch.Generator) -> Drawn:
        """Draw the crops and the mirroring of ``n`` images."""
        mirrored = torch.rand(n, 1, generator=generator) < 0.5 if self.flip else None
        padding = self.crop_padding
        offsets = torch.randint(2 * padding + 1, (2, n, 1), generator=generator) if padding else None
        return Drawn(mirrored, offsets)

    def crop(self, prepared: Tensor, indices: Tensor, size: tuple[int, int], drawn: Drawn) -> Tensor:
        """Take images from :meth:`prepare`, cropped and flipped.

        Args:
            prepared: the images, in any format.
            indices: int64 [n], the images to take.
            size: (H, W) of an image before padding.
            drawn: their crops.

        Returns:
            A copy, [n, C, H, W], contiguous.
        """
        if not (self.flip or self.crop_padding):
            return prepared[indices]
        n, (height, width) = len(indices), size
        y, x = (torch.arange(side).expand(n, side) for side in size)  # [n, H], [n, W]: source pixels
        if drawn.mirrored is not None:
            x = torch.where(drawn.mirrored, x.flip(1), x)
        if drawn.offsets is not None:
            y, x = y + drawn.offsets[0], x + drawn.offsets[1]
        device, (total, positions, channels) = prepared.device, prepared.shape
        lines = to_device(indices, device)[:, None] * positions
        lines = lines + to_device(y * (width + 2 * self.crop_padding), device)
        index = torch.int32 if total * positions < 2**31 else torch.int64
        rows = lines.to(index)[:, :, None] + to_device(x.to(index), device)[:, None, :]
        # Whole pixels, one after the other: several times faster than indexing each channel.
        pixels = prepared.view(-1, channels).index_select(0, rows.flatten())
        return pixels.view(n, height, width, channels).permute(0, 3, 1, 2).contiguous()

    def fused(self, images: Tensor, indices: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
        """Take images, crop, flip and cut them out, and normalise them, in one pass of a compiled kernel.

        The result is bit-identical to that of :meth:`crop` and :meth:`change`, normalised; there is no policy.

        Args:
            images: uint8 [N, C, H, W], on the CPU, contiguous.
            indices: int64 [n], the images to take.
            values: float32 [C, 256], the normalised value of each byte.
            generator: a generator on the CPU.

        Returns:
            float32 [n, C, H, W].
        """
        n, drawn = len(indices), self.draw(len(indices), generator)
        place = torch.zeros(5, n, dtype=torch.int64)
        if drawn.offsets is not None:
            place[:2] = drawn.offsets[:, :, 0] - self.crop_padding
        if drawn.mirrored is not None:
            place[2] = drawn.mirrored[:, 0]
        if self.cutout:
            place[3:] = self._starts(n, images.shape[2:], generator)[:, :, 0]
        return torch.ops.bionas_fast_native.augment(images, indices, place.T.contiguous(), self.cutout, values)

    def change(self, images: Tensor, generator: torch.Generator, blank: Tensor | float = 0.0) -> Tensor:
        """Apply the policy and cutout; arguments as of the call."""
        if self.operations is not None:
            images = self._apply(self.operations, images, generator)
        if self.cutout:
            images = torch.where(self._holes(images, generator), torch.as_tensor(blank).to(images), images)
        return images

    @cached_property
    def operations(self) -> Callable[[Any], Any] | None:
        """The transform of torchvision that applies the policy to one image; None without a policy."""
        if self.policy == "none":
            return None
        from torchvision.transforms import v2  # slow to import

        if self.policy == "randaugment":
            return v2.RandAugment()
        if self.policy == "trivialaugment":
            return v2.TrivialAugmentWide()
        return v2.AutoAugment(v2.AutoAugmentPolicy(self.policy.removeprefix("autoaugment-")))

    def _apply(self, operations: Callable[[Tensor], Tensor], images: Tensor, generator: torch.Generator) -> Tensor:
        """Apply operations to each image by itself; torchvision draws from PyTorch's generator."""
        seed = int(torch.randint(2**62, (), generator=generator))
        with seeded(seed):
            return torch.stack([operations(image) for image in images.cpu()]).to(images.device)

    def _starts(self, n: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw the first row and column of each square: int64 [2, n, 1], maybe negative."""
        return torch.stack([torch.randint(side, (n, 1), generator=generator) for side in size]) - self.cutout // 2

    def _holes(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, _, *size = images.shape

        def covered(start: Tensor, side: int) -> Tensor:
            pixel = torch.arange(side)
            return (pixel >= start) & (pixel < start + self.cutout)

        y, x = (covered(*pair) for pair in zip(self._starts(n, size, generator), size, strict=True))
        return to_device(y[:, None, :, None] & x[:, None, None, :], images.device)
