"""Evolution strategies, second order, and baselines."""

from __future__ import annotations

import copy
import itertools
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bionas_fast.errors import InputError
from bionas_fast.searching import Search, SearchConfig, eg_published, search
from bionas_fast.searching.darts2 import SecondOrderDarts
from bionas_fast.searching.eg import Distribution
from bionas_fast.space import Candidate, Space, get_space, mutated, one_hot, random_genotype
from bionas_fast.supernet import build_supernet
from helpers.oracles.data import assert_close, cases, load
from helpers.oracles.supernet import inject, to_ours, to_published
from helpers.searches import TINY
from helpers.tolerances import ALPHAS

FEW = {"population": 6, "generations": 2}
METHODS = {
    "darts": {},
    "darts2": {},
    "eg": FEW,
    "eg-published": {"population": 6},
    "random": FEW,
    "evolution": FEW | {"tournament": 3},
}


def tiny(method, **settings):
    return TINY.with_settings(method=method, **METHODS[method] | settings)


@pytest.mark.parametrize("method", METHODS)
def test_methods_search_and_write(method, drawn, tmp_path):
    found = search(tiny(method), out=tmp_path)
    assert len(found.metrics) == 2
    with np.load(tmp_path / "alphas.npz") as alphas:
        assert alphas["normal"].shape == alphas["reduce"].shape == (3, 14, 5)
        assert np.isfinite(alphas["reduce"]).all()
        assert not np.array_equal(alphas["reduce"][0], alphas["reduce"][2])
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("method", METHODS)
def test_methods_go_on_from_their_state(method):
    """Stopped in the middle of the second epoch and taken up by another object: the same bits at the end."""

    def run(search, steps):
        with search.isolated_rng():
            while not search.finished and (steps is None or steps > 0):
                search.enter_epoch()
                while search.steps_done < len(search.phase.batches):
                    search.step()
                    if steps is not None:
                        steps -= 1
                        if not steps:
                            return
                search.end_epoch()

    config = tiny(method)
    whole, begun, resumed = Search(config), Search(config), Search(config)
    run(whole, None)
    run(begun, len(begun.train) + 3)
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    run(resumed, None)
    assert resumed.genotype == whole.genotype
    for own, expected in zip(resumed.net.state_dict().values(), whole.net.state_dict().values(), strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("method", ["eg", "random", "evolution"])
def test_damaged_states_are_refused(method):
    search = Search(tiny(method))
    search.net.train()
    search.begin()
    state = search.method.state_dict()
    if method == "eg":
        (own,) = state["distributions"]
        damages = [{"distributions": []}]
        damages += [{"distributions": [own | {"fitness": f}]} for f in (own["fitness"][:, :-1], own["fitness"].float())]
    else:
        damages = [state | {"losses": losses} for losses in (state["losses"][..., :-1], state["losses"].float())]
    for damaged in ({}, *damages):
        with pytest.raises((InputError, KeyError, TypeError, ValueError)):
            Search(tiny(method)).method.load_state_dict(damaged)


# Second order


@pytest.mark.parametrize("case", cases("darts_second_order"))
@pytest.mark.parametrize("engine", ["modular", "stacked"])
def test_second_order_gradient(case, engine):
    arrays, info = load("darts_second_order", case)
    arguments = info["arguments"]
    primitives = arguments["primitives"]
    net = build_supernet(
        "darts-bp", channels=arguments["C"], cells=arguments["layers"], num_classes=arguments["num_classes"],
        engine="modular",
    ).double()  # fmt: skip
    inject(net, arrays, info, primitives)
    momentum = None
    if "momentum_flat" in arrays:
        momentum = copy.deepcopy(net)
        inject(momentum, {**arrays, "weights_flat": arrays["momentum_flat"]}, info, primitives)
    with torch.no_grad():
        for kind in ("normal", "reduce"):
            net.alphas[kind].copy_(to_ours(arrays[f"alphas_{kind}"], primitives))
    if engine == "stacked":
        net, momentum = (own and _stacked(own, arguments) for own in (net, momentum))
    config = SearchConfig(space="darts-bp", method="darts2", alpha_learning_rate=3e-4)
    weights = list(net.weight_parameters())
    optimizer = torch.optim.SGD(
        weights, arguments["eta"], momentum=arguments["network_momentum"],
        weight_decay=arguments["network_weight_decay"],
    )  # fmt: skip
    if momentum is not None:
        for w, m in zip(weights, momentum.weight_parameters(), strict=True):
            optimizer.state[w]["momentum_buffer"] = m.detach().clone()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    method = SecondOrderDarts(net.train(), config, optimizer)
    train, valid = ((arrays[f"x_{part}"].double(), arrays[f"y_{part}"]) for part in ("train", "valid"))

    grads = method.gradients(train, valid)
    for kind, grad in zip(("normal", "reduce"), grads, strict=True):
        assert_close(to_published(grad, primitives), arrays[f"grad_alphas_{kind}"], 1e-5, kind)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name

    method.before_weight_step(*train, iter([valid]))
    for kind in ("normal", "reduce"):
        moved = to_published(net.alphas[kind].detach(), primitives) - arrays[f"alphas_{kind}"]
        expected = arrays[f"alphas_{kind}_after_adam"] - arrays[f"alphas_{kind}"]
        torch.testing.assert_close(moved.float(), expected, **ALPHAS)


def second_order(**settings):
    """A method, and a batch each, in float64."""
    search = Search(TINY.with_settings(method="darts2", **settings))
    search.net.double().train()
    return search.method, *((x.double(), y) for x, y in (next(search.train), next(search.valid)))


def test_the_sides_of_the_difference_redraw_alike(monkeypatch):
    """Half as far apart, they give the same slope, but for kinks (a tenth); what two draws differ by would double."""
    method, train, valid = second_order(channels=4, rules=("brsf",), operations=("sep_conv_3x3", "skip_connect"))
    corrections = []
    for radius in (1e-2, 5e-3):
        monkeypatch.setattr(sys.modules[SecondOrderDarts.__module__], "RADIUS", radius)
        found = method.gradients(train, valid)
        corrections.append(torch.cat([grad.flatten() for grad in found if grad is not None]))
    assert (corrections[0] - corrections[1]).norm() < 0.2 * corrections[0].norm()


def test_the_sides_of_the_difference_sample_alike():
    """Train loss, validation loss, and the two sides draw an architecture each: the same but for the second."""
    method, train, valid = second_order(sampling="gdas")
    drawn, sampled = [], method._sampled
    method._sampled = lambda logits: drawn.append(sampled(logits)) or drawn[-1]
    method.gradients(train, valid)
    first, second, plus, minus = (torch.cat(drawn[i : i + 2]).round() for i in (0, 2, 4, 6))
    assert torch.equal(first, plus) and torch.equal(first, minus)
    assert not torch.equal(first, second)


def _stacked(net, arguments):
    stacked = build_supernet(
        "darts-bp", channels=arguments["C"], cells=arguments["layers"], num_classes=arguments["num_classes"]
    ).double()
    stacked.load_modular(net)
    return stacked


# Evolution strategies


def _stub(arrays):
    """The recording's stand-in for a supernet: logits that are bilinear in images and mixing weights."""
    x, a, p, bn, br = (arrays[name].double() for name in ("x", "A", "P", "Bn", "Br"))

    def logits(mixing):
        moved = mixing["normal"].flatten(1) @ bn + mixing["reduce"].flatten(1) @ br
        return x @ a + (x @ p) * moved[:, None]

    return logits


def _alphas(arrays):
    return {kind: arrays[f"alphas_{kind}"].double() for kind in ("normal", "reduce")}


@pytest.mark.parametrize("case", cases("egnas_fitness"))
def test_published_fitness(case):
    arrays, info = load("egnas_fitness", case)
    alphas, y = _alphas(arrays), arrays["target"]
    rows = eg_published.as_rows(arrays["individuals"].double(), alphas)
    weights = eg_published.as_weights(rows)
    for kind in alphas:
        assert_close(weights[kind], arrays[f"weights_{kind}"], 1e-5, kind)
    logits = _stub(arrays)(weights)
    assert_close(logits, arrays["logits"], 1e-5, "logits")
    present = round(float(arrays["ori_acc"]) * len(y) / 100)
    fitness = eg_published.fitness(logits, y, rows, alphas, present, info["arguments"]["mon"])
    assert_close(fitness, arrays["fitness"], 1e-5, "fitness")


@pytest.mark.parametrize("case", cases("egnas_explore"))
def test_published_step(case):
    arrays, info = load("egnas_explore", case)
    arguments, alphas, y, model = info["arguments"], _alphas(arrays), arrays["target"], _stub(arrays)
    mean = torch.cat(
        [(torch.softmax(own, -1) + 0.01 * arrays[f"noise_{kind}"].double()).flatten() for kind, own in alphas.items()]
    )
    assert_close(mean, arrays["mean"], 1e-5, "mean")
    if arguments["sigma"] == eg_published.SIGMA:
        drawn = eg_published.draws(mean.numpy(), arguments["population_size"])
        assert_close(torch.from_numpy(drawn), arrays["individuals"], 1e-5, "individuals")
    rows = eg_published.as_rows(arrays["individuals"].double(), alphas)
    weights = eg_published.as_weights(rows)
    present = {kind: torch.softmax(own, -1)[None] for kind, own in alphas.items()}
    hits = int(eg_published.correct(model(present), y))
    assert hits == round(float(arrays["ori_acc"]) * len(y) / 100)
    scores = eg_published.fitness(model(weights), y, rows, alphas, hits, arguments["mon"])
    assert_close(scores, arrays["fitness"], 1e-5, "fitness")
    winner = eg_published.best(scores)
    assert winner == int(arrays["best_index"])
    for kind, own in eg_published.twice_softened(weights, winner).items():
        assert_close(own, arrays[f"best_{kind}"], 1e-5, kind)
        if not arguments["momentum"]:  # which the published search leaves at 0, and ours does not have
            after = alphas[kind] + arguments["step_size"] * own
            assert_close(after, arrays[f"alphas_{kind}_after"], 1e-5, kind)


def test_of_equal_scores_the_last_wins():
    assert eg_published.best(torch.tensor([2.0, 1.0, 3.0, 1.0])) == 3


def test_several_strategies_begin_apart_and_the_best_counts():
    search = Search(tiny("eg", eg_searches=100, eg_sigma=0.25, population=4, generations=1))
    alphas = torch.nn.utils.parameters_to_vector(search.net.alpha_parameters()).detach().double().numpy()
    strategies = search.method.distributions
    begun = np.stack([strategy.mean - alphas for strategy in strategies])
    # 100 means of N(alpha, 0.25²): the mean over all numbers and their variance, within four standard errors.
    assert abs(begun.mean()) < 4 * 0.25 / begun.size**0.5
    assert abs(begun.var() / 0.25**2 - 1) < 4 * (2 / begun.size) ** 0.5
    search.method.distributions = strategies[:3]
    drawn = []
    search.method.fitness = lambda individuals, x, y: drawn.append(x) or torch.arange(4.0) + [2, 0, 1][len(drawn) - 1]
    search.begin()
    assert all(x is drawn[0] for x in drawn) and len(drawn) == 3
    chosen = torch.nn.utils.parameters_to_vector(search.net.alpha_parameters()).detach().numpy()
    np.testing.assert_allclose(chosen, strategies[1].mean, rtol=1e-5, atol=1e-6)


def test_distribution_minimises_and_can_be_taken_up_again():
    target = np.linspace(-1, 1, 20)

    def fitness(individuals):
        return ((individuals - target) ** 2).sum(axis=1)

    whole, half = (Distribution(np.zeros(20), 0.5, 12, seed=4) for _ in range(2))
    for own, generations in ((whole, 150), (half, 60)):
        for _ in range(generations):
            np.random.seed(own is whole)  # somebody else's generator has no say
            own.tell(fitness(own.ask()))
    assert fitness(whole.mean[None]) < 1e-4
    again = Distribution(np.ones(20), 0.5, 12, seed=4)
    again.load_state_dict(half.state_dict(), most=1000)
    for _ in range(90):
        again.tell(fitness(again.ask()))
    assert np.array_equal(again.mean, whole.mean)
    assert again.sigma == whole.sigma
    with pytest.raises(InputError, match="strategy"):
        again.load_state_dict(half.state_dict(), most=59)


def test_fitness_of_equation_22():
    search = Search(tiny("eg", fitness_cross_entropy=0.5, fitness_similarity=0.25))
    search.net.eval()
    x, y = next(search.valid)
    parameters = search.net.alpha_parameters()
    individuals = torch.randn(3, sum(p.numel() for p in parameters))
    got = search.method.fitness(individuals, x, y)
    mixing = {kind: torch.softmax(own, -1) for kind, own in search.net.alphas.items()}
    for vector, value in zip(individuals, got, strict=True):
        rows = dict(zip(mixing, vector.split([p.numel() for p in parameters]), strict=True))
        rows = {kind: torch.softmax(own.view(14, -1), -1) for kind, own in rows.items()}
        loss = F.cross_entropy(search.net(x, rows), y)
        cosines = [F.cosine_similarity(rows[kind], mixing[kind], dim=-1).mean() for kind in rows]
        expected = 0.5 * loss + 0.25 * (sum(cosines) / 2 + 1) / 2
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)


# Discrete architectures


def test_random_genotypes_are_spread_evenly():
    space = Space("small", tuple(Candidate(o) for o in ("none", "max_pool_3x3", "avg_pool_3x3")), nodes=2)
    generator = torch.Generator().manual_seed(0)
    drawn = [random_genotype(space, generator) for _ in range(4000)]
    # Node 1 has 3 pairs of sources, 2 candidates each; node 0 has one pair.
    counts = {}
    for genotype in drawn:
        key = tuple(sorted(map(str, genotype.normal.nodes[1])))
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 12
    assert min(counts.values()) > 333 - 5 * 17.6 and max(counts.values()) < 333 + 5 * 17.6  # five standard deviations


def test_mutations_change_one_edge_and_reach_everything():
    space = get_space("bionas")
    generator = torch.Generator().manual_seed(0)
    start = genotype = random_genotype(space, generator)
    kinds = set()
    for _ in range(300):
        child = mutated(genotype, space, generator)
        pairs = [
            (a, b)
            for kind in space.kinds
            for a, b in zip(genotype.cells[kind].edges, child.cells[kind].edges, strict=True)
            if a != b
        ]
        ((old, new),) = pairs
        assert (old.candidate == new.candidate) != (old.source == new.source)
        kinds.add("source" if old.candidate == new.candidate else "candidate")
        genotype = child
    assert kinds == {"source", "candidate"}
    assert not any(a == b for a, b in zip(start.normal.edges[:1], genotype.normal.edges[:1], strict=True))


def test_one_hot_weights_are_the_discrete_network():
    net = build_supernet(channels=2, cells=3, in_channels=1, engine="modular").double().eval()
    genotype = random_genotype(net.space, torch.Generator().manual_seed(3))
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    s0 = s1 = net.stem(x)
    for cell in net.cells:
        states = [cell.preprocess0(s0), cell.preprocess1(s1)]
        for node, edges in enumerate(genotype.cells[cell.kind].nodes):
            rows = [net.space.edges.index((node, edge.source)) for edge in edges]
            columns = [net.space.candidates.index(edge.candidate) for edge in edges]
            outs = [
                cell.edges[row].candidates[column](states[edge.source])
                for row, column, edge in zip(rows, columns, edges, strict=True)
            ]
            states.append(sum(outs))
        s0, s1 = s1, torch.cat(states[2:], dim=1)
    expected = net.classifier(s1.mean(dim=(2, 3)))
    mixing = {kind: own.double() for kind, own in one_hot(genotype, net.space).items()}
    torch.testing.assert_close(net(x, mixing), expected)


@pytest.mark.parametrize("method", ["random", "evolution"])
def test_the_best_of_the_population_is_found(method):
    """Judged by a loss that is known, the search ends with the genotype that has the lowest."""
    search = Search(tiny(method, generations=10))
    wanted = random_genotype(search.net.space, torch.Generator().manual_seed(77))
    best = []

    def evaluate(x, y):
        losses = [_distance(genotype, wanted) for genotype in search.method.population]
        search.method.losses = torch.tensor(losses, dtype=torch.float64)
        best.append(min(losses))

    search.method.evaluate = evaluate
    search.net.train()
    for _ in range(3):
        search.begin()
    assert _distance(search.genotype, wanted) == best[-1]
    assert best[-1] < best[0]
    if method == "random":
        assert all(later <= earlier for earlier, later in itertools.pairwise(best))


def _distance(genotype, wanted):
    weights = [one_hot(own, get_space("bionas")) for own in (genotype, wanted)]
    return sum(float((weights[0][kind] - weights[1][kind]).abs().sum()) for kind in weights[0])
