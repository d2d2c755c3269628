"""A quickly trained network on which transfer attacks are computed, where none is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from bionas_fast.config import FILE_SETTINGS, RunConfig
from bionas_fast.data import AnyDataset, Dataset
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.repeat import PlannedRun
from bionas_fast.runs.terminal import listener
from bionas_fast.training.loading import load
from bionas_fast.training.resnet import ResNetConfig, ResNetTraining, train_resnet

#: The training has about this number of images, so large datasets are seen once, and at most this number of epochs.
_IMAGES, _EPOCHS = 64_000, 20
#: Images with a longer side get the network for ImageNet.
_SMALL = 96
#: The settings of the attacked run that say on which images it was trained, and how these are read.
_DATA = ("dataset", "data_dir", "plugins", "workers", "decoded_dir", *FILE_SETTINGS)


def substitute_config(run: RunConfig, data: AnyDataset) -> ResNetConfig:
    """Return the settings of a short training by back-propagation on the dataset of a run.

    Args:
        run: the settings of the attacked run.
        data: its dataset.
    """
    images = len(data.labels if isinstance(data, Dataset) else data.train_files)
    known = {name: getattr(run, name) for name in _DATA if name in type(run).model_fields}
    return ResNetConfig(
        **known,
        architecture="resnet20" if max(data.image_size) <= _SMALL else "resnet18",
        rule="bp",
        epochs=max(1, min(_EPOCHS, round(_IMAGES / images))),
    )


def train_substitute(
    config: ResNetConfig, out: str | Path, *, plugins: Sequence[str] = (), progress: Progress | bool | None = None
) -> nn.Module:
    """Train the network of :func:`substitute_config`, continue its training, or load it if it is complete.

    Raises:
        InputError: the folder holds another run; the training cannot begin or continue.
        Interrupted: after Ctrl-C or SIGTERM. The training is saved.
    """
    PlannedRun(ResNetTraining, config, train_resnet).complete(Path(out), listener(progress))
    return load(out, plugins=plugins)
