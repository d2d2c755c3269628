"""Datasets of runs, by their settings: :func:`configured`."""

from __future__ import annotations

from pathlib import Path

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
    reading = Reading(views, config.workers, config.decoded_size, Path(config.decoded_dir))
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
