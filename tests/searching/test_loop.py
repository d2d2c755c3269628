"""The search: steps, run folders, and bad input."""

from __future__ import annotations

import copy
import html.parser
import json
import math

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.progress import Progress
from bionas_fast.searching import Search, SearchConfig
from helpers import reports
from helpers.tolerances import ALPHAS

TINY = SearchConfig(
    rules=("usf", "brsf"),
    operations=("skip_connect", "dil_conv_3x3"),
    channels=1,
    epochs=2,
    batch_size=256,
    alpha_learning_rate=3e-4,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One short search and the folder it left."""
    with reports.drawn():
        return bf.search(TINY, out=tmp_path_factory.mktemp("runs") / "search")


class TestStep:
    @pytest.fixture
    def search(self):
        return Search(TINY)

    def test_the_split_is_half_and_half(self, search):
        total = len(search.data.images)
        assert len(search.validation) == total - round(total / 2)

    def test_alpha_step_is_adam_on_the_validation_batch(self, search):
        net = copy.deepcopy(search.net).double()
        x, y = next(copy.deepcopy(search.valid))
        before = {kind: alpha.detach().double() for kind, alpha in search.net.alphas.items()}
        weights = [p.detach().clone() for p in search.net.weight_parameters()]
        search.method.before_weight_step(*next(search.train), search.valid)

        grads = torch.autograd.grad(F.cross_entropy(net(x.double()), y), net.alpha_parameters())
        for (kind, alpha), grad in zip(before.items(), grads, strict=True):
            g = grad + 1e-3 * alpha
            # Adam's first step with bias correction: m̂ = g, v̂ = g².
            expected = -3e-4 * g / (g.abs() + 1e-8)
            moved = search.net.alphas[kind].detach().double() - alpha
            torch.testing.assert_close(moved, expected, **ALPHAS)
        for p, old in zip(search.net.weight_parameters(), weights, strict=True):
            assert torch.equal(p, old)
            assert p.grad is None
            assert p.requires_grad

    def test_weight_step_is_sgd_and_leaves_alphas_alone(self, search):
        net = copy.deepcopy(search.net)
        x, y = next(copy.deepcopy(search.train))
        alphas = [alpha.detach().clone() for alpha in search.net.alpha_parameters()]
        before = [p.detach().clone() for p in search.net.weight_parameters()]
        search.net.train()
        search._weight_step(x, y)

        F.cross_entropy(net(x), y).backward()
        grads = [p.grad for p in net.weight_parameters()]
        norm = math.sqrt(sum(g.double().square().sum().item() for g in grads))
        for p, old, grad in zip(search.net.weight_parameters(), before, grads, strict=True):
            expected = old - 0.025 * (grad * min(1, 5 / norm) + 3e-4 * old)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)
        for alpha, old in zip(search.net.alpha_parameters(), alphas, strict=True):
            assert torch.equal(alpha, old)
            assert alpha.grad is None

    def test_alphas_are_outside_the_weight_optimizer(self, search):
        held = {id(p) for group in search.optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in search.net.weight_parameters()}
        assert not held & {id(a) for a in search.net.alpha_parameters()}

    def test_validation_batches_go_on_from_step_to_step(self, search):
        """No iterator that restarts: the batches of one pass over the validation images differ."""
        seen = []
        for _ in range(len(search.valid)):
            seen.append(search.valid.position)
            search.method.before_weight_step(*next(search.train), search.valid)
        assert len(set(seen)) == len(seen) > 1

    def test_a_loss_that_is_not_finite_ends_the_step(self, search):
        search.train.std = torch.zeros_like(search.train.std)
        search.enter_epoch()
        with pytest.raises(InputError, match=r"not finite in epoch 1, step 1 of .* hold pixels that are not finite"):
            search.step()


class TestRun:
    def test_folder(self, run):
        names = {path.name for path in run.run_dir.iterdir() if not path.name.startswith(".")}
        assert names == {
            "config.yaml",
            "metrics.jsonl",
            "alphas.npz",
            "checkpoint.pt",
            "best.pt",
            "genotype.json",
            "genotypes.jsonl",
            "report.html",
        }

    def test_config_is_complete(self, run):
        config = yaml.safe_load((run.run_dir / "config.yaml").read_text())
        assert config.pop("kind") == "search"
        machine = config.pop("machine")
        assert set(config.pop("duration")) == {"wall_seconds", "processor_seconds"}
        assert machine["torch"] == torch.__version__.partition("+")[0]
        assert config.pop("network")["image_size"] == [8, 8]
        assert SearchConfig(**config) == TINY
        assert set(config) == set(SearchConfig.model_fields) - {"loggers"}  # a file must not run code

    def test_genotypes_of_all_epochs(self, run):
        rows = [json.loads(line) for line in (run.run_dir / "genotypes.jsonl").read_text().splitlines()]
        assert [row.pop("epoch") for row in rows] == [1, 2]
        found = [bf.Genotype.from_json(json.dumps(row)) for row in rows]
        assert [genotype.hash for genotype in found] == [row["genotype"] for row in run.metrics]
        assert found[-1] == run.genotype

    def test_metrics(self, run):
        rows = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
        assert rows == run.metrics
        assert [row["epoch"] for row in rows] == [1, 2]
        # Cosine from 0.025 to 0.001 over two epochs.
        assert [row["learning_rate"] for row in rows] == pytest.approx([0.025, 0.013])
        assert all(0 <= row["valid_accuracy"] <= 100 for row in rows)

    def test_alphas(self, run):
        with np.load(run.run_dir / "alphas.npz") as stored:
            assert list(stored["candidates"]) == [
                "skip_connect@usf",
                "skip_connect@brsf",
                "dil_conv_3x3@usf",
                "dil_conv_3x3@brsf",
            ]
            for kind in ("normal", "reduce"):
                assert stored[kind].shape == (3, 14, 4)
                steps = np.abs(np.diff(stored[kind], axis=0))
                assert 0 < steps.max() < 0.01
            final = {kind: torch.from_numpy(stored[kind][-1]) for kind in ("normal", "reduce")}
        space = bf.space.get_space("bionas").restricted(TINY.rules, TINY.operations)
        assert bf.space.derive_genotype(final, space) == run.genotype

    def test_genotype(self, run):
        assert bf.Genotype.load(run.run_dir / "genotype.json") == run.genotype
        assert set(run.genotype.rules) <= {"usf", "brsf"}

    def test_checkpoint_holds_everything(self, run):
        state = RunFolder.open(run.run_dir).read_checkpoint()
        assert state["epoch"] == 2
        search = Search(TINY)
        search.load_state_dict(state)
        assert search.net.genotype() == run.genotype
        assert search.train.position == len(search.train) or search.train.position == 0

    def test_report_is_one_html_file(self, run):
        text = (run.run_dir / "report.html").read_text()
        html.parser.HTMLParser().feed(text)
        assert run.genotype.hash in text
        assert 'src="http' not in text

    def test_same_seed_same_bits(self, run, tmp_path):
        again = bf.search(TINY, out=tmp_path / "again")
        a, b = (RunFolder.open(r.run_dir).read_checkpoint() for r in (run, again))
        assert again.genotype == run.genotype
        for name, value in a["net"].items():
            assert torch.equal(value, b["net"][name]), name

    def test_progress_hears_everything(self, tmp_path):
        heard = []

        class Listener(Progress):
            def start(self, description, epochs, steps):
                heard.append(("start", epochs, steps))

            def step(self, loss):
                heard.append("step")

            def epoch(self, row):
                heard.append("epoch")

            def finish(self):
                heard.append("finish")

        bf.search(TINY.with_settings(epochs=1), out=tmp_path / "run", progress=Listener())
        _, epochs, steps = heard[0]
        assert heard[1:] == ["step"] * steps + ["epoch", "finish"]
        assert epochs == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "digit"}, "'digit'.*'digits'"),
        ({"method": "dart"}, "'dart'.*'darts'"),
        ({"space": "bio"}, "'bio'"),
        ({"engine": "staked"}, "'staked'"),
        ({"rules": ("usff",)}, "'usff'.*'usf'"),
        ({"device": "gpu"}, "'gpu'"),
        ({"device": "cuda:99"}, "cuda:99.*not available"),
        ({"fixed": {"stem": "x"}}, r"fixed\.stem"),
        ({"dataset": "mnist", "data_dir": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_leave_nothing_behind(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        bf.search(TINY.with_settings(**settings), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'.*'epochs'"),
        ({"epochs": 0}, "epochs.*greater than or equal to 1.*0"),
        ({"channels": "many"}, "channels.*integer.*'many'"),
        ({"train_fraction": 1.5}, "train_fraction"),
    ],
    ids=str,
)
def test_config_names_the_setting(settings, message):
    with pytest.raises(InputError, match=message):
        SearchConfig(**settings)


def test_a_folder_that_is_not_empty_stays_as_it_is(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        bf.search(TINY, out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        bf.search(TINY, out=tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half a zip"], ids=["empty", "text", "cut_off"])
def test_a_damaged_checkpoint_is_refused(content, tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.write("checkpoint.pt", content)
    with pytest.raises(InputError, match=r"checkpoint\.pt"):
        folder.read_checkpoint()


def test_a_checkpoint_never_executes_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    folder = RunFolder.create(tmp_path / "run")
    torch.save({"net": Evil()}, folder.path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt"):
        folder.read_checkpoint()
    assert not (tmp_path / "executed").exists()
