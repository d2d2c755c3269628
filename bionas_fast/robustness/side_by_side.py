"""Several attacks at once, whose passes through the network share batches.

An attack is a program of another package, so it is not rewritten for this: each runs in a thread of its own, one at a
time, until it asks the network for logits or for a gradient. When all wait, what they ask for is computed together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

T = TypeVar("T")

#: The most images of a shared pass. With more, sharing saves little or nothing (`benchmarks/test_attacks.py`).
TOGETHER = 128


def side_by_side(tasks: Sequence[Callable[[], T]], device: torch.device) -> list[T]:
    """Run tasks, and compute together what their :class:`Shared` networks are asked for.

    Every task has random numbers of its own, of PyTorch and NumPy; all begin with the current state of the generators.

    Args:
        tasks: functions whose networks are :class:`Shared`. A single one runs as it is.
        device: that of the networks.

    Returns:
        What each task returned.

    Raises:
        BaseException: the first that a task raised. The others do not go on.
    """
    if len(tasks) == 1:
        return [tasks[0]()]
    generators = _Generators.read(device)
    runs = [_Run(task, generators, device) for task in tasks]
    try:
        while True:
            for run in runs:
                run.advance()
            asked = [run.asked for run in runs if run.asked is not None]
            if not asked:
                return [run.result for run in runs]
            _answer(asked)
    finally:
        for run in runs:
            run.end()


class Shared(nn.Module):
    """A network for :func:`side_by_side`; elsewhere, the network itself.

    Args:
        network: maps images [N, C, H, W] to logits [N, classes], each image for itself. It is in evaluation mode, and
            its parameters need no gradients.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [N, classes]."""
        run = getattr(_here, "run", None)
        if run is None:
            return self.network(images)
        if images.requires_grad and torch.is_grad_enabled():
            return _Pass.apply(images, self.network, run)
        return run.ask(_Logits(self.network, images.detach(), differentiable=False)).part


class _Pass(torch.autograd.Function):
    """A differentiable pass whose logits and gradients are computed together with those of other tasks."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, network: nn.Module, run: _Run) -> Tensor:
        ctx.run, ctx.answer = run, run.ask(_Logits(network, images.detach(), differentiable=True))
        return ctx.answer.part

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.run.ask(_Gradient(ctx.answer, gradient)), None, None


@dataclass(eq=False)
class _Joint:
    """A pass of several tasks."""

    images: Tensor
    logits: Tensor


@dataclass(eq=False)
class _Part:
    """The logits of one task, and where they are in the joint pass."""

    part: Tensor
    joint: _Joint
    place: slice


@dataclass(eq=False)
class _Logits:
    """Request of a task for the logits of images."""

    network: nn.Module
    images: Tensor
    differentiable: bool
    answer: Any = None


@dataclass(eq=False)
class _Gradient:
    """Request of a task for the gradient of its images of an earlier pass."""

    of: _Part
    gradient: Tensor
    answer: Any = None


def _answer(asked: Sequence[_Logits | _Gradient]) -> None:
    """Answer what all tasks ask for, in as few passes as :data:`TOGETHER` allows."""
    passes: dict[tuple[int, bool], list[list[_Logits]]] = {}
    gradients: dict[_Joint, list[_Gradient]] = {}
    for own in asked:
        if isinstance(own, _Gradient):
            gradients.setdefault(own.of.joint, []).append(own)
            continue
        groups = passes.setdefault((id(own.network), own.differentiable), [])
        if not groups or sum(len(other.images) for other in groups[-1]) + len(own.images) > TOGETHER:
            groups.append([])
        groups[-1].append(own)
    for joint, owners in gradients.items():
        _differentiate(joint, owners)
    for groups in passes.values():
        for group in groups:
            _pass(group)


def _pass(group: Sequence[_Logits]) -> None:
    first = group[0]
    images = torch.cat([own.images for own in group]).requires_grad_(first.differentiable)
    with torch.set_grad_enabled(first.differentiable):
        joint = _Joint(images, first.network(images))
    at = 0
    for own in group:
        place = slice(at, at := at + len(own.images))
        own.answer = _Part(joint.logits.detach()[place].clone(), joint, place)


def _differentiate(joint: _Joint, owners: Sequence[_Gradient]) -> None:
    found = torch.zeros_like(joint.images)
    if joint.logits.requires_grad:
        wanted = torch.zeros_like(joint.logits)
        for own in owners:
            wanted[own.of.place] = own.gradient
        # A task may differentiate its logits several times, as for a Jacobian.
        (grad,) = torch.autograd.grad(joint.logits, joint.images, wanted, retain_graph=True, allow_unused=True)
        found = found if grad is None else grad
    for own in owners:
        own.answer = found[own.of.place].clone()


@dataclass
class _Generators:
    """The states of the generators of random numbers."""

    cpu: Tensor
    numpy: Any
    cuda: Tensor | None

    @classmethod
    def read(cls, device: torch.device) -> _Generators:
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), np.random.get_state(), cuda)

    def write(self, device: torch.device) -> None:
        torch.set_rng_state(self.cpu)
        np.random.set_state(self.numpy)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


class _Ended(BaseException):
    """Raised in a task that shall not go on."""


@dataclass
class _Here(threading.local):
    """The task of a thread."""

    run: _Run[Any] | None = None


_here = _Here()


@dataclass(eq=False)
class _Run(Generic[T]):
    """A task in a thread, which runs only inside of :meth:`advance`."""

    task: Callable[[], T]
    generators: _Generators
    device: torch.device
    asked: _Logits | _Gradient | None = None
    over: bool = False
    error: BaseException | None = None
    _turn: threading.Event = field(default_factory=threading.Event)
    _waits: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=copy_context().run, args=(self._body,), daemon=True)
        self._thread.start()

    def advance(self) -> None:
        """Let the task go on until it asks for something or is over."""
        if self.over:
            return
        self.asked = None
        self.generators.write(self.device)
        self._switch()
        self.generators = _Generators.read(self.device)
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """End the task wherever it is."""
        if not self.over:
            self.error = _Ended()
            self._switch()
        self._thread.join()

    def _switch(self) -> None:
        self._waits.clear()
        self._turn.set()
        self._waits.wait()

    def ask(self, request: _Logits | _Gradient) -> Any:
        """Wait until the request is answered; called by the task."""
        self.asked = request
        self._pause()
        return request.answer

    def _pause(self) -> None:
        self._waits.set()
        self._turn.wait()
        self._turn.clear()
        if self.error is not None:
            raise self.error

    def _body(self) -> None:
        _here.run = self
        try:
            self._turn.wait()
            self._turn.clear()
            # The gradient of a pass waits in the thread of its task, also on a CUDA device.
            with torch.autograd.set_multithreading_enabled(False):
                if self.error is None:
                    self.result = self.task()
        except BaseException as error:
            self.error = error
        finally:
            self.over = True
            self._waits.set()
