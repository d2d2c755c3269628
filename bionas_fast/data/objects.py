"""Datasets given as objects in Python, in place of their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from bionas_fast.config import RunConfig
from bionas_fast.data.batches import Batch, split
from bionas_fast.data.dataset import Dataset, Source
from bionas_fast.data.file_dataset import AnyDataset, FileDataset
from bionas_fast.data.registry import OBJECT
from bionas_fast.errors import InputError

C = TypeVar("C", bound=RunConfig)

#: A part of a dataset: (images, labels), or a dataset of torch with items (image, label).
Part: TypeAlias = "tuple[Any, Any] | torch_data.Dataset[Any]"
#: What the argument ``data`` takes: a dataset, one part, or a training and a test part.
Data: TypeAlias = "AnyDataset | Part | tuple[Part, Part]"

#: The share of the images that train if there are no test images.
TRAIN_FRACTION = 0.8


def as_dataset(data: Data) -> AnyDataset:
    """Return a dataset for what was given as one.

    Args:
        data: a :class:`Dataset` or :class:`FileDataset`; or (images, labels), tensors or arrays: uint8 or floating
            point in [0, 1], [N, C, H, W] or [N, H, W], with integer labels [N] from 0; or a dataset of torch of known
            length whose items are (image, label), images of one size as tensors or arrays [C, H, W] or [H, W] or as
            PIL images, without random transforms, since they are read once. A pair of either is the training and the
            test images; of one alone, a stratified fifth is held out for testing.

    Raises:
        InputError: something else; images and labels that do not fit each other.
    """
    if isinstance(data, (Dataset, FileDataset)):
        return data
    parts = _parts(data)
    name = f"{OBJECT}{_name(data, parts)}"
    read = [_read(part, where) for part, where in zip(parts, ("data", "data[1]"), strict=False)]
    if len(read) == 2:
        return Dataset.from_tensors(name, read[0], read[1])
    train, test = split(*read[0], TRAIN_FRACTION, seed=0, setting="data")
    return Dataset.from_tensors(name, train, test, source=Source((), ("a fifth held out for testing",)))


def with_data(config: C, data: AnyDataset | None) -> C:
    """Return the settings of a run on this dataset, whose name they record.

    Raises:
        InputError: the settings name another dataset.
    """
    if data is None:
        return config
    name = data.name if data.name.startswith(OBJECT) else f"{OBJECT}{data.name}"
    default = type(config).model_fields["dataset"].default
    if config.dataset not in (default, name, data.name):
        raise InputError(f"dataset: {config.dataset!r} is set, and data {data.name!r} given; leave one of them out")
    return config.with_settings(dataset=name)


def _parts(data: Any) -> list[Any]:
    """Return the one or two parts of a dataset."""
    if isinstance(data, torch_data.Dataset):
        return [data]
    if isinstance(data, (tuple, list)) and len(data) == 2:
        if any(isinstance(part, (torch_data.Dataset, tuple, list)) for part in data):
            return list(data)
        return [data]
    raise InputError(
        f"data: expected a Dataset, (images, labels), a dataset of torch, or a pair of these for training and test, "
        f"got {type(data).__name__}"
    )


def _name(data: Any, parts: Sequence[Any]) -> str:
    return type(parts[0]).__name__.lower() if isinstance(parts[0], torch_data.Dataset) else "arrays"


def _read(part: Any, where: str) -> Batch:
    if isinstance(part, torch_data.Dataset):
        part = _items(part, where)
    if not isinstance(part, (tuple, list)) or len(part) != 2:
        raise InputError(f"{where}: expected (images, labels) or a dataset of torch, got {type(part).__name__}")
    images, labels = (_tensor(own, f"{where}: {name}") for own, name in zip(part, ("images", "labels"), strict=True))
    if images.dim() == 3:
        images = images.unsqueeze(1)
    if images.is_floating_point():
        images = images.float()
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.dim() != 1:
        raise InputError(f"{where}: labels: expected integers [N], got {labels.dtype} {list(labels.shape)}")
    return images, labels.long()


def _items(dataset: torch_data.Dataset[Any], where: str) -> tuple[Tensor, Tensor]:
    """Read all items of a dataset of torch."""
    length = getattr(dataset, "__len__", None)
    if length is None:
        raise InputError(f"{where}: expected a dataset of torch with a length, got {type(dataset).__name__}")
    images: list[Tensor] = []
    labels: list[int] = []
    for index in range(length()):
        item = dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise InputError(f"{where}: expected items (image, label), got {type(item).__name__} at {index}")
        image = _pixels(item[0], f"{where}: image {index}")
        if images and (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
            first = f"{list(images[0].shape)} {images[0].dtype}"
            raise InputError(f"{where}: image {index} is {list(image.shape)} {image.dtype}, the first {first}")
        images.append(image)
        labels.append(int(item[1]))
    if not images:
        raise InputError(f"{where}: the dataset is empty")
    return torch.stack(images), torch.tensor(labels)


def _pixels(image: Any, where: str) -> Tensor:
    if isinstance(image, (Tensor, np.ndarray)):
        image = _tensor(image, where)
    elif hasattr(image, "getbands"):  # of PIL
        pixels = torch.from_numpy(np.array(image))
        image = pixels if pixels.dim() == 2 else pixels.permute(2, 0, 1)
    else:
        raise InputError(f"{where}: expected a tensor, an array or a PIL image, got {type(image).__name__}")
    return image.unsqueeze(0) if image.dim() == 2 else image


def _tensor(value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: expected a tensor or an array, got {type(value).__name__}: {error}") from None
