"""Flags of modules that a block of code switches on, for the passes that its own thread runs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from bionas_fast import torch_private

_changing = threading.Lock()


def is_on(module: nn.Module, flag: str) -> bool:
    """Whether this thread is inside a block that switched on the flag of ``module``.

    A replica of ``torch.nn.DataParallel`` runs in a thread of its own: it has the flags of its model.
    """
    threads: tuple[int, ...] = getattr(module, flag)
    return bool(threads) and (_this_thread() in threads or getattr(module, "_is_replica", False))


@contextmanager
def switched_on(modules: Iterable[nn.Module], flag: str) -> Iterator[None]:
    """Switch on a flag inside the block. Blocks may be nested, and threads may use the same module.

    Args:
        flag: the attribute of each module that lists the threads inside such blocks, once per block.
    """
    modules, thread = [*modules], _this_thread()
    with _changing:
        for module in modules:
            setattr(module, flag, (*getattr(module, flag), thread))
    try:
        yield
    finally:
        with _changing:
            for module in modules:
                threads = [*getattr(module, flag)]
                threads.remove(thread)
                setattr(module, flag, tuple(threads))


# A compiled graph that was made inside a block is used inside it: the lists of threads are guarded.
@torch_private.constant
def _this_thread() -> int:
    return threading.get_ident()
