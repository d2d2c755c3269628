"""The progress of runs in a terminal of 80 columns, and in files."""

from __future__ import annotations

import time
from io import StringIO

import pytest
from rich.console import Console

import bionas_fast as bf
from bionas_fast.errors import InputError
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.terminal import TerminalProgress, listener


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def shown():
    """A display, its clock, and what it has printed."""

    def make(**console):
        clock, file = Clock(), StringIO()
        return TerminalProgress(Console(file=file, width=80, **console), clock=clock), clock, file.getvalue

    return make


def test_lines_of_a_file(shown):
    """The first after the second step, then one a minute: count and time left first."""
    display, clock, printed = shown()
    display.begin({"space": "bionas", "run folder": "runs/a"})
    display.start("searching digits", 4, 50)
    for _ in range(150):
        clock.now += 1
        display.step(2.5)
    display.finish()
    assert printed().splitlines() == [
        "space       bionas",
        "run folder  runs/a",
        "searching digits: 4 epochs of 50 steps",
        "2/200  3:18 left  epoch 1/4  loss 2.500  1.00 steps/s",
        "62/200  2:18 left  epoch 2/4  loss 2.500  1.00 steps/s",
        "122/200  1:18 left  epoch 3/4  loss 2.500  1.00 steps/s",
    ]


@pytest.mark.parametrize(("seconds", "first"), [(0.01, 100), (0.4, 3), (1.5, 2), (8.0, 2)])
def test_the_time_left_appears_early(shown, seconds, first):
    """After the second step and a second."""
    display, clock, printed = shown()
    display.start("searching digits", 4, 50)
    for step in range(1, first + 1):
        assert printed().count(" left") == 0, step
        clock.now += seconds
        display.step(2.5)
    assert printed().splitlines()[-1].startswith(f"{first}/200  ")
    assert " left" in printed()
    assert printed().startswith("searching digits: 4 epochs of 50 steps\n1/200  epoch") == (seconds > 5)


def test_the_first_step_has_no_rate(shown):
    """It may follow longer work, such as the features of all images: 45 s here, then 7 ms a step."""
    display, clock, printed = shown()
    display.start("linear head", 3, 937)
    clock.now += 45
    display.step(2.5)
    for _ in range(1000):
        clock.now += 0.007
        display.step(2.5)
    assert printed().splitlines()[1:] == [
        "1/2811  epoch 1/3  loss 2.500",
        "144/2811  0:19 left  epoch 1/3  loss 2.500  142.86 steps/s",
    ]


@pytest.mark.parametrize("copied", [False, True], ids=["printed", "copied"])
def test_the_expected_time(shown, copied):
    display, _, printed = shown()
    lines = []
    display._copy = lines.append if copied else None
    display.begin({"run folder": "runs/a"})
    display.expect(7_300)
    assert printed().splitlines() == ["run folder  runs/a", "time        about 2.0 hours"]
    assert lines == (printed().splitlines() if copied else [])
    assert display.timed
    assert not shown(quiet=True)[0].timed


def test_a_terminal_says_that_the_time_is_measured(shown):
    display, _, printed = shown(force_terminal=True)
    with display.measuring():
        for _ in range(100):  # a quarter of a second is enough
            if "measuring the time of a step" in printed():
                break
            time.sleep(0.1)
        else:
            raise AssertionError(printed())
    assert printed().endswith("\x1b[2K")  # the line is gone
    for silent in (shown()[0], shown(force_terminal=True, quiet=True)[0]):
        with silent.measuring():
            pass
        assert silent.console.file.getvalue() == ""


def test_a_resumed_run_is_not_faster(shown):
    display, clock, printed = shown()
    display.start("training a", 2, 100)
    display.resume(1, 50)
    for _ in range(2):
        clock.now += 20
        display.step(0.5)
    assert printed().splitlines()[-1] == "152/200  16:00 left  epoch 2/2  loss 0.500  20.00 s/step"


def test_populations(shown):
    display, clock, printed = shown()
    display.start("searching digits", 1, 10)
    clock.now += 6
    display.note("judging population 2 of 10")
    assert printed().splitlines()[-1] == "0/10  judging population 2 of 10"


@pytest.mark.parametrize(("epochs", "steps"), [(1, 7), (4, 11), (600, 520), (2_000, 1_000_000)])
def test_eighty_columns(shown, epochs, steps):
    """Nothing is cut in a terminal, and the bar is what gives way."""
    display, clock, printed = shown(force_terminal=True)
    display.start("searching " + "a" * 100, epochs, steps)
    display.resume(epochs // 2, 0)
    display.step(2.345)
    for _ in range(5):
        clock.now += 1e4
        display.step(2.345)
        line = display._line()
        assert len(line.plain) <= 79
        assert line.plain.startswith(f"{display._done}/{epochs * steps}  ")
        assert " left" in line.plain
        assert "loss 2.345" in line.plain
    display.finish()
    assert "…" not in printed()


def test_narrow_terminals(shown):
    display, clock, _ = shown(force_terminal=True)
    display.console.width = 20
    display.start("training", 3, 100)
    for _ in range(2):
        clock.now += 9
        display.step(1.0)
    assert display._line().plain == "2/300  44:42 left"
    display.finish()


def test_what_an_argument_stands_for():
    own = Progress()
    assert listener(own) is own
    assert isinstance(listener(True), TerminalProgress)
    assert type(listener(None)) is type(listener(False)) is Progress
    with pytest.raises(InputError, match="progress: expected True or a Progress, got str"):
        bf.search(bf.SearchConfig(), progress="yes")


def test_progress_from_python(capfd, tmp_path):
    config = bf.ResNetConfig(epochs=1, batch_size=700)
    bf.train_resnet(config, out=tmp_path / "run", progress=True)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "network     resnet20 bp, " in printed.err
    assert "training resnet20 bp: 2 steps" in printed.err
    assert "device      cpu, 1 thread, compiled kernels (" in printed.err
