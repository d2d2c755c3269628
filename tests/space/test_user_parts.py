"""User-defined rules, operations and spaces that return invalid values: the same errors in both engines."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import bionas_fast as bf
from bionas_fast import rules
from bionas_fast.errors import InputError
from bionas_fast.space import DARTS, NB201, Candidate, Space, register_operation, register_space
from helpers.registries import restored

ENGINES = ("modular", "stacked")


@pytest.fixture(autouse=True)
def registries():
    with restored():
        yield


def supernet(engine: str, *names: str, skeleton=DARTS):
    space = Space("own", tuple(Candidate.parse(name) for name in names), nodes=2, skeleton=skeleton)
    return bf.build_supernet(space, engine=engine, channels=2, cells=1, in_channels=1)


def own_rule(feedback) -> None:
    rules.register(
        type("Own", (rules.Rule,), {"name": "own", "feedback": lambda self, weight, state: feedback(weight)})
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("skeleton", [DARTS, NB201], ids=["strided", "plain"])
@pytest.mark.parametrize("candidate", ["sep_conv_3x3@own", "skip_connect@own"])
@pytest.mark.parametrize(
    ("feedback", "shape"),
    [
        (lambda weight: weight.sum() * 0 + 1e-3, r"\[\]"),
        (lambda weight: weight.flatten(), r"\[\d+\]"),
        (lambda weight: weight.mean(0), r"\[\d, \d, \d\]"),
        (lambda weight: weight[:1], r"\[1, \d, \d, \d\]"),
    ],
    ids=["scalar", "flat", "mean", "slice"],
)
def test_feedback_of_another_shape(engine, candidate, skeleton, feedback, shape):
    own_rule(feedback)
    net = supernet(engine, candidate, "avg_pool_3x3", skeleton=skeleton)
    message = rf"rule 'own' returned feedback of shape {shape} for a weight of shape \[\d, \d, \d, \d\]"
    with pytest.raises(InputError, match=message):
        net(torch.rand(2, 1, 4, 4)).sum().backward()


@pytest.mark.parametrize("engine", ENGINES)
def test_feedback_that_is_no_tensor(engine):
    own_rule(lambda weight: None)
    with pytest.raises(InputError, match="rule 'own' returned NoneType as feedback, not a tensor"):
        supernet(engine, "sep_conv_3x3@own", "avg_pool_3x3")(torch.rand(2, 1, 4, 4)).sum().backward()


@pytest.mark.parametrize("engine", ENGINES)
def test_feedback_of_another_dtype_is_that_of_the_same_numbers(engine):
    def gradients(feedback):
        own_rule(feedback)
        net = supernet(engine, "sep_conv_3x3@own", "skip_connect@own")
        net(torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))).logsumexp(1).sum().backward()
        return [p.grad for p in net.weight_parameters() if p.grad is not None]

    plain = gradients(lambda weight: weight.sign())
    for other in (lambda weight: weight.double().sign(), lambda weight: weight.sign().int()):
        assert all(torch.equal(p, q) for p, q in zip(gradients(other), plain, strict=True))


OUTPUTS = {
    "pooled": (lambda channels, stride: nn.AdaptiveAvgPool2d(1), r"\[2, \d, 1, 1\]"),
    "one channel": (lambda channels, stride: nn.Conv2d(channels, 1, 1, stride), r"\[2, 1, \d, \d\]"),
    "no stride": (lambda channels, stride: nn.Conv2d(channels, channels, 1), r"\[2, 4, 6, 5\]"),
    "rounded down": (lambda channels, stride: nn.AvgPool2d(stride), r"\[2, 4, 3, 2\]"),
    "flat": (lambda channels, stride: nn.Flatten(), r"\[2, \d+\]"),
    "no tensor": (lambda channels, stride: nn.MaxPool2d(stride, return_indices=True), "tuple"),
}


def own_operation(build) -> None:
    @register_operation("own", takes_rule=False)
    def own(channels, stride, rule, searching):
        return build(channels, stride)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("population", [False, True], ids=["forward", "population"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_output_of_another_shape(engine, population, output):
    build, returned = OUTPUTS[output]
    own_operation(build)
    net = supernet(engine, "own", "skip_connect@usf").eval()
    # The first cell halves the size; its inputs have 4 channels.
    message = rf"candidate 'own' returned {returned}, not \[2, 4, 3, 3\], of an input \[2, 4, 6, 5\] at stride 2"
    mixing = {kind: torch.full((3, 5, 2), 0.5) for kind in net.space.kinds}
    run = partial(net.population, mixing=mixing) if population else net
    with pytest.raises(InputError, match=message):
        run(torch.rand(2, 1, 6, 5))


def test_output_of_another_shape_in_a_found_network():
    own_operation(OUTPUTS["pooled"][0])
    genotype = bf.Genotype.from_json(
        '{"format_version": 1, "normal": {"nodes": [["own<-0", "max_pool_3x3<-1"]]},'
        ' "reduce": {"nodes": [["max_pool_3x3<-1"]]}}'
    )
    net = bf.build_network(genotype, channels=2, cells=3, in_channels=1)
    with pytest.raises(InputError, match=r"candidate 'own' returned \[2, 2, 1, 1\], not \[2, 2, 6, 5\]"):
        net(torch.rand(2, 1, 6, 5))


@pytest.mark.parametrize("engine", ENGINES)
def test_operation_that_makes_no_module(engine):
    own_operation(lambda channels, stride: None)
    with pytest.raises(InputError, match="operation 'own' returned NoneType, not a module"):
        supernet(engine, "own", "skip_connect@usf")


def test_space_that_is_none():
    register_space("own-space")(lambda: None)
    with pytest.raises(InputError, match="space 'own-space': its function returned NoneType, not a Space"):
        bf.build_supernet("own-space")
