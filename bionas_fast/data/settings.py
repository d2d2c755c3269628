"""Datasets of runs, by their settings: :func:`configured`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bionas_fast.config import FILE_SETTINGS, DescentConfig, RunConfig
from bionas_fast.data.dataset import Dataset
from bionas_fast.data.file_dataset import AnyDataset, Reading
from bionas_fast.data.file_stream import Views
from bionas_fast.data.registry import load_dataset, open_dataset
from bionas_fast.errors import InputError


def configured(config: RunConfig) -> AnyDataset:
    """Open the dataset of a run; without the settings of images from files, it is read into memory.

    Raises:
        InputError: as of :func:`open_dataset`; a setting of images that are read from files, with images in memory.
    """
    if not isinstance(config, DescentConfig):
        return load_dataset(config.dataset, config.data_dir, download=config.download)
    views = Views(config.image_size, config.image_resize, config.crop_scale, config.color_jitter)
    reading = Reading(
        views, config.workers, config.decoded_size, Path(config.decoded_dir) if config.decoded_dir else None
    )
    data = open_dataset(
        config.dataset, config.data_dir, download=config.download, in_memory=config.in_memory, reading=reading
    )
    if isinstance(data, Dataset):
        for name in FILE_SETTINGS:
            if name != "in_memory" and getattr(config, name) != type(config).model_fields[name].default:
                raise InputError(
                    f"{name}: only for images that are read from files; dataset {data.name!r} is in memory "
                    "(in_memory=false leaves the images of a folder in their files)"
                )
    return data


def network_shape(data: AnyDataset) -> dict[str, Any]:
    """Return the arguments of a network that follow from its data: ``in_channels``, ``num_classes``, ``image_size``."""
    return {
        "in_channels": data.in_channels,
        "num_classes": data.num_classes,
        "image_size": list(data.image_size),
    }


def expect_shape(data: AnyDataset, network: Mapping[str, Any]) -> None:
    """Compare the shape of a dataset with that of the data of a network, as :func:`network_shape` returns it.

    Raises:
        InputError: another number of classes or channels, or another size of images.
    """
    for name, value in network_shape(data).items():
        if value != network.get(name, value):
            raise InputError(
                f"dataset {data.name!r}: {name} is {value}, but the network was trained with {network[name]}"
            )
