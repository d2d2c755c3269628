"""In-memory batches: split, shuffle, augment and normalise, vectorised over images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bionas_fast.data import memory
from bionas_fast.errors import InputError

#: Bytes of a batch from which on the free memory is looked up.
LARGE_BATCH = 2**27

Batch = tuple[Tensor, Tensor]
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
        fraction: fraction of the images in the first part, between 0 and 1: round(fraction · N) images, and
            fraction · N_k ± 1 of class k. DARTS searches with 0.5: one half trains the weights, the other α.
        seed: seed of the split; the global generator is neither read nor advanced.
        setting: name of the fraction in messages.

    Returns:
        ((images, labels), (images, labels)), each in the original order.

    Raises:
        InputError: the numbers of labels and images differ, or a part would be empty.
    """
    _check(images, labels)
    total = len(labels)
    if not 0 < fraction < 1 or round(fraction * total) in (0, total):
        raise InputError(f"{setting} = {fraction} of {total} images leaves one part of the split empty")
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(total, generator=generator).to(labels.device)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # With the shuffled images sorted by class, image i goes to the first part where round(fraction · i) increases.
    # Both the total and each class then get the right count, without distributing remainders.
    quota = (torch.arange(total + 1, dtype=torch.float64) * fraction).round().to(labels.device)
    first = torch.zeros(total, dtype=torch.bool, device=labels.device)
    first[by_class] = quota[1:] > quota[:-1]
    first_images = first.to(images.device)
    return (images[first_images], labels[first]), (images[~first_images], labels[~first])


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images, drawn independently for every image.

    Attributes:
        flip: mirror left and right with probability 1/2.
        crop_padding: pad with this many black pixels on every side, then crop a window of the original size.
        cutout: side of the blanked square, which is centred anywhere in the image and clipped at its border
            (DeVries and Taylor, 2017, arXiv:1708.04552; DARTS trains with 16).

    Raises:
        InputError: a size is negative or not an integer.
    """

    flip: bool = False
    crop_padding: int = 0
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 0:
                raise InputError(f"{name} must be a number of pixels, 0 or more, not {size!r}")

    def __call__(self, images: Tensor, generator: torch.Generator, blank: Tensor | float = 0.0) -> Tensor:
        """Augment images; the input is not modified.

        Args:
            images: float [N, C, H, W].
            generator: a generator on the CPU, so that a seed gives the same images on every device.
            blank: fill value of cutout, broadcast to [N, C, H, W]; the mean gives 0 after normalisation.

        Returns:
            [N, C, H, W], contiguous.
        """
        if self.flip or self.crop_padding:
            images = self._crop_and_flip(images, generator)
        if self.cutout:
            images = torch.where(self._holes(images, generator), torch.as_tensor(blank).to(images), images)
        return images

    def _crop_and_flip(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = images.shape
        y, x = (torch.arange(size).expand(n, size) for size in (height, width))  # [N, H], [N, W]: source pixels
        if self.flip:
            mirrored = torch.rand(n, 1, generator=generator) < 0.5
            x = torch.where(mirrored, x.flip(1), x)
        if self.crop_padding:
            padding = self.crop_padding
            images = torch.nn.functional.pad(images, (padding,) * 4)
            offset_y, offset_x = torch.randint(2 * padding + 1, (2, n, 1), generator=generator)
            y, x = y + offset_y, x + offset_x
        image = torch.arange(n)[:, None, None]
        image, y, x = (i.to(images.device) for i in (image, y[:, :, None], x[:, None, :]))
        # The channels are between the indexed dimensions, so indexing moves them to the end.
        return images[image, :, y, x].permute(0, 3, 1, 2).contiguous()

    def _holes(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, _, *sizes = images.shape

        def covered(size: int) -> Tensor:
            start = torch.randint(size, (n, 1), generator=generator) - self.cutout // 2
            pixel = torch.arange(size)
            return (pixel >= start) & (pixel < start + self.cutout)

        y, x = (covered(size) for size in sizes)
        return (y[:, None, :, None] & x[:, None, None, :]).to(images.device)


class BatchStream:
    """Infinite stream of shuffled batches whose position can be saved and restored between batches.

    ``next(stream)`` returns (images float32 [batch, C, H, W], labels int64 [batch]): cropped and flipped, cut
    out, normalised. The stream is a function of ``seed`` alone, on every device. Each epoch is a new permutation
    without its last incomplete batch. The data is moved to the device once.
    Under data parallelism, give every rank the same stream of the global batch and let it take its shard: then the
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
        self.batch_size = min(batch_size, len(labels))
        _require_memory(images, self.batch_size, device)
        self.images, self.labels = images.to(device), labels.to(device)
        self.augment = augment
        self.mean, self.std = (_per_channel(values, self.images.device) for values in (mean, std))
        self._generator = torch.Generator().manual_seed(seed)
        self._permutation = torch.empty(0, dtype=torch.int64)
        self._position = len(self)  # at the end of an epoch: the first batch shuffles

    def show(self, images: Tensor, mean: Statistics = (0.0,), std: Statistics = (1.0,)) -> None:
        """Replace the images, [N, C, H, W]; order and labels stay the same.

        Raises:
            InputError: their number differs from that of the labels, or one holds NaN or infinity.
        """
        _check(images, self.labels)
        device = self.labels.device
        self.images = images.to(device)
        self.mean, self.std = _per_channel(mean, device), _per_channel(std, device)

    @property
    def position(self) -> int:
        """The number of batches of the current epoch already returned."""
        return self._position

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._position == len(self):
            self._permutation = torch.randperm(len(self.labels), generator=self._generator)
            self._position = 0
        start = self._position * self.batch_size
        indices = self._permutation[start : start + self.batch_size].to(self.labels.device)
        images = as_float(self.images[indices])
        if self.augment is not None:
            images = self.augment(images, self._generator, blank=self.mean)
        self._position += 1
        return normalise(images, self.mean, self.std), self.labels[indices]

    def epoch(self) -> Iterator[Batch]:
        """Yield the remaining batches of the current epoch, or all batches of the next one if none is in progress."""
        yield next(self)
        while self._position < len(self):
            yield next(self)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream as tensors and integers, readable by ``torch.load(weights_only=True)``."""
        return {
            "generator": self._generator.get_state(),
            "permutation": self._permutation.clone(),
            "position": self._position,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict` over the same data and settings.

        Raises:
            InputError: the state is not one of a stream over the same number of images in batches of the same
                size. The stream is then unchanged.
        """
        try:
            position, batch_size = int(state["position"]), int(state["batch_size"])
            permutation = state["permutation"].to("cpu", torch.int64)
            generator = torch.Generator()
            generator.set_state(state["generator"].cpu())
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(f"not the state of a batch stream: {error!r}") from error
        if batch_size != self.batch_size:
            raise InputError(f"the batch stream was saved with batches of {batch_size}, not {self.batch_size}")
        # Before the first batch there is no permutation, and the position is the end of an epoch.
        total = len(permutation) or len(self.labels)
        if total != len(self.labels):
            raise InputError(f"the batch stream was saved over {total} images, not {len(self.labels)}")
        if not torch.equal(permutation.sort().values, torch.arange(len(permutation))):
            raise InputError("the batch stream's saved permutation is damaged")
        if not (0 if len(permutation) else len(self)) <= position <= len(self):
            raise InputError(f"the batch stream was saved at batch {position} of {len(self)}")
        self._generator = generator
        self._permutation = permutation
        self._position = position


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
