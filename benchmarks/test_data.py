"""Batches of augmented images against DataLoader with torchvision's transforms, on CIFAR-shaped data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bionas_fast.data import Augment, BatchStream
from measuring import interleaved, show

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
IMAGES, BATCH, STEPS = 9600, 96, 20


class Photographs(Dataset):
    """Images as torchvision's CIFAR10 gives them: made a PIL image, transformed one by one."""

    def __init__(self, images: Tensor, labels: Tensor, augment: bool) -> None:
        from torchvision import transforms

        self.images, self.labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels
        random = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if augment else []
        erase = [transforms.RandomErasing(1.0, (0.25, 0.25), (1.0, 1.0))] if augment else []
        self.transform = transforms.Compose([*random, transforms.ToTensor(), transforms.Normalize(MEAN, STD), *erase])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.randint(10, (IMAGES,), generator=generator)


def batches(data: tuple[Tensor, Tensor], augment: Augment | None) -> BatchStream:
    return BatchStream(*data, BATCH, seed=0, augment=augment, mean=MEAN, std=STD)


def test_without_augmentation_the_images_are_the_same(data):
    loader = DataLoader(Photographs(*data, augment=False), batch_size=BATCH)
    by_label = {}
    for x, y in loader:
        for image, label in zip(x, y, strict=True):
            by_label.setdefault(int(label), []).append(image)
        break
    stream = batches((data[0][:BATCH], data[1][:BATCH]), None)
    x, y = next(stream)
    expected = {label: torch.stack(images).sum(0) for label, images in by_label.items()}
    for label, total in expected.items():
        torch.testing.assert_close(x[y == label].sum(0), total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_per_second(benchmark, report, data, workers):
    """The goal is twenty times DataLoader's images per second on two cores."""
    images, labels = (part[: STEPS * BATCH] for part in data)
    stream = batches((images, labels), Augment(flip=True, crop_padding=4, cutout=16))
    loader = DataLoader(
        Photographs(images, labels, augment=True),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    # A whole epoch each, so that no worker prepares further batches while the other one is timed.
    variants = {"batches": lambda: list(stream.epoch()), "DataLoader": lambda: list(loader)}
    times = interleaved(variants, rounds=7)
    what = f"augmented images a second, {workers} workers"
    report.ratios(what, times, "DataLoader", "(goal 20)" if workers else "")
    report.add(what, ", ".join(f"{name} {STEPS * BATCH / seconds:,.0f}" for name, seconds in times.items()))
    show(benchmark, variants["batches"], times["batches"])
