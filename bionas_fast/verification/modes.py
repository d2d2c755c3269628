"""The ways to run a check: at once; on a second stream of a CUDA device; as a replayed CUDA graph.

On a stream and in a graph the arguments are copied into tensors that hold something else before. A kernel that runs on
another stream, or that reads other addresses than at the time of capture, computes with that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bionas_fast.verification.check import Check, mapped, tensors

#: Size of the matrices whose product keeps a stream busy for some milliseconds.
BUSY = 8192


def at_once(check: Check) -> Sequence[Tensor]:
    """Run a check on the current stream."""
    return check.run(*check.arguments)


def on_a_second_stream(check: Check) -> Sequence[Tensor]:
    """Run a check on another stream, on which its arguments arrive late."""
    device = next(tensors(check.arguments)).device
    with torch.cuda.device(device):
        first, second = torch.cuda.current_stream(), torch.cuda.Stream()
        late = mapped(_other, check.arguments)
        busy = torch.ones(BUSY, BUSY, device=device, dtype=torch.bfloat16)
        second.wait_stream(first)
        with torch.cuda.stream(second):
            busy @ busy
            _fill(late, check.arguments)
            found = check.run(*late)
        first.wait_stream(second)
        for tensor in (busy, *tensors(late), *found):
            tensor.record_stream(second)
    return found


def replayed(check: Check) -> Sequence[Tensor]:
    """Capture a run of a check with other numbers, then replay it with the right ones."""
    device = next(tensors(check.arguments)).device
    with torch.cuda.device(device):
        late = mapped(_other, check.arguments)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles, and makes tables
            check.run(*late)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = check.run(*late)
        _fill(late, check.arguments)
        graph.replay()
        return [tensor.clone() for tensor in found]


def _other(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor)


def _fill(late: object, given: object) -> None:
    for own, value in zip(tensors(late), tensors(given), strict=True):
        own.copy_(value)


MODES: dict[str, Callable[[Check], Sequence[Tensor]]] = {
    "": at_once,
    "second stream": on_a_second_stream,
    "graph replay": replayed,
}
