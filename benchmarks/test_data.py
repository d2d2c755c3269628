"""Batches of images against DataLoader with torchvision's transforms: CIFAR-shaped in memory, photographs in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from bionas_fast.data import Augment, BatchStream, FileDataset, Reading, Views, open_dataset
from bionas_fast.data.file_stream import MEAN as PHOTOGRAPHS_MEAN
from bionas_fast.data.file_stream import STD as PHOTOGRAPHS_STD
from measuring import interleaved, show

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
IMAGES, STEPS, WORKERS = 1920, 20, 2
JITTER = (0.4, 0.4, 0.4, 0.2)


class Photographs(Dataset):
    """CIFAR-shaped images, transformed one by one: as torchvision's CIFAR10 gives them (``pil``), or as tensors."""

    def __init__(self, images: Tensor, labels: Tensor, form: str, augment: bool) -> None:
        self.images, self.labels, self.form = images, labels, form
        self.arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
        random = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()] if augment else []
        erase = [v2.RandomErasing(1.0, (0.25, 0.25), (1.0, 1.0))] if augment else []
        convert = [v2.PILToTensor()] if form == "pil" else []
        scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        self.transform = v2.Compose([*random, *convert, *scale, *erase])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        image = Image.fromarray(self.arrays[index]) if self.form == "pil" else self.images[index]
        return self.transform(image), int(self.labels[index])


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.randint(10, (IMAGES,), generator=generator)


def batches(data: tuple[Tensor, Tensor], size: int, augment: Augment | None) -> BatchStream:
    return BatchStream(*data, size, seed=0, augment=augment, mean=MEAN, std=STD)


@pytest.mark.parametrize("form", ["pil", "tensors"])
@pytest.mark.parametrize("size", [96, 256])
def test_images_per_second_in_memory(benchmark, report, data, size, form):
    """The goal is twenty times DataLoader's images per second on two cores."""
    images, labels = (part[: IMAGES // size * size] for part in data)
    number = {image.numpy().tobytes(): index for index, image in enumerate(images)}
    assert len(number) == len(images)
    expected = [image for image, _ in Photographs(images, labels, form, augment=False)]
    levels = torch.tensor(STD).view(3, 1, 1), torch.tensor(MEAN).view(3, 1, 1)
    for x, y in batches((images, labels), size, None).epoch():
        for image, label in zip(x, y, strict=True):
            index = number[(image * levels[0] + levels[1]).mul(255).round().to(torch.uint8).numpy().tobytes()]
            assert labels[index] == label
            torch.testing.assert_close(image, expected[index])
    stream = batches((images, labels), size, Augment(flip=True, crop_padding=4, cutout=16))
    loader = DataLoader(
        Photographs(images, labels, form, augment=True),
        batch_size=size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    # A whole epoch each, so that no worker prepares further batches while the other one is timed.
    variants = {"batches": lambda: list(stream.epoch()), "DataLoader": lambda: list(loader)}
    times = interleaved(variants, rounds=7)
    what = f"augmented images a second, {form}, batch {size}"
    report.ratios(what, times, "DataLoader", "(goal 20)")
    report.add(what, ", ".join(f"{name} {len(images) / seconds:,.0f}" for name, seconds in times.items()))
    show(benchmark, variants["batches"], times["batches"])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """JPEG files of 500 by 375 pixels, as those of ImageNet."""
    from PIL import Image

    root, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split, count in (("train", 96), ("val", 8)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                coarse = Image.fromarray(random.integers(0, 256, (38, 50, 3), dtype=np.uint8))
                coarse.resize((500, 375), Image.Resampling.BICUBIC).save(
                    root / split / name / f"{index}.jpg", quality=90
                )
    return root


@pytest.mark.parametrize("jitter", [(0.0,) * 4, JITTER], ids=["crop-flip", "crop-flip-jitter"])
def test_images_per_second_from_files(benchmark, report, photographs, tmp_path_factory, jitter):
    """The goal is at most 10 % more time than a plain DataLoader takes."""
    views = Views(color_jitter=jitter)

    def opened(**reading) -> FileDataset:
        found = open_dataset(f"folder:{photographs}", in_memory=False, reading=Reading(views, WORKERS, **reading))
        assert isinstance(found, FileDataset)
        return found

    convert = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    convert.append(v2.Normalize(PHOTOGRAPHS_MEAN, PHOTOGRAPHS_STD))
    files, kept = opened(), opened(decoded_size=256, decoded_dir=tmp_path_factory.mktemp("decoded"))
    test = ImageFolder(photographs / "val", v2.Compose([v2.Resize(256), v2.CenterCrop(224), *convert]))
    for data in (files, kept):
        (x, y), *_ = data.test.batches(len(test))
        for image, label, (expected, number) in zip(x, y, test, strict=True):
            assert label == number
            torch.testing.assert_close(image, expected)
    random = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ColorJitter(*jitter)]
    train = ImageFolder(photographs / "train", v2.Compose([*random[: 3 if any(jitter) else 2], *convert]))

    # Each round starts its workers, so that none of them prepares batches while another variant is timed.
    def epoch(data: FileDataset) -> None:
        for _ in data.train.stream(64, seed=0, augment=Augment(flip=True)).epoch():
            pass

    def plain() -> None:
        for _ in DataLoader(train, 64, shuffle=True, num_workers=WORKERS, drop_last=True):
            pass

    variants = {"batches": lambda: epoch(files), "decoded once": lambda: epoch(kept), "DataLoader": plain}
    times = interleaved(variants, rounds=5)
    what = f"photographs, {'with' if any(jitter) else 'without'} color_jitter"
    report.ratios(what, times, "DataLoader", "(goal 0.9)")
    report.add(what, ", ".join(f"{name} {len(train) / seconds:,.0f} images/s" for name, seconds in times.items()))
    show(benchmark, variants["batches"], times["batches"])
