"""Networks built from genotypes, and SoftHebb networks."""

from bionas_fast.models.genotype_network import GenotypeNetwork, build_network
from bionas_fast.models.softhebb import SoftHebbNetwork, build_softhebb
