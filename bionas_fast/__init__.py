"""Search for a network architecture and the learning rule of every layer in it."""

from bionas_fast import functional, nn, rules, space
from bionas_fast.backends import use_backend
from bionas_fast.data import load_dataset
from bionas_fast.errors import BionasWarning, InputError, Interrupted
from bionas_fast.estimation import estimate
from bionas_fast.evaluation import evaluate
from bionas_fast.models import build_network, build_resnet, build_softhebb
from bionas_fast.nn import convert, rule_shares, to_torch, torch_state_dict, true_gradients
from bionas_fast.robustness import AttackConfig, attack
from bionas_fast.runtime.arithmetic import precision
from bionas_fast.searching import Search, SearchConfig, repeat_search, search
from bionas_fast.space import Genotype
from bionas_fast.supernet import build_supernet
from bionas_fast.training import (
    ResNetConfig,
    SoftHebbConfig,
    TrainConfig,
    compare_genotypes,
    compare_rules,
    export,
    load,
    repeat_training,
    train,
    train_resnet,
    train_softhebb,
)

__version__ = "0.1.0"
