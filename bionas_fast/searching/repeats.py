"""Searches repeated over seeds: their accuracies, their genotypes, and the edges on which these agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bionas_fast import report
from bionas_fast.data import Data, as_dataset, with_data
from bionas_fast.errors import expect_count, expect_type
from bionas_fast.plugins import import_plugins
from bionas_fast.runs.callbacks import Callback, expect_callbacks
from bionas_fast.runs.files import write_atomic
from bionas_fast.runs.folder import GENOTYPE, REPORT, NewFolder
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.repeat import PlannedRun, Variant, repeat
from bionas_fast.runs.seeds import NOTHING, TABLE_CSV, TABLE_MARKDOWN, SeedTable, Series, comma_separated, markdown
from bionas_fast.runtime import distributed
from bionas_fast.searching.config import SearchConfig
from bionas_fast.searching.loop import Search, search
from bionas_fast.space import Agreement, Genotype

_METRIC = "validation accuracy %"


@dataclass(frozen=True)
class SearchTable:
    """The results of a search over seeds.

    Attributes:
        accuracies: the validation accuracy of the supernet for each seed, in percent.
        genotypes: the genotype that the search with each seed chose.
        failures: for each search that ended with an error: its seed, and the error.
        folder: the folder of the searches.
    """

    accuracies: Series
    genotypes: Mapping[int, Genotype]
    failures: tuple[str, ...]
    folder: Path

    @classmethod
    def read(cls, table: SeedTable, folder: Path) -> SearchTable:
        """Read the genotypes of the runs of a table from their folders."""
        (series,) = table.series
        genotypes = {seed: Genotype.load(folder / f"seed-{seed}" / GENOTYPE) for seed in series.values}
        return cls(series, genotypes, table.failures, folder)

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of the table as text, one per seed: accuracy, hash of the genotype, its rules."""
        return [
            {
                "seed": str(seed),
                _METRIC: f"{accuracy:.2f}",
                "genotype": self.genotypes[seed].hash,
                "rules": ", ".join(self.genotypes[seed].rules) or NOTHING,
            }
            for seed, accuracy in self.accuracies.values.items()
        ]

    def summary(self) -> dict[str, str]:
        """Return the statistics over all seeds as text, by name; empty without results."""
        if not self.genotypes:
            return {}
        return {
            _METRIC: str(self.accuracies.interval),
            "deviation": f"{self.accuracies.deviation:.2f}" if len(self.genotypes) > 1 else NOTHING,
            "in all genotypes": str(Agreement.of(list(self.genotypes.values()))),
        }

    def write(self) -> None:
        """Write ``table.md`` and ``table.csv`` into the folder, atomically.

        Raises:
            InputError: a file cannot be written.
        """
        lines = [f"- {name}: {value}\n" for name, value in self.summary().items()]
        lines += [f"- failed: {failure}\n" for failure in self.failures]
        rows = self.rows()
        write_atomic(self.folder / TABLE_MARKDOWN, (markdown(rows) + "\n" if rows else "") + "".join(lines))
        results = [(seed, value, self.genotypes[seed].hash) for seed, value in self.accuracies.values.items()]
        write_atomic(self.folder / TABLE_CSV, comma_separated(("seed", _METRIC, "genotype"), results))


def repeat_search(
    config: SearchConfig | None = None,
    *,
    seeds: int,
    data: Data | None = None,
    out: str | Path | NewFolder | None = None,
    progress: Progress | bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> SearchTable:
    """Search with several seeds; each run is in ``out/seed-N``, and can be trained by itself.

    Complete runs are not repeated, so the same call continues what was interrupted, and a call with more seeds adds
    those. The folder also gets ``table.md``, ``table.csv`` and ``report.html``.

    Args:
        config: the settings of every search, the first seed among them.
        seeds: number of seeds.
        data: the images, in place of the dataset that the settings name; see :func:`bionas_fast.data.as_dataset`.
        out: the folder: new, empty, or that of an earlier call; by default one under ``runs/``.
        progress: receives the progress of each run and its result; True shows it on stderr.
        callbacks: see every search, one after the other; see :class:`bionas_fast.Callback`.

    Raises:
        InputError: ``out`` holds other runs; a search that cannot begin or continue.
        Interrupted: after Ctrl-C or SIGTERM. The searches are saved.
    """
    expect_type("config", config, (SearchConfig, type(None)), "write bf.SearchConfig(dataset='digits')")
    expect_count("seeds", seeds)
    expect_callbacks(callbacks)
    given = None if data is None else as_dataset(data)
    config = with_data(config or SearchConfig(), given)
    import_plugins(config.plugins)
    numbers = range(config.seed, config.seed + seeds)
    begin = partial(search, data=given, callbacks=callbacks)
    runs = {seed: PlannedRun(Search, config.with_settings(seed=seed), begin) for seed in numbers}
    variant = Variant(config.method, runs)
    found = repeat(
        [variant],
        NewFolder(f"seeds-{config.dataset}-{config.space}-{config.method}") if out is None else out,
        metric=_METRIC,
        progress=progress,
        write=lambda table, folder: SearchTable.read(table, folder).write(),
    )
    assert found.folder is not None
    path = found.folder
    # The folder may be visible to rank 0 only.
    table = distributed.broadcast(SearchTable.read(found, path) if distributed.is_main() else None)
    assert table is not None
    if distributed.is_main():
        searches = {variant.name: [variant.path(path, seed) for seed in numbers]}
        compared = report.Compared(f"Searches on {config.dataset}", found, searches)
        report.write_comparison(path / REPORT, [compared], title="Search")
    return table
