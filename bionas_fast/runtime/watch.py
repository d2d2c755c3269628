"""A watch over the other processes of a run, for collectives that do not notice that one of them has died.

A collective operation of NCCL returns before it is done. If a process dies, the others wait for it at the next value
that they read from their device: no exception is raised until NCCL's own timeout, which ends them without a message.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
import torch.distributed as dist

from bionas_fast.errors import PeerLost

#: Seconds that a process has to end by itself. torchrun kills it 30 s after another one has died.
GRACE = 15.0
_DONE, _LOST = 0, 1


class Watch:
    """A context in which the death of another process is noticed at once.

    A thread of each process waits for a word of the process before it, in a ring over gloo, whose connections break
    with a process. The word comes at the end of the block, or when a process further on was lost. Then ``release`` is
    called, which ends what the main thread waits for, and ``lost`` is set. A process that does not leave the block
    within the grace period prints the message and exits with code 2.

    All processes enter and leave the block together; leaving it by an exception says nothing to the others, which
    either raise the same one or notice the end of this process.

    Args:
        group: a gloo group that nothing else uses.
        release: makes the pending collectives of this process return.
        hint: appended to the message of a process that does not leave the block.

    Attributes:
        lost: the error to raise once another process was lost; None before.
    """

    def __init__(
        self, group: dist.ProcessGroup, release: Callable[[], None], hint: str = "", grace: float = GRACE
    ) -> None:
        self.lost: PeerLost | None = None
        self._group, self._release, self._hint, self._grace = group, release, hint, grace
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="bionas-fast-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._left.set()
        if kind is None and self.lost is None:
            self._tell(_DONE)
            self._thread.join(self._grace)  # a later block of this process reads the words of that one

    def _neighbour(self, distance: int) -> int:
        """Return the global rank of a process of the ring."""
        return (dist.get_rank() + distance) % dist.get_world_size()

    def _tell(self, word: int) -> None:
        """Send a word to the next process, unless it is gone."""
        with suppress(RuntimeError, ValueError):  # its own neighbours have noticed
            dist.send(torch.tensor([word], device="cpu"), self._neighbour(1), self._group)

    def _wait(self) -> None:
        word = torch.full((1,), _LOST, device="cpu")
        with suppress(RuntimeError, ValueError):  # the connection broke: the word is still the initial one
            dist.recv(word, self._neighbour(-1), self._group)
        if int(word) == _DONE or self._left.is_set():
            return
        message = "another process of this run has ended or cannot be reached"
        self.lost = PeerLost(message)
        for action in (partial(self._tell, _LOST), self._release):  # either may block, or fail
            threading.Thread(target=action, daemon=True).start()
        if not self._left.wait(self._grace):
            print(f"error: {'; '.join(filter(None, (message, self._hint)))}", file=sys.stderr, flush=True)
            os._exit(2)
