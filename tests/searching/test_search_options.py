"""The settings of a search: effects, invalid values, and messages about the result."""

from __future__ import annotations

import pytest
import torch

from bionas_fast import presets
from bionas_fast.errors import InputError
from bionas_fast.runs.execution import execute
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.progress import Progress
from bionas_fast.runs.summary import RunSummary
from bionas_fast.searching import Search, SearchConfig, search
from bionas_fast.searching.checks import check, over_preset
from bionas_fast.searching.skip_limit import SkipLimit
from bionas_fast.space import get_space, random_genotype
from helpers.searches import TINY


def test_options_that_a_method_does_not_use_are_refused():
    for method, settings, name in [
        ("darts", {"population": 8}, "population"),
        ("eg", {"beta_decay": 1.0}, "beta_decay"),
        ("eg-published", {"generations": 2}, "generations"),
        ("random", {"tournament": 3}, "tournament"),
        ("evolution", {"factorised": True}, "factorised"),
        ("eg-published", {"auxiliary_skip": True}, "auxiliary_skip"),
        ("eg", {"alpha_learning_rate": 1.0}, "alpha_learning_rate"),
        ("random", {"alpha_weight_decay": 1.0}, "alpha_weight_decay"),
        ("evolution", {"alpha_betas": (0.9, 0.99)}, "alpha_betas"),
    ]:
        with pytest.raises(InputError, match=f"{name}: method {method} has no use for it"):
            Search(TINY.with_settings(method=method, **settings))
    with pytest.raises(InputError, match="sampling: input should be 'softmax' or 'gdas'"):
        SearchConfig(sampling="hard")


def test_what_can_never_work_is_refused_before_anything_is_written(tmp_path):
    for settings, message in [
        ({"auxiliary_skip": True, "operations": ("sep_conv_3x3",)}, "auxiliary_skip: .* has no skip_connect"),
        ({"warmup_epochs": 2}, r"warmup_epochs: expected fewer than epochs \(2\), got 2"),
        ({"method": "eg", "population": 10**8}, "population"),
    ]:
        with pytest.raises(InputError, match=message):
            search(TINY.with_settings(**settings), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_kinds_of_cells_that_the_network_does_not_have_are_named():
    for cells, absent in ((1, ["normal"]), (2, ["normal"]), (3, [])):
        messages = Search(TINY.with_settings(cells=cells)).messages
        assert [message.partition(",")[0] for message in messages] == [
            f"cells={cells}: the network has no {k} cell" for k in absent
        ]


# The defaults that follow from other settings


@pytest.mark.parametrize(
    ("settings", "images", "rate", "warmup"),
    [
        ({"warmup_epochs": 0}, 50_000, 6 / (50 * 390), 0),  # DARTS: 3e-4 at 50 epochs of 390 steps
        ({"epochs": 600}, 50_000, 3e-4, 120),
        ({"epochs": 10}, 1437, 0.03, 2),
        ({"epochs": 4}, 60_000, 6 / (4 * 468), 0),
        ({"epochs": 1}, 100, 0.03, 0),
        ({"epochs": 5, "alpha_learning_rate": 0.1}, 100, 0.1, 1),
        ({"batch_size": 256, "train_fraction": 0.4}, 50_000, 6 / (40 * 78), 10),
    ],
)
def test_rate_of_alpha_and_warm_up_follow_from_the_length(settings, images, rate, warmup):
    settled = SearchConfig(**{"epochs": 50, "batch_size": 64, **settings}).settled(images)
    assert settled.alpha_learning_rate == pytest.approx(rate)
    assert settled.warmup_epochs == warmup
    assert settled.settled(images) == settled


def test_a_search_uses_them():
    search = Search(TINY.with_settings(epochs=5))
    assert search.method.alpha_optimizer.param_groups[0]["lr"] == search.settled.alpha_learning_rate == 0.03
    search.method.prepare(0)
    assert search.method.warming_up
    search.method.prepare(1)
    assert not search.method.warming_up
    assert "weights alone before epoch 2, alpha at 0.03" in search.describe()["method"]
    assert search.config.alpha_learning_rate is None


def test_a_preset_under_another_method_leaves_out_what_that_has_no_use_for():
    preset = presets.get("desk-search").settings
    assert preset["alpha_learning_rate"] == 3e-4
    for method in ("eg", "random", "evolution"):
        settings = over_preset(preset, {"method": method})
        assert settings == {name: preset[name] for name in preset if name != "alpha_learning_rate"} | {"method": method}
        check(SearchConfig(**settings))
    assert over_preset(preset, {"method": "darts2", "epochs": 1}) == {**preset, "method": "darts2", "epochs": 1}
    # What is given by hand still has to fit.
    given = over_preset(preset, {"method": "eg", "alpha_learning_rate": 0.1})
    with pytest.raises(InputError, match="alpha_learning_rate: method eg has no use for it"):
        check(SearchConfig(**given))


# The first order's options


def alpha_gradients(config, prepare=lambda search: None):
    """The gradients passed to Adam in one step, and the search."""
    search = Search(config)
    search.net.train()
    prepare(search)
    seen = []
    step = search.method.alpha_optimizer.step
    search.method.alpha_optimizer.step = lambda: seen.extend(p.grad.clone() for p in search.net.alpha_parameters())
    search.method.before_weight_step(*next(search.train), search.valid)
    search.method.alpha_optimizer.step = step
    return seen, search


def test_warm_up_leaves_alphas_and_validation_batches_alone():
    search = Search(TINY.with_settings(warmup_epochs=1))
    alphas, position = [a.detach().clone() for a in search.net.alpha_parameters()], search.valid.position
    search.method.prepare(0)
    search.method.before_weight_step(*next(search.train), search.valid)
    assert all(torch.equal(a, b) for a, b in zip(alphas, search.net.alpha_parameters(), strict=True))
    assert search.valid.position == position
    search.method.prepare(1)
    search.method.before_weight_step(*next(search.train), search.valid)
    assert not any(torch.equal(a, b) for a, b in zip(alphas, list(search.net.alpha_parameters())[1:], strict=False))


def test_beta_decay_is_a_gradient_of_softmax_shape():
    """d/dalpha of lambda * mean logsumexp(alpha) is lambda * softmax(alpha) / rows."""
    config = TINY.with_settings(beta_decay=8.0, cells=3, epochs=4)
    # The two searches start alike, so that their validation gradients cancel.
    at_second, search = alpha_gradients(config, lambda search: search.method.prepare(1))
    plain, _ = alpha_gradients(config.with_settings(beta_decay=0.0))
    for own, without, alpha in zip(at_second, plain, search.net.alpha_parameters(), strict=True):
        expected = 8.0 * 1 / 4 * torch.softmax(alpha.detach(), -1) / 28
        torch.testing.assert_close(own - without, expected, rtol=1e-3, atol=1e-6)


def test_gdas_draws_candidates_by_their_probability():
    search = Search(TINY.with_settings(sampling="gdas"))
    method = search.method
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20_000, 4)
    drawn = method._sampled(logits)
    hard = drawn.round()
    torch.testing.assert_close(drawn, hard, rtol=0, atol=1e-6)
    assert (hard.sum(dim=-1) == 1).all()
    # 20,000 draws: a standard error of at most 0.0036.
    torch.testing.assert_close(hard.mean(dim=0), torch.softmax(logits[0], -1), rtol=0, atol=0.015)
    method.prepare(0)
    assert method.temperature == 10
    method.prepare(1)
    assert method.temperature == pytest.approx(0.1)


def test_gdas_is_evaluated_with_the_likeliest_candidates():
    search = Search(TINY.with_settings(sampling="gdas"))
    with torch.no_grad():
        search.net.alphas["reduce"].normal_()
    own = search.method.evaluation_mixing()["reduce"]
    assert torch.equal(own.sum(dim=1), torch.ones(len(own)))
    assert torch.equal(own.argmax(dim=1), search.net.alphas["reduce"].argmax(dim=1))


def test_gdas_gradient_is_that_of_the_relaxation():
    method = Search(TINY.with_settings(sampling="gdas")).method
    method.temperature = 2.0
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    state, upstream = method.generator.get_state(), torch.randn(3, 5, dtype=torch.float64)
    (grad,) = torch.autograd.grad((method._sampled(logits) * upstream).sum(), logits)
    method.generator.set_state(state)
    uniform = torch.rand(3, 5, generator=method.generator, dtype=torch.float64)
    soft = torch.softmax((torch.log_softmax(logits, -1) - torch.log(-torch.log(uniform))) / 2.0, -1)
    (expected,) = torch.autograd.grad((soft * upstream).sum(), logits)
    torch.testing.assert_close(grad, expected)


def test_auxiliary_skip_falls_from_one_to_zero(tmp_path):
    search = Search(TINY.with_settings(auxiliary_skip=True, epochs=4))
    seen = []
    for epoch in range(4):
        search.method.prepare(epoch)
        seen.append(search.method.auxiliary_skip)
    assert seen == [1.0, 0.75, 0.5, 0.25]


def test_skip_limit_ends_the_search(drawn, tmp_path):
    """The result is the last cell within the limit before one exceeds it."""
    config = TINY.with_settings(skip_limit=2, epochs=4)
    search = Search(config)
    space, kept = search.net.space, []
    names = [c.operation for c in space.candidates]
    skip, pool = names.index("skip_connect"), names.index("max_pool_3x3")

    class Steered(type(search.method)):
        def before_weight_step(self, x, y, valid):
            with torch.no_grad():
                self.net.alphas["normal"].zero_()[:, pool] = 5.0
                self.net.alphas["normal"][: 2 + 3 * self.epoch, skip] = 9.0

    search.method.__class__ = Steered
    conclude = search.conclude
    search.conclude = lambda: (conclude(), kept.append(search.method.genotype()))[0]
    with RunFolder.create(tmp_path) as folder:
        search.write_beginning(folder)
        execute(search, folder, Progress())
    counts = [sum(e.candidate.operation == "skip_connect" for e in g.normal.edges) for g in kept]
    assert counts[-1] > 2 >= counts[-2]
    assert len(kept) == len(search.metrics) < 4
    assert search.genotype == kept[-2]
    assert search.genotype.to_json() == (tmp_path / "genotype.json").read_text()
    text = (tmp_path / "report.html").read_text()
    assert search.final_metrics is search.metrics[-2]
    assert Search.final_row(search.state_dict()) == search.metrics[-2]
    assert RunSummary.read(tmp_path).state == "complete"
    assert f"{search.metrics[-2]['valid_accuracy']:.2f} %" in text
    assert search.messages[-1] == "skip_limit=2 ended the search: the next epoch had more skip connections"
    assert search.messages[-1] in text


def test_a_limit_that_no_epoch_keeps_is_said():
    limit = SkipLimit(0)
    genotype = random_genotype(get_space("bionas").restricted(("usf", "brsf"), ("skip_connect",)), torch.Generator())
    limit.update(genotype)
    assert not limit.exceeded
    assert limit.message(genotype) == "no epoch was within skip_limit=0: the genotype has 8 skip connections"
