"""Callbacks of runs, which see the network after every step and epoch, and loggers, which packages provide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bionas_fast.errors import InputError, expect_type, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bionas_fast.config import RunConfig

#: The group of entry points under which packages provide loggers.
GROUP = "bionas_fast.loggers"


@dataclass(frozen=True)
class Moment:
    """A moment of a run.

    Attributes:
        network: the network or supernet in training. Read it; what changes it changes the result of the run.
        alphas: the architecture parameters of a search by kind of cell, [edges, candidates]; empty for a training.
        epoch: the number of epochs done.
        step: the number of steps done in the current epoch; 0 after its end.
        loss: the loss of the last training batch that was read; None if there is none.
        metrics: the row of metrics of the last epoch, at its end; otherwise empty.
    """

    network: nn.Module
    alphas: Mapping[str, Tensor]
    epoch: int
    step: int
    loss: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


class Callback:
    """Watches a run: override the methods of interest; by default they do nothing.

    The run has a random generator of its own, so random numbers drawn here do not change it. An exception ends the run,
    which can be resumed. Of several processes, each calls its callbacks.
    """

    def on_begin(self, moment: Moment) -> None:
        """Called before the first step of a run that begins or resumes."""

    def on_step(self, moment: Moment) -> None:
        """Called after every training step."""

    def on_epoch(self, moment: Moment) -> None:
        """Called after every epoch with metrics."""

    def on_end(self, moment: Moment) -> None:
        """Called after the last epoch; not after an error or an interrupt."""


#: Makes the callback of a logger from the run folder and the settings of the run.
LoggerFactory = Callable[[Path, "RunConfig"], Callback]


def logger_names() -> tuple[str, ...]:
    """Return the names of the loggers that installed packages provide."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def require_loggers(names: Sequence[str]) -> list[LoggerFactory]:
    """Import loggers by their names, before a run begins.

    Raises:
        InputError: no installed package provides one of them, or its import fails.
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    factories: list[LoggerFactory] = []
    for name in names:
        if name not in found:
            raise unknown("logger", name, logger_names(), "loggers")
        try:
            factories.append(found[name].load())
        except (ImportError, AttributeError) as error:
            hint = '; pip install "bionas-fast[wandb]"' if name == "wandb" else ""
            raise InputError(f"loggers: {name} cannot be imported: {error}{hint}") from None
    return factories


def make_loggers(names: Sequence[str], folder: Path, config: RunConfig) -> list[Callback]:
    """Make the callbacks of loggers by their names.

    Raises:
        InputError: no installed package provides the logger, its import fails, or it makes no callback.
    """
    made = []
    for name, factory in zip(names, require_loggers(names), strict=True):
        callback = factory(folder, config)
        if not isinstance(callback, Callback):
            raise InputError(f"loggers: {name} made {type(callback).__name__}, not a Callback")
        made.append(callback)
    return made


def expect_callbacks(callbacks: Sequence[Callback]) -> None:
    """Check an argument.

    Raises:
        InputError: it is no sequence of callbacks.
    """
    expect_type("callbacks", callbacks, (list, tuple), "give a list")
    for callback in callbacks:
        expect_type("callbacks", callback, Callback, "give an instance of a subclass")
