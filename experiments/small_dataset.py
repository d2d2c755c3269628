"""Write a smaller dataset: ``python experiments/small_dataset.py fashion-mnist small.npz --images 5000 --shrink 2``.

The file is named as a dataset by ``npz:small.npz``. The training images are drawn by a fixed seed, the same number for
each class; all test images are kept. With ``--shrink 2`` images have half the height and width.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from bionas_fast.data import load_dataset, split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("file", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, required=True, help="number of training images, the same for each class")
    parser.add_argument("--shrink", type=int, default=1, help="pixels to average per direction")
    given = parser.parse_args()
    print(f"npz:{write_small(given.dataset, given.data_dir, given.file, given.images, given.shrink)}")


def write_small(dataset: str, data_dir: str | None, file: Path, images: int, shrink: int = 1) -> Path:
    """Write ``images`` training images and all test images, averaged over squares of ``shrink`` pixels."""
    data = load_dataset(dataset, data_dir)
    (chosen, labels), _ = split(data.images, data.labels, images / len(data.labels), seed=0)
    small, tests = (_shrunk(own, shrink) for own in (chosen, data.test_images))
    arrays = {"x_train": small, "y_train": labels, "x_test": tests, "y_test": data.test_labels}
    np.savez(file, **{name: value.numpy() for name, value in arrays.items()})
    return file


def _shrunk(images: torch.Tensor, factor: int) -> torch.Tensor:
    if factor == 1:
        return images
    return F.avg_pool2d(images.float(), factor).round().to(images.dtype)


if __name__ == "__main__":
    main()
