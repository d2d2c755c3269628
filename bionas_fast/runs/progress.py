"""The interface through which long-running functions report their progress."""

from __future__ import annotations

from collections.abc import Mapping


class Progress:
    """Override the methods to listen to; by default they do nothing."""

    def start(self, description: str, epochs: int, steps: int) -> None:
        """A phase of ``epochs`` epochs with ``steps`` steps each begins."""

    def resume(self, epochs: int, steps: int) -> None:
        """The phase just started resumes: ``epochs`` epochs and ``steps`` steps of the next are done already."""

    def step(self, loss: float | None = None) -> None:
        """A step is done; ``loss`` is that of its training batch, if it has one."""

    def epoch(self, row: Mapping[str, float]) -> None:
        """An epoch is done; ``row`` holds its metrics."""

    def finish(self) -> None:
        """The phase has ended, well or not."""
