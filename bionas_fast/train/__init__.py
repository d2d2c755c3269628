"""Training of genotype networks, residual networks and SoftHebb networks, and loading of trained ones."""

from bionas_fast.train.compare import compare_genotypes, compare_rules, repeat_training
from bionas_fast.train.genotype import TrainConfig, train
from bionas_fast.train.load import load
from bionas_fast.train.resnet import ResNetConfig, train_resnet
from bionas_fast.train.result import TrainResult
from bionas_fast.train.softhebb import SoftHebbConfig, train_softhebb
