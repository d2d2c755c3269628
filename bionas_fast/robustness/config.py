"""The settings of an attack."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from bionas_fast.choices import Gradient
from bionas_fast.config import Config, Option
from bionas_fast.errors import InputError, shown
from bionas_fast.robustness.attacks import parse_attack


class AttackConfig(Config):
    """The settings of an attack. Perturbations and pixels are in units of [0, 1]."""

    attacks: Annotated[tuple[str, ...], Option()] = Field(
        ("fgsm", "pgd-10", "square-300", "noise"),
        min_length=1,
        description="Attacks, each with its number of steps, pixels or queries after a hyphen, such as pgd-40.",
    )
    gradient: Annotated[Literal["feedback", "true", "both"], Option()] = Field(
        "both", description="Gradient of the attacker: feedback (that the network learns by), true, or both."
    )
    eps: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Option()] = Field(
        (8 / 255,), min_length=1, description="Largest change of a pixel (ε), in units of [0, 1]; several for a curve."
    )
    step_size: float = Field(2 / 255, gt=0, le=1, description="Change of a pixel per step (α) of pgd and tpgd.")
    images: Annotated[int, Option()] = Field(
        1000,
        ge=1,
        description="Number of test images, from the first on, or evenly spaced if they are in the order of their "
        "classes; only those classified correctly are attacked.",
    )
    targeted: bool = Field(
        False, description="Aim at a random other class (where the attack can) instead of any other."
    )
    restarts: int = Field(
        1, ge=1, le=1000, description="Repetitions with further seeds; the best for the attacker counts."
    )
    eot: int = Field(
        0,
        ge=0,
        le=1000,
        description="Passes with redrawn feedback over which each gradient is averaged; 0: feedback as it is.",
    )
    batch_size: Annotated[int, Option()] = Field(250, ge=1, le=1_000_000, description="Images attacked at a time.")
    seed: Annotated[int, Option()] = Field(0, ge=0, lt=2**31, description="Seed of everything random.")

    @field_validator("attacks")
    @classmethod
    def _expect_attacks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for index, name in enumerate(names):
            parse_attack(name)
            if name in names[:index]:
                raise InputError(f"attacks: {name!r} is given twice")
        return names

    @field_validator("eps")
    @classmethod
    def _expect_different(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) < len(values):
            raise InputError(f"eps: expected different values, got {shown(values)}")
        return values

    @property
    def gradients(self) -> tuple[Gradient, ...]:
        """The gradients to attack through."""
        return ("feedback", "true") if self.gradient == "both" else (self.gradient,)
