"""The search loop, once for all methods: weights by SGD, the architecture by the method's strategy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bionas_fast import report
from bionas_fast.data import Augment, BatchStream, load_dataset, split
from bionas_fast.device import resolve_device
from bionas_fast.errors import InputError, unknown
from bionas_fast.evaluate import evaluate
from bionas_fast.progress import Progress
from bionas_fast.runs import GENOTYPE, REPORT, RunFolder, machine, new_path
from bionas_fast.search.config import SearchConfig
from bionas_fast.search.darts import Darts
from bionas_fast.search.strategy import Strategy, frozen
from bionas_fast.space import Genotype, get_space
from bionas_fast.supernet import Supernet, build_supernet

METHODS: dict[str, type[Strategy]] = {"darts": Darts}


@dataclass(frozen=True)
class SearchResult:
    """What a search ends with.

    Attributes:
        genotype: the found architecture and learning rules.
        run_dir: the folder that holds everything about the search.
        metrics: one mapping for every epoch.
    """

    genotype: Genotype
    run_dir: Path
    metrics: list[dict[str, Any]]


def search(
    config: SearchConfig | None = None, *, out: str | Path | None = None, progress: Progress | None = None
) -> SearchResult:
    """Search for an architecture and the learning rule of every layer in it.

    Args:
        config: the settings; by default the embedded digits at a size for two processor cores.
        out: the run folder, new or empty; by default one under ``runs/``, named after dataset, method and time.
        progress: hears how the search goes.

    Raises:
        InputError: a setting that names nothing, a data set that is not there, a folder that is not empty. Then nothing
            has been written.
    """
    config = config or SearchConfig()
    return Search(config).run(out, progress or Progress())


class Search:
    """A search in progress: the supernet, its data and optimisers."""

    def __init__(self, config: SearchConfig) -> None:
        if config.method not in METHODS:
            raise unknown("method", config.method, METHODS)
        self.config = config
        self.device = resolve_device(config.device)
        space = get_space(config.space).restricted(config.rules, config.operations)
        data = load_dataset(config.dataset, config.data_dir, download=config.download)
        (x, y), self.validation = split(data.images, data.labels, config.train_fraction, config.seed)
        self.data = data
        augment = Augment(config.flip, config.crop_padding, config.cutout)

        def stream(images, labels, seed):
            return BatchStream(
                images,
                labels,
                config.batch_size,
                seed=seed,
                augment=augment,
                mean=data.mean,
                std=data.std,
                device=self.device,
            )

        self.train = stream(x, y, config.seed)
        self.valid = stream(*self.validation, config.seed + 1)
        self.net: Supernet = build_supernet(
            space,
            channels=config.channels,
            cells=config.cells,
            num_classes=data.num_classes,
            in_channels=data.in_channels,
            engine=config.engine,
            seed=config.seed,
            fixed=config.fixed,
            skip_rules=config.skip_rules,
        ).to(self.device)
        self.strategy = METHODS[config.method](self.net, config)
        self.optimizer = torch.optim.SGD(
            self.net.weight_parameters(),
            config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, config.epochs, config.learning_rate_min
        )
        self.epoch = 0
        self.metrics: list[dict[str, Any]] = []
        self.alphas: dict[str, list[np.ndarray]] = {kind: [] for kind in self.net.alphas}
        self._record_alphas()

    def run(self, out: str | Path | None, progress: Progress) -> SearchResult:
        """Search to the end."""
        folder = RunFolder.create(
            out if out is not None else new_path(f"search-{self.config.dataset}-{self.config.method}")
        )
        folder.write_config("search", self.config.settings())
        progress.start(f"searching {self.config.dataset}", self.config.epochs, len(self.train))
        try:
            while self.epoch < self.config.epochs:
                row = self._run_epoch(progress)
                self.metrics.append(row)
                self._record_alphas()
                self.epoch += 1
                self._save(folder)
                progress.epoch(row)
        finally:
            progress.finish()
        genotype = self.strategy.genotype()
        self._write_report(folder, genotype)
        return SearchResult(genotype, folder.path, self.metrics)

    def _run_epoch(self, progress: Progress) -> dict[str, Any]:
        started = time.perf_counter()
        self.net.train()
        self.strategy.before_epoch(self.epoch, self.valid)
        loss_sum, correct, seen = 0.0, 0, 0
        for x, y in self.train.epoch():
            self.strategy.before_weight_step(self.valid)
            loss, hits = self._weight_step(x, y)
            loss_sum, correct, seen = loss_sum + loss * len(y), correct + hits, seen + len(y)
            progress.step(loss)
        learning_rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        valid = evaluate(self.net, *self.validation, mean=self.data.mean, std=self.data.std)
        return {
            "epoch": self.epoch + 1,
            "train_loss": loss_sum / seen,
            "train_accuracy": 100 * correct / seen,
            "valid_loss": valid["loss"],
            "valid_accuracy": valid["accuracy"],
            "alpha_entropy": self._alpha_entropy(),
            "learning_rate": learning_rate,
            "genotype": self.strategy.genotype().hash,
            "seconds": time.perf_counter() - started,
        }

    def _weight_step(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
        with frozen(self.net.alpha_parameters()):
            logits = self.net(x)
            loss = F.cross_entropy(logits, y)
            self.optimizer.zero_grad()
            loss.backward()
        # A loss that is not finite is caught by the norm of its gradient, before it reaches a weight.
        norm = torch.nn.utils.clip_grad_norm_(list(self.net.weight_parameters()), self.config.gradient_clip)
        if not torch.isfinite(norm):
            raise InputError(
                f"the weights' gradient is not finite in epoch {self.epoch + 1} (loss {loss.item():.3g}); "
                f"a learning rate below {self.config.learning_rate:g} may help"
            )
        self.optimizer.step()
        return loss.item(), int((logits.argmax(dim=1) == y).sum())

    def _alpha_entropy(self) -> float:
        """Mean over edges, in nats: ln(candidates) when nothing is decided, 0 when all is."""
        weights = torch.cat([torch.softmax(a.detach(), dim=-1) for a in self.net.alpha_parameters()])
        return float(torch.special.entr(weights).sum(dim=-1).mean())

    def _record_alphas(self) -> None:
        for kind, alpha in self.net.alphas.items():
            self.alphas[kind].append(alpha.detach().cpu().numpy().copy())

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on as if there had been no interruption."""
        return {
            "config": self.config.settings(),
            "epoch": self.epoch,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "strategy": self.strategy.state_dict(),
            "train": self.train.state_dict(),
            "valid": self.valid.state_dict(),
            "metrics": self.metrics,
            "alphas": {kind: [torch.from_numpy(a) for a in rows] for kind, rows in self.alphas.items()},
            "generator": torch.get_rng_state(),
        }

    def _save(self, folder: RunFolder) -> None:
        folder.write_metrics(self.metrics)
        folder.write_alphas(self.alphas, [str(c) for c in self.net.space.candidates])
        folder.write(GENOTYPE, self.strategy.genotype().to_json())
        folder.write_checkpoint(self.state_dict())

    def _write_report(self, folder: RunFolder, genotype: Genotype) -> None:
        last = self.metrics[-1]
        report.write_report(
            folder.path / REPORT,
            genotype=genotype,
            config=self.config.settings(),
            metrics=self.metrics,
            alphas={kind: np.stack(rows) for kind, rows in self.alphas.items()},
            space=self.net.space,
            machine=machine(),
            summary={
                "genotype": genotype.hash,
                "rules": ", ".join(genotype.rules),
                "validation accuracy": f"{last['valid_accuracy']:.2f} %",
                "time": f"{sum(row['seconds'] for row in self.metrics):.0f} s",
            },
        )
