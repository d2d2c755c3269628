"""Robust search: its formula by the modular engine in float64, its gradient by differences, its state."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.searching import Search, SearchConfig, eg_published, search
from bionas_fast.searching.robust import true_gradient
from bionas_fast.space import one_hot
from helpers.searches import TINY
from helpers.tolerances import ENGINES

BASE = TINY.with_settings(rules=("brsf",), operations=("skip_connect", "sep_conv_3x3"), batch_size=32)
FEW = {"population": 4, "generations": 2}
EPS, WEIGHT = 0.1, 0.7


def tiny(method="eg", **settings):
    few = FEW if method != "eg-published" else {"population": 4}
    return BASE.with_settings(method=method, **few | settings)


def robust(method="eg", robustness="fgsm", **settings):
    return tiny(method, robustness=robustness, robustness_eps=EPS, robustness_weight=WEIGHT, **settings)


def in_float64(config):
    """Return a search in float64, some statistics in its normalisations, the modular twin, and a batch."""
    found = Search(config)
    x, y = next(found.valid)
    found.net.train()
    with torch.no_grad():
        found.net(x)
    found.net.double()
    net = found.net if config.engine == "modular" else found.net.to_modular()
    return found, copy.deepcopy(net).double().eval(), x.double(), y


def hand_made(net, data, x, y, mixing, signs=None):
    """Return clean + λ · attacked cross-entropy of one individual; without signs, those of the true gradient."""
    mean, std = (torch.tensor(own, dtype=torch.float64).view(-1, 1, 1) for own in (data.mean, data.std))
    if signs is None:
        images = x.clone().requires_grad_()
        with bf.true_gradients(net):
            F.cross_entropy(net(images, mixing), y).backward()
        signs = images.grad.sign()
    pixels = (x * std + mean).numpy()
    perturbed = np.clip(pixels + EPS * signs.numpy(), 0, 1)
    moved = (torch.from_numpy(perturbed) - mean) / std
    with torch.no_grad():
        clean, attacked = (net(images, mixing).log_softmax(dim=1) for images in (x, moved))
    pick = torch.arange(len(y)), y
    return -clean[pick].mean() - WEIGHT * attacked[pick].mean()


@pytest.mark.parametrize("engine", ["modular", "stacked"])
def test_fitness_of_eg_under_attack(engine):
    found, net, x, y = in_float64(robust(engine=engine, fitness_cross_entropy=0.5, fitness_similarity=0.0))
    sizes = [alpha.numel() for alpha in found.net.alpha_parameters()]
    individuals = torch.randn(3, sum(sizes), dtype=torch.float64)
    got = found.method.fitness(individuals, x, y)
    rows = [dict(zip(found.net.alphas, vector.split(sizes), strict=True)) for vector in individuals]
    mixings = [{kind: own.view(14, -1).softmax(-1) for kind, own in each.items()} for each in rows]
    expected = torch.stack([0.5 * hand_made(net, found.data, x, y, mixing) for mixing in mixings])
    torch.testing.assert_close(got, expected, **ENGINES)
    assert found.method.robustness.seen == 3 * len(y)


@pytest.mark.parametrize("method", ["random", "evolution"])
def test_losses_of_discrete_architectures_under_attack(method):
    found, net, x, y = in_float64(robust(method))
    found.method.population = found.method.breed()[:3]
    found.method.evaluate(x, y)
    for genotype, loss in zip(found.method.population, found.method.losses, strict=True):
        mixing = {kind: rows.double() for kind, rows in one_hot(genotype, net.space).items()}
        torch.testing.assert_close(loss, hand_made(net, found.data, x, y, mixing), **ENGINES)


def test_scores_of_the_published_evolution_under_attack(monkeypatch):
    """The winner is that of the published fitness plus λ times the cross-entropy under attack."""
    found, net, x, y = in_float64(robust("eg-published"))
    seen = {}

    def watch(name):
        function = getattr(eg_published, name)
        monkeypatch.setattr(eg_published, name, lambda *own: seen.setdefault(name, (own, function(*own)))[1])

    for name in ("as_weights", "fitness", "best"):
        watch(name)
    found.method.before_epoch(iter([(x, y)]))
    ((scores,), _), (_, published), (_, weights) = (seen[name] for name in ("best", "fitness", "as_weights"))
    for index, score in enumerate(scores):
        mixing = {kind: rows[index] for kind, rows in weights.items()}
        with torch.no_grad():
            clean = F.cross_entropy(net(x, mixing), y)
        expected = published[index] + hand_made(net, found.data, x, y, mixing) - clean
        torch.testing.assert_close(score, expected, **ENGINES)


@pytest.mark.parametrize("engine", ["modular", "stacked"])
def test_noise_reaches_all_individuals_alike(engine, monkeypatch):
    found, net, x, y = in_float64(robust(robustness="noise", engine=engine))
    seen, population = [], found.net.population
    monkeypatch.setattr(found.net, "population", lambda x, mixing: seen.append(x) or population(x, mixing))
    weights = torch.randn(3, 14, len(net.space.candidates), dtype=torch.float64).softmax(-1)
    mixing = dict.fromkeys(net.space.kinds, weights)
    term = found.method.robustness
    before = torch.get_rng_state()
    losses = term.loss(found.net, x, y, mixing)
    assert not torch.equal(torch.get_rng_state(), before)  # the run's own generator, which is saved with it
    (noisy,) = seen
    mean, std = (torch.tensor(own, dtype=torch.float64).view(-1, 1, 1) for own in (term.mean, term.std))
    clean, changed = x * std + mean, noisy * std + mean
    change = (changed - clean).abs()
    assert changed.min() >= -1e-12 and changed.max() <= 1 + 1e-12
    at_the_edge = (changed.abs() < 1e-9) | ((1 - changed).abs() < 1e-9)
    assert ((change - EPS).abs() < 1e-9).logical_or(at_the_edge).all()
    assert 0.4 < (noisy > x)[clean <= 1 - EPS].double().mean() < 0.6
    for index in range(3):
        own = {kind: rows[index] for kind, rows in mixing.items()}
        expected = WEIGHT * F.cross_entropy(net(noisy, own), y)
        torch.testing.assert_close(losses[index], expected, **ENGINES)


@pytest.mark.parametrize("engine", ["modular", "stacked"])
def test_gradient_is_that_of_the_loss_whatever_the_feedback(engine):
    """The slope of the loss along a direction, by differences: gradients through feedback point elsewhere."""
    found, _, x, y = in_float64(robust(engine=engine))
    net = found.net.eval()
    mixing = {kind: own.detach() for kind, own in net.architecture.mixing().items()}
    gradient = true_gradient(net, x, y, mixing)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = 1e-6
    with torch.no_grad():
        up, down = (F.cross_entropy(net(x + side * h * direction, mixing), y) for side in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-4)
    images = x.clone().requires_grad_()
    F.cross_entropy(net(images, mixing), y).backward()
    assert F.cosine_similarity(images.grad.flatten(), gradient.flatten(), dim=0) < 0.99


@pytest.mark.parametrize("robustness", ["noise", "fgsm"])
def test_network_is_left_alone(robustness):
    found = Search(robust(robustness=robustness))
    found.net.train()
    state = {name: value.clone() for name, value in found.net.state_dict().items()}
    x, y = next(found.valid)
    mixing = {kind: own.detach()[None] for kind, own in found.net.architecture.mixing().items()}
    found.method.robustness.loss(found.net, x, y, mixing)
    assert found.net.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in found.net.parameters())
    assert all(torch.equal(value, state[name]) for name, value in found.net.state_dict().items())


def test_nothing_happens_by_default():
    """The loss gets an exact zero, no random number is drawn and the metrics have no more entries."""
    assert SearchConfig().robustness == "off"
    found = Search(tiny())
    before = torch.get_rng_state()
    x, y = next(found.valid)
    mixing = {kind: own.detach()[None] for kind, own in found.net.architecture.mixing().items()}
    assert found.method.robustness.loss(found.net, x, y, mixing) == 0.0
    assert torch.equal(torch.get_rng_state(), before)
    assert found.method.robustness.metrics() == {}


@pytest.mark.parametrize(("method", "robustness"), [("eg", "noise"), ("evolution", "fgsm")])
def test_a_robust_search_goes_on(method, robustness):
    """Taken up in the middle of an epoch: the same architecture, and the same accuracy on perturbed images."""

    def run(search, steps=None):
        with search.isolated_rng():
            while not search.finished:
                search.enter_epoch()
                while search.steps_done < len(search.phase.batches):
                    search.step()
                    if search.epoch == 1 and search.steps_done == steps:
                        return
                search.end_epoch()

    config = robust(method, robustness, train_fraction=0.1)
    whole, begun, resumed = Search(config), Search(config), Search(config)
    run(whole)
    run(begun, steps=2)
    state = copy.deepcopy(begun.state_dict())
    resumed.load_state_dict(copy.deepcopy(state))
    run(resumed)
    assert resumed.genotype == whole.genotype
    accuracies = [[row["perturbed_accuracy"] for row in own.metrics] for own in (whole, resumed)]
    assert accuracies[0] == accuracies[1]
    assert all(0 < row["robustness_seconds"] < row["seconds"] for row in resumed.metrics)
    for own, expected in zip(resumed.net.state_dict().values(), whole.net.state_dict().values(), strict=True):
        assert torch.equal(own, expected)
    for damaged in ({}, {**state["robustness"], "seen": -1}, {**state["robustness"], "seconds": float("nan")}):
        with pytest.raises(InputError, match="robustness"):
            Search(config).load_state_dict({**state, "robustness": damaged})


def test_cost_is_reported(drawn, tmp_path):
    found = search(robust(robustness="noise", warmup_epochs=1, train_fraction=0.1), out=tmp_path)
    warm, last = found.metrics
    assert (warm["perturbed_accuracy"], warm["robustness_seconds"]) == (None, 0.0)
    share = 100 * last["robustness_seconds"] / (warm["seconds"] + last["seconds"])
    assert found.cost_of_robustness == f"{share:.0f} % of the time"
    assert f"{share:.0f} % of the time" in (tmp_path / "report.html").read_text()
    assert "robustness_seconds" in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"robustness": "pgd"}, "^robustness: .*'noise' or 'fgsm'"),
        ({"robustness": "noise", "robustness_eps": 0.0}, "^robustness_eps: "),
        ({"robustness": "noise", "robustness_eps": 1.5}, "^robustness_eps: "),
        ({"robustness": "noise", "robustness_eps": float("nan")}, "^robustness_eps: "),
        ({"robustness": "noise", "robustness_weight": 0.0}, "^robustness_weight: "),
        ({"robustness_eps": 0.1}, "^robustness_eps: needs robustness=noise or fgsm; got 0.1"),
        ({"robustness_weight": 2.0}, "^robustness_weight: needs robustness"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        SearchConfig(method="eg", **settings)


@pytest.mark.parametrize("method", ["darts", "darts2"])
def test_methods_without_a_fitness_refuse(method, tmp_path):
    with pytest.raises(InputError, match=rf"^robustness: method {method} has no use for it, but eg, .*; got 'noise'$"):
        search(TINY.with_settings(method=method, robustness="noise"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
