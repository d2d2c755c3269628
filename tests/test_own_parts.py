"""Rules, operations and spaces of a user's own that return what they must not: said alike in both engines."""

from __future__ import annotations

import pytest
import torch

import bionas_fast as bf
from bionas_fast import rules
from bionas_fast.errors import InputError
from bionas_fast.space import DARTS, NB201, Candidate, Space, candidates

ENGINES = ("modular", "stacked")


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    monkeypatch.setattr(rules, "_registry", dict(rules._registry))
    monkeypatch.setattr(candidates, "_operations", dict(candidates._operations))
    monkeypatch.setattr(candidates, "_spaces", dict(candidates._spaces))


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
