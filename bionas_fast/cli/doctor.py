"""``bionas-fast doctor``."""

from __future__ import annotations

from rich.table import Table

from bionas_fast import rules
from bionas_fast.cli.options import AsJson, Plugins, with_plugins
from bionas_fast.cli.output import out, print_json, print_lines
from bionas_fast.data import dataset_names
from bionas_fast.runtime.machine import machine
from bionas_fast.searching import method_names
from bionas_fast.space import operation_names, space_names


@with_plugins
def doctor(
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Show versions, registered names, and the backend of every op."""
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
        print_json({"machine": machine(), **known, "ops": ops})
        return
    print_lines(machine())
    out.print()
    table = Table("op", "device", "backend", "why not others", box=None, header_style="bold")
    for choice in choices:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in choice.reasons.items())
        table.add_row(choice.op, choice.device, choice.backend, reasons)
    out.print(table)
    out.print()
    print_lines({name: rules.get(name).summary for name in rules.names()})
    out.print()
    print_lines({kind: ", ".join(names) for kind, names in known.items() if kind != "rules"})
