"""The search, shared by all methods: weights by SGD, the architecture by the method."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bionas_fast import report
from bionas_fast.config import RunRecord
from bionas_fast.data import AnyDataset, Augment, Data, DataShape, LabelledImages, configured
from bionas_fast.errors import InputError
from bionas_fast.evaluation import evaluate
from bionas_fast.models import measure_size
from bionas_fast.nn import synchronise_statistics
from bionas_fast.nn.learned import clip_gradients, without_feedback
from bionas_fast.nn.mirroring import mirror_between_epochs
from bionas_fast.runs.callbacks import Callback
from bionas_fast.runs.checkpoint import expect_form
from bionas_fast.runs.completion import completed
from bionas_fast.runs.folder import CHECKPOINT, GENOTYPE, GENOTYPES, NewFolder, RunFolder
from bionas_fast.runs.memory import expect_memory
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.schedule import cosine
from bionas_fast.runs.summary import NO_FACTS, RunFacts
from bionas_fast.runs.trainer import Phase, Step, Trainer
from bionas_fast.runtime import distributed
from bionas_fast.runtime.device import describe_device, resolve_device
from bionas_fast.runtime.graphs import Replayed
from bionas_fast.runtime.precision import Precision
from bionas_fast.searching import captured
from bionas_fast.searching.checks import check
from bionas_fast.searching.config import SearchConfig
from bionas_fast.searching.frozen import frozen
from bionas_fast.searching.names import get_method
from bionas_fast.searching.result import SearchResult, decided, messages
from bionas_fast.searching.robust import RobustTerm
from bionas_fast.searching.skip_limit import SkipLimit
from bionas_fast.space import Decision, Genotype, get_space
from bionas_fast.supernet import Mixture, Supernet, SupernetOptions, build_supernet


def search(
    config: SearchConfig | None = None,
    *,
    data: Data | None = None,
    out: str | Path | NewFolder | None = None,
    resume: str | Path | None = None,
    progress: Progress | bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> SearchResult:
    """Search for an architecture and the learning rule of every layer in it.

    Args:
        config: the settings; by default scikit-learn's digits at a size for two processor cores.
        data: the images, in place of the dataset that the settings name; see :func:`bionas_fast.data.as_dataset`. To
            resume, give them again.
        out: the run folder, new or empty; by default one under ``runs/``, named after the settings and the time.
        resume: the folder of an interrupted search. It is resumed, and its result is that of an uninterrupted one; only
            settings that do not affect the result may be changed.
        progress: receives the progress of the search; True shows it on stderr.
        callbacks: see the supernet, α and the step; see :class:`bionas_fast.Callback`.

    Raises:
        InputError: an unknown name in a setting, a missing dataset, a non-empty folder, or a run that cannot be
            resumed. Then nothing has been written.
        Interrupted: Ctrl-C or SIGTERM. The search is saved.
    """
    if out is False:
        raise InputError("out: a search is written to a folder; leave it out, or give one")
    with completed(
        Search,
        config,
        name=lambda own: f"search-{own.dataset}-{own.space}-{own.method}-seed{own.seed}",
        make=lambda settings, _, given: Search(settings, given),
        data=data,
        out=out,
        resume=resume,
        progress=progress,
        callbacks=callbacks,
    ) as (search, folder):
        path = distributed.broadcast(None if folder is None else folder.path)
        assert path is not None
        return search.result(path)


class Search(Trainer):
    """A search in progress: the supernet, its data and optimisers."""

    kind = "search"
    settings = SearchConfig
    metric_names = ("valid_loss", "valid_accuracy", "alpha_entropy")
    net: Supernet

    def __init__(self, config: SearchConfig, data: AnyDataset | None = None) -> None:
        super().__init__(config, resolve_device(config.device))
        check(config)
        space = get_space(config.space).restricted(config.rules, config.operations)
        self.data = data = configured(config) if data is None else data
        images: LabelledImages = data.train
        training, self.validation = images.split(config.train_fraction, config.seed, setting="train_fraction")
        how: dict[str, Any] = {
            "augment": Augment(config.flip, config.crop_padding, config.cutout),
            "device": self.device,
        }
        self.train = training.stream(config.batch_size, seed=config.seed, **how)
        valid_batch_size = config.valid_batch_size or config.batch_size
        # Populations are divided over the processes, each of which needs all images of a batch.
        self.valid = self.validation.stream(valid_batch_size, seed=config.seed + 1, **how).whole()
        distributed.require_divisible(self.train.batch_size, self.valid.batch_size)
        self.phases = [Phase(f"searching {config.dataset}", config.epochs, self.train)]
        mixture = Mixture(config.factorised, config.edge_normalisation, config.partial_channels)

        def build(channels: int, cells: int) -> Supernet:
            return build_supernet(
                space,
                channels=channels,
                cells=cells,
                num_classes=data.num_classes,
                in_channels=data.in_channels,
                engine=config.engine,
                seed=config.seed,
                options=SupernetOptions(config.fixed, config.skip_rules, config.initialisation, mixture),
            )

        expect_memory(build, config.channels, config.cells, self.device)
        self.net = build(config.channels, config.cells).to(self.device)
        synchronise_statistics(self.net, distributed.synchroniser())
        self.precision = Precision(config.amp, self.device)
        self.overflows = self.precision.scaler.is_enabled()
        self.optimizer = torch.optim.SGD(
            self.net.weight_parameters(),
            config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        robustness = RobustTerm(
            config.robustness, config.robustness_eps, config.robustness_weight, mean=data.mean, std=data.std
        )
        self.settled = config.settled(len(images))
        self.light_epochs = self.settled.warmup_epochs
        self.method = get_method(config.method)(self.net, self.settled, self.optimizer, self.precision, robustness)
        self.uncaptured = captured.obstacle(config, self.net, self.device)
        self.weight_step = Replayed(self.uncaptured)
        self.method.capture(self.uncaptured)
        self.limit = SkipLimit(config.skip_limit)
        self.alphas: dict[str, list[np.ndarray]] = {kind: [] for kind in space.kinds}
        #: The genotype after every epoch.
        self.genotypes: list[Genotype] = []
        self._record_alphas()

    def prepare(self) -> None:
        self.net.train()
        config = self.config
        rate = cosine(self.epoch, config.epochs, config.learning_rate, config.learning_rate_min)
        self.optimizer.param_groups[0]["lr"] = rate
        self.method.prepare(self.epoch)
        self.weight_step.forget()

    def describe(self) -> dict[str, str]:
        config, space = self.config, self.net.space
        weights = sum(own.numel() for own in without_feedback(self.net, self.net.weight_parameters()))
        training, validation = len(self.train.labels), len(self.validation)
        settled, method = self.settled, f"{config.method}: "
        if settled.warmup_epochs:
            method += f"weights alone before epoch {settled.warmup_epochs + 1}, "
        if "alpha_learning_rate" in self.method.options:
            method += f"alpha at {settled.alpha_learning_rate:.3g}, "
        return {
            "space": f"{space.name}: {len(space.candidates)} candidates on each of {len(space.edges)} edges",
            "supernet": f"{config.cells} cells, {config.channels} channels, {weights:,} weights",
            "method": f"{method}{training:,} images for the weights, {validation:,} for the architecture",
            "device": describe_device(self.device, "mixed_edges"),
            **self._launches(),
        }

    def _launches(self) -> dict[str, str]:
        """Describe how steps are launched on a CUDA device."""
        if self.device.type != "cuda":
            return {}
        return {"steps": f"one launch per kernel: {self.uncaptured}" if self.uncaptured else "CUDA graphs"}

    def operations(self) -> int:
        return measure_size(self.net, (self.data.in_channels, *self.data.image_size)).operations

    def shorten(self) -> int:
        method = self.method
        if "generations" not in method.options:
            return 0
        generations = method.config.generations
        method.config = method.config.with_settings(generations=1)
        return generations

    def begin(self) -> None:
        mirror_between_epochs(self.net, self.config, self.epoch)
        self.method.announce = self.announce
        self.method.before_epoch(self.valid)

    @property
    def finished(self) -> bool:
        return super().finished or self.limit.exceeded

    @property
    def genotype(self) -> Genotype:
        """The architecture that the search would end with now."""
        return self.net.trained(self.limit.final or self.method.genotype())

    @property
    def final_metrics(self) -> dict[str, Any]:
        """The row of the metrics of the epoch from which the genotype is taken."""
        return self.metrics[-2 if self.limit.exceeded else -1]

    @classmethod
    def final_row(cls, checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
        limit = SkipLimit(checkpoint["config"]["skip_limit"])
        limit.load_state_dict(checkpoint["limit"])
        return checkpoint["metrics"][-2] if limit.exceeded else super().final_row(checkpoint)

    @property
    def decision(self) -> Decision:
        """The extent to which the search has decided."""
        last = -2 if self.limit.exceeded else -1
        alphas = {kind: rows[last] for kind, rows in self.alphas.items()}
        rows = self.metrics[: len(self.metrics) + 1 + last]
        return decided(self.config, self.net.space, self.genotype, alphas, rows)

    @property
    def messages(self) -> tuple[str, ...]:
        """The remarks needed to interpret the genotype."""
        return messages(self.config, self.limit, self.genotype, self.decision)

    def result(self, path: Path) -> SearchResult:
        """Return the result of the search in a folder."""
        return SearchResult(self.genotype, path, self.metrics, self.final_metrics, self.decision, self.messages)

    def train_step(self, x: Tensor, y: Tensor) -> Step:
        self.method.before_weight_step(x, y, self.valid)
        return Step(*self.weight_step.run(self._weight_step, x, y))

    def _weight_step(self, x: Tensor, y: Tensor) -> Sequence[Tensor]:
        """Update the weights; return the fields of the step's outcome."""
        scaler, weights = self.precision.scaler, list(self.net.weight_parameters())
        with frozen(self.net.alpha_parameters()):
            with self.precision.autocast():
                logits = self.net(x, self.method.mixing())
                loss = F.cross_entropy(logits, y)
            self.optimizer.zero_grad()
            scaler.scale(loss).backward()
        distributed.average_gradients(weights)
        scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.net, weights, self.config.gradient_clip)
        scaler.step(self.optimizer)
        scaler.update()
        self.precision.expect_scale("the weights' gradient")
        return loss.detach(), (logits.argmax(dim=1) == y).sum(), norm

    def suspects(self) -> tuple[str, ...]:
        finite = all(alpha.isfinite().all() for alpha in self.net.alpha_parameters())
        return self.divergence if finite else (*self.method.divergence, *self.divergence)

    def conclude(self) -> dict[str, Any]:
        distributed.require_equal(self.net.alpha_parameters(), "the architecture parameters")
        mixing = self.method.evaluation_mixing()
        valid = evaluate(self.net, self.validation, forward=lambda x: self.net(x, mixing))
        self._record_alphas()
        if not self.method.warming_up:
            self.limit.update(self.method.genotype())
        robustness = self.method.robustness.metrics()
        self.method.robustness.reset()
        self.genotypes.append(self.genotype)
        return {
            "valid_loss": valid["loss"],
            "valid_accuracy": valid["accuracy"],
            "alpha_entropy": self._alpha_entropy(),
            **robustness,
            "genotype": self.genotypes[-1].hash,
        }

    def alphas_now(self) -> Mapping[str, Tensor]:
        return self.net.architecture.logits()

    def pictures(self) -> Mapping[str, bytes]:
        from bionas_fast.report.figure import genotype_figure, render

        return {"cells": render(genotype_figure(self.genotype), "png")}

    def _alpha_entropy(self) -> float:
        """Average the entropy over edges, in nats: from ln(candidates), undecided, to 0, fully decided."""
        logits = self.net.architecture.logits().values()
        weights = torch.cat([torch.softmax(alpha.detach(), dim=-1) for alpha in logits])
        return float(torch.special.entr(weights).sum(dim=-1).mean())

    def _record_alphas(self) -> None:
        for kind, alpha in self.net.architecture.logits().items():
            self.alphas[kind].append(alpha.detach().cpu().numpy().copy())

    def extra_state(self) -> dict[str, Any]:
        return {
            "strategy": self.method.state_dict(),
            "robustness": self.method.robustness.state_dict(),
            "limit": self.limit.state_dict(),
            "precision": self.precision.state_dict(),
            "valid": self.valid.state_dict(),
            "alphas": {kind: [torch.from_numpy(a) for a in rows] for kind, rows in self.alphas.items()},
            "genotypes": [genotype.to_json() for genotype in self.genotypes],
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        logits = self.net.architecture.logits()
        rows = {kind: [alpha.detach()] * (self.epoch + 1) for kind, alpha in logits.items()}
        expect_form(state["alphas"], rows, "alphas")
        self.alphas = {kind: [a.numpy() for a in state["alphas"][kind]] for kind in rows}
        expect_form(state["genotypes"], [""] * self.epoch, "genotypes")
        self.genotypes = [Genotype.from_json(text) for text in state["genotypes"]]
        self.valid.load_state_dict(state["valid"])
        self.method.load_state_dict(state["strategy"])
        self.method.robustness.load_state_dict(state["robustness"])
        self.limit.load_state_dict(state["limit"])
        self.precision.load_state_dict(state["precision"])

    def write_beginning(self, folder: RunFolder) -> None:
        self.write_config(folder, network=DataShape.of(self.data).entries())

    def write_results(self, folder: RunFolder) -> None:
        folder.write_alphas(self.alphas, [str(c) for c in self.net.space.candidates])
        rows = [{"epoch": k, **json.loads(genotype.to_json())} for k, genotype in enumerate(self.genotypes, 1)]
        folder.write_rows(GENOTYPES, rows)
        folder.write(GENOTYPE, self.genotype.to_json())

    def write_report(self, folder: RunFolder) -> None:
        report.write_report(folder.path, facts=self.result(folder.path).facts(self.config, DataShape.of(self.data)))

    @classmethod
    def facts(cls, folder: RunFolder, record: RunRecord) -> RunFacts:
        if not (folder.path / CHECKPOINT).is_file() or not (folder.path / GENOTYPE).is_file():
            return NO_FACTS
        found = SearchResult.read(folder, record)
        return NO_FACTS if found is None else found.facts(SearchConfig(**record.settings), DataShape.read(record))
