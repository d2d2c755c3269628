"""The settings of a search."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from bionas_fast.choices import Amp, Engine, Initialisation, Perturbation
from bionas_fast.config import (
    Cells,
    Changeable,
    Channels,
    Coefficient,
    DescentConfig,
    Epochs,
    Option,
    Rate,
    SkipRules,
    Work,
)
from bionas_fast.errors import InputError
from bionas_fast.runs.kinds import register_kind

Beta = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(ge=1e-3, le=1e6)]


@register_kind("search", "bionas_fast.searching.loop:Search", command="search")
class SearchConfig(DescentConfig):
    """The settings of a search. The defaults suit scikit-learn's digits on two processor cores.

    The optimisers' constants are those of DARTS (Liu et al. 2019) as the code published with the paper uses them.
    """

    epochs: Epochs = 10
    space: Annotated[str, Option()] = Field("bionas", description="The search space.")
    method: Annotated[str, Option()] = Field(
        "darts",
        description="The search method; with five seeds on small data, none was measurably better than random "
        "(docs/search-methods.md, Comparison).",
    )
    rules: Annotated[tuple[str, ...], Option(metavar="A,B")] = Field(
        (), description="Learning rules of the candidates; by default those of the space. Others are added to it."
    )
    operations: Annotated[tuple[str, ...], Option("--ops", "A,B")] = Field(
        (),
        description="Operations of the candidates, also none; by default those of the space. Others are added to it.",
    )
    fixed: dict[str, str] = Field(
        default_factory=dict, description="The rules of stem, preprocess and head, by layer; bp for those not named."
    )
    skip_rules: SkipRules = True
    initialisation: Initialisation = Field(
        "xavier",
        description="Law of initial weights: xavier, in every convolution, or published, only in those with a rule "
        "other than bp; the others have PyTorch's.",
    )
    engine: Annotated[Engine, Option()] = Field(
        "stacked", description="Engine of the supernet: stacked, or modular (one module per candidate, much slower)."
    )
    channels: Channels = 4
    cells: Cells = 3
    train_fraction: float = Field(
        0.5, gt=0, lt=1, description="Fraction of the training images that trains the weights; the others train alpha."
    )
    valid_batch_size: int | None = Field(
        None, ge=1, description="Images per batch that trains alpha; by default batch_size (EG-NAS: half of it)."
    )
    amp: Annotated[Amp, Option()] = Field(
        "off", description="Mixed precision: bf16, in which the stacked engine also stores its maps, or fp16."
    )
    cuda_graphs: Annotated[Literal["auto", "off"], Option(), Changeable()] = Field(
        "auto",
        description="Half steps on CUDA devices: auto, as CUDA graphs where possible, or off, kernel by kernel.",
    )

    learning_rate_min: Coefficient = Field(0.001, description="Final learning rate of the cosine schedule.")
    nesterov: bool = Field(False, description="Nesterov's momentum.")
    alpha_learning_rate: Rate | None = Field(
        None,
        description="Learning rate of alpha (Adam). By default 6 / steps, within 3e-4 and 0.03: 3e-4 for 50 epochs of "
        "390 steps, as in DARTS, and more for shorter searches.",
    )
    alpha_betas: tuple[Beta, Beta] = Field((0.5, 0.999), description="Adam's decay rates for alpha.")
    alpha_weight_decay: Coefficient = Field(1e-3, description="L2 penalty of alpha.")

    warmup_epochs: int | None = Field(
        None,
        ge=0,
        description="Initial epochs that train only the weights; by default a fifth of those "
        "before projection_epochs (PC-DARTS: 15 of 50).",
    )
    beta_decay: Coefficient = Field(
        0.0,
        description="λ at the end of λ · mean logsumexp(alpha), which grows from 0 "
        "(β-DARTS, Ye et al. 2022: 25 after 50 epochs).",
    )
    edge_normalisation: bool = Field(
        False, description="Also weight the edges into a node by a softmax (PC-DARTS, Xu et al. 2020)."
    )
    partial_channels: int = Field(
        1, ge=1, description="k: pass 1/k of the channels through the candidates (PC-DARTS: 4)."
    )
    auxiliary_skip: bool = Field(
        False,
        description="Add a skip connection to every edge whose weight falls from 1 to 0 (DARTS-, Chu et al. 2021).",
    )
    skip_limit: int | None = Field(
        None,
        ge=0,
        description="End the search before the normal cell has more skip connections (DARTS+, Liang et al. 2019: 2).",
    )
    sampling: Literal["softmax", "gdas"] = Field(
        "softmax",
        description="Mix all candidates by their softmax, or sample one per edge (gdas; Dong and Yang 2019).",
    )
    gdas_temperature: tuple[Temperature, Temperature] = Field(
        (10.0, 0.1), description="Temperature of the Gumbel-softmax in the first and in the last epoch."
    )
    alpha_perturbation: Literal["off", "random", "adversarial"] = Field(
        "off",
        description="Train the weights under candidates' weights changed by at most ε: random, or adversarial, which "
        "takes seven gradients (SDARTS, Chen and Hsieh 2020).",
    )
    alpha_perturbation_eps: Rate = Field(0.3, description="ε at the end of alpha_perturbation, which grows from 0.")
    projection_epochs: int = Field(
        0,
        ge=0,
        description="Last epochs, with alpha fixed, in which the edges are decided one after the other by the loss "
        "without each candidate (DARTS-PT, Wang et al. 2021); 0: by alpha.",
    )
    factorised: bool = Field(
        False, description="Use one alpha per operation and one per rule, and add them, instead of one per candidate."
    )

    population: int = Field(50, ge=4, le=10_000, description="Number of architectures evaluated per generation.")
    eg_searches: int = Field(
        1, ge=1, le=100, description="Evolution strategies side by side, from means drawn around alpha (eq. 18, 19)."
    )
    generations: int = Field(4, ge=1, le=10_000, description="Generations per epoch.")
    eg_sigma: Rate = Field(0.5, ge=1e-6, description="Initial step size of the CMA-ES, in units of alpha.")
    fitness_cross_entropy: Coefficient = Field(1.0, description="Coefficient of the cross-entropy in eq. 22.")
    fitness_similarity: Coefficient = Field(
        0.4, description="Coefficient of the similarity with the current architecture in eq. 22."
    )
    eg_step: Rate = Field(0.1, description="Step size of eg-published: multiple of the best individual added to alpha.")
    tournament: int = Field(
        10, ge=1, description="Individuals per tournament for a parent (Real et al. 2019: 25 of 100)."
    )
    robustness: Annotated[Perturbation, Option()] = Field(
        "off",
        description="Robust search: add the cross-entropy on perturbed images to the loss of every individual: noise, "
        "±ε at random at every pixel, or fgsm, by the sign of its true gradient.",
    )
    robustness_eps: float = Field(
        8 / 255, gt=0, le=1, description="Change of a pixel (ε) in robust search, in units of [0, 1]."
    )
    robustness_weight: Rate = Field(1.0, description="λ of the cross-entropy on perturbed images in robust search.")

    def work(self, images: int, test_images: int) -> tuple[Work, ...]:
        trained = round(self.train_fraction * images)
        return (Work(self.epochs, trained, self.batch_size, images - trained),)

    def settled(self, images: int) -> Self:
        """Return a copy in which what follows from other settings is a number: the rate of alpha and the warm-up.

        With Adam, alpha moves by at most its rate per step. A search of the published length, 50 epochs of 390 steps at
        3e-4, can move it by 6, and so shall a shorter one; on digits, rates above 0.03 made seeds agree less
        (docs/search-methods.md, Defaults).

        Args:
            images: the number of training images.
        """
        warmup = (self.epochs - self.projection_epochs) // 5 if self.warmup_epochs is None else self.warmup_epochs
        steps = (self.epochs - warmup - self.projection_epochs) * self.work(images, 0)[0].steps
        rate = min(max(6 / steps, 3e-4), 0.03)
        return self.with_settings(warmup_epochs=warmup, alpha_learning_rate=self.alpha_learning_rate or rate)

    @model_validator(mode="after")
    def _expect_settings_that_fit(self) -> Self:
        if self.nesterov and not self.momentum:
            raise InputError("nesterov: needs a momentum above 0")
        if (self.warmup_epochs or 0) >= self.epochs:
            raise InputError(f"warmup_epochs: expected fewer than epochs ({self.epochs}), got {self.warmup_epochs}")
        if (self.warmup_epochs or 0) + self.projection_epochs >= self.epochs:
            raise InputError(
                f"projection_epochs: expected fewer than the epochs ({self.epochs}) after the warm-up "
                f"({self.warmup_epochs or 0}), got {self.projection_epochs}"
            )
        if self.alpha_perturbation != "off" and self.sampling == "gdas":
            raise InputError("alpha_perturbation: needs sampling=softmax, got gdas")
        if self.alpha_perturbation == "off" and self.alpha_perturbation_eps != 0.3:
            raise InputError("alpha_perturbation_eps: needs alpha_perturbation=random or adversarial")
        for name in ("robustness_eps", "robustness_weight"):
            value = getattr(self, name)
            if self.robustness == "off" and value != type(self).model_fields[name].default:
                raise InputError(f"{name}: needs robustness=noise or fgsm; got {value!r} with robustness=off")
        return self
