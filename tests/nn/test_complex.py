"""Complex layers: torch.nn's own under back-propagation, refused by every rule that has other feedback."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bionas_fast as bf
from helpers.tolerances import assert_close

SHAPES = {"Conv1d": ((4, 5, 3), (2, 4, 7)), "Conv2d": ((2, 3, 3), (2, 2, 5, 5)), "Linear": ((4, 3), (2, 4))}
SHAPES["ConvTranspose2d"] = ((4, 5, 3), (2, 4, 5, 5))
pytestmark = pytest.mark.filterwarnings("ignore:Complex modules", "ignore:Casting complex")
RULES = ("fa", "usf", "brsf", "frsf", "dfa")
every_layer = pytest.mark.parametrize("name", SHAPES)


@pytest.mark.parametrize("name", [name for name in SHAPES if "Transpose" not in name])
def test_back_propagation_is_torchs(name):
    arguments, shape = SHAPES[name]
    layer = getattr(bf.nn, name)(*arguments, dtype=torch.complex128)
    plain = getattr(nn, name)(*arguments, dtype=torch.complex128)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(shape, dtype=torch.complex128, requires_grad=True)
    found = []
    for module in (layer, plain):
        y = module(x)
        found.append(torch.autograd.grad(y.abs().square().sum(), (x, *module.parameters())))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, torch.float64)


@every_layer
@pytest.mark.parametrize("rule", RULES)
def test_feedback_is_refused(name, rule):
    arguments, shape = SHAPES[name]
    with pytest.raises(bf.InputError, match=f"rule '{rule}': expected a layer of real numbers, got torch.complex64"):
        getattr(bf.nn, name)(*arguments, rule=rule, dtype=torch.complex64, num_classes=2)
    layer = getattr(bf.nn, name)(*arguments, rule=rule, num_classes=2).to(torch.complex64)  # made complex later
    if rule == "dfa":
        bf.nn.connect_direct_feedback(layer, 2)
    x = torch.randn(shape, dtype=torch.complex64, requires_grad=True)
    refused = r"(weight|input): expected real numbers, got torch.complex64|not implemented for 'ComplexFloat'"
    with pytest.raises((bf.InputError, NotImplementedError), match=refused):
        layer(x)
    with pytest.raises((bf.InputError, RuntimeError)):  # a complex input of a real layer, as torch.nn refuses it
        layer.to(torch.float32)(x)


def test_convert_refuses_complex_layers():
    model = nn.Sequential(nn.Linear(4, 3, dtype=torch.complex64))
    with pytest.raises(bf.InputError, match="real numbers"):
        bf.convert(model, "usf")
    assert type(bf.convert(model, "bp")[0]) is bf.nn.Linear


def test_hebbian_updates_refuse_complex_numbers():
    w, x, u = (torch.randn(s, dtype=torch.complex64) for s in ((3, 4), (2, 4), (2, 3)))
    with pytest.raises(bf.InputError, match=r"weight: expected real numbers, got torch\.complex64"):
        bf.functional.hebbian_update(w, x, u, rule="plain")
    with pytest.raises(bf.InputError, match=r"x: expected real numbers"):
        bf.functional.hebbian_update(w.real.clone(), x, u, rule="plain")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_other_dtypes_are_refused_as_by_torch(dtype):
    layer = bf.nn.Linear(4, 3, rule="usf")
    with pytest.raises((bf.InputError, RuntimeError)):
        layer(torch.ones(2, 4).to(dtype))
