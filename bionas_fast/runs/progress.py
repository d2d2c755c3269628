"""What long-running functions tell their caller while they run."""

from __future__ import annotations

from collections.abc import Mapping


class Progress:
    """Override what you want to hear; by default nothing is done with it."""

    def start(self, description: str, epochs: int, steps: int) -> None:
        """A run of ``epochs`` epochs with ``steps`` steps each begins."""

    def resume(self, epochs: int, steps: int) -> None:
        """Called after :meth:`start` of a run that goes on: so many epochs, and steps of the next, were done before."""

    def step(self, loss: float | None = None) -> None:
        """A step is done; ``loss`` is that of its training batch, if it has one."""

    def epoch(self, row: Mapping[str, float]) -> None:
        """An epoch is done, with these figures."""

    def finish(self) -> None:
        """The run has ended, well or not."""
