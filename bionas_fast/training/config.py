"""The settings of supervised training, shared by genotype networks and the networks they are compared with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from bionas_fast.config import Option, Work
from bionas_fast.data.augment import Policy
from bionas_fast.errors import InputError
from bionas_fast.runtime.precision import Amp
from bionas_fast.training.optimiser import OptimizerConfig

#: A number of epochs.
EpochNumber = Annotated[int, Field(ge=1)]


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
