"""PEPITA and the forward-forward algorithm against their formulas in float64, and the networks that learn so."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.models import ForwardForwardNetwork
from bionas_fast.nn import count_weights
from bionas_fast.training.forward_only import draw_others, forward_forward, goodness_losses, modulation, pepita
from bionas_fast.training.plain import PlainTraining
from helpers.runs import advance
from helpers.tolerances import SAME_BITS, assert_close

N, CLASSES = 5, 3
SIZE = {"num_classes": CLASSES, "in_channels": 2, "image_size": (4, 6)}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, 2, 4, 6, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters()]


def test_pepita_with_one_hidden_layer_by_hand():
    (x, y), net = batch(), bf.build_plain("mlp", widths=(7,), **SIZE).double()
    f = 5 * modulation(48, CLASSES, 1.0, 0).double()
    loss, logits = pepita(net, f, x, y, share=0.5)
    w1, b1, w2, b2 = (p.detach() for p in net.parameters())
    flat, onehot = x.flatten(1), F.one_hot(y, CLASSES).double()
    h = (flat @ w1.t() + b1).relu()
    z = h @ w2.t() + b2
    changed = flat + (z.softmax(1) - onehot) @ f.t()
    h_new = (changed @ w1.t() + b1).relu()
    e_new = (h_new @ w2.t() + b2).softmax(1) - onehot
    wanted = [(h - h_new).t() @ changed, (h - h_new).sum(0), e_new.t() @ h_new, e_new.sum(0)]
    for actual, expected in zip(gradients(net), wanted, strict=True):
        assert_close(actual, 0.5 * expected / N)
    assert_close(logits, z)
    assert_close(loss, F.cross_entropy(z, y))


def test_pepita_of_convolutions_by_hand():
    (x, y), net = batch(), bf.build_plain("cnn", widths=(4, 5), **SIZE).double()
    f = 20 * modulation(48, CLASSES, 1.0, 0).double()
    pepita(net, f, x, y, share=1.0)
    w1, b1, w2, b2, w3, b3 = (p.detach() for p in net.parameters())

    def run(x: Tensor) -> tuple[Tensor, ...]:
        h1 = F.conv2d(x, w1, b1, padding=1).relu()
        pooled = F.max_pool2d(h1, 2)
        h2 = F.conv2d(pooled, w2, b2, padding=1).relu()
        flat = F.max_pool2d(h2, 2).flatten(1)
        return h1, pooled, h2, flat, flat @ w3.t() + b3

    h1, _, h2, _, z = run(x)
    changed = x + ((z.softmax(1) - F.one_hot(y, CLASSES)) @ f.t()).view_as(x)
    new1, pooled, new2, flat, z_new = run(changed)
    e = z_new.softmax(1) - F.one_hot(y, CLASSES)
    wanted = [
        *(torch.nn.grad.conv2d_weight(changed, w1.shape, h1 - new1, padding=1), (h1 - new1).sum((0, 2, 3))),
        *(torch.nn.grad.conv2d_weight(pooled, w2.shape, h2 - new2, padding=1), (h2 - new2).sum((0, 2, 3))),
        *(e.t() @ flat, e.sum(0)),
    ]
    for actual, expected in zip(gradients(net), wanted, strict=True):
        assert_close(actual, expected / N)


def test_without_modulation_only_the_last_layer_learns():
    (x, y), net = batch(), bf.build_plain("cnn", widths=(4, 5), **SIZE).double()
    pepita(net, torch.zeros(48, CLASSES, dtype=torch.float64), x, y, share=1.0)
    *below, weight, bias = gradients(net)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in below)
    h = net[:-1](x).detach()
    e = (net(x).softmax(1) - F.one_hot(y, CLASSES)).detach() / N
    assert_close(weight, e.t() @ h)
    assert_close(bias, e.sum(0))


def test_modulation_has_the_published_law():
    """Uniform in ±scale · √(6 / pixels)."""
    f = modulation(600, 50, 0.3, 1)
    assert f.shape == (600, 50)
    bound = 0.3 * 0.1
    assert 0.99 * bound < f.abs().max() <= bound and f.mean().abs() < 0.02 * bound
    assert torch.equal(f, modulation(600, 50, 0.3, 1)) and not torch.equal(f, modulation(600, 50, 0.3, 2))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_losses_and_gradients_of_forward_forward_layers(name):
    (x, y), net = batch(), ForwardForwardNetwork(name, widths=(7, 6), **SIZE).double()
    others, theta = (y + 1) % CLASSES, 0.3
    sum(goodness_losses(net, x, y, others, theta)).backward()
    w1, b1, w2, b2 = (p.detach().requires_grad_() for p in net.parameters())

    def inputs(classes: Tensor) -> Tensor:
        onehot = F.one_hot(classes, CLASSES).double()
        if name == "mlp":
            return torch.cat([x.flatten(1), onehot], 1)
        return torch.cat([x, onehot[:, :, None, None] * torch.ones(1, 1, 4, 6)], 1)

    def apply(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (h @ weight.t() + bias if name == "mlp" else F.conv2d(h, weight, bias, padding=1)).relu()

    losses, goodness = [], []
    for classes, sign in ((y, 1), (others, -1)):
        h1 = apply(inputs(classes), w1, b1)
        below = h1.detach() if name == "mlp" else F.max_pool2d(h1.detach(), 2)
        rms = torch.stack([own.square().mean().sqrt() for own in below])
        h2 = apply(below / rms.view(-1, *[1] * (below.dim() - 1)), w2, b2)
        for h in (h1, h2):
            g = torch.stack([own.square().mean() for own in h])
            goodness.append(g.detach())
            losses.append((1 + (sign * (theta - g)).exp()).log().mean())
    for actual, own in zip(goodness_losses(net, x, y, others, theta), (losses[0::2], losses[1::2]), strict=True):
        assert_close(actual, sum(own))
    wanted = torch.autograd.grad(sum(losses), (w1, b1, w2, b2))
    for actual, expected in zip(gradients(net), wanted, strict=True):
        assert_close(actual, expected)
    # The goodness with each class, of all layers but the first.
    logits = net(x)
    assert_close(logits.gather(1, y[:, None])[:, 0], goodness[1])
    assert_close(logits.gather(1, others[:, None])[:, 0], goodness[3])
    single = ForwardForwardNetwork(name, widths=(7,), **SIZE).double()
    assert_close(single(x)[:, 2], single.goodness(x, torch.full((N,), 2))[0])
    net.zero_grad()
    loss, seen = forward_forward(net, x, y, theta, share=0.5)
    assert_close(seen, logits.detach())
    assert loss.ndim == 0 and not loss.requires_grad


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_forward_forward_networks_export_for_any_batch(name):
    net = ForwardForwardNetwork(name, widths=(7, 6), **SIZE).eval()
    x = batch()[0].float()
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    assert_close(program.module()(x[:3]), net(x[:3]))


def test_other_classes_are_drawn_as_the_network_gives_them():
    torch.manual_seed(0)
    logits = torch.tensor([[1.0, 0.0, 2.0, -1.0]]).expand(40_000, 4)
    drawn = draw_others(logits, torch.full((40_000,), 2))
    share = drawn.bincount(minlength=4) / len(drawn)
    p = logits[0, [0, 1, 3]].softmax(0)
    expected = torch.tensor([p[0], p[1], 0, p[2]])
    assert share[2] == 0
    assert (share - expected).abs().max() < 4 * (0.25 / 40_000) ** 0.5
    assert draw_others(torch.tensor([[0.0, 1e9]]), torch.tensor([1])).tolist() == [0]


@pytest.mark.parametrize(("trainer", "least"), [("pepita", 80), ("ff", 60), ("local", 80), ("end-to-end", 85)])
def test_plain_networks_train_and_resume_exactly(trainer, least, tmp_path):
    ff = {"optimizer": "adam", "learning_rate": 0.003, "threshold": 0.5} if trainer == "ff" else {}
    config = bf.PlainConfig(trainer=trainer, epochs=6, widths=(128, 128), ema_decay=0.3, **ff)
    result = bf.train_plain(config, out=tmp_path / "run")
    assert result.test_accuracy > least
    found = bf.evaluate(bf.load(tmp_path / "run"), bf.load_dataset("digits").test)
    assert found["accuracy"] == result.test_accuracy
    rule = {"pepita": "pepita", "ff": "forward-forward"}.get(trainer, "bp")
    assert [*count_weights(result.network)] == [rule]
    part, resumed = PlainTraining(config), PlainTraining(config)
    advance(part, 5)
    resumed.load_state_dict(copy.deepcopy(part.state_dict()))
    for run in (part, resumed):
        advance(run, 4)
    for name, value in part.net.state_dict().items():
        torch.testing.assert_close(resumed.net.state_dict()[name], value, **SAME_BITS)


def test_parts_of_a_batch_have_the_changes_of_the_whole():
    x, y = torch.randn(9, 1, 8, 8), torch.arange(9)

    def changes(accumulate: int) -> list[Tensor]:
        run = PlainTraining(bf.PlainConfig(trainer="pepita", accumulate=accumulate, gradient_clip=1e6))
        run.train_step(x, y)
        return gradients(run.net)

    for own, other in zip(changes(1), changes(2), strict=True):
        assert_close(own, other)


def test_plain_networks_have_their_sizes_and_rules():
    x, y = batch()
    for name, widths, weights in (("mlp", (7, 8), 7 * 49 + 8 * 8 + 3 * 9), ("cnn", (4,), 4 * 19 + 3 * 25)):
        for rule in ("bp", "usf", "dfa", "drtp"):
            net = bf.build_plain(name, widths=widths, rule=rule, seed=1, **SIZE).double()
            assert count_weights(net) == {rule: weights}
            F.cross_entropy(net(x), y).backward()
            assert net(x).shape == (N, CLASSES) and all(g is not None for g in gradients(net))
    for arguments, message in (
        ({"name": "cmm"}, "unknown network 'cmm'; known: mlp, cnn"),
        ({"name": "mlp", "widths": (0,)}, "widths: expected at least 1"),
        ({"name": "cnn", "widths": (1, 1, 1)}, "widths: images of 4×6 are too small for 3 layers"),
    ):
        with pytest.raises(InputError, match=message):
            bf.build_plain(**{**SIZE, **arguments})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modulation": 0.1}, "modulation: not used by the trainer end-to-end"),
        ({"trainer": "pepita", "threshold": 1.0}, "threshold: not used by the trainer pepita"),
        ({"trainer": "pepita", "rule": "usf"}, "rule: expected 'bp' with the trainer pepita"),
        ({"trainer": "ff", "mixup": 0.1}, "mixup: expected 0.0 with the trainer ff"),
        ({"trainer": "ff", "amp": "bf16"}, "amp: expected 'off' with the trainer ff"),
        ({"architecture": "mlpp"}, "did you mean 'mlp'"),
    ],
)
def test_settings_of_plain_networks(settings, message):
    with pytest.raises(InputError, match=message):
        bf.PlainConfig(**settings)
    for config in (bf.TrainConfig, bf.ResNetConfig):
        with pytest.raises(InputError, match="trainer: expected end-to-end or local, got ff, of mlp and cnn only"):
            config(trainer="ff")
