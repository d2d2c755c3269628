"""Datasets: registry, loaders, user data, and in-memory batches."""

from typing import TYPE_CHECKING

from bionas_fast.imports import on_first_use

if TYPE_CHECKING:
    from bionas_fast.data.augment import Augment
    from bionas_fast.data.batches import BatchStream, MemoryImages, as_float, evaluation_batches, normalise, split
    from bionas_fast.data.dataset import Dataset, Source
    from bionas_fast.data.file_dataset import AnyDataset, FileDataset, Reading
    from bionas_fast.data.file_stream import FileImages, FileStream, Views
    from bionas_fast.data.labelled import LabelledImages, Stream
    from bionas_fast.data.names import dataset_names, describe_dataset, register_dataset
    from bionas_fast.data.objects import Data, as_dataset, with_data
    from bionas_fast.data.registry import load_dataset, open_dataset
    from bionas_fast.data.settings import configured, expect_shape, network_shape
    from bionas_fast.data.shape import DataShape
    from bionas_fast.data.sizes import SIZES, DatasetSize, dataset_size, size_of
else:
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "augment": "Augment",
            "batches": "BatchStream MemoryImages as_float evaluation_batches normalise split",
            "dataset": "Dataset Source",
            "file_dataset": "AnyDataset FileDataset Reading",
            "file_stream": "FileImages FileStream Views",
            "labelled": "LabelledImages Stream",
            "names": "dataset_names describe_dataset register_dataset",
            "objects": "Data as_dataset with_data",
            "registry": "load_dataset open_dataset",
            "settings": "configured expect_shape network_shape",
            "shape": "DataShape",
            "sizes": "SIZES DatasetSize dataset_size size_of",
        },
    )

__all__ = [
    "SIZES",
    "AnyDataset",
    "Augment",
    "BatchStream",
    "Data",
    "DataShape",
    "Dataset",
    "DatasetSize",
    "FileDataset",
    "FileImages",
    "FileStream",
    "LabelledImages",
    "MemoryImages",
    "Reading",
    "Source",
    "Stream",
    "Views",
    "as_dataset",
    "as_float",
    "configured",
    "dataset_names",
    "dataset_size",
    "describe_dataset",
    "evaluation_batches",
    "expect_shape",
    "load_dataset",
    "network_shape",
    "normalise",
    "open_dataset",
    "register_dataset",
    "size_of",
    "split",
    "with_data",
]
