"""Datasets: registry, loaders, user data, and in-memory batches."""

from bionas_fast.data import user_data as _user_data  # registers its datasets
from bionas_fast.data.batches import Augment, BatchStream, as_float, evaluation_batches, normalise, split
from bionas_fast.data.dataset import Dataset, Source
from bionas_fast.data.registry import dataset_names, load_dataset, register_dataset
