"""The layout of maps in the memory of a backend: images of few channels lie side by side in the lanes of a vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bionas_fast.kernels.records import Moments


@dataclass(frozen=True)
class Layout:
    """Maps [N, H, W, C] as [N / images, H, W, images · width], with ``width`` at least C and zeros beyond.

    Every operation on single channels is the same in both; matrix products have a block for each image, and sums over
    positions are those of all images.
    """

    channels: int
    images: int
    width: int

    @property
    def lanes(self) -> int:
        """The number of channels of a map in this layout."""
        return self.images * self.width

    @classmethod
    def of(cls, x: Tensor, multiple: int, most_images: int) -> Layout:
        """Return the layout of maps like x whose lanes are a multiple of a number.

        Args:
            x: [N, H, W, C].
            most_images: 1, or how many images may lie side by side, a power of two.
        """
        count, channels = x.shape[0], x.shape[-1]
        images = most_images
        while images > 1 and (channels * images > multiple or count % images):
            images //= 2
        width = multiple // images if images > 1 else -(-channels // multiple) * multiple
        return cls(channels, images, width)

    def pack(self, x: Tensor) -> Tensor:
        """Copy [N, H, W, C] into this layout, or return it if it has it."""
        padded = self._pad(x.contiguous())
        if self.images == 1:
            return padded
        count, height, width, _ = x.shape
        apart = padded.view(count // self.images, self.images, height, width, self.width)
        together = apart.permute(0, 2, 3, 1, 4).contiguous()
        return together.view(count // self.images, height, width, self.lanes)

    def unpack(self, x: Tensor) -> Tensor:
        """Copy out of this layout, maps [N, H, W, C] or several of them; contiguous."""
        if self.lanes == self.channels:
            return x
        *several, count, height, width, _ = x.shape
        apart = x.view(*several, count, height, width, self.images, self.width)[..., : self.channels]
        if self.images == 1:
            return apart[..., 0, :].contiguous()
        return apart.movedim(-2, -4).contiguous().view(*several, count * self.images, height, width, self.channels)

    def rows(self, values: Tensor, fill: float = 0) -> Tensor:
        """Repeat a number for each channel, [K, C], for each image: [K, lanes]."""
        padded = self._pad(values, fill)
        return padded.repeat(1, self.images) if self.images > 1 else padded

    def moments(self, mean: Tensor, var: Tensor) -> Moments:
        """Return mean and variance, [K, C], in float64 and in this layout."""
        return Moments(self.rows(mean.double()), self.rows(var.double(), 1.0))

    def _pad(self, x: Tensor, fill: float = 0) -> Tensor:
        missing = self.width - x.shape[-1]
        return torch.nn.functional.pad(x, (0, missing), value=fill) if missing else x
