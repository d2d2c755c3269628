"""Analysis of trained networks and of searches: gradients, weights, alignment, composition."""

from bionas_fast.analysis.alignment import Alignment, measure_alignment
from bionas_fast.analysis.genotypes import alpha_entropy, composition
from bionas_fast.analysis.gradients import LayerGradient, measure_gradients
from bionas_fast.analysis.record import probe, record_layers
from bionas_fast.analysis.weights import WeightDistribution, measure_weights

__all__ = [
    "Alignment",
    "LayerGradient",
    "WeightDistribution",
    "alpha_entropy",
    "composition",
    "measure_alignment",
    "measure_gradients",
    "measure_weights",
    "probe",
    "record_layers",
]
