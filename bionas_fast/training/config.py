"""The settings of training: of genotype networks, and of the networks they are compared with."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from bionas_fast import rules
from bionas_fast.choices import (
    WITHOUT_RULES,
    Amp,
    Initialisation,
    LawName,
    LocalLoss,
    Plain,
    Policy,
    ResNet,
    SoftHebb,
    Stem,
    TrainerName,
)
from bionas_fast.config import (
    Cells,
    Channels,
    Coefficient,
    DescentConfig,
    Epochs,
    Option,
    Rate,
    RunConfig,
    SkipRules,
    Work,
)
from bionas_fast.errors import InputError, shown
from bionas_fast.runs.kinds import register_kind

#: A fraction between 0 and 1.
Fraction = Annotated[float, Field(gt=0, lt=1)]
#: A number of epochs.
EpochNumber = Annotated[int, Field(ge=1)]
#: A number of units or channels.
Width = Annotated[int, Field(ge=1, le=65_536)]


class OptimizerConfig(DescentConfig):
    """The settings of the optimiser."""

    optimizer: Annotated[str, Option()] = Field(
        "sgd", description="The optimiser: sgd, adam, adamw, or a class of PyTorch, such as torch.optim.RMSprop."
    )
    optimizer_options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the optimiser, such as {betas: [0.9, 0.99]}."
    )
    nesterov: bool = Field(False, description="Nesterov's momentum.")
    decay_norms: bool = Field(
        True, description="Apply weight decay to biases and parameters of normalisation layers, too."
    )

    @model_validator(mode="after")
    def _expect_an_optimiser(self) -> Self:
        if self.nesterov and not self.momentum:
            raise InputError("nesterov: needs a momentum above 0")
        from torch import nn

        from bionas_fast.training.optimiser import build_optimizer

        # What it refuses is known before any data is loaded; the layer draws no random numbers.
        build_optimizer(nn.utils.skip_init(nn.Linear, 1, 1), self)
        return self


class SupervisedConfig(OptimizerConfig):
    """The settings of the optimiser, its schedule and the loss of a supervised training.

    The defaults are those of the evaluation networks of DARTS: SGD, cosine schedule to 0, momentum 0.9, weight decay
    3e-4, gradients clipped at norm 5.
    """

    schedule: Literal["cosine", "linear", "multistep", "step", "constant"] = Field(
        "cosine", description="Course of the learning rate: cosine, linear, multistep, step or constant."
    )
    learning_rate_min: float = Field(0.0, ge=0, description="Final learning rate of cosine and linear.")
    warmup_epochs: int = Field(
        0, ge=0, description="Initial epochs in which the learning rate grows linearly to that of the schedule."
    )
    schedule_epochs: tuple[EpochNumber, ...] = Field(
        (), description="Epochs after which the learning rate falls: all of them (multistep), or the period (step)."
    )
    schedule_factor: float = Field(
        0.1, gt=0, le=1, description="Factor of the learning rate at each fall of multistep and step."
    )
    linear_tail: int = Field(
        0,
        ge=0,
        description="Last epochs of linear, in which a fifth of the learning rate falls to 0 once more "
        "(PC-DARTS on ImageNet: 5 of 250).",
    )
    trainer: Annotated[TrainerName, Option()] = Field(
        "end-to-end",
        description="Loss: end-to-end, of the logits; local, one of each block, such as a cell; for mlp and cnn also "
        "pepita and ff, forward-forward, without a backward pass, and pc, predictive coding.",
    )
    local_loss: LocalLoss = Field(
        "predsim", description="Local loss: pred, cross-entropy of a head; sim, of similarities; or predsim, both."
    )
    local_beta: float = Field(0.99, ge=0, le=1, description="Weight β of the similarities in predsim.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Fraction of each label spread over all classes.")
    accumulate: int = Field(
        1, ge=1, description="Parts into which each batch is split to save memory; their gradients are added up."
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="Decay of an exponential moving average of the weights, which is tested; 0: none."
    )
    amp: Annotated[Amp, Option()] = Field("off", description="Mixed precision: bf16 or fp16.")
    compile: Annotated[bool, Option()] = Field(False, description="Compile the network with torch.compile.")

    policy: Policy = Field("none", description="Further random operations on the images, such as randaugment.")
    mixup: float = Field(0.0, ge=0, description="α of mixup; 0 for none.")
    cutmix: float = Field(0.0, ge=0, description="α of CutMix; 0 for none.")
    valid_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Fraction of the training images held out for validation, which chooses best.pt; 0 for none.",
    )
    evaluate_every: int = Field(1, ge=1, description="Epochs between evaluations; the last epoch always ends with one.")
    record_layers: int = Field(
        0,
        ge=0,
        description="Epochs between records of every layer in layers.jsonl (gradients, alignment, weights); 0: none.",
    )

    def work(self, images: int, test_images: int) -> tuple[Work, ...]:
        trained = round((1 - self.valid_fraction) * images)
        return (Work(self.epochs, trained, self.batch_size, images - trained + test_images, self.evaluate_every),)

    #: The trainers that the networks of these settings know.
    trainers: ClassVar[tuple[TrainerName, ...]] = ("end-to-end", "local")

    @model_validator(mode="after")
    def _expect_losses_that_fit(self) -> Self:
        if self.trainer not in self.trainers:
            raise InputError(f"trainer: expected {' or '.join(self.trainers)}, got {self.trainer}, of mlp and cnn only")
        defaults = SupervisedConfig.model_fields
        changed = [name for name in ("local_loss", "local_beta") if getattr(self, name) != defaults[name].default]
        if self.trainer != "local":
            if changed:
                raise InputError(f"{changed[0]}: not used by the trainer {self.trainer}")
            return self
        if self.local_loss != "predsim" and "local_beta" in changed:
            raise InputError(f"local_beta: not used by the local loss {self.local_loss}")
        if self.local_loss != "pred" and self.accumulate > 1:
            raise InputError("accumulate: expected 1 for local losses of similarities, which compare a whole batch")
        if self.compile:
            raise InputError("compile: expected false with the trainer local")
        return self

    @model_validator(mode="after")
    def _expect_a_schedule_that_fits(self) -> Self:
        if self.learning_rate_min > self.learning_rate:
            raise InputError(
                f"learning_rate_min: expected at most learning_rate ({self.learning_rate:g}), "
                f"got {self.learning_rate_min:g}"
            )
        if self.warmup_epochs >= self.epochs:
            raise InputError(f"warmup_epochs: expected fewer than epochs ({self.epochs}), got {self.warmup_epochs}")
        if self.linear_tail and (self.schedule != "linear" or self.linear_tail >= self.epochs):
            raise InputError("linear_tail: needs the schedule linear, and fewer epochs than the training has")
        if self.schedule == "step" and len(self.schedule_epochs) != 1:
            raise InputError(f"schedule_epochs: step needs one number, the period; got {list(self.schedule_epochs)}")
        if self.schedule == "multistep" and not self.schedule_epochs:
            raise InputError("schedule_epochs: multistep needs the epochs after which the learning rate falls")
        if self.schedule_epochs and self.schedule not in ("step", "multistep"):
            raise InputError(f"schedule_epochs: not used by the schedule {self.schedule}")
        return self


@register_kind("train", "bionas_fast.training.genotype:Training", command="train")
class TrainConfig(SupervisedConfig):
    """The settings of a training run. The defaults suit scikit-learn's digits on two CPU cores."""

    epochs: Epochs = 20
    channels: Channels = 8
    cells: Cells = 3
    stem: Stem = Field("cifar", description="Layers before the first cell: cifar, or imagenet for large images.")
    skip_rules: SkipRules = True
    initialisation: Initialisation = Field(
        "xavier",
        description="Law of initial weights: xavier, in every convolution, or published, only in those with a rule "
        "other than bp; the others have PyTorch's.",
    )
    auxiliary_weight: Coefficient = Field(
        0.0, description="Weight of the auxiliary head's loss; 0 for no auxiliary head."
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="Final drop-path probability.")
    drop_path_schedule: Literal["linear", "constant"] = Field(
        "linear", description="Course of the drop-path probability: linear from 0, or constant (the paper's code)."
    )


@register_kind("resnet", "bionas_fast.training.resnet:ResNetTraining", command="train", sources=get_args(ResNet))
class ResNetConfig(SupervisedConfig):
    """The settings of the training of a residual network. The defaults suit small images on two CPU cores."""

    epochs: Epochs = 20
    architecture: ResNet = Field("resnet20", description=f"Architecture: {', '.join(get_args(ResNet))}.")
    rule: str = Field("bp", description="Learning rule of every convolution and of the classifier.")
    initialisation: LawName = Field(
        "default", description="Law of weights and random feedback: default (PyTorch's) or xavier (the paper's)."
    )

    @field_validator("rule")
    @classmethod
    def _expect_a_rule(cls, name: str) -> str:
        return rules.get(name).name


@register_kind("plain", "bionas_fast.training.plain:PlainTraining", command="train", sources=get_args(Plain))
class PlainConfig(SupervisedConfig):
    """The settings of the training of a plain network. The defaults suit small images on two CPU cores."""

    epochs: Epochs = 20
    architecture: Plain = Field("mlp", description="Architecture: mlp, or cnn, 3×3 convolutions and pools.")
    widths: tuple[Width, ...] = Field(
        (), description="Units or channels of each hidden layer; by default 512, 512 (mlp) or 32, 64 (cnn)."
    )
    rule: str = Field("bp", description="Learning rule of every layer, through which an error passes.")
    modulation: Coefficient = Field(
        0.05, description="PEPITA: scale of the random matrix F, by which the error changes the images."
    )
    threshold: Rate = Field(2.0, description="Forward-forward: goodness θ of a layer that is as likely as not.")
    inference_steps: int = Field(20, ge=0, le=100_000, description="Predictive coding: steps of the activities.")
    inference_rate: Rate = Field(0.1, description="Predictive coding: step size of the activities.")
    trainers = get_args(TrainerName)

    @field_validator("rule")
    @classmethod
    def _expect_a_rule(cls, name: str) -> str:
        return rules.get(name).name

    @model_validator(mode="after")
    def _expect_forward_passes_that_fit(self) -> Self:
        of = {"modulation": "pepita", "threshold": "ff", "inference_steps": "pc", "inference_rate": "pc"}
        for name, trainer in of.items():
            if self.trainer != trainer and getattr(self, name) != PlainConfig.model_fields[name].default:
                raise InputError(f"{name}: not used by the trainer {self.trainer}")
        if self.trainer in WITHOUT_RULES:
            for name in ("rule", "amp", "compile", "label_smoothing", "mixup", "cutmix"):
                default = PlainConfig.model_fields[name].default
                if getattr(self, name) != default:
                    raise InputError(f"{name}: expected {shown(default)} with the trainer {self.trainer}")
        return self

    @property
    def learns_by(self) -> str:
        """The learning rule, or the trainer that needs none."""
        return self.trainer if self.trainer in WITHOUT_RULES else self.rule


@register_kind("softhebb", "bionas_fast.training.softhebb:SoftHebbTraining", command="train", sources=("softhebb",))
class SoftHebbConfig(RunConfig):
    """The settings of a run. All defaults except the architecture and the scale are the published ones."""

    epochs: Annotated[int, Option()] = Field(50, ge=1, le=1_000_000, description="Epochs of the head.")
    architecture: SoftHebb = Field(
        "mnist", description="Architecture, named after its dataset; fasthebb: that of Lagani et al. 2022."
    )
    rule: Literal["softhebb", "hard_wta", "soft_wta", "hpca", "hpca_relu", "random"] = Field(
        "softhebb",
        description="Learning rule of the filters; hpca, hpca_relu: principal components, with ReLU after or also in "
        "the rule; random leaves them at their initial values, as a baseline.",
    )
    feature_epochs: int = Field(
        1, ge=1, le=1_000_000, description="Epochs of the filters; with layerwise, of each block."
    )
    feature_batch_size: int = Field(10, ge=1, le=1_000_000, description="Images per batch for the filters.")
    layerwise: bool = Field(
        False, description="Train one block after the other instead of all blocks with every batch."
    )
    learning_rate: Rate = Field(1e-3, description="Learning rate of the head (Adam).")
    halve_at: tuple[Fraction, ...] = Field(
        (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9),
        description="Halve the learning rate after each of these fractions of the epochs.",
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout before the head.")
    # Features of random filters are many times larger than those of learned ones.
    scale_features: bool = Field(
        True,
        description="Divide the features by their root mean square over the training images, so that one learning "
        "rate suits all rules; the published method does not.",
    )
    feature_memory: float = Field(
        6.0,
        ge=0,
        description="GiB for features: computed once if those of all images fit, otherwise in every epoch.",
    )

    @property
    def filter_epochs(self) -> int:
        """The number of epochs of the filters; random ones need one, for the normalisations."""
        from bionas_fast.models.softhebb import ARCHITECTURES

        if self.rule == "random":
            return 1
        return self.feature_epochs * (len(ARCHITECTURES[self.architecture]) if self.layerwise else 1)

    def work(self, images: int, test_images: int) -> tuple[Work, ...]:
        return (
            Work(self.filter_epochs, images, self.feature_batch_size, 0),
            Work(self.epochs, images, self.batch_size, test_images),
        )
