"""Interfaces of labelled images, wherever they are kept: :class:`LabelledImages` and its :class:`Stream` of batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from bionas_fast.data.augment import Augment
from bionas_fast.errors import InputError

Batch = tuple[Tensor, Tensor]


class Stream(ABC):
    """Infinite stream of shuffled batches whose position can be saved and restored between batches.

    ``next(stream)`` returns (images float32 [batch, C, H, W], labels int64 [batch]), augmented and normalised. Each
    epoch is a new permutation without its last incomplete batch.

    Args:
        labels: int64 [N], on the device of the batches.
        batch_size: number of images per batch; a smaller dataset is one batch.
        seed: seed of the stream's generator.
    """

    #: Whether each process of a run receives only its shard of every batch.
    sharded: bool = False

    def __init__(self, labels: Tensor, batch_size: int, seed: int) -> None:
        self.labels = labels
        self.batch_size = min(batch_size, len(labels))
        self._generator = torch.Generator().manual_seed(seed)
        self._permutation = torch.empty(0, dtype=torch.int64)
        self._position = len(self)  # at the end of an epoch: the first batch shuffles

    @property
    def position(self) -> int:
        """The number of batches of the current epoch already returned."""
        return self._position

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        return self

    @abstractmethod
    def __next__(self) -> Batch:
        """Return the next batch."""

    def whole(self) -> Self:
        """Return the stream, which from now on gives whole batches to every process of a run."""
        return self

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


class LabelledImages(ABC):
    """Labelled images of one part of a dataset, such as its training images.

    Attributes:
        labels: int64 [N].
        divided: whether, of several processes of a run, each reads only its share of :meth:`batches`.
    """

    labels: Tensor
    divided: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def take(self, chosen: Tensor) -> Self:
        """Select images by a mask, bool [N], in their order."""

    @abstractmethod
    def stream(
        self, batch_size: int, *, seed: int, augment: Augment | None = None, device: torch.device | str = "cpu"
    ) -> Stream:
        """Return a stream of shuffled, augmented and normalised batches for training.

        Raises:
            InputError: as of the stream; an augmentation that these images cannot have.
        """

    @abstractmethod
    def batches(self, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Yield all images once, in order and normalised: float32 [batch, C, H, W] and int64 [batch].

        The last batch may be smaller.

        Raises:
            InputError: there are no images, or one cannot be read; a batch size below 1.
        """

    def split(self, fraction: float, seed: int, *, setting: str = "fraction") -> tuple[Self, Self]:
        """Split into two disjoint parts with equal class proportions; arguments as of :func:`stratified`."""
        first = stratified(self.labels, fraction, seed, setting=setting)
        return self.take(first), self.take(~first)


def stratified(labels: Tensor, fraction: float, seed: int, *, setting: str = "fraction") -> Tensor:
    """Choose a fraction of the images at random, the same of each class.

    Args:
        labels: int64 [N].
        fraction: fraction of the images to choose, between 0 and 1: round(fraction · N) images, and
            fraction · N_k ± 1 of class k. DARTS searches with 0.5: one half trains the weights, the other α.
        seed: seed of the choice; the global generator is neither read nor advanced.
        setting: name of the fraction in messages.

    Returns:
        A mask, bool [N].

    Raises:
        InputError: all images would be chosen, or none.
    """
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
    return first
