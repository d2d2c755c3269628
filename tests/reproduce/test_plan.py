"""The commands of the paper's tables and figures. Oracles: the text of the paper, facts about the authors' script."""

from __future__ import annotations

import re

import pytest

from bionas_fast.errors import InputError
from bionas_fast.reproduce import Plan, Scale, costs, estimate_costs, experiment_names, get_experiment, scale_names
from bionas_fast.reproduce.plan import Attacks
from bionas_fast.searching import SearchConfig
from bionas_fast.space import get_space
from bionas_fast.training import ResNetConfig, TrainConfig
from helpers.oracles import data

PAPER = data.FOLDER.parent / "seeds"

SMALL = Scale(
    "small",
    2,
    {
        "found": "search --preset desk-search --space nb201 --cells 1 --rules usf,bp",
        "trained": "train {found} --preset desk-train --cells 1",
        "usf": "train {found} --preset desk-train --cells 1 --rule usf --everywhere",
        "residual": "train resnet20 --preset desk-resnet20 --rule fa --set momentum=0.5",
    },
    Attacks(("trained", "usf"), "residual", "--images 10"),
)


def test_steps_come_after_what_they_need_a_seed_after_the_other(tmp_path):
    plan = Plan(SMALL, tmp_path, 2, ("--dataset", "digits"))
    steps = plan.steps(["usf", "residual", "trained"])
    assert [(step.name, step.seed) for step in steps] == [
        (name, seed) for seed in (0, 1) for name in ("found", "usf", "residual", "trained")
    ]
    own = steps[5]
    assert own.command() == [
        *("train", str(tmp_path / "found/seed-1"), "--preset", "desk-train", "--cells", "1", "--rule", "usf"),
        *("--everywhere", "--dataset", "digits", "--seed", "1", "--out", str(tmp_path / "usf/seed-1")),
    ]
    assert own.command(resume=True)[-2:] == ["--resume", str(tmp_path / "usf/seed-1")]
    assert own.needs == (tmp_path / "found/seed-1",)
    assert str(own).startswith("bionas-fast train ")


def test_attacks_need_the_networks_of_their_seed(tmp_path):
    _, step = Plan(SMALL, tmp_path, 2, ("--dataset", "digits")).attack_steps(["fgsm", "pgd-10"])
    networks = [f"{name}={tmp_path / name / 'seed-1'}" for name in ("trained", "usf")]
    source = ["--source", str(tmp_path / "residual/seed-1")]
    attacks = ["--attacks", "fgsm,pgd-10", "--images", "10", "--seed", "1"]
    assert step.command() == ["attack", *networks, *source, *attacks, "--out", str(tmp_path / "attack/seed-1")]
    assert step.needs == tuple(tmp_path / name / "seed-1" for name in ("trained", "usf", "residual"))


@pytest.mark.parametrize("scale", scale_names())
@pytest.mark.parametrize("name", experiment_names())
def test_every_table_has_its_runs_at_every_scale(tmp_path, name, scale):
    own = Scale.read(scale)
    steps = get_experiment(name).steps(Plan(own, tmp_path, 1))
    assert steps
    seen = set()
    for step in steps:
        assert seen.issuperset(step.needs)
        seen.add(step.folder)


def test_every_run_belongs_to_a_table(tmp_path):
    for scale in map(Scale.read, scale_names()):
        plan = Plan(scale, tmp_path, 1)
        used = {step.name for name in experiment_names() for step in get_experiment(name).steps(plan)}
        assert used - {"attack"} == set(scale.runs)


@pytest.mark.skipif(not PAPER.is_dir(), reason="the text of the paper is not here")
def test_published_figures_are_those_of_the_paper():
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAPER.glob("*.txt"))
    text = re.sub(r" ?\[\d+\]| ?\(ours\)|\*", "", text)
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "|" in line]

    def numbers(row):
        found = {cell for line in lines for cell in line[1:] if line[0] == row}
        return {float(cell) for cell in found if cell.replace(".", "").isdigit()}

    table = get_experiment("table4").data
    for row, (_, *values) in table["attacks"].items():
        own = next(line for line in lines if line[0] == row and len(line) >= 7)
        assert [float(cell) for cell in own[1:7]] == values
    header = next(line for line in lines if line[0] == "Attack")
    assert header[1:7] == table["networks"]
    for row, (figure, _) in get_experiment("table5").data["columns"]["CIFAR-10"].items():
        if figure is not None:
            assert figure in numbers(row.removesuffix(", shuffled"))
    checked = 0
    for name in ("table1", "table2", "table3"):
        for rows in get_experiment(name).data["columns"].values():
            for row, (figure, _) in rows.items():
                known = numbers(row)
                if known:
                    assert figure in known, (name, row)
                    checked += 1
    assert checked == 46  # all but β-DARTS, whose first letter the text lost


def test_published_accuracy_under_attack_without_the_averaging():
    """Facts of the authors' script: the mean of clean and attacked accuracy is what it prints."""
    _, part = get_experiment("table4")._published()
    undone = {row["attack"]: float(row["attacked images alone"]) for row in part.rows}
    known = {"FGSM": 27.0, "PGD": 26.0, "TPGD": 39.8, "APGD": 38.8, "Square": 21.9, "OP1": 86.6, "OP5": 74.6}
    for attack, value in known.items():
        assert undone[attack] == pytest.approx(value, abs=0.06)
    assert undone["Transfer Attack"] == pytest.approx(11.9, abs=0.06)
    assert "Clean" not in undone


def test_costs_are_measured_once_for_all_rules(tmp_path, monkeypatch):
    measured = []

    def estimate(config, genotype, *, seconds):
        measured.append((config, genotype))
        if isinstance(config, ResNetConfig):
            raise InputError("too large")
        return len(measured)

    monkeypatch.setattr(costs, "estimate", estimate)
    options = ("--deterministic", "--batch-size", "32", "--set", "flip=true", "--tensorboard")
    steps = Plan(SMALL, tmp_path, 1, options).steps(list(SMALL.runs))
    found = {cost.step.name: (cost.estimate, cost.failure) for cost in estimate_costs(steps)}
    assert found == {"found": (1, ""), "trained": (2, ""), "usf": (2, ""), "residual": (None, "too large")}
    (search, nothing), (training, genotype), (residual, _) = measured
    assert search == SearchConfig(
        dataset="small:fashion-mnist,images=5000,shrink=2",
        channels=4,
        cells=1,
        epochs=3,
        space="nb201",
        rules=("usf", "bp"),
        batch_size=32,
        deterministic=True,
        flip=True,
        tensorboard=True,
        alpha_learning_rate=3e-4,
        warmup_epochs=0,
    )
    assert nothing is None and isinstance(training, TrainConfig) and genotype.skeleton == get_space("nb201").skeleton
    assert residual.momentum == 0.5 and residual.architecture == "resnet20" and residual.batch_size == 32


def test_folder_of_other_runs_is_refused(tmp_path):
    Plan(SMALL, tmp_path / "out", 1).claim()
    Plan(SMALL, tmp_path / "out", 3).claim()  # further seeds
    with pytest.raises(InputError, match=r"holds runs of .*choose another folder"):
        Plan(SMALL, tmp_path / "out", 1, ("--dataset", "digits")).claim()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and has no"):
        Plan(SMALL, tmp_path / "mine", 1).claim()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="did you mean 'table1'"):
        get_experiment("tabel1")
    with pytest.raises(InputError, match="unknown scale 'lab'"):
        Scale.read("lab")
    with pytest.raises(InputError, match="seeds: expected at least 1"):
        Plan(SMALL, tmp_path, 0)
    with pytest.raises(InputError, match="--seed is chosen here"):
        Plan(SMALL, tmp_path, 1, ("--seed", "4"))
