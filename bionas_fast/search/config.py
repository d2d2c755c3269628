"""The settings of a search."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from bionas_fast.config import Config
from bionas_fast.runtime.precision import Amp

Beta = Annotated[float, Field(ge=0, lt=1)]


class SearchConfig(Config):
    """Everything that decides a search; the defaults are sized for the embedded digits on two processor cores.

    The optimisers' constants are those of DARTS (Liu et al. 2019) as the code published with the paper uses them.
    """

    dataset: str = "digits"
    data_dir: str | None = None
    download: bool = False
    space: str = "bionas"
    method: str = "darts"
    #: Only these rules and operations; empty for all of the space. What the space does not have joins it.
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
    #: Mixed precision: ``bf16`` or ``fp16``.
    amp: Amp = "off"
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
    alpha_betas: tuple[Beta, Beta] = (0.5, 0.999)
    alpha_weight_decay: float = Field(1e-3, ge=0)

    #: So many epochs train the weights alone (PC-DARTS: 15 of 50).
    warmup_epochs: int = Field(0, ge=0)
    #: λ at the end of λ · mean logsumexp(alpha), which grows from 0 (β-DARTS, Ye et al. 2022: 25 after 50 epochs).
    beta_decay: float = Field(0.0, ge=0)
    #: A softmax over the edges into a node weights them, too (PC-DARTS, Xu et al. 2020).
    edge_normalisation: bool = False
    #: The candidates see 1/k of the channels (PC-DARTS: 4).
    partial_channels: int = Field(1, ge=1)
    #: A skip connection beside the candidates whose weight falls from 1 to 0 (DARTS-, Chu et al. 2021).
    auxiliary_skip: bool = False
    #: The search ends before the normal cell has more skip connections (DARTS+, Liang et al. 2019: 2).
    skip_limit: int | None = Field(None, ge=0)
    #: All candidates by their softmax, or one drawn for each edge (GDAS, Dong and Yang 2019).
    sampling: Literal["softmax", "gdas"] = "softmax"
    #: Of the Gumbel-softmax, in the first and in the last epoch.
    gdas_temperature: tuple[PositiveFloat, PositiveFloat] = (10.0, 0.1)
    #: Alphas of the operations and of the rules, whose sum is a candidate's, in place of one each.
    factorised: bool = False

    #: How many architectures are judged at once by eg, random and evolution, and how often in an epoch.
    population: int = Field(50, ge=4, le=10_000)
    generations: int = Field(4, ge=1)
    #: One CMA-ES through the whole search, or what the code of EG-NAS does (see ``bionas_fast.search.eg_published``).
    eg_mode: Literal["persistent", "published"] = "persistent"
    #: The step size that the CMA-ES begins with, in units of alpha.
    eg_sigma: float = Field(0.5, gt=0)
    #: The coefficients of eq. 22: of the cross-entropy, and of the similarity with the present architecture.
    fitness_cross_entropy: float = Field(1.0, ge=0)
    fitness_similarity: float = Field(0.4, ge=0)
    #: What the published mode adds of the best individual.
    eg_step: float = Field(0.1, gt=0)
    #: How many individuals of regularised evolution compete to be a parent (Real et al. 2019: 25 of 100).
    tournament: int = Field(10, ge=1)

    #: Augmentation of the training images: mirror, random crop after padding by so many pixels, cutout's edge.
    flip: bool = False
    crop_padding: int = Field(0, ge=0)
    cutout: int = Field(0, ge=0)
