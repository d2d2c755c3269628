"""Datasets: registry, loaders, user data, and in-memory batches."""

from bionas_fast.data import imagenet16 as _imagenet16  # these register their datasets
from bionas_fast.data import torchvision_sets as _torchvision_sets
from bionas_fast.data import user_data as _user_data
from bionas_fast.data.augment import Augment
from bionas_fast.data.batches import BatchStream, as_float, evaluation_batches, normalise, split
from bionas_fast.data.dataset import Dataset, Source
from bionas_fast.data.noise import DatasetSize, dataset_size
from bionas_fast.data.registry import dataset_names, load_dataset, register_dataset
