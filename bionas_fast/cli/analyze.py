"""``bionas-fast analyze``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import bionas_fast as bf
from bionas_fast.cli.options import AsJson, Plugins, with_plugins
from bionas_fast.cli.output import out, print_json, print_lines, print_table
from bionas_fast.cli.sources import named_runs
from bionas_fast.runs.files import create_folder, write_atomic
from bionas_fast.runs.folder import ALPHAS, GENOTYPE, LAYERS, NewFolder, RunFolder
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runs.seeds import NOTHING, comma_separated

if TYPE_CHECKING:
    import numpy as np

    from bionas_fast.analysis import WeightDistribution

_COLUMNS = ("epoch", "layer", "rule", "variance", "noise_scale", "cosine", "angle", "norm_ratio", "sigma", "kurtosis")


@with_plugins
def analyze(
    runs: Annotated[list[str], typer.Argument(metavar="[NAME=]RUN…", help="Folders of searches and trainings.")],
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the dataset.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder of the results.  [runs/…]")] = None,
    as_json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Analyse gradients, alignment and weights of trained networks, and what searches found.

    Trainings with --set record_layers=N are shown over time, others at their end.
    """
    import numpy as np

    named = named_runs(runs)
    layers: dict[str, list[dict[str, Any]]] = {}
    weights: dict[str, Sequence[WeightDistribution]] = {}
    genotypes: dict[str, bf.Genotype] = {}
    entropies: dict[str, np.ndarray] = {}
    for name, path in named.items():
        record = RunFolder.open(path).read()
        if record.kind in kind_names() and get_kind(record.kind).trains_network:
            layers[name], weights[name] = _trained(path, data_dir, plugins or ())
        if os.path.isfile(path / ALPHAS):
            with np.load(path / ALPHAS, allow_pickle=False) as stored:
                kinds = [kind for kind in stored.files if kind != "candidates"]
                entropies[name] = np.stack([bf.analysis.alpha_entropy(stored[kind]) for kind in kinds]).mean(axis=0)
        if os.path.isfile(path / GENOTYPE):
            genotypes[name] = bf.Genotype.load(path / GENOTYPE)
    target = NewFolder("analysis-" + "-".join(named)).make() if folder is None else folder
    create_folder(target)
    _write_layers(target, layers, weights)
    _write_genotypes(target, genotypes, entropies)
    summaries = [_summary(name, layers[name], weights[name]) for name in layers]
    if as_json:
        courses = {name: entropy.tolist() for name, entropy in entropies.items()}
        print_json({"networks": summaries, "bits of α by epoch": courses, "folder": str(target)})
        return
    print_table(summaries)
    if layers:
        out.print()
    lines = {f"entropy of α, {name}": f"{own[0]:.3f} → {own[-1]:.3f} bits" for name, own in entropies.items()}
    if len(genotypes) > 1 and len({type(own.skeleton) for own in genotypes.values()}) == 1:
        lines["in all genotypes"] = str(bf.space.Agreement.of(list(genotypes.values())))
    print_lines({**lines, "folder": str(target)})


def _trained(
    path: Path, data_dir: Path | None, plugins: Sequence[str]
) -> tuple[list[dict[str, Any]], Sequence[WeightDistribution]]:
    """Return the rows of the layers of a trained network, and its weights: all, and by rule."""
    network = bf.load(path, plugins=plugins)
    folder = RunFolder.open(path)
    record = folder.read()
    if os.path.isfile(path / LAYERS):
        rows = folder.read_rows(LAYERS)
    else:
        settings = {**record.settings, "download": False, "plugins": tuple(plugins)}
        if data_dir is not None:
            settings["data_dir"] = str(data_dir)
        config = get_kind(record.kind).settings(**settings)
        data = bf.data.configured(config)
        bf.data.expect_shape(data, record.network)
        rows = bf.analysis.record_layers(network, bf.analysis.probe(data.train), config.epochs)
    measure = bf.analysis.measure_weights
    return rows, (*measure(network, by="network"), *measure(network, by="rule"))


def _write_layers(
    target: Path,
    layers: Mapping[str, list[dict[str, Any]]],
    weights: Mapping[str, Sequence[WeightDistribution]],
) -> None:
    from bionas_fast.analysis.figures import weights_figure
    from bionas_fast.report.figure import render
    from bionas_fast.report.layers import alignment_figure, gradients_figure

    if not layers:
        return
    rows = [(name, *(row[column] for column in _COLUMNS)) for name, found in layers.items() for row in found]
    write_atomic(target / "layers.csv", comma_separated(("network", *_COLUMNS), rows))
    densities = [
        (name, own.name, float(low), float(high), float(density))
        for name, found in weights.items()
        for own in found
        for low, high, density in zip(own.edges[:-1], own.edges[1:], own.density, strict=True)
    ]
    write_atomic(target / "weights.csv", comma_separated(("network", "rule", "from", "to", "density"), densities))
    write_atomic(target / "gradients.svg", render(gradients_figure(layers), "svg"))
    write_atomic(target / "weights.svg", render(weights_figure(weights), "svg"))
    if any(row["angle"] is not None for found in layers.values() for row in found):
        write_atomic(target / "alignment.svg", render(alignment_figure(layers), "svg"))


def _write_genotypes(target: Path, genotypes: Mapping[str, bf.Genotype], entropies: Mapping[str, np.ndarray]) -> None:
    from bionas_fast.analysis.figures import composition_figure, entropy_figure
    from bionas_fast.report.figure import render

    rows = bf.analysis.composition(list(genotypes.values()))
    if rows:
        write_atomic(target / "composition.csv", comma_separated(tuple(rows[0]), [tuple(row.values()) for row in rows]))
        for key in ("operation", "rule"):
            write_atomic(target / f"{key}s.svg", render(composition_figure(rows, key), "svg"))
    if entropies:
        points = [(name, epoch, value) for name, own in entropies.items() for epoch, value in enumerate(own.tolist())]
        write_atomic(target / "entropy.csv", comma_separated(("run", "epoch", "bits"), points))
        write_atomic(target / "entropy.svg", render(entropy_figure(entropies), "svg"))


def _summary(name: str, rows: list[dict[str, Any]], weights: Sequence[WeightDistribution]) -> dict[str, str]:
    """Return the means over the layers at the last epoch, as text."""
    last = [row for row in rows if row["epoch"] == rows[-1]["epoch"]]

    def mean(key: str) -> str:
        values = [row[key] for row in last if row[key] is not None]
        return f"{sum(values) / len(values):.3g}" if values else NOTHING

    sigmas = ", ".join(f"{own.name} {own.sigma:.3g} ({own.kurtosis:.2f})" for own in weights)
    keys = ("variance", "noise_scale", "cosine", "angle", "norm_ratio")
    return {"network": name, **{key.replace("_", " "): mean(key) for key in keys}, "σ (kurtosis) of weights": sigmas}
