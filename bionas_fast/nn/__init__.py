"""Drop-in layers with learning rules, and the conversion of torch.nn models."""

from bionas_fast.nn import averaging
from bionas_fast.nn.attention import MultiheadAttention
from bionas_fast.nn.batch_norm import synchronise_statistics
from bionas_fast.nn.checkpoints import torch_state_dict
from bionas_fast.nn.conversion import convert
from bionas_fast.nn.error_path import ErrorPath, true_gradients
from bionas_fast.nn.feedback import FeedbackLayer, connect_direct_feedback
from bionas_fast.nn.hebbian import HebbianConv2d, HebbianLinear, Triangle, frozen_plasticity, name_layers
from bionas_fast.nn.layers import Conv1d, Conv2d, Conv3d, Linear
from bionas_fast.nn.lazy import (
    LazyConv1d,
    LazyConv2d,
    LazyConv3d,
    LazyConvTranspose1d,
    LazyConvTranspose2d,
    LazyConvTranspose3d,
    LazyLinear,
)
from bionas_fast.nn.learned import learned_feedback
from bionas_fast.nn.mirroring import mirror
from bionas_fast.nn.plain import to_torch
from bionas_fast.nn.predictive import PredictiveConv2d
from bionas_fast.nn.redraw import next_draw, redraw_every_step
from bionas_fast.nn.shares import count_weights, rule_shares
from bionas_fast.nn.transposed import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, TransposedLinear

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "ErrorPath",
    "FeedbackLayer",
    "HebbianConv2d",
    "HebbianLinear",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
    "LazyLinear",
    "Linear",
    "MultiheadAttention",
    "PredictiveConv2d",
    "TransposedLinear",
    "Triangle",
    "connect_direct_feedback",
    "convert",
    "count_weights",
    "frozen_plasticity",
    "learned_feedback",
    "mirror",
    "name_layers",
    "next_draw",
    "redraw_every_step",
    "rule_shares",
    "synchronise_statistics",
    "to_torch",
    "torch_state_dict",
    "true_gradients",
]
