"""Parts of datasets with smaller images. Oracle: NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bionas_fast.data import Dataset, dataset_size, load_dataset, register_dataset
from bionas_fast.errors import InputError
from bionas_fast.training import TrainConfig
from helpers.registries import restored

NOTED = np.random.default_rng(0).integers(0, 256, (60, 2, 4, 6), dtype=np.uint8)


@pytest.fixture
def bytes_dataset():
    """A dataset of 60 byte images, three classes of which the first has half."""
    labels = torch.arange(60) % 4 % 3

    def load(data_dir=None, *, download=False, seed=0):
        return Dataset.from_tensors(
            "bytes", (torch.from_numpy(NOTED), labels), (torch.from_numpy(NOTED[:8]), labels[:8])
        )

    with restored():
        register_dataset("bytes")(load)
        yield labels


def means(images, factor):
    n, c, height, width = images.shape
    blocks = images.reshape(n, c, height // factor, factor, width // factor, factor)
    return blocks.astype(np.float64).mean(axis=(3, 5))


def test_floats_are_averaged_over_squares():
    whole, part = load_dataset("digits"), load_dataset("small:digits,images=200,shrink=4")
    assert part.images.shape == (200, 1, 2, 2) and part.num_classes == 10
    np.testing.assert_allclose(part.test_images.numpy(), means(whole.test_images.numpy(), 4), rtol=0, atol=1e-6)
    assert torch.equal(part.test_labels, whole.test_labels)


def test_bytes_are_averaged_and_rounded_to_even(bytes_dataset):
    part = load_dataset("small:bytes,images=60,shrink=2")
    assert part.images.dtype == torch.uint8
    np.testing.assert_array_equal(part.images.numpy(), np.rint(means(NOTED, 2)))
    assert part.mean == pytest.approx(part.images.double().mean((0, 2, 3)) / 255)


def test_images_are_drawn_in_the_proportions_of_the_classes(bytes_dataset):
    part = load_dataset("small:bytes,images=20", seed=5)
    assert torch.bincount(part.labels).tolist() == (torch.bincount(bytes_dataset) / 3).round().tolist()
    known = {image.tobytes(): int(label) for image, label in zip(NOTED, bytes_dataset, strict=True)}
    assert [known[image.numpy().tobytes()] for image in part.images] == part.labels.tolist()
    assert torch.equal(part.images, load_dataset("small:bytes,images=20").images)


@pytest.mark.parametrize("name", ["small:digits,images=100,shrink=2", "small:bytes,images=30"])
def test_size_of_a_run_is_that_of_its_data(bytes_dataset, name):
    part = load_dataset(name)
    image = (part.in_channels, *part.image_size)
    size = dataset_size(TrainConfig(dataset=name))
    assert size == (len(part.labels), len(part.test_labels), image, part.num_classes)


def test_size_of_a_run_needs_no_data(tmp_path):
    config = TrainConfig(dataset="small:cifar10,images=5000,shrink=2", data_dir=str(tmp_path))
    assert dataset_size(config) == (5_000, 10_000, (3, 16, 16), 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small:digits", "expected a form such as"),
        ("small:digits,images=0", "images must be 1 to 1438, not 0"),
        ("small:digits,images=1439", "images must be 1 to 1438, not 1439"),
        ("small:digits,images=10,shrink=3", "shrink must divide the size of the images, 8×8, not 3"),
        ("small:digits,images=10,shrink=0", "shrink must divide"),
        ("small:digit,images=10", "unknown dataset 'digit'"),
    ],
)
def test_bad_input(name, message):
    with pytest.raises(InputError, match=message):
        load_dataset(name)
