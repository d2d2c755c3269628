"""Supervised training by stochastic gradient descent: data, optimiser, precision, averaged weights, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bionas_fast.analysis import probe, record_layers
from bionas_fast.data import AnyDataset, Augment, LabelledImages, configured
from bionas_fast.data.mixing import Mixing
from bionas_fast.errors import InputError
from bionas_fast.evaluation import evaluate
from bionas_fast.models import LocalLosses, local_losses
from bionas_fast.nn import synchronise_statistics
from bionas_fast.nn.feedback import one_target_rules
from bionas_fast.nn.learned import clip_gradients
from bionas_fast.nn.mirroring import mirror_between_epochs
from bionas_fast.runs.checkpoint import expect_form
from bionas_fast.runs.folder import LAYERS, RunFolder
from bionas_fast.runs.trainer import Phase, Step
from bionas_fast.runtime import distributed
from bionas_fast.runtime.device import resolve_device
from bionas_fast.runtime.precision import Precision
from bionas_fast.training.config import SupervisedConfig
from bionas_fast.training.network import NetworkTraining
from bionas_fast.training.optimiser import build_optimizer
from bionas_fast.training.schedule import learning_rate


class SupervisedTraining(NetworkTraining):
    """The training of a network on labelled images; a subclass says which network and how it is called.

    Args:
        config: the settings.
        build: builds the network for a dataset, on the CPU.
        name: the name of the network in displays and reports.
        data: the images; by default those of the settings.
    """

    metric_names: tuple[str, ...] = ("test_loss", "test_accuracy")
    config: SupervisedConfig

    def __init__(
        self,
        config: SupervisedConfig,
        build: Callable[[AnyDataset], nn.Module],
        name: str,
        data: AnyDataset | None = None,
    ) -> None:
        super().__init__(config, resolve_device(config.device))
        self.name = name
        self.data = data = configured(config) if data is None else data
        training: LabelledImages = data.train
        self.held_out: LabelledImages | None = None
        if config.valid_fraction:
            training, self.held_out = training.split(
                1 - config.valid_fraction, config.seed, setting="1 - valid_fraction"
            )
            self.metric_names = ("valid_loss", "valid_accuracy", *self.metric_names)
        self.net = build(data).to(self.device)
        _expect_one_target(self.net, config)
        synchronise_statistics(self.net, distributed.synchroniser())
        augment = Augment(config.flip, config.crop_padding, config.cutout, config.policy)
        batches = training.stream(config.batch_size, seed=config.seed, augment=augment, device=self.device)
        distributed.require_divisible(batches.batch_size)
        self.phases = [Phase(f"training {name}", config.epochs, batches)]
        #: The losses of the blocks, if they have their own.
        self.local = self._local_losses() if config.trainer == "local" else None
        #: The modules whose weights are trained: the network, and the heads of local losses.
        self.learners = nn.ModuleList([self.net, *(self.local.heads if self.local is not None else ())])
        self.optimizer = build_optimizer(self.learners, config)
        self.precision = Precision(config.amp, self.device)
        self.overflows = self.precision.scaler.is_enabled()
        self.mixing = Mixing(config.mixup, config.cutmix, data.num_classes)
        self.average = (
            AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
            if config.ema_decay
            else None
        )
        #: The rows of layers.jsonl, and the images that they are measured on.
        self.layers: list[dict[str, Any]] = []
        self.probe = probe(training, self.device) if config.record_layers else []
        #: The network as the training step calls it.
        self.call: Callable[..., Any] = torch.compile(self.net) if config.compile else self.net
        if self.local is not None:
            self.call = self.local.outputs

    def _local_losses(self) -> LocalLosses:
        config = self.config
        if config.local_loss != "pred":
            distributed.require_single_process("local losses of similarities compare a whole batch and are computed")
        image = torch.zeros(1, self.data.in_channels, *self.data.image_size, device=self.device)
        kind, beta, blocks = config.local_loss, config.local_beta, self.blocks()
        return local_losses(self.net, kind=kind, beta=beta, blocks=blocks, example=image, seed=config.seed)

    def blocks(self) -> Sequence[str] | None:
        """Return the names of the modules at whose outputs the blocks of local losses end; None to find them."""
        return None

    @property
    def trained(self) -> nn.Module:
        """The network that is tested: the one with averaged weights, if there is one."""
        return self.net if self.average is None else self.average.module

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the logits of a batch in training, and those of further heads, or the features of the blocks."""
        out = self.call(x)
        return out if isinstance(out, tuple) else (out,)

    def auxiliary_weights(self) -> tuple[float, ...]:
        """Return the weight of the loss of each further head."""
        return ()

    def prepare(self) -> None:
        self.net.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.epoch)

    def train_step(self, x: Tensor, y: Tensor) -> Step:
        config = self.config
        self.optimizer.zero_grad()
        losses, hits = [], []
        # Each part of the batch has its share of the mean, so the last one may be smaller.
        for images, labels in zip(x.chunk(config.accumulate), y.chunk(config.accumulate), strict=True):
            loss, logits = self.backward(images, labels, len(labels) / len(y))
            losses.append(loss.detach())
            hits.append((logits.argmax(dim=1) == labels).sum())
        distributed.average_gradients(self.learners.parameters())
        norm = self._descend()
        return Step(torch.stack(losses).sum(), torch.stack(hits).sum(), norm)

    def backward(self, images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Add the gradients of a part of a batch, multiplied by its share; return its share of the loss and logits."""
        images, targets = self.mixing(images, labels)
        with self.precision.autocast():
            logits = self.outputs(images)
            loss = self._loss(logits, targets) * share
        self.precision.scaler.scale(loss).backward()
        return loss, logits[0]

    def _loss(self, logits: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        smoothing = self.config.label_smoothing
        if self.local is not None:
            entropy = F.cross_entropy(logits[0], targets, label_smoothing=smoothing)
            return sum(self.local.losses(logits[1:], targets, smoothing), entropy)
        first, *others = (F.cross_entropy(out, targets, label_smoothing=smoothing) for out in logits)
        for weight, loss in zip(self.auxiliary_weights(), others, strict=True):
            first = first + weight * loss
        return first

    def _descend(self) -> Tensor:
        """Change the weights along their gradients; return the norm of these."""
        scaler = self.precision.scaler
        scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.net, self.learners.parameters(), self.config.gradient_clip)
        scaler.step(self.optimizer)
        scaler.update()
        self.precision.expect_scale("the gradient of the training loss")
        if self.average is not None:
            self.average.update_parameters(self.net)
        return norm

    def begin(self) -> None:
        mirror_between_epochs(self.net, self.config, self.epoch)
        if self.epoch == 0 and self.config.record_layers:
            self.layers += record_layers(self.net, self.probe, 0)

    def write_results(self, folder: RunFolder) -> None:
        if self.config.record_layers:
            folder.write_rows(LAYERS, self.layers)

    def record(self) -> None:
        every, number = self.config.record_layers, self.epoch + 1
        if every and (number % every == 0 or number == self.config.epochs):
            self.layers += record_layers(self.net, self.probe, number)

    def metrics_of(self, number: int) -> tuple[str, ...]:
        config = self.config
        return () if number % config.evaluate_every and number < config.epochs else self.metric_names

    def conclude(self) -> dict[str, Any]:
        if not self.metrics_of(self.epoch + 1):
            return {}
        row: dict[str, Any] = {}
        parts = {"valid": self.held_out, "test": self.data.test}
        for name, part in parts.items():
            if part is not None:
                found = evaluate(self.trained, part)
                row |= {f"{name}_{metric}": value for metric, value in found.items()}
        return row

    def extra_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"precision": self.precision.state_dict()}
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if self.local is not None:
            state["heads"] = self.local.heads.state_dict()
        if self.config.record_layers:
            state["layers"] = list(self.layers)
        return state

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.precision.load_state_dict(state["precision"])
        if self.average is not None:
            expect_form(state["average"], self.average.state_dict(), "average")
            self.average.load_state_dict(state["average"])
        if self.local is not None:
            expect_form(state["heads"], self.local.heads.state_dict(), "heads")
            self.local.heads.load_state_dict(state["heads"])
        if self.config.record_layers:
            self.layers = list(state["layers"])

    @classmethod
    def network_state(cls, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        average = checkpoint.get("average")
        if not isinstance(average, Mapping):
            return super().network_state(checkpoint)
        prefix = "module."
        return {name.removeprefix(prefix): value for name, value in average.items() if name.startswith(prefix)}


def _expect_one_target(network: nn.Module, config: SupervisedConfig) -> None:
    """Check that each image has one target, if a rule of the network needs that.

    Raises:
        InputError: label smoothing, mixup or CutMix.
    """
    rules = one_target_rules(network)
    for name in ("label_smoothing", "mixup", "cutmix") if rules else ():
        if value := getattr(config, name):
            raise InputError(
                f"{name}: expected 0 for the rule {rules[0]}, which needs one target per image, got {value}"
            )
