"""Random feedback drawn once per optimiser step: gradients accumulated over micro-batches are those of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bionas_fast as bf
from bionas_fast import rules
from helpers.registries import restored
from helpers.tolerances import assert_close


@pytest.fixture
def _noisy():
    with restored():

        @rules.register
        class Noisy(rules.Rule):
            """The weights, each scaled by a random factor."""

            name = "noisy"
            redraws = True

            def feedback(self, weight, state):
                return weight * (0.5 + state.uniform())

        yield


def network(rule: str) -> nn.Module:
    torch.manual_seed(0)
    # A grouped, a 1×1 and a dense convolution; of the double precision that halves of a batch need.
    body = [nn.Conv2d(4, 8, 3, groups=2), nn.Tanh(), nn.Conv2d(8, 4, 1), nn.Tanh(), nn.Conv2d(4, 6, 3), nn.Flatten()]
    return bf.convert(nn.Sequential(*body, nn.Linear(54, 5), nn.Tanh(), nn.Linear(5, 3)), rule).double()


def gradients(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    model.zero_grad()
    for x, labels in batches:
        (nn.functional.cross_entropy(model(x), labels) / len(batches)).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 4, 7, 7, dtype=torch.float64), torch.arange(8) % 3


@pytest.mark.parametrize("rule", ["bp", "fa", "usf", "brsf", "frsf", "dfa", "noisy"])
@pytest.mark.usefixtures("_noisy")
def test_two_halves_have_the_gradient_of_the_whole(rule):
    model = network(rule)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert bf.nn.redraw_every_step(model, optimizer) is model
    for _ in range(2):
        x, labels = batch()
        halves = [*zip(x.split(4), labels.split(4), strict=True)]
        whole = gradients(model, [(x, labels)])
        for ours, expected in zip(gradients(model, halves), whole, strict=True):
            assert_close(ours, expected, torch.float64)
        optimizer.step()


def test_by_default_every_pass_draws():
    model = network("brsf")
    gradients(model, [batch(), batch()])
    assert [layer.feedback_stream[1].item() for layer in model if hasattr(layer, "rule")] == [2] * 5


def test_a_step_draws_the_next_numbers():
    model = network("brsf")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    bf.nn.redraw_every_step(model, optimizer)
    layer = model[4]
    seed, bound = layer.feedback_stream[0].item(), 1 / 6  # 1/√fan_in
    for step in range(3):
        gradients(model, [batch(), batch()])
        assert layer.feedback_stream.tolist() == [seed, step]
        other = bf.nn.Conv2d(4, 6, 3, rule="brsf", seed=seed % 2**64).double()
        other.weight = layer.weight
        other.feedback_stream[1] = step
        b = layer.feedback_weight()
        assert torch.equal(b, other.feedback_weight())
        assert torch.equal(b.sign(), layer.weight.sign())
        assert b.abs().max() < bound
        optimizer.step()
    bf.nn.next_draw(model)
    assert layer.feedback_stream.tolist() == [seed, 4]
    copy = network("brsf")
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy[4].feedback_weight(), layer.feedback_weight())


def test_streams_of_other_rules_stay():
    model = network("usf")
    model[0].set_rule("frsf")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bf.nn.next_draw(bf.nn.redraw_every_step(model))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("engine", ["stacked", "modular"])
def test_supernets(engine):
    def build() -> nn.Module:
        space = bf.space.get_space("bionas").restricted(("brsf", "usf"), ("sep_conv_3x3", "skip_connect"))
        return bf.build_supernet(space, channels=4, cells=1, num_classes=3, engine=engine)

    def streams(net: nn.Module) -> list[Tensor]:
        return [value.clone() for name, value in net.named_buffers() if name.endswith("stream")]

    x = torch.randn(2, 3, 6, 6)
    each, step = build(), bf.nn.redraw_every_step(build())
    initial = streams(step)
    for net in (each, step):
        net(x).sum().backward()
    assert len(initial) > 0
    assert all(map(torch.equal, streams(step), initial))
    bf.nn.next_draw(step)
    reached = [k for k, (a, b) in enumerate(zip(streams(each), initial, strict=True)) if not torch.equal(a, b)]
    assert reached
    for k in reached:
        assert torch.equal(streams(each)[k], streams(step)[k])
