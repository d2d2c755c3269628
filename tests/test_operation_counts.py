"""Counters of operations see layers with rules as torch.nn's: FlopCounterMode, fvcore, torchinfo."""

from __future__ import annotations

import subprocess
import sys
from math import prod

import pytest
import torch
import torchinfo
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import bionas_fast as bf
from bionas_fast import native
from bionas_fast.kernels.records import Prologue, ReductionWeights, Stage, StageWeights
from bionas_fast.ops.mixed_edges.backends import Backend, find
from bionas_fast.space import get_space

LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3, padding="same"), (2, 4, 9)),
    "conv2d-groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 7, 6)),
    "conv2d-depthwise": (nn.Conv2d(4, 4, 3, groups=4, dilation=2), (2, 4, 7, 7)),
    "conv2d-1x1-stride": (nn.Conv2d(4, 6, 1, stride=2), (2, 4, 7, 7)),
    "conv2d-circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 5, 5)),
    "conv2d-without-batch": (nn.Conv2d(4, 6, 3, bias=False), (4, 7, 7)),
    "conv3d": (nn.Conv3d(4, 6, 2, stride=2), (2, 4, 5, 5, 5)),
    "linear": (nn.Linear(4, 6), (5, 4)),
    "linear-rank3": (nn.Linear(4, 6, bias=False), (2, 3, 4)),
    "linear-vector": (nn.Linear(4, 6), (4,)),
}
every_layer = pytest.mark.parametrize(("plain", "shape"), LAYERS.values(), ids=LAYERS)
RULES = ("bp", "fa", "usf", "brsf", "frsf", "kp")


def operations(layer: nn.Module, x: Tensor, backward: bool = True) -> int:
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


@every_layer
@pytest.mark.parametrize("rule", RULES)
def test_flop_counter_mode(plain, shape, rule):
    layer = bf.convert(nn.Sequential(plain), rule)[0]
    for needs_gradient in (True, False):
        x = torch.randn(shape, requires_grad=needs_gradient)
        expected = operations(plain, x)
        assert operations(layer, x) == expected > 0
        y = layer(x)  # outside, as torch's and Python's own nodes
        assert operations(lambda _, y=y: y, x) == expected - operations(plain, x, backward=False)
    layer.requires_grad_(False)
    plain = nn.Sequential(plain).requires_grad_(False)
    assert operations(layer, x.requires_grad_()) == operations(plain, x)
    plain.requires_grad_()


@every_layer
def test_fake_tensors_and_exported_graphs(plain, shape):
    layer, x = bf.convert(nn.Sequential(plain), "usf"), torch.randn(shape)
    expected = operations(plain, x, backward=False)
    assert operations(torch.export.export(layer, (x,)).module(), x, backward=False) == expected
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert operations(layer, torch.randn(shape), backward=False) == expected


@pytest.mark.parametrize("rule", RULES)
def test_transposed_convolutions(rule):
    for dims, options in ((1, {"output_padding": 1}), (2, {"groups": 2})):
        plain = getattr(nn, f"ConvTranspose{dims}d")(4, 6, 3, stride=2, **options)
        layer = getattr(bf.nn, f"ConvTranspose{dims}d")(4, 6, 3, stride=2, **options, rule=rule)
        x = torch.randn(2, 4, *[5] * dims, requires_grad=True)
        for backward in (True, False):
            assert operations(layer, x, backward) == operations(plain, x, backward) > 0
        assert FlopCountAnalysis(layer, x).total() == FlopCountAnalysis(plain, x).total() > 0


def test_a_compiled_model():
    plain, x = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(54, 3)), torch.randn(2, 4, 5, 5)
    model = torch.compile(bf.convert(plain, "brsf"), backend="aot_eager")
    model(x)
    assert operations(model, x) == operations(plain, x)


def test_direct_feedback_counts_the_products_of_its_own_path():
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3))
    model, x = bf.convert(plain, "dfa"), torch.randn(6, 2, 5, 5, requires_grad=True)
    forward = operations(plain, x, backward=False)
    assert operations(model, x, backward=False) == forward
    spread = 2 * 3 * 2 * 9 * 9 + 2 * 6 * 3 * 2 * 25  # B over the output's positions, then e times that
    through_b = spread + 2 * 6 * 3 * 36 + 2 * 6 * 3 * 5
    assert operations(model, x) == 2 * forward + through_b


@pytest.mark.parametrize("rule", ["softhebb", "hebb", "hpca"])
def test_a_hebbian_update_counts_as_a_weight_gradient(rule):
    conv, linear = nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Linear(4, 6, bias=False)
    mixed = 2 * 2 * (50 * 3 * 3 + 3 * 3 * 18), 2 * (5 * 6 * 6 + 6 * 6 * 4)  # K × K products of hpca, by group
    for plain, layer, shape, lower in (
        (conv, bf.nn.HebbianConv2d(4, 6, 3, groups=2, rule=rule), (2, 4, 7, 7), mixed[0]),
        (linear, bf.nn.HebbianLinear(4, 6, rule=rule), (5, 4), mixed[1]),
    ):
        x = torch.randn(shape)
        assert operations(layer, x, backward=False) == operations(plain, x) + lower * (rule == "hpca")
        assert operations(layer.eval(), x, backward=False) == operations(plain, x, backward=False)


def test_the_engines_of_the_supernet_count_the_same():
    space = get_space("bionas").restricted(("usf",), ("none", "sep_conv_3x3", "dil_conv_5x5"))
    x = torch.randn(2, 3, 8, 8)
    stacked, modular = (bf.build_supernet(space, channels=4, cells=3, engine=name) for name in ("stacked", "modular"))
    for backward in (False, True):
        assert operations(stacked, x, backward) == operations(modular, x, backward) > 0


@pytest.mark.skipif(not native.load(), reason="the compiled kernels are not available")
def test_the_kernels_of_stages_count_as_the_convolutions_of_the_reference():
    x, stage = torch.randn(2, 5, 6, 16), Stage((3, 5), (2, 1), stride=2)
    weights = StageWeights(torch.randn(16 * stage.taps), torch.randn(2, 16, 16))
    reductions = ReductionWeights(torch.randn(3, 8, 16), torch.randn(3, 8, 16))
    grad = torch.randn(2, 3, 3, 16)

    def count(backend: Backend) -> list[int]:
        found = []
        with FlopCounterMode(display=False) as counter:
            z, _ = backend.stage_forward(x, weights, stage)
            found.append(counter.get_total_flops())
            prologue = Prologue([grad] * 2, z, *torch.ones(3, 2, 16))
            backend.stage_backward(prologue, x, weights, weights, stage, None, True)
            found.append(counter.get_total_flops())
            z, _ = backend.reductions_forward(x, reductions)
            found.append(counter.get_total_flops())
            prologue = Prologue([grad] * 3, z, *torch.ones(3, 3, 16))
            backend.reductions_backward(prologue, x, reductions, reductions, True)
            found.append(counter.get_total_flops())
        return found

    ours, theirs = count(find("native", lambda tensor: tensor)), count(find("reference"))
    recomputed = 2 * (2 * 3 * 3) * 16 * (9 + 25)  # the depthwise outputs, which a network of torch.nn would keep
    assert ours == [theirs[0], *(total - recomputed for total in theirs[1:])]


@pytest.mark.parametrize("rule", [*RULES, "dfa"])
def test_fvcore_and_torchinfo(rule):
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1, stride=2),
        nn.Flatten(), nn.Linear(54, 5),
    )  # fmt: skip
    model, x = bf.convert(plain, rule), torch.randn(2, 3, 8, 8)
    for analysis in (FlopCountAnalysis, ActivationCountAnalysis):
        ours, theirs = (analysis(net, x).unsupported_ops_warnings(False) for net in (model, plain))
        assert ours.by_module() == theirs.by_module()
        assert ours.by_operator() == theirs.by_operator()
    ours, theirs = (torchinfo.summary(net, input_data=x, verbose=0) for net in (model, plain))
    # Learned feedback is a parameter for programs that know no feedback, but nothing that the forward pass reads.
    sizes = () if rule == "kp" else ("total_params", "trainable_params", "total_param_bytes")
    for what in ("total_mult_adds", "total_output_bytes", *sizes):
        assert getattr(ours, what) == getattr(theirs, what)


def test_fvcore_counts_a_plastic_layer_in_training():
    for layer, x in (
        (bf.nn.HebbianConv2d(2, 3, 3), torch.randn(1, 2, 5, 5)),
        (bf.nn.HebbianLinear(4, 3), torch.randn(2, 4)),
    ):
        count = FlopCountAnalysis(layer, x).unsupported_ops_warnings(False).total()
        assert count == layer(x).numel() * prod(layer.plasticity.shape[1:])


def test_counters_are_imported_by_those_who_count():
    script = """
import sys
import bionas_fast as bf
assert not {"torch.utils.flop_counter", "fvcore", "triton"} & set(sys.modules)
from torch.utils import flop_counter
import torch, fvcore.nn
layer, x = bf.nn.Linear(4, 6, rule="usf"), torch.randn(5, 4)
with flop_counter.FlopCounterMode(display=False) as counter:
    layer(x)
assert counter.get_total_flops() == 240, counter.get_total_flops()
assert fvcore.nn.FlopCountAnalysis(layer, x).total() == 120
for module in (flop_counter, sys.modules["fvcore.nn.flop_count"]):
    assert module.__loader__ is module.__spec__.loader and "bionas" not in type(module.__loader__).__module__
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_counter_may_be_imported_first():
    script = """
from torch.utils import flop_counter
import bionas_fast as bf, torch
layer, x = bf.nn.Conv2d(3, 2, 1, rule="dfa"), torch.randn(5, 3, 4, 4)
with flop_counter.FlopCounterMode(display=False) as counter:
    layer(x)
assert counter.get_total_flops() == 2 * 5 * 16 * 6, counter.get_total_flops()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
