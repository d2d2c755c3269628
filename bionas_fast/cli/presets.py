"""``bionas-fast presets``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

import bionas_fast as bf
from bionas_fast import presets
from bionas_fast.cli.options import AsJson
from bionas_fast.cli.output import out, print_json, print_lines, say
from bionas_fast.cli.show import read_genotype
from bionas_fast.presets import Preset
from bionas_fast.runs.kinds import get_kind, kind_names


def list_presets(
    wanted: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Show these, and measure what they cost on this machine."),
    ] = None,
    measured: Annotated[
        bool, typer.Option("--estimate", help="Measure what every preset costs on this machine; takes some minutes.")
    ] = False,
    genotype: Annotated[
        str, typer.Option(metavar="RUN|GENOTYPE", help="The genotype whose training is measured.")
    ] = "biodarts2",
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Time for measuring each preset, without building its network.")
    ] = 30.0,
    as_json: AsJson = False,
) -> None:
    """List the presets, their steps and the sources they follow; with names, also their size, time and memory.

    The time is extrapolated from a few steps that are run on random images; no data are needed.
    """
    chosen = [presets.get(name) for name in wanted or ()]
    everything = sorted(presets.every(), key=lambda preset: kind_names().index(preset.kind))
    if as_json:
        listed = chosen or everything
        print_json([_record(own, genotype, seconds if measured or chosen else None) for own in listed])
        return
    if measured and not chosen:
        _print_costs(everything, genotype, seconds)
    elif not chosen:
        _print_sources(everything)
    for preset in chosen:
        _print_preset(preset, genotype, seconds)


def _record(preset: Preset, genotype: str, seconds: float | None) -> dict[str, Any]:
    """Describe a preset by plain values, and measure what it costs if there is time for it."""
    from bionas_fast.estimation import steps

    config = _config(preset)
    record = {
        "preset": preset.name,
        "kind": preset.kind,
        "source": preset.source,
        "steps": steps(config),
        "settings": config.settings(),
    }
    return record if seconds is None else record | asdict(_estimate(preset, genotype, seconds))


def _print_sources(listed: list[Preset]) -> None:
    from bionas_fast.estimation import steps

    rows = [("preset", "for", "data", "network", "steps", "source")]
    for preset in listed:
        config = _config(preset)
        count = f"{steps(config):,}"
        rows.append((preset.name, preset.kind, config.dataset, _network(config), count, preset.source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for index, (*cells, source) in enumerate(rows):
        # The source has a line of its own, so that nothing is cut on a narrow terminal.
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        style = "bold" if index == 0 else None
        out.print(f"{line}\n    {source}", style=style, markup=False, highlight=False, soft_wrap=True)
    say("bionas-fast presets NAME shows size and settings, and measures the time")


def _print_costs(listed: list[Preset], genotype: str, seconds: float) -> None:
    from bionas_fast.estimation import duration

    table = Table("preset", "parameters", "multiply-adds", "steps", "step", "time", "memory", box=None)
    for preset in listed:
        found = _estimate(preset, genotype, seconds)
        table.add_row(
            preset.name,
            f"{found.size.parameters:,}",
            f"{found.size.operations / 1e6:,.1f} M",
            f"{found.steps:,}",
            duration(found.step_seconds),
            duration(found.seconds),
            f"{found.memory / 1e9:.1f} GB",
        )
    out.print(table)


def _print_preset(preset: Preset, genotype: str, seconds: float) -> None:
    found = _estimate(preset, genotype, seconds)
    network = genotype if preset.kind == "train" else _network(_config(preset))
    print_lines(
        {
            "preset": preset.name,
            "for": f"bionas-fast {get_kind(preset.kind).command}",
            "source": preset.source,
            "network": network,
            **found.lines(),
        }
    )
    out.print("settings", style="bold")
    for name, value in preset.settings.items():
        out.print(f"  {name}: {value}", markup=False, highlight=False, soft_wrap=True)


def _estimate(preset: Preset, genotype: str, seconds: float) -> Any:
    say(f"measuring {preset.name}")
    return bf.estimate(_config(preset), read_genotype(genotype) if preset.kind == "train" else None, seconds=seconds)


def _config(preset: Preset) -> Any:
    return get_kind(preset.kind).settings(**preset.settings)


def _network(config: Any) -> str:
    """Describe the network of a preset by its settings."""
    if hasattr(config, "architecture"):
        return str(config.architecture)
    return f"{config.cells} cells, {config.channels} channels"
