"""Isolation of runs: from the modes of the code around them, and from each other's random numbers.

PyTorch has one CPU generator, one default dtype and one setting of its arithmetic for all threads of a process.
Whatever uses them takes turns, in blocks as short as a training step, so that concurrent runs give the results that
each gives alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from bionas_fast.choices import Products
from bionas_fast.runtime.arithmetic import precision, repeatable


class _Turn:
    """The lock of exclusive blocks.

    Attributes:
        taken: whether a thread is inside such a block.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.taken = False


_turn = _Turn()


@contextmanager
def exclusive(products: Products = "ieee", deterministic: bool = False) -> Iterator[None]:
    """Exclude all other threads from such blocks.

    The default dtype inside is float32, and the arithmetic of CUDA devices that of the arguments, whatever the caller
    has set; both are restored afterwards. A block inside another one changes nothing.

    Args:
        products: the precision of float32 products, see :func:`.precision`.
        deterministic: whether to use deterministic algorithms only, see :func:`.repeatable`.
    """
    with _turn.lock:
        if _turn.taken:
            yield
            return
        dtype = torch.get_default_dtype()
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
        _turn.taken = True
        try:
            with precision(products), repeatable(deterministic):
                yield
        finally:
            _turn.taken = False
            if dtype != torch.float32:
                torch.set_default_dtype(dtype)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's generator inside the block and restore its state afterwards; other threads wait."""
    with preserved_generator():
        torch.manual_seed(seed)
        yield


@contextmanager
def preserved_generator() -> Iterator[None]:
    """Restore the state of PyTorch's CPU generator after the block; other threads wait."""
    with _turn.lock, torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def ordinary_modes() -> Iterator[None]:
    """Differentiate, in float32 on the CPU unless told otherwise, whatever modes the caller's thread is in.

    Leaves ``no_grad``, ``inference_mode``, autocast and other default devices inside the block; they are restored
    afterwards.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.callback(torch.set_autocast_enabled, device, True)
                stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
                torch.set_autocast_enabled(device, False)
                # An inner autocast does not empty the cache of the outer one, which would keep old weights.
                torch.set_autocast_cache_enabled(False)
        yield
