"""Datasets: registry, loaders, user data, and in-memory batches."""

from bionas_fast.data import imagenet as _imagenet  # these register their datasets
from bionas_fast.data import imagenet16 as _imagenet16
from bionas_fast.data import noise as _noise
from bionas_fast.data import small as _small
from bionas_fast.data import torchvision_sets as _torchvision_sets
from bionas_fast.data import user_data as _user_data
from bionas_fast.data.augment import Augment
from bionas_fast.data.batches import BatchStream, MemoryImages, as_float, evaluation_batches, normalise, split
from bionas_fast.data.dataset import Dataset, Source
from bionas_fast.data.file_dataset import AnyDataset, FileDataset, Reading
from bionas_fast.data.file_stream import FileImages, FileStream, Views
from bionas_fast.data.labelled import LabelledImages, Stream
from bionas_fast.data.registry import dataset_names, describe_dataset, load_dataset, open_dataset, register_dataset
from bionas_fast.data.settings import configured, expect_shape, network_shape
from bionas_fast.data.sizes import SIZES, DatasetSize, dataset_size
