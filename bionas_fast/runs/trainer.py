"""The trainer: the epochs and steps of a run, and the state from which it is resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from bionas_fast.config import Duration, RunConfig, RunRecord
from bionas_fast.data import AnyDataset, Stream
from bionas_fast.errors import Diverged, InputError, NotFinite
from bionas_fast.nn import hebbian
from bionas_fast.plugins import import_plugins
from bionas_fast.runs.callbacks import Moment
from bionas_fast.runs.checkpoint import expect_form, expect_run, load_optimizer
from bionas_fast.runs.divergence import likely_causes, too_small_a_batch
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.summary import NO_FACTS, RunFacts
from bionas_fast.runtime import distributed
from bionas_fast.runtime.arithmetic import not_repeatable, prepare_repeatable
from bionas_fast.runtime.device import describe_device
from bionas_fast.runtime.isolation import exclusive

#: On a GPU, the number of steps after which their losses are read: every reading waits for the device.
READ_EVERY = 50
#: The types of values in a row of the metrics.
_PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True, eq=False)
class Phase:
    """Epochs over one stream of batches.

    Attributes:
        description: the text shown by progress displays.
        counted: whether each epoch adds a row to the metrics.
    """

    description: str
    epochs: int
    batches: Stream
    counted: bool = True


@dataclass
class Tally:
    """Sums over the steps of an epoch."""

    steps: int = 0
    seen: int = 0
    measured: int = 0  # images of steps with a loss
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0


class Step(NamedTuple):
    """The outcome of a training step, on this process's share of the batch; still on the device.

    Attributes:
        loss: the mean loss, a scalar; None if there is none.
        correct: the number of correctly classified images, a scalar; None if there are no outputs.
        norm: the norm of the gradient of the loss, a scalar; None if it was not computed.
    """

    loss: Tensor | None
    correct: Tensor | None
    norm: Tensor | None = None


class Trainer:
    """The base of all runs: phases of epochs of steps, which can stop after any step and resume there.

    A subclass sets ``data``, ``net``, ``optimizer`` and ``phases`` and defines the step. All other state that it
    carries from step to step belongs in :meth:`extra_state`. PyTorch's generator may be used; each run has its own.
    Numbers that are not finite end the run: :meth:`step` and :meth:`end_epoch` then raise InputError.

    Attributes:
        kind: the name of this kind of run in its configuration.
        settings: the type of ``config``.
        trains_network: whether the run ends with a trained network, which :meth:`load_network` builds.
        single_process: whether it cannot run in several processes.
        light_epochs: the first epochs of the first phase, whose steps and beginnings do less than those of the others.
        begins_with_images: whether a phase may begin with a pass over all training images.
        start: begins or resumes a run from its settings alone: ``start(config, out=…, resume=…, progress=…)``.
        metric_names: the metrics in every row besides those of all trainers.
        divergence: the settings that make the weights diverge when they are too large, the likeliest first.
        read_every: the number of steps after which their losses are read from the device.
        announce: called with what is done before longer work between two steps.
        epoch: the number of epochs done, over all phases.
        duration: the time that the run has taken up to its last checkpoint, over all resumes.
        metrics: one row for every epoch of a counted phase.
    """

    kind: ClassVar[str]
    settings: ClassVar[type[RunConfig]]
    trains_network: ClassVar[bool] = False
    single_process: ClassVar[bool] = False
    light_epochs: int = 0
    begins_with_images: ClassVar[bool] = False
    start: ClassVar[Callable[..., Any]]
    metric_names: tuple[str, ...] = ()
    #: Whether a loss may overflow: then the step is not taken, and loss scaling ends the run if that goes on.
    overflows: bool = False
    divergence: ClassVar[tuple[str, ...]] = ("learning_rate", "weight_decay", "momentum")

    data: AnyDataset
    net: nn.Module
    optimizer: torch.optim.Optimizer
    phases: Sequence[Phase]

    def __init__(self, config: Any, device: torch.device) -> None:
        import_plugins(config.plugins)
        if config.deterministic:
            prepare_repeatable()
        self.config = config
        #: The settings in which what follows from others is a number.
        self.settled = config
        self.device = device
        self.announce: Callable[[str], object] = lambda doing: None
        self.epoch = 0
        self.duration = Duration()
        self.metrics: list[dict[str, Any]] = []
        self._tally = Tally()
        self.read_every = 1 if device.type == "cpu" else READ_EVERY
        self._unread: list[tuple[Step, int]] = []
        self._last_loss: float | None = None
        self._random = {"cpu": torch.Generator().manual_seed(config.seed).get_state()}
        self._running = False

    def prepare(self) -> None:
        """Set modes and learning rates for the epoch. Called whenever an epoch begins or is resumed."""

    def describe(self) -> dict[str, str]:
        """Describe the run for people, before its first step."""
        return {"device": describe_device(self.device)}

    def operations(self) -> int:
        """Count the multiply-adds of a forward pass for one image; 0 if they are not known."""
        return 0

    def shorten(self) -> int:
        """Leave repetitions out of what begins an epoch, for a measurement.

        Returns:
            How often a run repeats it, on a batch each; 0 if it takes no time worth measuring.
        """
        return 0

    def begin(self) -> None:
        """Hook before the first step of an epoch; not called when an epoch is resumed."""

    def train_step(self, x: Tensor, y: Tensor) -> Step:
        """Train on this process's shard of a batch and return the outcome, without waiting for it."""
        raise NotImplementedError(f"{type(self).__name__} defines no train_step()")

    def metrics_of(self, number: int) -> tuple[str, ...]:
        """Return the metrics in the row of an epoch, counted from 1, besides those of all trainers."""
        return self.metric_names

    def record(self) -> None:
        """Hook after the last step of an epoch, for what is recorded besides metrics."""

    def conclude(self) -> dict[str, Any]:
        """Evaluate after the last step of an epoch; return further metrics for its row."""
        return {}

    def alphas_now(self) -> Mapping[str, Tensor]:
        """Return the architecture parameters by kind of cell, [edges, candidates]; none without a search."""
        return {}

    def pictures(self) -> Mapping[str, bytes]:
        """Draw the result at the end of the run, as PNG by name."""
        return {}

    def moment(self, row: Mapping[str, Any] | None = None) -> Moment:
        """Return what callbacks see now; ``row`` are the metrics at the end of an epoch."""
        return Moment(self.net, self.alphas_now(), self.epoch, self._tally.steps, self._last_loss, row or {})

    def extra_state(self) -> dict[str, Any]:
        """Return the additional state of the subclass: tensors and plain values."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`extra_state` from the entries of the same names in the checkpoint."""

    def write_beginning(self, folder: RunFolder) -> None:
        """Write the files that must exist before the first step; at least the configuration."""
        self.write_config(folder)

    def write_config(self, folder: RunFolder, network: Mapping[str, Any] | None = None) -> None:
        """Write the configuration; ``network`` are the arguments of the network that follow from the data."""
        folder.write_config(self.kind, self.config.settings(), plugins=self.config.plugins, network=network)

    def write_results(self, folder: RunFolder) -> None:
        """Hook after every epoch, before its checkpoint is written."""

    def write_report(self, folder: RunFolder) -> None:
        """Hook at the end of the run."""

    @classmethod
    def load_network(cls, folder: RunFolder, record: RunRecord) -> nn.Module:
        """Build the network of a run, without its weights; see :func:`bionas_fast.load`."""
        raise NotImplementedError(f"{cls.__name__} defines no load_network()")

    @classmethod
    def settings_of_source(cls, source: str) -> Mapping[str, Any]:
        """Return the settings that follow from the name, one of the kind's sources, that the command was given."""
        return {}

    @classmethod
    def network_state(cls, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Return the ``state_dict`` of the trained network from a checkpoint of :meth:`state_dict`."""
        return checkpoint.get("net", {})

    @classmethod
    def final_row(cls, checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the row of the metrics that is the result of a run, from its checkpoint; None before the end."""
        rows = checkpoint["metrics"]
        return rows[-1] if len(rows) >= checkpoint["config"]["epochs"] else None

    @classmethod
    def share_of_bp(cls, folder: RunFolder, record: RunRecord) -> float | None:
        """Return the share of the weights that learn by back-propagation, in percent; None without a network."""
        return None

    @classmethod
    def facts(cls, folder: RunFolder, record: RunRecord) -> RunFacts:
        """Return facts about the result for the report, from the folder of a run that may not be complete."""
        return NO_FACTS

    @property
    def phase(self) -> Phase:
        """The current phase; after the end, the last one."""
        epoch = self.epoch
        for phase in self.phases:
            if epoch < phase.epochs:
                return phase
            epoch -= phase.epochs
        return self.phases[-1]

    @property
    def phase_epoch(self) -> int:
        """The number of epochs of the current phase that are done."""
        before = self.phases[: self.phases.index(self.phase)]
        return self.epoch - sum(phase.epochs for phase in before)

    @property
    def steps_done(self) -> int:
        """The number of steps of the current epoch that are done."""
        return self._tally.steps

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch == sum(phase.epochs for phase in self.phases)

    def enter_epoch(self) -> None:
        """Set up a new epoch, or the rest of the current one."""
        started = time.perf_counter()
        _ = self._unbounded  # from the beginning
        with self.isolated_rng(), self._located("before step 1"):
            self.prepare()
            if not self._tally.steps:
                self.begin()
        self._tally.seconds += time.perf_counter() - started

    def step(self) -> float | None:
        """Train on the next batch; return the loss of the last step that was read, or None if it has none."""
        started, tally = time.perf_counter(), self._tally
        with self.isolated_rng():
            batches = self.phase.batches
            x, y = next(batches)
            if not batches.sharded:
                x, y = distributed.shard(x, y)
            with self._located(f"step {tally.steps + 1}", x):
                outcome = self.train_step(x, y)
            tally.steps += 1
            self._unread.append((outcome, batches.batch_size))
            if len(self._unread) >= self.read_every:
                self.read(x)
        tally.seconds += time.perf_counter() - started
        return self._last_loss

    def read(self, x: Tensor | None = None) -> None:
        """Read the outcomes of the steps since the last reading; all processes of a run must read after the same step.

        Args:
            x: the batch of the last step, which is searched for the cause of an error.

        Raises:
            InputError: a loss or a gradient is not finite.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        losses, hits, norms = (_numbers_of(column) for column in zip(*(step for step, _ in unread), strict=True))
        sums = distributed.all_reduce_sum(*(loss or 0.0 for loss in losses), *(number or 0.0 for number in hits))
        tally, number = self._tally, self._tally.steps - len(unread)
        for index, (_, images) in enumerate(unread):
            loss, norm = losses[index], norms[index]
            if loss is not None:
                loss = sums[index] / distributed.world_size()
                if not self.overflows and not math.isfinite(loss + (norm or 0.0)):
                    with self._located(f"step {number + index + 1}", x):
                        raise NotFinite(f"the training loss or its gradient (loss {loss:.3g}, norm {norm or 0.0:.3g})")
                if math.isfinite(loss):
                    tally.loss += loss * images
                    tally.measured += images
                else:
                    loss = None
            tally.seen += images
            tally.correct += int(sums[len(unread) + index])
            self._last_loss = loss

    def end_epoch(self) -> dict[str, Any] | None:
        """Finish an epoch after its last step; return its row of metrics, or None if the phase is not counted."""
        started, tally = time.perf_counter(), self._tally
        self.read()
        with self.isolated_rng(), self._located(f"after step {tally.steps}"):
            self.record()
            further = self.conclude()
            for name, value in further.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise NotFinite(f"{name} ({value})")
        self.expect_finite()
        row = None
        if self.phase.counted:
            row = {
                "epoch": self.phase_epoch + 1,
                "train_loss": tally.loss / tally.measured if tally.measured else None,
                "train_accuracy": 100 * tally.correct / tally.seen,
                **further,
                "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
                "seconds": tally.seconds + time.perf_counter() - started,
            }
            self.metrics.append(row)
        self.epoch += 1
        self._tally = Tally()
        return row

    def expect_finite(self) -> None:
        """Check the weights, alphas and statistics of the network.

        Raises:
            InputError: a number is not finite; the message names it, the epoch and likely settings.
        """
        with self._located(f"after step {self.steps_done}"):
            hebbian.expect_finite(self.net)
            for name, value in self._numbers():
                if name not in self._unbounded and not value.isfinite().all():
                    raise NotFinite(f"{name} of the network")

    def _numbers(self) -> Iterator[tuple[str, Tensor]]:
        state = self.net.state_dict().items()
        return ((name, value) for name, value in state if isinstance(value, Tensor) and value.is_floating_point())

    @cached_property
    def _unbounded(self) -> frozenset[str]:
        """The buffers that are not finite from the beginning, such as a mask of -inf."""
        return frozenset(name for name, value in self.net.named_buffers() if not value.isfinite().all())

    def suspects(self) -> tuple[str, ...]:
        """Return the settings that may have made the numbers of the run diverge."""
        return self.divergence

    @contextmanager
    def _located(self, place: str, x: Tensor | None = None) -> Iterator[None]:
        """Explain errors of the block; those about numbers that are not finite by place in the run and likely causes.

        Args:
            place: the place in the epoch, such as ``"step 3"``.
            x: the batch of that step.
        """
        try:
            yield
        except NotFinite as error:
            where = f"epoch {self.phase_epoch + 1}, {place} of {len(self.phase.batches)} ({self.phase.description})"
            if x is not None and not x.isfinite().all():
                cause = f"images of dataset {self.data.name!r} hold pixels that are not finite"
            else:
                cause = likely_causes(self.settled, error.settings or self.suspects())
            raise Diverged(f"{error} in {where}; {cause}") from None
        except ValueError as error:
            explained = None if x is None else too_small_a_batch(error, x)
            if explained is None:
                raise
            raise explained from error
        except RuntimeError as error:
            operation = not_repeatable(error) if self.config.deterministic else None
            if operation is None:
                raise
            raise InputError(
                f"deterministic: {operation} has no deterministic implementation on {self.device.type}; leave out the "
                "layer that uses it, or set deterministic to false"
            ) from error

    @contextmanager
    def isolated_rng(self) -> Iterator[None]:
        """Use the run's states of PyTorch's generators and its arithmetic; restore the caller's after the block.

        Runs in other threads wait meanwhile. Every epoch and step is such a block; they may be nested in another.
        """
        if self._running:
            yield
            return
        cuda = [self.device] if self.device.type == "cuda" else []
        config = self.config
        with exclusive(config.precision, config.deterministic), torch.random.fork_rng(cuda):
            if cuda and "cuda" in self._random:
                torch.cuda.set_rng_state(self._random["cuda"], self.device)
            elif cuda:
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(self.config.seed)
            torch.set_rng_state(self._random["cpu"])
            self._running = True
            try:
                yield
            finally:
                self._random, self._running = self._randomness(), False

    def _randomness(self) -> dict[str, Tensor]:
        if not self._running:
            return self._random
        cuda = {"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        return {"cpu": torch.get_rng_state(), **cuda}

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume exactly: tensors and plain values."""
        self.read()
        return {
            "kind": self.kind,
            "config": self.config.settings(),
            "data": self._checksum,
            "epoch": self.epoch,
            "tally": asdict(self._tally),
            "metrics": self.metrics,
            "seconds": self.duration.entry(),
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": [phase.batches.state_dict() for phase in self.phases],
            "random": self._randomness(),
            **self.extra_state(),
        }

    @cached_property
    def _checksum(self) -> int:
        return self.data.checksum()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume exactly where :meth:`state_dict` was taken.

        Raises:
            InputError: the state is damaged, or belongs to another kind of run, other settings or other data. This
                object must then be discarded.
        """
        expect_run(state, self.kind, self.config)
        if state.get("data") != self._checksum:
            raise InputError(f"dataset {self.data.name!r}: images or labels are not those that the run began with")
        try:
            self._load(state)
        except InputError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            raise InputError(f"not the state of a run: {error!r:.200}") from error

    def _load(self, state: Mapping[str, Any]) -> None:
        expect_form({"epoch": state["epoch"], "tally": state["tally"]}, {"epoch": 0, "tally": asdict(Tally())}, "state")
        expect_form(state["net"], self.net.state_dict(), "net")
        _ = self._unbounded  # of the network as built
        self.epoch, self._tally = state["epoch"], Tally(**state["tally"])
        tally = self._tally
        if not 0 <= self.epoch <= sum(phase.epochs for phase in self.phases):
            raise InputError(f"epoch: {self.epoch} is out of range")
        possible = 0 <= tally.steps <= (0 if self.finished else len(self.phase.batches))
        if not possible or (tally.seen > 0) != (tally.steps > 0) or not 0 <= tally.measured <= tally.seen:
            raise InputError(f"tally: {tally.steps} steps over {tally.seen} images are out of range")
        duration = Duration.read(state["seconds"])
        if duration is None:
            raise InputError("seconds: the time of the run is damaged")
        self.duration = duration
        self.metrics = self._checked_metrics(state["metrics"])
        self.net.load_state_dict(state["net"])
        load_optimizer(self.optimizer, state["optimizer"])
        for phase, batches in zip(self.phases, state["batches"], strict=True):
            phase.batches.load_state_dict(batches)
        torch.Generator().set_state(state["random"]["cpu"])  # raises if the state is invalid
        self._random = dict(state["random"])
        self.load_extra_state(state)

    def _checked_metrics(self, rows: Any) -> list[dict[str, Any]]:
        expected, begun = 0, 0
        for phase in self.phases:
            expected += min(max(self.epoch - begun, 0), phase.epochs) * phase.counted
            begun += phase.epochs
        if not isinstance(rows, list) or len(rows) != expected:
            raise InputError(f"metrics: expected {expected} rows")
        for number, row in enumerate(rows, start=1):
            names = ("train_accuracy", "learning_rate", "seconds", *self.metrics_of(number))
            plain = isinstance(row, dict) and all(map(_is_plain, (*row, *row.values())))
            measured = plain and all(type(row.get(name)) is float for name in names)
            if not measured or row.get("epoch") != number or "train_loss" not in row:
                raise InputError(f"metrics: row {number} is damaged")
        return rows


def _numbers_of(column: Sequence[Tensor | None]) -> list[float | None]:
    """Read scalars from the device at once."""
    present = [value for value in column if value is not None]
    read = iter(torch.stack(present).tolist() if present else ())
    return [None if value is None else next(read) for value in column]


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN and (type(value) is not float or math.isfinite(value))
