"""The interface through which long-running functions report their progress."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext


class Progress:
    """Listener of a run's progress: override the methods of interest; by default they do nothing.

    Attributes:
        timed: whether to measure the time that a run will take, before its first step, for :meth:`expect`.
    """

    timed: bool = False

    def begin(self, facts: Mapping[str, str]) -> None:
        """Called before the first step of a run that begins or resumes, with what it is, by name."""

    def measuring(self) -> AbstractContextManager[object]:
        """Entered after :meth:`begin` for the seconds in which the time of the run is measured."""
        return nullcontext()

    def expect(self, seconds: float) -> None:
        """Called after :meth:`measuring` with the time that the run, or the rest of it, is expected to take."""

    def start(self, description: str, epochs: int, steps: int) -> None:
        """Called when a phase of ``epochs`` epochs with ``steps`` steps each begins."""

    def resume(self, epochs: int, steps: int) -> None:
        """Called after :meth:`start` when the phase resumes with ``epochs`` epochs and ``steps`` further steps done."""

    def step(self, loss: float | None = None) -> None:
        """Called after a step; ``loss`` is the loss of its training batch, if it has one."""

    def note(self, doing: str) -> None:
        """Called before longer work between two steps, such as judging a population."""

    def epoch(self, row: Mapping[str, float]) -> None:
        """Called after an epoch; ``row`` holds its metrics."""

    def result(self, variant: str, seed: int, accuracy: float) -> None:
        """Called after a run of several, repeated over seeds; ``accuracy`` is in percent."""

    def interrupted(self) -> None:
        """Called when a signal asks the run to stop; it does after the current step."""

    def finish(self) -> None:
        """Called when the phase has ended, also after an error."""
