"""Networks built from genotypes, residual networks, and SoftHebb networks."""

from bionas_fast.models.genotype_network import GenotypeNetwork, NetworkOptions, build_network, evaluate_fast
from bionas_fast.models.resnet import RESNETS, build_resnet
from bionas_fast.models.size import NetworkSize, measure_size, weights_by_rule
from bionas_fast.models.softhebb import SoftHebbNetwork, build_softhebb
