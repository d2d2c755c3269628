"""Search for a network architecture and the learning rule of every layer in it."""

from bionas_fast import nn, rules, space
from bionas_fast.backends import use_backend
from bionas_fast.errors import BionasWarning, InputError
from bionas_fast.nn import convert, true_gradients
from bionas_fast.space import Genotype

__version__ = "0.1.0"
