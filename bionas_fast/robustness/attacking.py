"""The attack on a network: every attack through every gradient at every ε, on the images that it gets right."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bionas_fast.choices import Gradient
from bionas_fast.data import AnyDataset, Dataset, FileDataset
from bionas_fast.errors import InputError, NotFinite, expect_type
from bionas_fast.nn.feedback import one_target_rules
from bionas_fast.robustness.attacks import Attack, parse_attack, torchattacks
from bionas_fast.robustness.checks import doubts
from bionas_fast.robustness.config import AttackConfig
from bionas_fast.robustness.record import Done, Part, Record
from bionas_fast.robustness.results import Outcome, Robustness
from bionas_fast.robustness.side_by_side import TOGETHER, Shared, side_by_side
from bionas_fast.robustness.victim import Victim, device_of
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.terminal import listener
from bionas_fast.runtime.isolation import exclusive, ordinary_modes

#: Labelled images in [0, 1], [N, C, H, W] and int64 [N]; the network does its own normalisation.
Images = tuple[Tensor, Tensor]


def attack(
    network: nn.Module,
    data: AnyDataset | Images,
    config: AttackConfig | None = None,
    *,
    source: nn.Module | None = None,
    out: str | Path | None = None,
    progress: Progress | bool | None = None,
) -> Robustness:
    """Attack a network through the package torchattacks, and check whether its attacker is blind.

    Images are in [0, 1], perturbed images are clamped to it, and normalisation happens inside of the attacked network.
    Only images that the network classifies correctly are attacked; the others count as wrong under every attack (the
    convention of AutoAttack, Croce and Hein 2020). The network itself is not changed.

    Args:
        network: maps images [N, C, H, W] to logits [N, classes].
        data: a dataset, whose test images are attacked after its own normalisation; those in files are read as its
            settings say; or images and labels, for a network that takes images in [0, 1].
        config: the settings.
        source: for ``transfer``, the network that the attack is computed on, such as one under back-propagation.
        out: a folder for the results of every batch; with the same folder, an interrupted attack continues.
        progress: receives the progress; True shows it on stderr.

    Raises:
        InputError: images outside of [0, 1] or not finite; a ``transfer`` without a source; a targeted attack that
            cannot aim; another loss than cross-entropy through the feedback of a rule that needs it; a folder with the
            results of another attack; torchattacks is not installed.
        NotFinite: the logits of the network are not finite.
    """
    expect_type("network", network, nn.Module, "bf.load(RUN) reads one")
    expect_type("config", config, (AttackConfig, type(None)), "write bf.AttackConfig(attacks=('fgsm',))")
    config, progress = config or AttackConfig(), listener(progress)
    attacks = expect_possible(config, source is not None)
    _expect_cross_entropy(network, attacks, config)
    with ordinary_modes():
        images, labels, mean, std = _images(data, config.images)
        target = Target(network, source, mean, std, images, labels, config)
        with Record.open(out, target.fingerprint()) as record:
            outcomes = _outcomes(target, attacks, record, progress)
        warnings = doubts(target.victim("feedback"), target.victim("true"), target.attacked(), outcomes, config)
    return Robustness(target.clean.cpu(), outcomes, warnings, config=config)


def expect_possible(config: AttackConfig, has_source: bool) -> list[Attack]:
    """Return the attacks of the settings.

    Args:
        config: the settings.
        has_source: whether there is a network that ``transfer`` is computed on.

    Raises:
        InputError: a ``transfer`` without a source; a targeted attack that cannot aim; torchattacks is not installed.
    """
    attacks = [parse_attack(name) for name in config.attacks]
    for own in attacks:
        if own.family.transferred and not has_source:
            raise InputError(f"attack {own.name!r}: needs the network that it is computed on, source")
        if config.targeted and not own.family.targets:
            raise InputError(f"attack {own.name!r} cannot aim at a class; leave it out or do not set targeted")
    torchattacks()
    return attacks


def _expect_cross_entropy(network: nn.Module, attacks: Sequence[Attack], config: AttackConfig) -> None:
    rules = one_target_rules(network)
    if not rules or "feedback" not in config.gradients:
        return
    for own in attacks:
        if own.family.gradient and (config.targeted or not own.family.cross_entropy):
            raise InputError(
                f"attack {own.name!r}: the feedback of {rules[0]} needs the cross-entropy for the class of the image; "
                "attack through the true gradient, or by fgsm, pgd or apgd-ce without targets"
            )


def _images(data: AnyDataset | Images, count: int) -> tuple[Tensor, Tensor, Sequence[float], Sequence[float]]:
    """Return float32 images in [0, 1], labels, mean and std."""
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    if isinstance(data, FileDataset):
        (images, labels), mean, std = _from_files(data, count), data.mean, data.std
    elif isinstance(data, Dataset):
        images, labels, mean, std = data.test_images, data.test_labels, data.mean, data.std
    else:
        expect_type("data", data, (Dataset, tuple, list), "bf.load_dataset(NAME) reads one, or give (images, labels)")
        images, labels = data
    if len(images) == len(labels):
        chosen = _chosen(labels, count).to(images.device)
        images, labels = images[chosen], labels[chosen]
    if images.ndim != 4 or labels.shape != images.shape[:1] or not len(labels):
        raise InputError(
            f"images: expected [N, C, H, W] with one label each, got {list(images.shape)} and {list(labels.shape)}"
        )
    if images.dtype == torch.uint8:
        images = images.float() / 255
    images = images.float()
    bad = ~((images >= 0) & (images <= 1)).flatten(1).all(dim=1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise InputError(
            f"images: expected pixels in [0, 1]; {int(bad.sum())} images, the first at {first}, have others"
        )
    return images, labels.long(), mean, std


def _from_files(data: FileDataset, count: int) -> Images:
    """Read the test images that :func:`_chosen` chooses, and no others; with the crop by which the run tests."""
    wanted = torch.zeros(len(data.test_files), dtype=torch.bool)
    wanted[_chosen(data.test_files.labels, count)] = True
    mean, std = (torch.tensor(own).view(-1, 1, 1) for own in (data.mean, data.std))
    # Decoded pixels are whole numbers of 255ths, which rounding restores exactly.
    batches = [((x * std + mean) * 255).round() / 255 for x, _ in data.test.take(wanted).batches(250)]
    return torch.cat(batches), data.test_files.labels[wanted]


def _chosen(labels: Tensor, count: int) -> Tensor:
    """Choose the first images; of images in the order of their classes, such as those of a folder, evenly spaced ones.

    Returns:
        Their indices in rising order, int64.
    """
    total = len(labels)
    if labels.ndim == 1 and count < total and bool((labels.diff() >= 0).all()):
        return torch.arange(count) * total // count
    return torch.arange(min(count, total))


@dataclass(eq=False)
class Target:
    """The network under attack, its images, and what it makes of them."""

    network: nn.Module
    source: nn.Module | None
    mean: Sequence[float]
    std: Sequence[float]
    images: Tensor
    labels: Tensor
    config: AttackConfig

    def __post_init__(self) -> None:
        device = device_of(self.network)
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        predictor = self.victim("feedback")
        logits = torch.cat([self._predict(predictor, part) for part in self.images.split(self.config.batch_size)])
        if not logits.isfinite().all():
            raise NotFinite("a logit of the attacked network")
        if int(self.labels.max()) >= logits.shape[1] or int(self.labels.min()) < 0:
            raise InputError(f"labels: expected 0 to {logits.shape[1] - 1}, the network's classes")
        self.classes = logits.shape[1]
        self.clean = logits.argmax(dim=1) == self.labels
        some = self.images[: min(len(self.images), self.config.batch_size) // 2]
        alone = self._predict(predictor, some) if len(some) else logits[:0]
        #: Whether the logits of an image depend on it alone, and not on others of its batch.
        self.separate = torch.allclose(alone, logits[: len(some)], rtol=1e-3, atol=1e-4)
        self.indices = self.clean.nonzero().flatten()

    @staticmethod
    @torch.no_grad()
    def _predict(victim: Victim, images: Tensor) -> Tensor:
        return victim(images)

    def victim(self, gradient: Gradient, network: nn.Module | None = None) -> Victim:
        """Build the attacked module for a gradient."""
        return Victim(network or self.network, self.mean, self.std, gradient=gradient, eot=self.config.eot)

    def sharing(self, own: Attack, parts: Sequence[Part], images: int) -> Iterator[Sequence[Part]]:
        """Divide the parts that attack a batch of so many images into those that share passes.

        An attack with gradients keeps the maps of its passes, so only those that fit in one pass run at once.
        """
        most = len(parts) if not own.differentiates else TOGETHER // images
        count = max(1, most) if self.separate and not self.config.eot else 1
        return (parts[first : first + count] for first in range(0, len(parts), count))

    def attacked(self) -> Images:
        """Return the images that are attacked, with their labels."""
        return self.images[self.indices], self.labels[self.indices]

    def fingerprint(self) -> dict[str, object]:
        """Return what an interrupted attack must have in common with its continuation."""
        networks = {"network": self.network} | ({"source": self.source} if self.source is not None else {})
        sums = {
            name: float(sum(t.double().abs().sum() for t in net.state_dict().values() if t.is_floating_point()))
            for name, net in networks.items()
        }
        return {
            "settings": self.config.model_dump(mode="json"),
            "images": [len(self.labels), float(self.images.double().sum()), int(self.labels.sum())],
            **sums,
        }


def _outcomes(target: Target, attacks: Sequence[Attack], record: Record, progress: Progress) -> tuple[Outcome, ...]:
    config, batches = target.config, target.indices.split(target.config.batch_size)
    groups = [
        (own, [Part(own.name, gradient, eps) for eps in (config.eps if own.bounded else (None,))])
        for own in attacks
        for gradient in (config.gradients if own.family.gradient else (None,))
    ]
    count = sum(len(parts) for _, parts in groups)
    progress.start(f"{count} attacks", 1, count * len(batches))
    try:
        return tuple(outcome for own, parts in groups for outcome in _every_eps(target, own, parts, record, progress))
    finally:
        progress.finish()


def _every_eps(
    target: Target, own: Attack, parts: Sequence[Part], record: Record, progress: Progress
) -> Iterator[Outcome]:
    """Attack through one gradient, at every ε."""
    victim = Shared(target.victim(parts[0].gradient or "feedback"))
    crafted_on = Shared(target.victim("true", target.source)) if own.family.transferred else victim
    batches = target.indices.split(target.config.batch_size)
    found: dict[Part, list[Done]] = {part: [] for part in parts}
    for number, indices in enumerate(batches):
        for some in target.sharing(own, parts, len(indices)):
            done = {part: result for part in some if (result := record.read(part, number)) is not None}
            if len(done) < len(some):
                started = time.perf_counter()
                tasks = [partial(_attack_batch, target, own, part.eps, (victim, crafted_on), indices) for part in some]
                with _restored_generators(target.images.device):
                    results = side_by_side(tasks, target.images.device)
                seconds = (time.perf_counter() - started) / len(some)
                for part, (left, norms) in zip(some, results, strict=True):
                    if part not in done:
                        done[part] = record.add(part, number, left, norms, seconds)
            for part in some:
                found[part].append(done[part])
                progress.step()
    for part, all_done in found.items():
        correct = target.clean.clone()
        for indices, batch in zip(batches, all_done, strict=True):
            correct[indices] = batch.correct.to(correct.device)
        distances = tuple(distance for batch in all_done for distance in batch.distances)
        seconds = sum(batch.seconds for batch in all_done)
        yield Outcome(part.attack, part.gradient, part.eps, correct.cpu(), distances, seconds)


def _attack_batch(
    target: Target, own: Attack, eps: float | None, victims: tuple[Shared, Shared], indices: Tensor
) -> tuple[Tensor, list[float]]:
    """Attack some images; return which stay correct, bool [N], and the norms of the perturbations that succeeded."""
    config, (victim, crafted_on) = target.config, victims
    images, labels = target.images[indices], target.labels[indices]
    left = torch.ones_like(labels, dtype=torch.bool)
    norms: list[float] = []
    for restart in range(config.restarts):
        standing = left.nonzero().flatten()
        if not len(standing):
            break
        x, y = images[standing], labels[standing]
        seed = config.seed + int(indices[0]) + 7919 * restart
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        perturb = own.family.build(crafted_on, own.amount, eps or 0.0, seed, config.step_size)
        if config.targeted:
            _aim(perturb, target.classes, y, seed)
        with np.errstate(divide="ignore"):  # one-pixel attacks divide by 0
            adversarial = perturb(x, y).detach()
        if not adversarial.isfinite().all():
            raise NotFinite(f"a pixel of the images made by {own.name}")
        adversarial = adversarial.clamp(0, 1)
        with torch.no_grad():
            fooled = victim(adversarial).argmax(dim=1) != y
        norms += (adversarial - x)[fooled].flatten(1).norm(dim=1).tolist()
        left[standing[fooled]] = False
    return left, norms


def _aim(perturb: object, classes: int, labels: Tensor, seed: int) -> None:
    """Aim an attack of torchattacks at a random other class for each image."""
    shift = torch.randint(1, classes, labels.shape, generator=torch.Generator().manual_seed(seed)).to(labels.device)
    targets = (labels + shift) % classes

    def choose(_: Tensor, __: Tensor) -> Tensor:
        return targets

    perturb.set_mode_targeted_by_function(choose)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _restored_generators(device: torch.device) -> Iterator[None]:
    """Restore the generators of PyTorch and NumPy after the block, and print nothing in it; other threads wait."""
    cuda = [device] if device.type == "cuda" else []
    state = np.random.get_state()
    with exclusive(), torch.random.fork_rng(cuda), contextlib.redirect_stdout(io.StringIO()):  # torchattacks prints
        try:
            yield
        finally:
            np.random.set_state(state)
