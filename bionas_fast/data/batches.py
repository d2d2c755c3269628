"""In-memory batches: split, shuffle, augment and normalise, vectorised over images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bionas_fast import native
from bionas_fast.data import memory
from bionas_fast.data.augment import Augment
from bionas_fast.data.labelled import Batch, LabelledImages, Stream, stratified
from bionas_fast.errors import InputError
from bionas_fast.runtime.device import to_device

#: Bytes of a batch from which on the free memory is looked up.
LARGE_BATCH = 2**27

Statistics = Sequence[float] | Tensor


def as_float(images: Tensor) -> Tensor:
    """Convert images to float32 in [0, 1]: divide uint8 by 255, leave floating point unchanged."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def normalise(images: Tensor, mean: Statistics, std: Statistics) -> Tensor:
    """Convert images to float32 and normalise them: (images - mean) / std.

    Args:
        images: [N, C, H, W], uint8 or float32 in [0, 1].
        mean: one value per channel, in units of [0, 1]; a single value applies to all channels.
        std: one value per channel, in units of [0, 1]; a single value applies to all channels.

    Returns:
        float32 [N, C, H, W].
    """
    return (as_float(images) - _per_channel(mean, images.device)) / _per_channel(std, images.device)


def check_range(images: Tensor, what: str) -> None:
    """Raise an :class:`InputError` unless all values of floating-point images [N, ...] lie in [0, 1].

    The message says how many images are wrong, and which is the first.
    """
    low, high = (float(bound) for bound in images.aminmax())
    if low >= 0 and high <= 1:  # in this form it also rejects NaN
        return
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        raise InputError(f"{what}: {_which(~finite)} NaN or infinity")
    wrong = ((images < 0) | (images > 1)).flatten(1).any(1)
    hint = "; divide them by 255, or save them as uint8" if low >= 0 and 1 < high <= 255 else ""
    raise InputError(f"{what} must lie in [0, 1], not in [{low:g}, {high:g}]: {_which(wrong)} other values{hint}")


def check_finite(images: Tensor, what: str = "images") -> None:
    """Raise an :class:`InputError` if an image of [N, ...] holds NaN or infinity."""
    if images.is_floating_point() and images.numel() and not images.sum().isfinite():
        finite = images.isfinite().flatten(1).all(1)
        if not finite.all():
            raise InputError(f"{what}: {_which(~finite)} NaN or infinity")


def _which(wrong: Tensor) -> str:
    count, first = int(wrong.sum()), int(wrong.int().argmax())
    hold = "holds" if count == 1 else "hold"
    return f"{count} of {len(wrong)} images, the first at index {first}, {hold}"


def split(
    images: Tensor, labels: Tensor, fraction: float, seed: int, *, setting: str = "fraction"
) -> tuple[Batch, Batch]:
    """Split a dataset into two disjoint parts with equal class proportions (stratified).

    Args:
        images: [N, ...].
        labels: int64 [N].
        fraction, seed, setting: as of :func:`stratified`, which chooses the first part.

    Returns:
        ((images, labels), (images, labels)), each in the original order.

    Raises:
        InputError: the numbers of labels and images differ, or a part would be empty.
    """
    _check(images, labels)
    first = stratified(labels, fraction, seed, setting=setting)
    first_images = first.to(images.device)
    return (images[first_images], labels[first]), (images[~first_images], labels[~first])


class BatchStream(Stream):
    """Stream of batches of images in memory: cropped and flipped, cut out, normalised.

    The stream is a function of ``seed`` alone, on every device. The data is moved to the device once. Under data
    parallelism, give every rank the same stream of the global batch and let it take its shard: then the
    result does not depend on the number of ranks.

    Args:
        images: [N, C, H, W], uint8 or float32 in [0, 1].
        labels: int64 [N].
        batch_size: number of images per batch; a smaller dataset is one batch.
        seed: seed of the stream's generator.
        augment: the augmentation of the images; None for none.
        mean: subtracted from the images: one value per channel, in units of [0, 1].
        std: divisor after that: one value per channel, in units of [0, 1].
        device: device of the batches.

    Raises:
        InputError: no images, different numbers of images and labels, an image with NaN or infinity, a batch size
            below 1, or a batch that does not fit into memory.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        seed: int,
        augment: Augment | None = None,
        mean: Statistics = (0.0,),
        std: Statistics = (1.0,),
        device: torch.device | str = "cpu",
    ) -> None:
        _check(images, labels, batch_size)
        super().__init__(labels.to(device), batch_size, seed)
        _require_memory(images, self.batch_size, device)
        self.augment = augment or Augment()
        self.show(images, mean, std)

    def show(self, images: Tensor, mean: Statistics = (0.0,), std: Statistics = (1.0,)) -> None:
        """Replace the images, [N, C, H, W]; order and labels stay the same.

        Raises:
            InputError: their number differs from that of the labels, or one holds NaN or infinity.
        """
        _check(images, self.labels)
        device = self.labels.device
        self.images = images.to(device)
        self.mean, self.std = _per_channel(mean, device), _per_channel(std, device)
        self._values = self._pixels = None
        if images.dtype == torch.uint8 and device.type == "cpu" and self.augment.policy == "none" and native.load():
            self.images = self.images.contiguous()
            levels = torch.arange(256, dtype=torch.uint8).expand(1, images.shape[1], 1, 256)
            self._values = normalise(levels, self.mean, self.std).view(-1, 256)
        else:
            self._pixels = self.augment.prepare(self.images)

    def __next__(self) -> Batch:
        if self._position == len(self):
            self._permutation = torch.randperm(len(self.labels), generator=self._generator)
            self._position = 0
        start = self._position * self.batch_size
        indices = to_device(self._permutation[start : start + self.batch_size], self.labels.device)
        images = self._augmented(indices)
        self._position += 1
        return images, self.labels[indices]

    def _augmented(self, indices: Tensor) -> Tensor:
        if self._values is not None:
            return self.augment.fused(self.images, indices, self._values, self._generator)
        assert self._pixels is not None
        size = (int(self.images.shape[2]), int(self.images.shape[3]))
        drawn = self.augment.draw(len(indices), self._generator)
        images = as_float(self.augment.crop(self._pixels, indices, size, drawn))
        images = self.augment.change(images, self._generator, blank=self.mean)
        # In place: all of the above are copies.
        return images.sub_(self.mean).div_(self.std)


def evaluation_batches(
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    *,
    mean: Statistics = (0.0,),
    std: Statistics = (1.0,),
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Yield all images once, in order and normalised: float32 [batch, C, H, W] and int64 [batch].

    The last batch may be smaller. With the default ``mean`` and ``std`` the images stay in [0, 1], as attacks
    require.

    Raises:
        InputError: no images, different numbers of images and labels, an image with NaN or infinity, or a batch size
            below 1.
    """
    _check(images, labels, batch_size)
    return (
        (normalise(x.to(device), mean, std), y.to(device))
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)
    )


class MemoryImages(LabelledImages):
    """Labelled images in memory.

    Args:
        images: [N, C, H, W], uint8 or float32 in [0, 1].
        labels: int64 [N].
        mean, std: one value per channel, in units of [0, 1], by which the images of batches are normalised; by default
            they stay in [0, 1].
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Statistics = (0.0,), std: Statistics = (1.0,)) -> None:
        self.images, self.labels = images, labels
        self.mean, self.std = mean, std

    def take(self, chosen: Tensor) -> MemoryImages:
        """Select images by a mask, bool [N]."""
        return MemoryImages(self.images[chosen.to(self.images.device)], self.labels[chosen], self.mean, self.std)

    def stream(
        self, batch_size: int, *, seed: int, augment: Augment | None = None, device: torch.device | str = "cpu"
    ) -> BatchStream:
        """Return a :class:`BatchStream` of the images."""
        return BatchStream(
            self.images,
            self.labels,
            batch_size,
            seed=seed,
            augment=augment,
            mean=self.mean,
            std=self.std,
            device=device,
        )

    def batches(self, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Yield all images once: :func:`evaluation_batches`."""
        return evaluation_batches(self.images, self.labels, batch_size, mean=self.mean, std=self.std, device=device)


def _per_channel(values: Statistics, device: torch.device) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def _require_memory(images: Tensor, batch_size: int, device: torch.device | str) -> None:
    """Check that a batch, float32, and its normalised copy fit into memory, where that is in doubt."""
    size = 2 * 4 * batch_size * images[0].numel()
    if size > LARGE_BATCH and torch.device(device).type == "cpu":
        memory.require(size, f"batches of {batch_size} images of {'×'.join(map(str, images.shape[1:]))}")


def _check(images: Tensor, labels: Tensor, batch_size: int = 1) -> None:
    if labels.ndim != 1 or len(images) != len(labels):
        raise InputError(f"{len(images)} images need as many labels, [N]; labels are {list(labels.shape)}")
    if not len(labels):
        raise InputError("there are no images")
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, not {batch_size}")
    check_finite(images)
