"""Training of genotype networks, residual networks and SoftHebb networks, loading and export of trained ones."""

from bionas_fast.training.compare import compare_genotypes, compare_rules, repeat_training
from bionas_fast.training.exporting import export
from bionas_fast.training.genotype import TrainConfig, train
from bionas_fast.training.load import load
from bionas_fast.training.resnet import ResNetConfig, train_resnet
from bionas_fast.training.result import TrainResult
from bionas_fast.training.softhebb import SoftHebbConfig, train_softhebb
