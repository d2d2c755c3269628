"""Steps as CUDA graphs: all launches of a step are captured once, and replayed by a single one.

A graph repeats the kernels of the captured step on the same addresses. Python does not run again: numbers of the host
keep the values of the capture, so a graph is dropped when one of them changes, such as the learning rate between
epochs. What changes from step to step is on the device: the batch, which is copied to the captured addresses, weights,
architecture parameters, the states of optimisers, the streams of random feedback.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Steps that run before the first capture: they compile kernels, make tables and allocate the states of optimisers.
WARM_UP = 3

_capturing = threading.Lock()

Function = Callable[..., Sequence[Tensor]]


class Recorded(NamedTuple):
    """A captured step: its inputs and results at fixed addresses, and the function that replays it."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    replay: Callable[[], None]


def record(function: Function, inputs: Sequence[Tensor]) -> Recorded:
    """Capture a function of tensors on a CUDA device; nothing is computed yet.

    Raises:
        RuntimeError: the function waits for the device, or does something else that cannot be captured.
    """
    fixed = [tensor.clone() for tensor in inputs]
    graph, device = torch.cuda.CUDAGraph(), fixed[0].device
    # Other threads of the process may wait for the device and allocate meanwhile, but not capture.
    with _capturing, torch.cuda.device(device):
        stream = torch.cuda.Stream()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = function(*fixed)
    return Recorded(fixed, outputs, graph.replay)


class Replayed:
    """The runs of a step: eager ones first, then a capture and its replays.

    Args:
        obstacle: the reason why the step cannot be captured; empty if it can.

    Attributes:
        obstacle: the same, and what a capture that failed said.
    """

    def __init__(self, obstacle: str = "") -> None:
        self.obstacle = obstacle
        self._eager = 0
        self._recorded: Recorded | None = None

    @property
    def replays(self) -> bool:
        """Whether the step has been captured."""
        return self._recorded is not None

    def forget(self) -> None:
        """Drop the captured step, because numbers of the host or addresses have changed."""
        self._recorded = None

    def run(self, step: Function, *inputs: Tensor) -> Sequence[Tensor]:
        """Take a step, always the same one until :meth:`forget`.

        Args:
            step: a function of ``inputs`` and of other tensors, whose addresses do not change; returns tensors.
            inputs: tensors of the same shapes in every step; with other shapes a step runs eagerly.

        Returns:
            The results of the step, or copies of them.
        """
        if self.obstacle or self._eager < WARM_UP:
            self._eager += 1
            return step(*inputs)
        if self._recorded is None:
            try:
                self._recorded = record(step, inputs)
            except RuntimeError as error:
                self.obstacle = f"a step could not be captured: {' '.join(str(error).split()):.200}"
                logging.getLogger("bionas_fast").info("no CUDA graphs: %s", self.obstacle)
                return step(*inputs)
        fixed, outputs, replay = self._recorded
        if [own.shape for own in inputs] != [own.shape for own in fixed]:
            return step(*inputs)
        for own, value in zip(fixed, inputs, strict=True):
            own.copy_(value)
        replay()
        return [output.clone() for output in outputs]
