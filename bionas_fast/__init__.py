"""Search for a network architecture and the learning rule of every layer in it."""

from types import ModuleType
from typing import TYPE_CHECKING

from bionas_fast.errors import BionasWarning, InputError, Interrupted
from bionas_fast.imports import after_import, on_first_use
from bionas_fast.runs.kinds import declare_kinds

if TYPE_CHECKING:
    from bionas_fast import analysis, data, functional, models, nn, presets, report, robustness, rules, searching, space
    from bionas_fast.backends import use_backend
    from bionas_fast.data import load_dataset
    from bionas_fast.estimation import estimate
    from bionas_fast.evaluation import evaluate
    from bionas_fast.models import build_network, build_plain, build_resnet, build_softhebb, local_losses
    from bionas_fast.nn import rule_shares, torch_state_dict
    from bionas_fast.nn.conversion import convert
    from bionas_fast.nn.error_path import true_gradients
    from bionas_fast.nn.mirroring import mirror
    from bionas_fast.nn.plain import to_torch
    from bionas_fast.robustness import AttackConfig, attack
    from bionas_fast.runs.callbacks import Callback, Moment
    from bionas_fast.runtime.arithmetic import precision
    from bionas_fast.searching import Search, SearchConfig, SearchResult, repeat_search, search
    from bionas_fast.space import Genotype
    from bionas_fast.supernet import build_supernet
    from bionas_fast.training import (
        PlainConfig,
        ResNetConfig,
        SoftHebbConfig,
        TrainConfig,
        TrainResult,
        compare_genotypes,
        compare_rules,
        export,
        load,
        repeat_training,
        train,
        train_plain,
        train_resnet,
        train_softhebb,
    )
else:
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "": "analysis data functional models nn presets report robustness rules searching space",
            "backends": "use_backend",
            "data": "load_dataset",
            "estimation": "estimate",
            "evaluation": "evaluate",
            "models": "build_network build_plain build_resnet build_softhebb local_losses",
            "nn": "rule_shares torch_state_dict",
            "nn.conversion": "convert",
            "nn.plain": "to_torch",
            "nn.error_path": "true_gradients",
            "nn.mirroring": "mirror",
            "robustness": "AttackConfig attack",
            "runs.callbacks": "Callback Moment",
            "runtime.arithmetic": "precision",
            "searching": "Search SearchConfig SearchResult repeat_search search",
            "space": "Genotype",
            "supernet": "build_supernet",
            "training": "PlainConfig ResNetConfig SoftHebbConfig TrainConfig TrainResult compare_genotypes "
            "compare_rules export load repeat_training train train_plain train_resnet train_softhebb",
        },
    )

__version__ = "0.1.0"

__all__ = [
    "AttackConfig",
    "BionasWarning",
    "Callback",
    "Genotype",
    "InputError",
    "Interrupted",
    "Moment",
    "PlainConfig",
    "ResNetConfig",
    "Search",
    "SearchConfig",
    "SearchResult",
    "SoftHebbConfig",
    "TrainConfig",
    "TrainResult",
    "analysis",
    "attack",
    "build_network",
    "build_plain",
    "build_resnet",
    "build_softhebb",
    "build_supernet",
    "compare_genotypes",
    "compare_rules",
    "convert",
    "data",
    "estimate",
    "evaluate",
    "export",
    "functional",
    "load",
    "load_dataset",
    "local_losses",
    "mirror",
    "models",
    "nn",
    "precision",
    "presets",
    "repeat_search",
    "repeat_training",
    "report",
    "robustness",
    "rule_shares",
    "rules",
    "search",
    "searching",
    "space",
    "to_torch",
    "torch_state_dict",
    "train",
    "train_plain",
    "train_resnet",
    "train_softhebb",
    "true_gradients",
    "use_backend",
]

declare_kinds(
    {
        **dict.fromkeys(("train", "resnet", "plain", "softhebb"), "bionas_fast.training.config"),
        "search": "bionas_fast.searching.config",
    }
)


def _drawn_in_notebooks(module: ModuleType) -> None:
    """Let reports, which are above genotypes, draw them in notebooks."""

    def draw(genotype: "Genotype") -> str:
        from bionas_fast.report.figure import genotype_figure, render

        return render(genotype_figure(genotype), "svg").decode()

    module.Genotype.to_html = staticmethod(draw)


after_import("bionas_fast.space.genotype", _drawn_in_notebooks)
