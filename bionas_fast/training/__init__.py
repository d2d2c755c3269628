"""Training of genotype networks, residual, plain and SoftHebb networks, loading and export of trained ones."""

from typing import TYPE_CHECKING

from bionas_fast.imports import on_first_use

if TYPE_CHECKING:
    from bionas_fast.training.compare import compare_genotypes, compare_rules, repeat_training
    from bionas_fast.training.config import PlainConfig, ResNetConfig, SoftHebbConfig, TrainConfig
    from bionas_fast.training.exporting import export
    from bionas_fast.training.genotype import train
    from bionas_fast.training.loading import load
    from bionas_fast.training.plain import train_plain
    from bionas_fast.training.resnet import train_resnet
    from bionas_fast.training.result import TrainResult
    from bionas_fast.training.softhebb import train_softhebb
else:
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "compare": "compare_genotypes compare_rules repeat_training",
            "config": "PlainConfig ResNetConfig SoftHebbConfig TrainConfig",
            "exporting": "export",
            "genotype": "train",
            "loading": "load",
            "plain": "train_plain",
            "resnet": "train_resnet",
            "result": "TrainResult",
            "softhebb": "train_softhebb",
        },
    )

__all__ = [
    "PlainConfig",
    "ResNetConfig",
    "SoftHebbConfig",
    "TrainConfig",
    "TrainResult",
    "compare_genotypes",
    "compare_rules",
    "export",
    "load",
    "repeat_training",
    "train",
    "train_plain",
    "train_resnet",
    "train_softhebb",
]
