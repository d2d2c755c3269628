"""Block-local losses against their formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.models.local import similarity
from bionas_fast.models.resnet import residual_blocks
from helpers.genotypes import GENOTYPE
from helpers.tolerances import assert_close

N, CLASSES = 6, 4
#: The parameters of the stem: of a Sequential, and of torchvision's networks.
FIRST = ("0.weight", "1.weight", "1.bias", "conv1.weight", "bn1.weight", "bn1.bias")


def network(rule: str = "usf") -> nn.Sequential:
    """Two blocks, conv + BN + tanh and linear + tanh, and the layer of the logits."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten()),
        *(nn.Linear(75, 8), nn.Tanh(), nn.Linear(8, CLASSES)),
    )
    return bf.convert(plain, rule, seed=0).double()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 3, 0, 1])


def correlations(rows: Tensor) -> Tensor:
    """Cosines of centred rows are Pearson's correlations."""
    return torch.from_numpy(np.corrcoef(rows.detach().flatten(1).numpy()))


def test_similarity_is_pearsons_correlation():
    h = batch()[0]
    s = similarity(h)
    assert_close(s, correlations(h))
    assert_close(s, s.t())
    assert_close(s.diagonal(), torch.ones(N, dtype=torch.float64))
    assert_close(similarity(F.one_hot(batch()[1]).double()), correlations(F.one_hot(batch()[1]).double()))
    dead = torch.zeros(2, 5, requires_grad=True)
    similarity(dead).sum().backward()
    assert torch.equal(similarity(dead), torch.zeros(2, 2)) and torch.equal(dead.grad, torch.zeros(2, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert similarity(h.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("kind", "beta"), [("predsim", 0.99), ("predsim", 0.3), ("pred", 0.0), ("sim", 1.0)])
@pytest.mark.parametrize("mixed", [False, True], ids=["classes", "probabilities"])
def test_losses_follow_the_formula(kind, beta, mixed):
    (x, y), model = batch(), network()
    targets = 0.7 * F.one_hot(y, CLASSES).double() + 0.3 * F.one_hot(y.roll(1), CLASSES) if mixed else y
    local = bf.local_losses(model, kind=kind, beta=beta if kind == "predsim" else 0.99, example=x[:1])
    logits, *features = local.outputs(x)
    onehot = targets if mixed else F.one_hot(y, CLASSES).double()
    wanted = []
    for index, h in enumerate((model[:4](x), model[:6](x))):
        assert_close(features[index], h)
        loss = beta * (correlations(h) - correlations(onehot)).square().sum() / N**2
        if beta < 1:
            head = local.heads[index].linear
            z = h.flatten(1) @ head.weight.t() + head.bias
            loss = loss - (1 - beta) * (onehot * (z - z.logsumexp(1, keepdim=True))).sum() / N
        wanted.append(loss)
    for loss, own in zip(local.losses(features, targets), wanted, strict=True):
        assert_close(loss, own)
    total = F.cross_entropy(logits, targets) + sum(wanted)
    assert_close(local(x, targets), total)
    assert (kind == "sim") == (not [*local.heads.parameters()])


def test_no_error_passes_between_blocks():
    """The gradient of a block is that of its loss alone, written out; into the blocks below it is exactly 0."""
    (x, y), model = batch(), network()
    local = bf.local_losses(model, kind="predsim", beta=0.5, example=x[:1])
    x.requires_grad_()
    logits, *features = local.outputs(x)
    losses = [*local.losses(features, y), F.cross_entropy(logits, y)]
    parts = [[*model[:4].parameters()], [*model[4:6].parameters()], [*model[6:].parameters()]]
    for own, loss in enumerate(losses):
        for other, parameters in enumerate(parts):
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            assert all((gradient is not None) == (own == other) for gradient in found)
    assert torch.autograd.grad(losses[1], x, retain_graph=True, allow_unused=True) == (None,)
    local(x, y).backward()
    h = model[:4](x).detach()
    above = model[4:6](h)
    s, t = similarity(above), correlations(F.one_hot(y).double())
    loss = 0.5 * F.cross_entropy(local.heads[1](above), y) + 0.5 * ((s - t) ** 2).mean()
    for parameter, gradient in zip(parts[1], torch.autograd.grad(loss, parts[1]), strict=True):
        assert_close(parameter.grad, gradient)


def test_cells_are_the_blocks_of_a_genotype_network():
    net = bf.build_network(GENOTYPE, channels=2, cells=3, in_channels=1)
    local = bf.local_losses(net, example=torch.zeros(1, 1, 8, 8))
    assert local.blocks == ("stem", "cells.0", "cells.1", "cells.2")
    x, y = torch.randn(4, 1, 8, 8), torch.arange(4)
    logits, *features = local.outputs(x)
    for name, loss in zip(local.blocks, local.losses(features, y), strict=True):
        net.zero_grad()
        loss.backward(retain_graph=True)
        reached = {n for n, p in net.named_parameters() if p.grad is not None}
        assert reached and all(n.startswith(name + ".") for n in reached)
    net.zero_grad()
    F.cross_entropy(logits, y).backward()
    assert {n for n, p in net.named_parameters() if p.grad is not None} == {"classifier.weight", "classifier.bias"}


def test_the_model_is_left_as_it_was():
    (x, _), model = batch(), network()
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    local = bf.local_losses(model, example=x[:1])
    assert torch.equal(torch.get_rng_state(), state)
    assert model[1].training and not model[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    local.eval()
    assert torch.equal(local.outputs(x)[0], model(x))
    model(x)[0, 0].backward()
    assert model[0].weight.grad.abs().sum() > 0  # nothing is detached outside of the local losses
    again = bf.local_losses(model, example=x[:1]).heads[0].linear.weight
    assert torch.equal(again, local.heads[0].linear.weight)
    lazy = bf.local_losses(model)
    lazy(x, batch()[1])
    assert lazy.heads[0].linear.weight.shape == again.shape


def test_residual_blocks_are_the_blocks_of_residual_networks():
    """Of both kinds: a Sequential, and torchvision's, whose blocks are named."""
    y = torch.arange(2)
    for name, count in (("resnet20", 10), ("resnet18", 9)):
        net = bf.build_resnet(name, in_channels=1)
        local = bf.local_losses(net, kind="sim", blocks=residual_blocks(net))
        _, *features = local.outputs(torch.randn(2, 1, 32, 32))
        assert len(features) == count
        first, *others = local.losses(features, y)
        first.backward()
        assert all((p.grad is not None) == (n in FIRST) for n, p in net.named_parameters())
        sum(others).backward()
        classifier = {id(p) for p in [*net.modules()][-1].parameters()}
        assert all((p.grad is None) == (id(p) in classifier) for p in net.parameters())


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_blocks_of_other_models_are_named():
    local = bf.local_losses(Chain(), blocks=["first"], kind="pred")
    assert local(torch.randn(5, 3), torch.ones(5, dtype=torch.long)).ndim == 0
    relu = nn.ReLU()
    dfa = bf.convert(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), "dfa")
    for model, settings, message in (
        (Chain(), {}, "blocks: Chain is no Sequential; name the modules"),
        (Chain(), {"blocks": ["frist"]}, "unknown block 'frist'; did you mean 'first'"),
        (Chain(), {"blocks": []}, "blocks: expected a list of names"),
        (Chain(), {"blocks": ["first"], "kind": "simpred"}, "unknown kind 'simpred'"),
        (Chain(), {"blocks": ["first"], "beta": 1.5}, "beta: expected 0 <= beta <= 1"),
        (nn.Sequential(nn.Linear(3, 2)), {}, "at least two children with weights"),
        (nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu, nn.Linear(3, 2)), {}, "'1' runs at several"),
        (nn.Sequential(nn.Conv1d(3, 3, 1), nn.Conv1d(3, 3, 1)), {}, "num_classes: the model has no linear layer"),
        (dfa, {}, "expected rules that pass the error from layer to layer, got 'dfa'"),
        (bf.build_network(GENOTYPE, channels=1, cells=1, auxiliary=True), {}, "without an auxiliary head"),
    ):
        with pytest.raises(InputError, match=message):
            bf.local_losses(model, **settings)
