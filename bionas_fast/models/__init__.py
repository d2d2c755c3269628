"""Networks built from genotypes, residual networks, and SoftHebb networks."""

from typing import TYPE_CHECKING

from bionas_fast.imports import on_first_use

if TYPE_CHECKING:
    from bionas_fast.models.genotype_network import GenotypeNetwork, NetworkOptions, build_network, evaluate_fast
    from bionas_fast.models.local import LocalLosses, local_losses
    from bionas_fast.models.plain import PLAIN, ForwardForwardNetwork, build_plain
    from bionas_fast.models.resnet import RESNETS, build_resnet
    from bionas_fast.models.size import NetworkSize, measure_size, weights_by_rule
    from bionas_fast.models.softhebb import SoftHebbNetwork, build_softhebb
else:
    __getattr__, __dir__ = on_first_use(
        __name__,
        {
            "genotype_network": "GenotypeNetwork NetworkOptions build_network evaluate_fast",
            "local": "LocalLosses local_losses",
            "plain": "PLAIN ForwardForwardNetwork build_plain",
            "resnet": "RESNETS build_resnet",
            "size": "NetworkSize measure_size weights_by_rule",
            "softhebb": "SoftHebbNetwork build_softhebb",
        },
    )

__all__ = [
    "PLAIN",
    "RESNETS",
    "ForwardForwardNetwork",
    "GenotypeNetwork",
    "LocalLosses",
    "NetworkOptions",
    "NetworkSize",
    "SoftHebbNetwork",
    "build_network",
    "build_plain",
    "build_resnet",
    "build_softhebb",
    "evaluate_fast",
    "local_losses",
    "measure_size",
    "weights_by_rule",
]
