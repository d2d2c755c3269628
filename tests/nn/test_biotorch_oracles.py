"""The feedback layers against recordings of BioTorch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bionas_fast as bf
from bionas_fast.rules import get_law
from helpers.oracles.data import assert_close, cases, load
from helpers.tolerances import RECORDED


def _check_layer(layer, arrays, info):
    """One forward and backward pass with the recorded tensors."""
    rule = info["arguments"]["rule"]
    with torch.no_grad():
        layer.weight.copy_(arrays["weight"])
        if layer.bias is not None:
            layer.bias.copy_(arrays["bias"])
    scale = get_law(layer.feedback_init, tuple(layer.weight.shape)).scale
    assert scale == pytest.approx(info["arguments"]["scaling_factor"], rel=1e-12)
    if rule == "frsf":
        layer.set_feedback(arrays["frsf_magnitude"])
    elif rule == "fa":
        layer.set_feedback(arrays["feedback"])
    elif rule == "brsf":
        # The recorded draw cannot be drawn again; given its magnitudes, the rule is frSF.
        assert torch.equal(layer.feedback_weight().sign(), arrays["weight"].sign())
        layer.set_rule("frsf", feedback_init=layer.feedback_init)
        layer.set_feedback(arrays["feedback"])
    assert_close(layer.feedback_weight(), arrays["feedback"], 1e-7, "feedback")

    x = arrays["x"].clone().requires_grad_()
    output = layer(x)
    output.backward(arrays["grad_output"])
    assert_close(output, arrays["output"], RECORDED, "output")
    assert_close(x.grad, arrays["grad_input"], RECORDED, "grad_input")
    assert_close(layer.weight.grad, arrays["grad_weight"], RECORDED, "grad_weight")
    if layer.bias is not None:
        assert_close(layer.bias.grad, arrays["grad_bias"], RECORDED, "grad_bias")


def _init(arguments):
    return "xavier" if arguments["init"] == "xavier" else "default"


@pytest.mark.parametrize("case", cases("biotorch_conv"))
def test_convolution(case):
    arrays, info = load("biotorch_conv", case)
    a = info["arguments"]
    layer = bf.nn.Conv2d(
        a["in_channels"],
        a["out_channels"],
        a["kernel"] if isinstance(a["kernel"], int) else tuple(a["kernel"]),
        stride=a["stride"] if isinstance(a["stride"], int) else tuple(a["stride"]),
        padding=a["padding"] if isinstance(a["padding"], int) else tuple(a["padding"]),
        dilation=a["dilation"] if isinstance(a["dilation"], int) else tuple(a["dilation"]),
        groups=a["groups"],
        bias="bias" in arrays,
        rule=a["rule"],
        feedback_init=_init(a),
    )
    _check_layer(layer, arrays, info)


@pytest.mark.parametrize("case", cases("biotorch_linear"))
def test_linear(case):
    arrays, info = load("biotorch_linear", case)
    a = info["arguments"]
    layer = bf.nn.Linear(
        a["in_features"], a["out_features"], bias="bias" in arrays, rule=a["rule"], feedback_init=_init(a)
    )
    _check_layer(layer, arrays, info)


#: The recorded networks are named by what torch prints of their modules.
_MODULES = {
    "Conv2d": nn.Conv2d,
    "Linear": nn.Linear,
    "ReLU": nn.ReLU,
    "Tanh": nn.Tanh,
    "Flatten": nn.Flatten,
    "AvgPool2d": nn.AvgPool2d,
}


def _module(text):
    name, _, arguments = text.removesuffix(")").partition("(")
    depth, words, word = 0, [], ""
    for character in arguments:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            words.append(word)
            word = ""
        else:
            word += character
    words += [word] if word else []

    def value(literal):
        literal = literal.strip()
        if literal.startswith("("):
            return tuple(int(n) for n in literal.strip("(),").split(",") if n.strip())
        return {"True": True, "False": False}.get(literal) if literal in ("True", "False") else int(literal)

    keywords = {k.strip(): value(v) for k, v in (w.split("=") for w in words if "=" in w)}
    return _MODULES[name](*(value(w) for w in words if "=" not in w), **keywords)


@pytest.mark.parametrize("case", cases("biotorch_dfa"))
def test_direct_feedback(case):
    arrays, info = load("biotorch_dfa", case)
    a = info["arguments"]
    plain = nn.Sequential(*(_module(text) for text in a["network"]))
    model = bf.convert(plain, "dfa", num_classes=a["output_dim"], feedback_init=_init(a))
    layers = [m for m in model if isinstance(m, bf.nn.FeedbackLayer)]
    assert len(layers) == 3
    with torch.no_grad():
        for number, layer in enumerate(layers, start=1):
            layer.weight.copy_(arrays[f"layer{number}_weight"])
            if layer.bias is not None:
                layer.bias.copy_(arrays[f"layer{number}_bias"])
            layer.set_feedback(arrays[f"layer{number}_feedback"])
    x = arrays["x"].clone().requires_grad_(a["need_input_grad"])
    logits = model(x)
    logits.retain_grad()
    loss = nn.functional.cross_entropy(logits, arrays["target"])
    loss.backward()
    assert_close(logits, arrays["logits"], RECORDED, "logits")
    assert_close(loss, arrays["loss"], RECORDED, "loss")
    assert_close(logits.grad, arrays["logits_grad"], RECORDED, "logits_grad")
    for number, layer in enumerate(layers, start=1):
        expected = arrays[f"layer{number}_grad_weight"]
        assert_close(layer.weight.grad, expected, RECORDED, f"layer {number} weight")
        if layer.bias is not None:
            assert_close(layer.bias.grad, arrays[f"layer{number}_grad_bias"], RECORDED, f"layer {number} bias")
    if a["need_input_grad"]:
        assert_close(x.grad, arrays["input_grad"], RECORDED, "input_grad")
