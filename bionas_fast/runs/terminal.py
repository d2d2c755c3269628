"""Progress of runs in a terminal, or line by line in a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bionas_fast.errors import InputError
from bionas_fast.runs.progress import Progress

#: Seconds between two lines where there is no terminal; to the first line, unless the second step comes before; and to
#: the first with the time left, from the line before it. The first step does not count, which is longer than others.
LINE_EVERY, LATEST, EARLIEST = 60.0, 5.0, 1.0
#: The least width of a bar.
_SHORTEST = 8


class TerminalProgress(Progress):
    """Progress of a run: in a terminal one line that is drawn again and again, elsewhere a line every minute.

    Count and time left come first; what does not fit into the width of the terminal is left out, first of all the bar.

    Args:
        console: the console; by default the standard error stream.
        copy: receives every line that is printed, and one a minute even if there is a terminal.
        clock: the time in seconds.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        copy: Callable[[str], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(stderr=True)
        self._copy = copy
        self._clock = clock
        self._live: Live | None = None
        self._width = 0
        self.timed = not self.console.quiet or copy is not None

    def begin(self, facts: Mapping[str, str]) -> None:
        self._width = max(map(len, facts), default=0)
        for name, value in facts.items():
            self._print_fact(name, value)

    def measuring(self) -> AbstractContextManager[object]:
        if not self.console.is_terminal or self.console.quiet:
            return nullcontext()
        return self.console.status("measuring the time of a step", refresh_per_second=4)

    def expect(self, seconds: float) -> None:
        self._print_fact("time", f"about {duration(seconds)}")

    def start(self, description: str, epochs: int, steps: int) -> None:
        self._epochs, self._steps = epochs, steps
        self._done = self._before = 0
        self._loss: float | None = None
        self._doing = ""
        self._said = self._clock()
        self._stepped: float | None = None  # when the first step here was done
        self._every = LATEST
        self._rated = False
        length = f"{_count(epochs, 'epoch')} of {_count(steps, 'step')}" if epochs > 1 else _count(steps, "step")
        self._print(f"{description}: {length}")
        if self.console.is_terminal and not self.console.quiet:
            self._live = Live(console=self.console, get_renderable=self._line, refresh_per_second=4, transient=True)
            self._live.start()

    def resume(self, epochs: int, steps: int) -> None:
        self._done = self._before = epochs * self._steps + steps

    def note(self, doing: str) -> None:
        self._doing = doing
        self._say()

    def step(self, loss: float | None = None) -> None:
        self._done += 1
        self._loss, self._doing = loss, ""
        if self._stepped is None:
            self._stepped = self._clock()
        self._say()

    def epoch(self, row: Mapping[str, float]) -> None:
        name = next((n for n in ("valid_accuracy", "test_accuracy") if n in row), None)
        accuracy = f"   {name.partition('_')[0]} {row[name]:.2f} %" if name else ""
        self._print(f"epoch {row['epoch']:>3}   train {row['train_accuracy']:.2f} %{accuracy}   {row['seconds']:.1f} s")

    def result(self, variant: str, seed: int, accuracy: float) -> None:
        self._print(f"{variant}, seed {seed}: {accuracy:.2f} %")

    def interrupted(self) -> None:
        self._print("finishing this step, then saving; interrupt once more to stop without saving")

    def finish(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print_fact(self, name: str, value: str) -> None:
        self.console.print(Text.assemble((f"{name:<{self._width}}  ", "bold"), value), soft_wrap=True)
        if self._copy is not None:
            self._copy(f"{name:<{self._width}}  {value}")

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        if self._copy is not None:
            self._copy(text)

    def _say(self) -> None:
        """Print a line if there is no terminal, and copy it, if it is time for one."""
        if self._live is not None and self._copy is None:
            return
        now, rated = self._clock(), self._rate() is not None
        if now - self._said >= (EARLIEST if rated and not self._rated else self._every):
            self._said, self._every, self._rated = now, LINE_EVERY, rated
            line = "  ".join(self._parts())
            if self._live is None:
                self._print(line)
            elif self._copy is not None:
                self._copy(line)

    def _rate(self) -> float | None:
        """The steps per second since the first one; None before the second."""
        steps = self._done - self._before - 1
        if self._stepped is None or steps < 1:
            return None
        elapsed = self._clock() - self._stepped
        return steps / elapsed if elapsed > 0 else None

    def _parts(self) -> list[str]:
        total, rate = self._epochs * self._steps, self._rate()
        parts = [f"{self._done}/{total}"]
        if rate is not None:
            parts.append(f"{_clock_time((total - self._done) / rate)} left")
        if self._epochs > 1:
            parts.append(f"epoch {min(self._done // self._steps + 1, self._epochs)}/{self._epochs}")
        if self._doing:
            parts.append(self._doing)
        elif self._loss is not None:
            parts.append(f"loss {self._loss:.3f}")
        if rate is not None:
            parts.append(f"{rate:.2f} steps/s" if rate >= 1 else f"{1 / rate:.2f} s/step")
        return parts

    def _line(self) -> Text:
        parts, width = self._parts(), self.console.width - 1
        while len(parts) > 2 and len("  ".join(parts)) > width:
            parts.pop()
        text = "  ".join(parts)
        room = width - len(text) - 2
        if room < _SHORTEST:
            return Text(text, no_wrap=True)
        filled = room * self._done // max(1, self._epochs * self._steps)
        return Text.assemble(f"{text}  ", ("━" * filled, "green"), ("━" * (room - filled), "dim"), no_wrap=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _clock_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def duration(seconds: float) -> str:
    """Format a time for people, with two digits: ``41 days``."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60), ("s", 1)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:.2g} s"


def listener(progress: Progress | bool | None) -> Progress:
    """Return the listener that an argument stands for: itself, the terminal for True, none for None and False.

    Raises:
        InputError: something else.
    """
    if progress is True:
        return TerminalProgress()
    if progress is None or progress is False:
        return Progress()
    if not isinstance(progress, Progress):
        raise InputError(f"progress: expected True or a Progress, got {type(progress).__name__}")
    return progress
