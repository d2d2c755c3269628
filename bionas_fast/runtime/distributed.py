"""Data parallelism: one search or training on several processes, started by ``torchrun``.

Every process holds the whole network and the whole stream of batches, and takes its shard of each batch. Gradients are
averaged and the statistics of batch normalisation synchronised: up to rounding, the result is that of a single process
with the same batches. Only rank 0 writes.
"""

from __future__ import annotations

import atexit
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bionas_fast import torch_private
from bionas_fast.errors import InputError, PeerLost
from bionas_fast.runtime.device import local_cuda_index
from bionas_fast.runtime.launch import launched_rank, started
from bionas_fast.runtime.watch import Watch

T = TypeVar("T")

#: Timeout of collective operations, and of the watch, which waits for the end of a run.
TIMEOUT = timedelta(minutes=10)
NO_TIMEOUT = timedelta(days=365)


class _Groups:
    """The process groups of this process besides the default one, which is gloo's and serves every device.

    Attributes:
        nccl: that of CUDA tensors; None if gloo serves them, too.
        words: that of the watch, which NCCL needs.
        watch: the watch of the current run.
    """

    def __init__(self) -> None:
        self.nccl: dist.ProcessGroup | None = None
        self.words: dist.ProcessGroup | None = None
        self.watch: Watch | None = None


_groups = _Groups()


def active() -> bool:
    """Whether this process belongs to a process group of more than one."""
    return dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if active() else 1


def rank() -> int:
    """Return the rank of this process; also before the process group exists."""
    return dist.get_rank() if active() else launched_rank()


def is_main() -> bool:
    """Whether this is rank 0, the process that writes and prints."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Form the process groups if ``torchrun`` started several processes: gloo on the CPU, NCCL on GPUs.

    Raises:
        PeerLost: another process has ended.
    """
    if started() > 1 and not dist.is_initialized():  # once per process
        _initialise()
    yield


class Synchroniser:
    """Sums tensors over the processes of a run, all of which must make the same calls."""

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return world_size()

    def sum_in_place(self, tensor: Tensor) -> None:
        """Set a tensor to its sum over the processes."""
        _sum_in_place(tensor)


def synchroniser() -> Synchroniser | None:
    """Return the synchroniser of batch normalisation statistics; None for a single process."""
    return Synchroniser() if active() else None


def _initialise() -> None:
    with _peers_required():
        dist.init_process_group("gloo", timeout=TIMEOUT)
        atexit.register(dist.destroy_process_group)
        cards: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(cards, _card())
        if cuda_backend(cards) == "nccl":
            torch.cuda.set_device(local_cuda_index())
            _groups.nccl = _new_group("nccl", TIMEOUT)
            _groups.words = _new_group("gloo", NO_TIMEOUT)


def _new_group(backend: str, timeout: timedelta) -> dist.ProcessGroup:
    group = dist.new_group(backend=backend, timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)  # for every process is a member
    return group


def _card() -> str | None:
    """Identify the CUDA device of this process among those of all machines; None without one."""
    index = local_cuda_index()
    if index >= torch.cuda.device_count() or not dist.is_nccl_available():
        return None
    return f"{platform.node()} {torch.cuda.get_device_properties(index).uuid}"


def cuda_backend(cards: Sequence[str | None]) -> str:
    """Choose the backend of collective operations on CUDA tensors.

    Args:
        cards: the CUDA device of each process, or None. NCCL needs one for each.
    """
    return "gloo" if None in cards or len({*cards}) < len(cards) else "nccl"


@contextmanager
def watched(hint: str) -> Iterator[None]:
    """Watch the other processes inside the block if collective operations do not, as those of NCCL.

    Args:
        hint: appended to the message of a process that waits for a lost one and cannot be freed from that.
    """
    groups = _groups
    if groups.nccl is None or groups.words is None:
        yield
        return
    with Watch(groups.words, partial(torch_private.abort_collectives, groups.nccl), hint) as groups.watch:
        yield
    groups.watch = None


def lost_peer() -> PeerLost | None:
    """Return the error to raise because another process was lost; None as long as none is."""
    return None if _groups.watch is None else _groups.watch.lost


def shard(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return this process's shard of a batch: every n-th image and its label, for n processes.

    Raises:
        InputError: the batch cannot be divided evenly, as averaging requires.
    """
    if not active():
        return x, y
    require_divisible(len(y))
    return x[rank() :: world_size()], y[rank() :: world_size()]


def require_divisible(*batch_sizes: int) -> None:
    """Raise InputError unless batches of these sizes can be divided evenly among the processes."""
    for batch_size in batch_sizes:
        if batch_size % world_size():
            raise InputError(f"a batch of {batch_size} images cannot be divided evenly among {world_size()} processes")


def shard_bounds(n: int) -> tuple[int, int]:
    """Return the bounds of this process's contiguous shard of ``n`` items."""
    if not active():
        return 0, n
    return n * rank() // world_size(), n * (rank() + 1) // world_size()


def shard_of_draw(draw: Callable[[int], Tensor], n: int) -> Tensor:
    """Draw random numbers for a whole batch and return those for the ``n`` images of this process."""
    return draw(n * world_size())[rank() :: world_size()] if active() else draw(n)


def require_single_process(subject: str) -> None:
    """Raise InputError if ``torchrun`` has started several processes; ``subject`` opens the message."""
    if started() > 1:
        raise InputError(f"{subject} in one process only; leave out torchrun")


def average(tensors: Iterable[Tensor | None]) -> None:
    """Set each tensor to its mean over the processes, in one all-reduce; None stays None."""
    present = [tensor for tensor in tensors if tensor is not None]
    if not active() or not present:
        return
    flat = torch.cat([tensor.flatten() for tensor in present])
    _sum_in_place(flat)
    flat /= world_size()
    for tensor, mean in zip(present, flat.split([tensor.numel() for tensor in present]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of parameters over the processes."""
    average([parameter.grad for parameter in parameters])


def all_reduce_sum(*values: float) -> list[float]:
    """Sum each value over the processes."""
    if not active():
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    _sum_in_place(numbers)
    return numbers.tolist()


def all_gather(local: Tensor) -> Tensor:
    """Concatenate the tensors of all processes, which may differ in length."""
    if not active():
        return local
    tensors: list[Any] = [None] * world_size()
    with _peers_required():
        dist.all_gather_object(tensors, local.cpu())
    return torch.cat(tensors).to(local.device)


def broadcast(value: T) -> T:
    """Broadcast ``value`` from rank 0."""
    if not active():
        return value
    values = [value]
    with _peers_required():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def run_on_all_ranks(action: Callable[[], T]) -> T:
    """Run ``action`` in every process and return its value only if it succeeded in all of them.

    Raises:
        InputError: the action failed here, or in another process; the message then starts with its rank.
    """
    if not active():
        return action()
    error: InputError | None = None
    messages: list[str | None] = [None] * world_size()
    try:
        value = action()
    except InputError as refused:
        error = refused
    with _peers_required():
        dist.all_gather_object(messages, None if error is None else str(error))
    for number, message in enumerate(messages):
        if message is not None:
            raise error or InputError(f"process {number}: {message}")
    return value


def require_equal(tensors: Iterable[Tensor], subject: str) -> None:
    """Compare tensors with those of rank 0, bit by bit.

    Raises:
        InputError: the tensors differ.
    """
    if not active():
        return
    local = torch.cat([tensor.detach().cpu().flatten() for tensor in tensors])
    if any(all_reduce_sum(float(not torch.equal(broadcast(local), local)))):
        raise InputError(
            f"{subject} differ between the processes; do all run on the same versions and kinds of machines?"
        )


def _sum_in_place(tensor: Tensor) -> None:
    with _peers_required():
        dist.all_reduce(tensor, group=_groups.nccl if tensor.is_cuda else None)


@contextmanager
def _peers_required() -> Iterator[None]:
    lost = lost_peer()
    if lost is not None:
        raise lost
    try:
        yield
    except (RuntimeError, ValueError, dist.DistError) as error:
        reason = str(error).partition("\n")[0]
        raise PeerLost(f"another process of this run has ended or cannot be reached ({reason:.120})") from error
