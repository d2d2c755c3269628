"""Training of genotype networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from bionas_fast.config import RunRecord
from bionas_fast.data import AnyDataset, Data, DataShape
from bionas_fast.errors import InputError, expect_type
from bionas_fast.models import GenotypeNetwork, NetworkOptions, build_network
from bionas_fast.runs.callbacks import Callback
from bionas_fast.runs.completion import completed
from bionas_fast.runs.folder import GENOTYPE, Out, RunFolder
from bionas_fast.runs.memory import expect_memory
from bionas_fast.runs.progress import Progress
from bionas_fast.runtime.device import resolve_device
from bionas_fast.space import Genotype
from bionas_fast.training.config import TrainConfig
from bionas_fast.training.result import TrainResult
from bionas_fast.training.supervised import SupervisedTraining


def train(
    genotype: Genotype | None = None,
    config: TrainConfig | None = None,
    *,
    data: Data | None = None,
    out: Out = None,
    resume: str | Path | None = None,
    progress: Progress | bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainResult[GenotypeNetwork]:
    """Train the network of a genotype from scratch and test it.

    Args:
        genotype: the architecture and its learning rules; by default those of the resumed run.
        config: the settings; by default for scikit-learn's digits.
        data: the images, in place of the dataset that the settings name; see :func:`bionas_fast.data.as_dataset`. To
            resume, give them again.
        out: the run folder, new or empty; by default one under ``runs/``, named after the settings and the time. False:
            nothing is written.
        resume: the folder of an interrupted run to resume. The result is the same as without the interruption; only
            settings that do not affect the result may be changed.
        progress: receives the progress of the training; True shows it on stderr.
        callbacks: see the network and the step; see :class:`bionas_fast.Callback`.

    Raises:
        InputError: an unknown name in a setting, a missing dataset, a non-empty folder, a loss that is no longer
            finite; a run that cannot be resumed.
        Interrupted: after Ctrl-C or SIGTERM. The training is saved if it has a folder.
    """
    expect_type("genotype", genotype, (Genotype, type(None)), "bf.Genotype.load(PATH) reads one")
    if genotype is None and resume is None:
        raise InputError("nothing to train: give a genotype, or the folder of a run to resume")

    def name(settings: TrainConfig) -> str:
        assert genotype is not None
        return f"train-{settings.dataset}-{genotype.hash}-seed{settings.seed}"

    def make(settings: TrainConfig, folder: RunFolder | None, given: AnyDataset | None) -> Training:
        trained = None if genotype is None else trained_genotype(genotype, settings)
        return Training(_genotype_of(trained, folder), settings, given)

    with completed(
        Training,
        config,
        name=name,
        make=make,
        data=data,
        out=out,
        resume=resume,
        progress=progress,
        callbacks=callbacks,
    ) as (training, folder):
        return training.result(folder)


def trained_genotype(genotype: Genotype, config: TrainConfig) -> Genotype:
    """Return the genotype with the rules that a configuration trains, as its run records it."""
    return genotype if config.skip_rules else genotype.without_skip_rules()


def _genotype_of(genotype: Genotype | None, folder: RunFolder | None) -> Genotype:
    """Choose the genotype to train: that of the resumed run, if the run was killed after writing it."""
    if folder is None or (genotype is not None and not (folder.path / GENOTYPE).exists()):
        assert genotype is not None
        return genotype
    stored = Genotype.load(folder.file(GENOTYPE))
    if genotype is not None and genotype != stored:
        raise InputError(f"the run {folder.path} trains genotype {stored.hash}, not {genotype.hash}")
    return stored


class Training(SupervisedTraining):
    """The training of a genotype network."""

    kind = "train"
    settings = TrainConfig
    divergence = (*SupervisedTraining.divergence, "auxiliary_weight")
    config: TrainConfig
    net: GenotypeNetwork

    def __init__(self, genotype: Genotype, config: TrainConfig, data: AnyDataset | None = None) -> None:
        self.genotype = genotype = trained_genotype(genotype, config)

        def build(data: AnyDataset) -> GenotypeNetwork:
            def sized(channels: int, cells: int) -> GenotypeNetwork:
                settings = config.with_settings(channels=channels, cells=cells)
                return _build(genotype, settings, data.in_channels, data.num_classes)

            expect_memory(sized, config.channels, config.cells, resolve_device(config.device))
            return sized(config.channels, config.cells)

        super().__init__(config, build, genotype.hash, data)

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        config = self.config
        drop_path = config.drop_path
        if config.drop_path_schedule == "linear":
            drop_path = drop_path * self.epoch / config.epochs
        out = self.call(x, drop_path)
        return out if isinstance(out, tuple) else (out,)

    def auxiliary_weights(self) -> tuple[float, ...]:
        return (self.config.auxiliary_weight,) if self.net.auxiliary is not None else ()

    def write_beginning(self, folder: RunFolder) -> None:
        super().write_beginning(folder)
        assert self.genotype is not None
        folder.write(GENOTYPE, self.genotype.to_json())

    @classmethod
    def load_network(cls, folder: RunFolder, record: RunRecord) -> GenotypeNetwork:
        shape = DataShape.read(record)
        genotype = Genotype.load(folder.file(GENOTYPE))
        return _build(genotype, TrainConfig(**record.settings), shape.in_channels, shape.num_classes)


def _build(genotype: Genotype, config: TrainConfig, in_channels: int, num_classes: int) -> GenotypeNetwork:
    return build_network(
        genotype,
        channels=config.channels,
        cells=config.cells,
        auxiliary=config.auxiliary_weight > 0,
        seed=config.seed,
        in_channels=in_channels,
        num_classes=num_classes,
        options=NetworkOptions(config.stem, config.initialisation),
    )
