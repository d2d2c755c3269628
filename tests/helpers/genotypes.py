"""Genotypes that several tests use."""

from __future__ import annotations

import torch

from bionas_fast.space import Genotype, derive_genotype, get_space

#: Small, quick to train, with three rules.
GENOTYPE = Genotype.from_json(
    """{
    "format_version": 1,
    "normal": {"nodes": [["sep_conv_3x3@usf<-0", "skip_connect@brsf<-1"], ["dil_conv_3x3@frsf<-1", "max_pool_3x3<-2"]]},
    "reduce": {"nodes": [["sep_conv_3x3@brsf<-0", "skip_connect@usf<-1"], ["avg_pool_3x3<-0", "dil_conv_3x3@fa<-2"]]}
    }"""
)


def random_genotype(seed: int) -> Genotype:
    generator = torch.Generator().manual_seed(seed)
    alphas = {kind: torch.randn(14, 22, generator=generator) for kind in ("normal", "reduce")}
    return derive_genotype(alphas, get_space("bionas"))
