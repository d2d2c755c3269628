"""Accuracy, loss and calibration of a network on labelled images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bionas_fast.data import LabelledImages
from bionas_fast.errors import InputError, NotFinite, expect_type, shown
from bionas_fast.runtime import distributed

#: What can be evaluated: labelled images; images [N, C, H, W] and labels [N]; batches of these.
Evaluated = LabelledImages | tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: Evaluated,
    *,
    batch_size: int = 256,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Compute accuracy in percent and mean cross-entropy in nats, in evaluation mode; the mode is restored.

    With more than five classes, also the share of images whose label is among the five most probable: ``top5``. The
    processes of a run divide images from files among themselves.

    Args:
        network: maps normalised images [N, C, H, W] to logits [N, classes].
        images: the images, such as ``dataset.test``; images and labels; or batches of both, such as a DataLoader.
        batch_size: number of images per batch.
        forward: called instead of the network, if that takes further arguments.

    Raises:
        InputError: no images, or something else than these.
        NotFinite: the cross-entropy is not finite; the predicted classes are then arbitrary.
    """
    expect_type("network", network, nn.Module)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    count, correct, among, loss = 0, 0, 0, 0.0
    with _evaluating(network):
        for x, y in _batches(images, batch_size, device):
            count += len(y)
            logits = (forward or network)(x)
            correct += int((logits.argmax(dim=1) == y).sum())
            among += int((logits.topk(min(5, logits.shape[1]), dim=1).indices == y[:, None]).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
    if isinstance(images, LabelledImages) and images.divided:
        hits, near, loss, all_images = distributed.all_reduce_sum(correct, among, loss, count)
        correct, among, count = int(hits), int(near), int(all_images)
    if not count:
        raise InputError("images: expected at least one")
    if not math.isfinite(loss):
        raise NotFinite(f"the cross-entropy of the evaluated images ({loss})")
    found = {"accuracy": 100 * correct / count, "loss": loss / count}
    return found | {"top5": 100 * among / count} if logits.shape[1] > 5 else found


def _batches(images: Evaluated, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(images, LabelledImages):
        yield from images.batches(batch_size, device)
        return
    if isinstance(images, (tuple, list)) and len(images) == 2 and all(isinstance(part, Tensor) for part in images):
        tensors = cast("Sequence[Tensor]", images)
        images = zip(*(part.split(batch_size) for part in tensors), strict=True)
    if isinstance(images, (str, Mapping)) or not isinstance(images, Iterable):
        raise InputError(f"images: expected labelled images or batches of them, got {type(images).__name__}")
    for x, y in images:
        yield x.to(device), y.to(device)


@dataclass(frozen=True)
class Evaluation:
    """The predictions of a network on labelled images, summarised.

    Attributes:
        images: number of images.
        loss: mean cross-entropy, in nats.
        accuracy: share of images whose most probable class is the label, in percent.
        top5: share of images whose label is among the five most probable classes, in percent; None for up to five
            classes.
        confusion: int64 [classes, classes]: how many images of the class of the row were taken for that of the column.
        calibration_error: expected calibration error with 15 bins of equal width, in percent (Naeini et al. 2015; Guo
            et al. 2017): the mean over images of |accuracy - confidence| in the bin of its confidence, the largest
            probability.
    """

    images: int
    loss: float
    accuracy: float
    top5: float | None
    confusion: Tensor
    calibration_error: float

    @property
    def per_class(self) -> tuple[float | None, ...]:
        """The accuracy on each class, in percent; None for a class without images."""
        hits, counts = self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist()
        return tuple(100 * hit / count if count else None for hit, count in zip(hits, counts, strict=True))

    def to_json(self) -> str:
        """Write all attributes and the accuracy on each class as JSON."""
        return json.dumps(
            {
                "images": self.images,
                "loss": self.loss,
                "accuracy": self.accuracy,
                "top5": self.top5,
                "calibration_error": self.calibration_error,
                "per_class": list(self.per_class),
                "confusion": self.confusion.tolist(),
            },
            indent=2,
        )

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: something else.
        """
        try:
            values = json.loads(text)
            confusion = torch.tensor(values["confusion"], dtype=torch.int64)
            numbers = {name: float(values[name]) for name in ("loss", "accuracy", "calibration_error")}
            top5 = None if values["top5"] is None else float(values["top5"])
            images = int(values["images"])
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"expected an evaluation in JSON, got {shown(text, 40)}: {error!r:.100}") from None
        square = confusion.dim() == 2 and confusion.shape[0] == confusion.shape[1] > 0
        if not square or int(confusion.sum()) != images or int(confusion.min()) < 0:
            raise InputError(f"confusion: expected [classes, classes] counts of {images} images")
        return cls(images=images, top5=top5, confusion=confusion, **numbers)


@torch.no_grad()
def measure(network: nn.Module, images: LabelledImages, *, batch_size: int = 256) -> Evaluation:
    """Evaluate a network in detail, in evaluation mode; the mode is restored. Arguments as of :func:`evaluate`.

    In one process only, if the images are read from files.

    Raises:
        InputError: a label that the network has no logit for.
        NotFinite: a logit is not finite.
    """
    device = next(network.parameters()).device
    with _evaluating(network):
        logits = torch.cat([network(x).float().cpu() for x, _ in images.batches(batch_size, device)])
    labels = images.labels.cpu()
    classes = logits.shape[1]
    if int(labels.max()) >= classes:
        raise InputError(
            f"labels: expected 0 to {classes - 1}, as the network has {classes} logits, got {labels.max()}"
        )
    if not logits.isfinite().all():
        raise NotFinite("a logit of the evaluated images")
    order = logits.topk(min(5, classes), dim=1).indices
    hits = order == labels[:, None]
    confidence = logits.double().softmax(dim=1).amax(dim=1)
    return Evaluation(
        images=len(labels),
        loss=float(F.cross_entropy(logits.double(), labels)),
        accuracy=100 * int(hits[:, 0].sum()) / len(labels),
        top5=100 * int(hits.sum()) / len(labels) if classes > 5 else None,
        confusion=torch.bincount(labels * classes + order[:, 0], minlength=classes**2).view(classes, classes),
        calibration_error=100 * _calibration_error(confidence, hits[:, 0].double()),
    )


def _calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Compute Σ |Σ (correct - confidence)| / N over the bins (i/bins, (i+1)/bins] of confidence."""
    bin = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin, correct - confidence)
    return float(gaps.abs().sum() / len(confidence))


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for the block."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
