"""Further datasets of torchvision: KMNIST, SVHN, STL-10."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bionas_fast.data.registry import Dataset, default_folder, download_dataset, load_idx, missing, register_dataset
from bionas_fast.errors import InputError


@register_dataset("kmnist")
def kmnist(data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Cursive Japanese characters, 28×28 grey, 60,000 + 10,000 (T. Clanuwat et al., 2018, arXiv:1812.01718)."""
    return load_idx("kmnist", "KMNIST", [data_dir or default_folder()], download)


@register_dataset("svhn")
def svhn(data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """House numbers, 32×32 colour, 73,257 + 26,032 (Y. Netzer et al., 2011)."""
    return _load_splits("svhn", "SVHN", "train_32x32.mat", data_dir or default_folder(), download)


@register_dataset("stl10")
def stl10(data_dir: Path | None = None, *, download: bool = False, seed: int = 0) -> Dataset:
    """Photographs, 96×96 colour, 5,000 + 8,000 of 10 classes (A. Coates, H. Lee and A. Ng, 2011)."""
    return _load_splits("stl10", "STL10", "stl10_binary", data_dir or default_folder(), download)


def _load_splits(name: str, torchvision_name: str, entry: str, root: Path, download: bool) -> Dataset:
    """Load a dataset whose splits torchvision reads as ``data`` [N, C, H, W] and ``labels`` after checking md5 sums.

    Args:
        entry: the file or folder by which the dataset is recognised.
    """
    import torchvision

    source: Callable[..., Any] = getattr(torchvision.datasets, torchvision_name)
    roots = [root, root / name]
    folder = next((r for r in roots if os.path.exists(r / entry)), None)
    if folder is None and download:
        download_dataset(torchvision_name, root, splits=("train", "test"))
        folder = root
    if folder is None:
        raise missing(name, entry, map(str, roots))
    try:
        train, test = (source(folder, split=split) for split in ("train", "test"))
    except OSError as error:
        raise InputError(f"dataset {name!r}: {folder / entry} cannot be read: {error}") from error
    except RuntimeError as error:
        raise InputError(
            f"dataset {name!r}: the files in {folder} are incomplete or damaged: they do not have the known md5 sums; "
            "remove them and download them again"
        ) from error
    return Dataset.from_tensors(name, _tensors(train), _tensors(test), num_classes=10)


def _tensors(part: Any) -> tuple[Tensor, Tensor]:
    images, labels = np.ascontiguousarray(part.data), part.labels.astype(np.int64)
    return torch.from_numpy(images), torch.from_numpy(labels)
