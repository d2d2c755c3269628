"""Training: of found networks, of SoftHebb networks, and what remains of it."""

from bionas_fast.train.genotype import FOUND, TrainConfig, compare_rules, train
from bionas_fast.train.load import load
from bionas_fast.train.result import TrainResult
from bionas_fast.train.softhebb import SoftHebbConfig, train_softhebb
