"""Batches of images that are decoded by worker processes: :class:`FileImages` and its :class:`FileStream`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from typing_extensions import Self

from bionas_fast.data.augment import Augment
from bionas_fast.data.batches import normalise
from bionas_fast.data.labelled import Batch, LabelledImages, Stream
from bionas_fast.data.loading import default_workers, load
from bionas_fast.errors import InputError
from bionas_fast.runtime import distributed
from bionas_fast.runtime.device import to_device
from bionas_fast.runtime.isolation import preserved_generator

if TYPE_CHECKING:
    from PIL import Image

#: Statistics of ImageNet, in units of [0, 1], by which images from files are normalised.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Images that a worker process reads at once: larger batches consist of several chunks, which need less shared memory.
CHUNK = 64

#: Applied to a PIL image; returns uint8 [3, S, S].
Transform = Callable[[Any], Tensor]


class Source(Protocol):
    """Images that are decoded one at a time.

    Attributes:
        labels: int64 [N].
    """

    labels: Tensor

    def take(self, indices: Tensor) -> Self:
        """Select images, in the order of ``indices``, int64 [n]."""

    def image(self, index: int) -> Image.Image:
        """Decode an image, RGB and upright.

        Raises:
            InputError: it cannot be read; the message names its file.
        """


@dataclass(frozen=True)
class Views:
    """The form in which images of any size enter a network: square, RGB.

    Attributes:
        size: their height and width, in pixels.
        resize: shorter side to which test images are scaled before their centre is cropped, in pixels.
        crop_scale: smallest and largest area of the part of a training image that is cropped at random and scaled to
            ``size``, as fractions of the image (Szegedy et al. 2015).
        color_jitter: largest random changes of brightness, contrast, saturation and hue of training images.
    """

    size: int = 224
    resize: int = 256
    crop_scale: tuple[float, float] = (0.08, 1.0)
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def training(self, augment: Augment) -> Transform:
        """Compose the transforms of training images, by torchvision.

        Raises:
            InputError: an augmentation for images in memory.
        """
        from torchvision.transforms import v2  # slow to import

        for name in ("crop_padding", "cutout"):
            if getattr(augment, name):
                raise InputError(
                    f"{name}: expected 0 for images that are read from files, which are cropped by crop_scale, "
                    f"got {getattr(augment, name)}; in_memory=true reads them into memory"
                )
        steps: list[Any] = [v2.RandomResizedCrop(self.size, self.crop_scale)]
        if augment.flip:
            steps.append(v2.RandomHorizontalFlip())
        if augment.operations is not None:
            steps.append(augment.operations)
        if any(self.color_jitter):
            steps.append(v2.ColorJitter(*self.color_jitter))
        return v2.Compose([*steps, v2.PILToTensor()])

    def testing(self) -> Transform:
        """Compose the transforms of test images, by torchvision."""
        from torchvision.transforms import v2  # slow to import

        return v2.Compose([v2.Resize(self.resize), v2.CenterCrop(self.size), v2.PILToTensor()])


class Order(NamedTuple):
    """Images to decode: their indices, and the seed of their augmentation."""

    indices: list[int]
    key: int = 0

    def chunks(self) -> list[Order]:
        """Divide the images into chunks of at most :data:`CHUNK`."""
        starts = range(0, len(self.indices), CHUNK)
        return [Order(self.indices[start : start + CHUNK], self.key) for start in starts]


class FileImages(LabelledImages):
    """Labelled images that are decoded whenever they are used.

    Args:
        source: the images.
        views: their form in batches.
        workers: number of processes that decode them, 0 for this one; None for :func:`default_workers`. The batches do
            not depend on it.
    """

    divided = True

    def __init__(self, source: Source, views: Views, workers: int | None = None) -> None:
        self.source, self.views = source, views
        self.workers = default_workers() if workers is None else workers
        self.labels = source.labels

    def take(self, chosen: Tensor) -> FileImages:
        """Select images by a mask, bool [N]."""
        return FileImages(self.source.take(chosen.nonzero().flatten()), self.views, self.workers)

    def stream(
        self, batch_size: int, *, seed: int, augment: Augment | None = None, device: torch.device | str = "cpu"
    ) -> FileStream:
        """Return a :class:`FileStream` of the images."""
        return FileStream(self, batch_size, seed=seed, augment=augment, device=device)

    def batches(self, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Yield this process's share of the images once, in order and normalised."""
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, not {batch_size}")
        if len(self) < distributed.world_size():
            raise InputError(f"{len(self)} images are fewer than the {distributed.world_size()} processes")
        first, last = distributed.shard_bounds(len(self))
        share = torch.arange(first, last).split(batch_size)
        loaded = self.load(self.views.testing(), (Order(indices.tolist()) for indices in share), device)
        return ((next(loaded), self.labels[indices].to(device)) for indices in share)

    def load(self, transform: Transform, orders: Iterable[Order], device: torch.device | str) -> Iterator[Tensor]:
        """Yield the images of each order, normalised by the statistics of ImageNet: float32 [n, 3, S, S].

        Raises:
            InputError: an image cannot be read; a worker process ended.
        """
        ahead, orders = itertools.tee(orders)
        chunks = (chunk for order in ahead for chunk in order.chunks())
        loaded = load(_Reader(self.source, transform), chunks, self.workers, device)
        for order in orders:
            parts = [next(loaded).to(device, non_blocking=True) for _ in order.chunks()]
            yield normalise(torch.cat(parts) if len(parts) > 1 else parts[0], MEAN, STD)


class FileStream(Stream):
    """Stream of batches of images that are decoded by worker processes, ahead of their use.

    Order and augmentation are functions of ``seed`` alone: the augmentation of an image depends on the epoch and its
    index, not on the number of workers or processes. Of several processes of a run, each decodes its shard.

    Args:
        images: the images.
        batch_size: number of images per batch, over all processes; a smaller dataset is one batch.
        seed: seed of the stream's generator.
        augment: flip and policy; the random crop and colours are those of the images' views.
        device: device of the batches.
    """

    def __init__(
        self,
        images: FileImages,
        batch_size: int,
        *,
        seed: int,
        augment: Augment | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, not {batch_size}")
        super().__init__(images.labels, batch_size, seed)
        self.images, self.device = images, torch.device(device)
        self.sharded = True
        self._transform = images.views.training(augment or Augment())
        self._key = 0
        self._loaded: Iterator[Tensor] | None = None

    def whole(self) -> Self:
        """Return every process whole batches from now on, instead of its shard."""
        self.sharded, self._loaded = False, None
        return self

    def __next__(self) -> Batch:
        if self._position == len(self):
            self._permutation, self._key = _shuffled(len(self.labels), self._generator)
            self._position = 0
        if self._loaded is None:
            self._loaded = self.images.load(self._transform, self._orders(), self.device)
        indices = self._indices(self._permutation, self._position)
        images = next(self._loaded)
        self._position += 1
        return images, to_device(self.labels[indices], self.device)

    def _orders(self) -> Iterator[Order]:
        """Yield the orders of all batches from the present one on, without end."""
        generator = torch.Generator()
        generator.set_state(self._generator.get_state())
        permutation, key, position = self._permutation, self._key, self._position
        while True:
            for number in range(position, len(self)):
                yield Order(self._indices(permutation, number).tolist(), key)
            permutation, key = _shuffled(len(self.labels), generator)
            position = 0

    def _indices(self, permutation: Tensor, position: int) -> Tensor:
        batch = permutation[position * self.batch_size : (position + 1) * self.batch_size]
        return batch[distributed.rank() :: distributed.world_size()] if self.sharded else batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream, which includes the key of the epoch's augmentation."""
        return {**super().state_dict(), "key": self._key}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict`; errors as of the base."""
        key = state.get("key")
        if type(key) is not int or not 0 <= key < 2**62:
            raise InputError("not the state of a stream of images from files")
        super().load_state_dict(state)
        self._key, self._loaded = key, None


@dataclass(frozen=True)
class _Reader:
    """Decodes and transforms a chunk of images: uint8 [n, 3, S, S]."""

    source: Source
    transform: Transform

    def read(self, order: Order) -> Tensor:
        # A worker process has a generator of its own.
        with nullcontext() if get_worker_info() else preserved_generator():
            return torch.stack([self._image(index, order.key) for index in order.indices])

    def _image(self, index: int, key: int) -> Tensor:
        state = np.random.SeedSequence((key, index)).generate_state(1, np.uint64)
        torch.default_generator.manual_seed(int(state[0]))
        return self.transform(self.source.image(index))


def _shuffled(count: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Draw the order of the images of an epoch and the key of their augmentation."""
    permutation = torch.randperm(count, generator=generator)
    return permutation, int(torch.randint(2**62, (), generator=generator))
