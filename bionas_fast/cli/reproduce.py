"""``bionas-fast reproduce``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bionas_fast.cli.options import AsJson, takes_record
from bionas_fast.cli.output import err, interruptible, out, print_json, print_lines, print_table, say
from bionas_fast.errors import InputError
from bionas_fast.reproduce import (
    Experiment,
    Listener,
    Part,
    Plan,
    Scale,
    Step,
    experiment_names,
    get_experiment,
    run_steps,
    scale_names,
)
from bionas_fast.reproduce.runner import LOGS, is_done
from bionas_fast.runs.files import write_atomic
from bionas_fast.runs.summary import RunSummary
from bionas_fast.runs.terminal import duration


@dataclass(frozen=True)
class Execution:
    """The execution of the runs, as options."""

    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at a time.  [desk: one per core, paper: 1]", show_default=False),
    ] = None
    options: Annotated[
        str, typer.Option(help="Further options of every search and training, such as '--dataset digits'.")
    ] = ""
    launcher: Annotated[
        str,
        typer.Option(
            metavar="COMMAND",
            help="Program that starts searches and trainings, such as 'torchrun --nproc-per-node=8'.",
        ),
    ] = ""
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands, measure what they cost here, and end.")
    ] = False


@takes_record("execution", Execution)
def reproduce(
    names: Annotated[list[str], typer.Argument(metavar="|".join(experiment_names()), help="Tables and figures.")],
    execution: Execution,
    scale: Annotated[str, typer.Option(help=f"Size of the runs: {' or '.join(scale_names())}.")] = "desk",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of seeds.  [desk: 3, paper: 1]", show_default=False)
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of all runs, shared by all tables.  [runs/desk, runs/paper]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Reproduce tables and figures of the paper, beside the published figures.

    Each consists of runs of this program, which --dry-run lists. What is complete is not repeated: the same command
    continues, and with more seeds adds those. At paper scale, the costs on this machine are measured first.
    """
    experiments = [get_experiment(name) for name in dict.fromkeys(names)]
    own = Scale.read(scale)
    plan = Plan(own, folder or Path("runs") / own.name, seeds or own.seeds, tuple(shlex.split(execution.options)))
    steps = list(dict.fromkeys(step for experiment in experiments for step in experiment.steps(plan)))
    if execution.dry_run:
        for step in steps:
            out.print(str(step), markup=False, highlight=False, soft_wrap=True)
    if execution.dry_run or scale == "paper":
        _print_costs(steps, plan)
    if execution.dry_run:
        return
    plan.claim()
    at_once = execution.jobs or (max(1, os.cpu_count() or 1) if scale == "desk" else 1)
    try:
        with interruptible(), _Lines(steps) as lines:
            failures = run_steps(
                steps, plan.out / LOGS, jobs=at_once, launcher=shlex.split(execution.launcher), listener=lines
            )
    finally:
        parts = {experiment.name: _write(experiment, plan) for experiment in experiments}
        if as_json:
            print_json(
                {name: [{"title": part.title, "rows": part.rows} for part in own] for name, own in parts.items()}
            )
        else:
            for experiment in experiments:
                _present(experiment, plan, parts[experiment.name])
    if failures:
        texts = (f"{step.name}, seed {step.seed}: {text}" for step, text in failures.items())
        raise InputError(f"{'; '.join(texts)}; what they printed is in {plan.out / LOGS}")


def _write(experiment: Experiment, plan: Plan) -> list[Part]:
    """Write what there is of a table or figure into the folder of all runs."""
    from bionas_fast.report.figure import render

    parts = experiment.parts(plan)
    if parts:
        again = shlex.join(["bionas-fast", "reproduce", experiment.name, "--scale", plan.scale.name])
        write_atomic(plan.out / f"{experiment.name}.md", _page(parts, f"{again} --seeds {plan.seeds}"))
        for name, figure in experiment.figures(plan).items():
            write_atomic(plan.out / f"{experiment.name}-{name}.svg", render(figure, "svg"))
    return parts


def _present(experiment: Experiment, plan: Plan, parts: Sequence[Part]) -> None:
    """Print what was written."""
    for part in parts:
        out.print(f"\n{part.title}", style="bold", markup=False, highlight=False, soft_wrap=True)
        print_table(part.rows)
        out.print(part.legend, markup=False, highlight=False, soft_wrap=True)
    if parts:
        files = sorted(plan.out.glob(f"{experiment.name}[-.]*"))
        print_lines({"files": ", ".join(map(str, files))})


def _page(parts: Sequence[Part], command: str) -> str:
    return "\n".join((*(part.to_markdown() for part in parts), f"`{command}`\n"))


def _print_costs(steps: Sequence[Step], plan: Plan) -> None:
    """Measure and print what the steps cost."""
    from bionas_fast.reproduce import estimate_costs

    first = [step for step in steps if step.seed == 0]
    costs = estimate_costs(first, measuring=lambda step: say(f"measuring {step.name}"))
    rows = [
        {
            "run": cost.step.name,
            "parameters": f"{cost.estimate.size.parameters:,}",
            "steps": f"{cost.estimate.steps:,}",
            "time here": duration(cost.estimate.seconds),
            "memory": f"{cost.estimate.memory / 1e9:.1f} GB",
        }
        for cost in costs
        if cost.estimate is not None
    ]
    print_table(rows)
    known = sum(cost.estimate.seconds for cost in costs if cost.estimate is not None)
    unknown = {cost.step.name: cost.failure for cost in costs if cost.estimate is None}
    for name, failure in unknown.items():
        say(f"note: {name}: {failure}")
    done = sum(is_done(step) for step in steps)
    print_lines(
        {
            "runs": f"{len(steps)} with {plan.seeds} seeds, of which {done} are done",
            "time of all": f"about {duration(known * plan.seeds)} on this machine, one by one, without attacks",
        }
    )


class _Lines(Listener):
    """A bar of the steps, and a line for each that ends."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err
        )
        self._running: list[Step] = []
        self._task = self._bar.add_task("", total=len(steps), completed=sum(map(is_done, steps)))

    def __enter__(self) -> _Lines:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def started(self, step: Step) -> None:
        self._running.append(step)
        self._show()

    def ended(self, step: Step, seconds: float, failure: str | None) -> None:
        self._running.remove(step)
        accuracy = RunSummary.read(step.folder).accuracy if step.is_run and failure is None else None
        figure = "" if accuracy is None else f": {accuracy:.2f} %"
        text = f"{step.name}, seed {step.seed}{figure if failure is None else f': {failure}'}   {duration(seconds)}"
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._bar.advance(self._task)
        self._show()

    def _show(self) -> None:
        names = ", ".join(f"{step.name} {step.seed}" for step in self._running)
        self._bar.update(self._task, description=names)
