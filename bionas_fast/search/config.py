"""The settings of a search."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from bionas_fast.config import Config


class SearchConfig(Config):
    """Everything that decides a search; the defaults are sized for the embedded digits on two processor cores.

    The optimisers' constants are those of DARTS (Liu et al. 2019) as the code published with the paper uses them.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    download: bool = False
    space: str = "bionas"
    method: str = "darts"
    #: Only these rules and operations of the space; empty for all.
    rules: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    #: The rules of stem, preprocess and head; bp unless said otherwise.
    fixed: dict[str, str] = Field(default_factory=dict)
    skip_rules: bool = True
    engine: str = "stacked"
    channels: int = Field(4, ge=1)
    cells: int = Field(3, ge=1)
    epochs: int = Field(4, ge=1)
    batch_size: int = Field(64, ge=1)
    #: The share of the training images that trains the weights; the rest trains the architecture.
    train_fraction: float = Field(0.5, gt=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"
    #: Seconds between checkpoints within an epoch; there is one after every epoch, too.
    checkpoint_every: float = Field(60.0, ge=0)
    #: Whether to write the figures also for TensorBoard, whose package must be installed.
    tensorboard: bool = False

    learning_rate: float = Field(0.025, gt=0)
    learning_rate_min: float = Field(0.001, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(3e-4, ge=0)
    #: The largest norm of the weights' gradient.
    gradient_clip: float = Field(5.0, gt=0)
    alpha_learning_rate: float = Field(3e-4, gt=0)
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    alpha_weight_decay: float = Field(1e-3, ge=0)

    #: Augmentation of the training images: mirror, random crop after padding by so many pixels, cutout's edge.
    flip: bool = False
    crop_padding: int = Field(0, ge=0)
    cutout: int = Field(0, ge=0)

    def settings(self) -> dict[str, Any]:
        """Plain values, as they are written to a file."""
        return self.model_dump(mode="json")
