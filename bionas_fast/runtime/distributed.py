"""Several processes that run one search or training together, as ``torchrun`` starts them.

Every process holds the whole network and the whole stream of batches, and takes its part of each batch. Gradients are
averaged, and so are the statistics of batch normalisation: what comes out is that of one process with the same batches,
but for rounding. The first process alone writes.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bionas_fast.errors import InputError

T = TypeVar("T")

#: How long a process waits for the others.
PATIENCE = timedelta(minutes=10)


class Deserted(InputError):
    """Another process of the run has ended."""


def active() -> bool:
    """Whether this process is one of several that have joined."""
    return dist.is_initialized() and dist.get_world_size() > 1


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if active() else 1


def rank() -> int:
    """The number of this process, from 0; also before it has joined."""
    return dist.get_rank() if active() else int(os.environ.get("RANK", 0)) if _started() > 1 else 0


def _started() -> int:
    """How many processes ``torchrun`` says that it has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that ``torchrun`` started, if it did: gloo on the CPU, NCCL on GPUs.

    Raises:
        Deserted: another one has ended.
    """
    if _started() > 1 and not dist.is_initialized():  # once in the life of a process
        _initialise()
    yield


class Synchroniser:
    """Adds up tensors over the processes of this run, each of which calls it the same number of times."""

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return size()

    def sum_in_place(self, tensor: Tensor) -> None:
        """Set a tensor to its sum over the processes."""
        _sum_in_place(tensor)


def synchroniser() -> Synchroniser | None:
    """The synchroniser of the statistics of batch normalisation; None for a process alone."""
    return Synchroniser() if active() else None


def _initialise() -> None:
    backend = "gloo"
    place = int(os.environ.get("LOCAL_RANK", 0))
    if place < torch.cuda.device_count():
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    with _together():
        dist.init_process_group(backend, timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)


def part(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What this process takes of a batch: every n-th image and its label.

    Raises:
        InputError: the batch cannot be shared out evenly, which mean values need.
    """
    if not active():
        return x, y
    expect_shares(len(y))
    return x[rank() :: size()], y[rank() :: size()]


def expect_shares(*batch_sizes: int) -> None:
    """Raise InputError unless batches of these sizes can be shared out evenly."""
    for batch_size in batch_sizes:
        if batch_size % size():
            raise InputError(f"a batch of {batch_size} images cannot be shared out evenly among {size()} processes")


def part_of_draw(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """Random numbers for the ``count`` images of this process, out of those that are drawn for all of a batch."""
    return draw(count * size())[rank() :: size()] if active() else draw(count)


def alone(what: str) -> None:
    """Raise InputError if ``torchrun`` has started several processes."""
    if _started() > 1:
        raise InputError(f"{what} in one process only; leave out torchrun")


def average(tensors: Iterable[Tensor | None]) -> None:
    """Set each to its mean over the processes, in one message; None stays None."""
    found = [tensor for tensor in tensors if tensor is not None]
    if not active() or not found:
        return
    flat = torch.cat([tensor.flatten() for tensor in found])
    _sum_in_place(flat)
    flat /= size()
    for tensor, mean in zip(found, flat.split([tensor.numel() for tensor in found]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of parameters."""
    average([parameter.grad for parameter in parameters])


def total(*values: float) -> list[float]:
    """The sums over the processes."""
    if not active():
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    _sum_in_place(numbers)
    return numbers.tolist()


def gathered(own: Tensor) -> Tensor:
    """The tensors of all processes one after the other; each may be of another length."""
    if not active():
        return own
    found: list[Any] = [None] * size()
    with _together():
        dist.all_gather_object(found, own.cpu())
    return torch.cat(found).to(own.device)


def agreed(value: T) -> T:
    """What the first process says."""
    if not active():
        return value
    box = [value]
    with _together():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def united(action: Callable[[], T]) -> T:
    """Do something in every process, and go on only if all of them could.

    Raises:
        InputError: what the action raised, here or, with the number of the process, elsewhere.
    """
    if not active():
        return action()
    error: InputError | None = None
    messages: list[str | None] = [None] * size()
    try:
        value = action()
    except InputError as refused:
        error = refused
    with _together():
        dist.all_gather_object(messages, None if error is None else str(error))
    for number, message in enumerate(messages):
        if message is not None:
            raise error or InputError(f"process {number}: {message}")
    return value


def expect_equal(tensors: Iterable[Tensor], what: str) -> None:
    """Compare with the first process, bit by bit.

    Raises:
        InputError: they differ.
    """
    if not active():
        return
    own = torch.cat([tensor.detach().cpu().flatten() for tensor in tensors])
    if any(total(float(not torch.equal(agreed(own), own)))):
        raise InputError(f"{what} differ between the processes; do all run on the same versions and kinds of machines?")


def _sum_in_place(tensor: Tensor) -> None:
    with _together():
        dist.all_reduce(tensor)


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, dist.DistError) as error:
        reason = str(error).partition("\n")[0]
        raise Deserted(f"another process of this run has ended or cannot be reached ({reason:.120})") from error
