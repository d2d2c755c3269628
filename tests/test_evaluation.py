"""Evaluation in detail, against scikit-learn and formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn
from torch.nn import functional as F

from bionas_fast import InputError, evaluate
from bionas_fast.data import MemoryImages
from bionas_fast.evaluation import measure


class Fixed(nn.Module):
    """A network whose logits are the pixels of the image."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x.flatten(1)


def predictions(classes, count=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.rand(count, classes, generator=generator)
    labels = torch.randint(classes - 1, (count,), generator=generator)  # the last class has no image
    logits[torch.arange(count), labels] += 0.4 * torch.rand(count, generator=generator)
    return logits.clamp(0, 1).view(count, classes, 1, 1), labels


@pytest.mark.parametrize("classes", [2, 5, 7, 12])
def test_measure(classes):
    images, labels = predictions(classes)
    found = measure(Fixed(), MemoryImages(images, labels, mean=(0.2,), std=(0.05,)), batch_size=64)
    logits = (images.flatten(1).double() - 0.2) / 0.05
    predicted = logits.argmax(1)
    expected = metrics.confusion_matrix(labels, predicted, labels=range(classes))
    assert found.confusion.numpy() == pytest.approx(expected)
    assert found.accuracy == pytest.approx(100 * metrics.accuracy_score(labels, predicted))
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert found.images == len(labels)
    if classes > 5:
        top = metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
        assert found.top5 == pytest.approx(100 * top)
    else:
        assert found.top5 is None
    recall = expected.diagonal() / np.maximum(expected.sum(1), 1)
    assert [value for value in found.per_class if value is not None] == pytest.approx(100 * recall[expected.sum(1) > 0])
    assert found.per_class[-1] is None
    plain = evaluate(Fixed(), MemoryImages(images, labels, mean=(0.2,), std=(0.05,)))
    assert plain["accuracy"] == found.accuracy
    assert plain["loss"] == pytest.approx(found.loss, rel=1e-5)


def test_calibration_error():
    """By the definition, bin by bin; and 0 for a network that is as sure as it is right."""
    images, labels = predictions(4)
    probabilities = (images.flatten(1).double() * 5).softmax(1)
    confidence, predicted = probabilities.max(1)
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            accuracy = (predicted == labels)[inside].double().mean()
            error += inside.double().mean() * (accuracy - confidence[inside].mean()).abs()
    found = measure(Fixed(), MemoryImages(images, labels, std=(0.2,)))
    assert found.calibration_error == pytest.approx(100 * float(error), rel=1e-4)
    sure = torch.zeros(10, 2, 1, 1)
    sure[:, 0] = 1
    assert (
        measure(Fixed(), MemoryImages(sure, torch.zeros(10, dtype=torch.int64), std=(0.001,))).calibration_error < 1e-9
    )
    assert measure(
        Fixed(), MemoryImages(sure, torch.ones(10, dtype=torch.int64), std=(0.001,))
    ).calibration_error == pytest.approx(100)
    half = torch.full((10, 2, 1, 1), 0.5)
    assert measure(Fixed(), MemoryImages(half, torch.arange(10) % 2)).calibration_error == pytest.approx(0, abs=1e-6)


def test_mode_and_bad_input():
    images, labels = predictions(3)
    network = Fixed().train()
    measure(network, MemoryImages(images, labels))
    assert network.training
    with pytest.raises(InputError, match="labels: expected 0 to 2, as the network has 3 logits, got 3"):
        measure(network, MemoryImages(images, labels.clone().fill_(3)))
    with pytest.raises(InputError, match="images: 500 of 500 images, the first at index 0, hold NaN"):
        measure(network, MemoryImages(images.clone().fill_(torch.nan), labels))
    with pytest.raises(InputError, match="a logit of the evaluated images is not finite"):
        measure(nn.Sequential(network, nn.Threshold(2, torch.nan)), MemoryImages(images, labels))
    assert network.training
