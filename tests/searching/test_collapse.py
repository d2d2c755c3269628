"""Options against a search that collapses: perturbed weights of candidates, and edges decided by what is lost."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bionas_fast import InputError
from bionas_fast.searching import Search, SearchConfig
from helpers.runs import advance
from helpers.searches import TINY


def stepped(settings, epoch):
    """A search after the method's part of a first step in an epoch; the batch of the step."""
    search = Search(TINY.with_settings(epochs=4, warmup_epochs=0, cells=3, **settings))
    search.net.train()
    search.method.prepare(epoch)
    batch = next(search.train)
    search.method.before_weight_step(*batch, search.valid)
    return search, batch


def test_perturbations_are_random_and_grow():
    relative = []
    for epoch in (1, 3):
        search, _ = stepped({"alpha_perturbation": "random"}, epoch)
        mixing, plain = search.method.mixing(), search.method.evaluation_mixing()
        change = torch.cat([(mixing[kind] - plain[kind]).flatten() for kind in plain]).detach()
        bound = 0.3 * epoch / 4
        assert change.abs().max() <= bound * (1 + 1e-5)
        # Of U(-ε, ε): mean 0 and variance ε² / 3, here of 140 numbers.
        assert abs(change.mean()) < bound * 4 / (3 * len(change)) ** 0.5
        assert change.var() == pytest.approx(bound**2 / 3, rel=0.4)
        relative.append(change / bound)
    torch.testing.assert_close(*relative, rtol=1e-3, atol=1e-5)  # the same draws
    assert not stepped({"alpha_perturbation": "random"}, 0)[0].method.shift["normal"].any()


def test_adversarial_perturbations_are_the_worst_within_a_small_bound():
    """Where the loss is all but linear, the worst change is ε times the sign of its gradient."""
    eps = 1e-3
    search, (x, y) = stepped({"alpha_perturbation": "adversarial", "alpha_perturbation_eps": 2 * eps}, 2)
    net, shift = search.net.eval(), search.method.shift
    leaves = {kind: w.detach().requires_grad_() for kind, w in search.method.evaluation_mixing().items()}
    loss = F.cross_entropy(net(x, leaves), y)
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    for kind, grad in grads.items():
        clear = grad.abs() > 0.05 * grad.abs().max()
        assert clear.sum() > 20
        torch.testing.assert_close(shift[kind][clear], eps * grad[clear].sign())
        assert shift[kind].abs().max() <= eps * (1 + 1e-6)
    moved = {kind: w.detach() + shift[kind] for kind, w in leaves.items()}
    assert F.cross_entropy(net(x, moved), y) > loss
    assert all(p.requires_grad for p in net.parameters())


def test_edges_are_decided_by_the_loss_without_each_candidate():
    """Against one pass per candidate, with weights that were trained for an epoch."""
    search = Search(TINY.with_settings(epochs=2, warmup_epochs=0, projection_epochs=1, cells=3, batch_size=64))
    advance(search, len(search.train))
    net, projection = search.net.eval(), search.method.projection
    x, y = next(search.validation.stream(64, seed=7))
    space, plain = net.space, {kind: w.detach() for kind, w in search.method.relaxation().items()}

    @torch.no_grad()
    def loss(kind, entry):
        weights = {own: rows.clone() for own, rows in projection.applied(plain).items()}
        weights[kind][entry] = 0
        return F.cross_entropy(net(x, weights).double(), y).item()

    for kind, row in projection._edges:
        losses = [loss(kind, (row, k)) for k in range(len(space.candidates))]
        projection.decide(plain, x, y)
        chosen = projection.choice[kind][row]
        assert losses[chosen] == pytest.approx(max(losses), abs=1e-6)
        own = projection.applied(plain)[kind][row]
        assert own.argmax() == chosen and own.count_nonzero() == 1
        assert own.sum() == pytest.approx(1)
    for kind, node in projection._nodes:
        rows = [row for row, edge in enumerate(space.edges) if edge[0] == node]
        losses = {row: loss(kind, row) for row in rows}
        projection.decide(plain, x, y)
        kept = [row for row in rows if projection.kept[kind][row]]
        assert len(kept) == 2
        assert min(losses[row] for row in kept) >= max([losses[r] for r in rows if r not in kept], default=0) - 1e-6
    assert projection.done == projection.total == 36

    genotype = projection.genotype()
    for kind, cell in genotype.cells.items():
        expected = {
            (space.edges[row], space.candidates[projection.choice[kind][row]])
            for row in range(14)
            if projection.kept[kind][row]
        }
        assert {((n, e.source), e.candidate) for n, own in enumerate(cell.nodes) for e in own} == expected


def test_a_search_ends_decided():
    """Alpha and validation batches are as without a projection until it begins; then alpha stays."""
    search = Search(TINY.with_settings(epochs=4, warmup_epochs=0, projection_epochs=2))
    seen = []
    while not search.finished:
        advance(search, len(search.train))
        seen.append((search.method.projection.done, [p.clone() for p in search.net.alpha_parameters()]))
    assert [done for done, _ in seen] == [0, 0, 18, 36]
    assert all(torch.equal(a, b) for _, alphas in seen[2:] for a, b in zip(alphas, seen[1][1], strict=True))
    assert search.genotype == search.method.projection.genotype() == search.genotypes[-1]
    assert not search.decision.leads


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projection_epochs": 10}, "projection_epochs: expected fewer than the epochs"),
        ({"projection_epochs": 5, "warmup_epochs": 5}, "projection_epochs"),
        ({"alpha_perturbation": "random", "sampling": "gdas"}, "needs sampling=softmax"),
        ({"alpha_perturbation_eps": 0.1}, "needs alpha_perturbation"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(InputError, match=message):
        SearchConfig(**settings)
