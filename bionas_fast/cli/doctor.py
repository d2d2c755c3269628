"""``bionas-fast doctor``."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from bionas_fast import rules
from bionas_fast.cli.options import AsJson, Plugins, with_plugins
from bionas_fast.cli.output import out, print_json, print_lines
from bionas_fast.data import dataset_names
from bionas_fast.runtime.machine import machine
from bionas_fast.searching import method_names
from bionas_fast.space import operation_names, space_names

if TYPE_CHECKING:
    from bionas_fast.verification import Outcome

Deep = Annotated[
    bool,
    typer.Option(
        "--deep",
        help="Also run every kernel on the devices of this machine and compare it with its reference in float64; takes "
        "up to two minutes, and exits with code 1 if a kernel is wrong.",
    ),
]


@with_plugins
def doctor(
    deep: Deep = False,
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Show versions, registered names, and the backend of every op; with --deep, check every kernel."""
    import torch

    from bionas_fast import backends
    from bionas_fast.models import planar  # noqa: F401  (their imports declare all ops)
    from bionas_fast.supernet import stacked  # noqa: F401

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    choices = [backends.explain(op, device) for op in backends.op_names() for device in devices]
    known = {
        "rules": rules.names(),
        "operations": operation_names(),
        "spaces": space_names(),
        "methods": method_names(),
        "datasets": dataset_names(),
    }
    if as_json:
        ops = [{"op": c.op, "device": c.device, "backend": c.backend, "reasons": dict(c.reasons)} for c in choices]
        found = {"machine": machine(), **known, "ops": ops}
        if deep:
            from bionas_fast.verification import verify  # slow to import

            outcomes = list(verify())
            found["checks"] = [_as_json(outcome) for outcome in outcomes]
        print_json(found)
        if deep:
            _exit_on_failure(outcomes)
        return
    print_lines(machine())
    out.print()
    table = Table("op", "device", "backend", "why not others", box=None, header_style="bold")
    for choice in choices:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in choice.reasons.items())
        table.add_row(choice.op, choice.device, choice.backend, reasons)
    out.print(table)
    out.print()
    if deep:
        _check()
        return
    print_lines({name: rules.get(name).summary for name in rules.names()})
    out.print()
    print_lines({kind: ", ".join(names) for kind, names in known.items() if kind != "rules"})


def _check() -> None:
    """Check every kernel, and print a line for each check as soon as it is done."""
    from bionas_fast.verification import verify  # slow to import

    columns = ("", "kernel", "backend", "device", "dtype", "error", "bound", "shape")
    out.print(Text(_line(columns), style="bold"), soft_wrap=True)
    outcomes = []
    for outcome in verify():
        outcomes.append(outcome)
        shape = ", ".join(filter(None, (outcome.shape, outcome.mode)))
        about = ": ".join(filter(None, (shape, outcome.reason)))
        numbers = ("" if math.isnan(value) else f"{value:.1e}" for value in (outcome.error, outcome.bound))
        line = _line((outcome.status, outcome.kernel, outcome.backend, outcome.device, outcome.dtype, *numbers, about))
        out.print(Text(line, style="red" if outcome.status == "failed" else ""), soft_wrap=True)
    counts = Counter(outcome.status for outcome in outcomes)
    out.print(f"{len(outcomes)} checks: {counts['ok']} ok, {counts['failed']} failed, {counts['skipped']} skipped")
    _exit_on_failure(outcomes)


def _line(cells: tuple[str, ...]) -> str:
    widths = (7, 32, 18, 7, 9, 8, 8)
    return " ".join([*(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)), cells[-1]])


def _as_json(outcome: Outcome) -> dict[str, Any]:
    fields = outcome._asdict()
    return fields | {name: value if math.isfinite(value := fields[name]) else None for name in ("error", "bound")}


def _exit_on_failure(outcomes: list[Outcome]) -> None:
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)
