"""The commands of docs/paper.md: every row has one, all are valid, and those of the desk run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

import bionas_fast as bf
from bionas_fast import presets
from bionas_fast.cli.app import main
from bionas_fast.data import Dataset, dataset_size, names
from bionas_fast.estimation import steps
from bionas_fast.models import NetworkOptions, measure_size
from bionas_fast.reproduce import Plan, Scale, scale_names
from bionas_fast.runs.folder import GENOTYPE, RunFolder
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.searching.checks import check
from bionas_fast.space import get_space, published
from bionas_fast.space.sampling import random_genotype
from helpers import registries

PAGE = Path(__file__).parents[1] / "docs" / "paper.md"
TEXT = PAGE.read_text(encoding="utf-8")

#: The rows of the paper's tables.
ROWS = {
    "Table 1": (
        *("ResNet", "ENAS + cutout", "AmoebaNet-A", "NSGA-Net", "NSGANetV1-A2", "EPCNAS-C", "EAEPSO", "DARTS (1st)"),
        *("DARTS (2nd)", "SNAS + cutout", "ProxylessNAS + cutout", "GDAS", "BayesNAS", "P-DARTS + cutout"),
        *("PC-DARTS + cutout", "DARTS-", "β-DARTS", "DrNAS", "DARTS+PT", "EG-NAS", "ResNet20 FA", "ResNet20 BP"),
        *("ResNet56 FA", "ResNet56 BP", "SNASNet", "SoftHebb", "FastHebb", "BioNAS-EG", "BioNAS-DARTS"),
        "BioNAS-DARTS-HL-PC",
    ),
    "Table 2": (
        *("BioNAS-DARTS", "BioNAS-EG", "SoftHebb", "FastHebb", "Inception-v1", "MobileNet", "DARTS", "SNAS", "EG-NAS"),
    ),
    "Table 3": (
        *("BioNAS-EG", "BioNAS-DARTS", "ResNet", "Random", "ENAS", "Random-NAS", "SETN", "DSNAS", "DARTS-V1 (BP)"),
        *("PC-DARTS", "iDARTS", "DARTS [10]", "EGNAS"),
    ),
    "Table 5": ("BioNAS-DARTS", "BioNAS-DARTS1", "BioNAS-DARTS2", "BioNAS-DARTS3", "BioNAS-DARTS6"),
}


def commands(text: str = TEXT) -> list[list[str]]:
    """The commands of a text, in its order: what follows ``bionas-fast``."""
    found = re.findall(r"(?:`|^)(?:bionas-fast|torchrun [^`\n]* -m bionas_fast) ([^`\n]+)", text, re.MULTILINE)
    return [shlex.split(words) for words in found if not words.startswith(("presets", "evaluate", "reproduce"))]


@pytest.mark.parametrize("table", ROWS)
def test_every_row_is_named(table):
    """In the first column, or after it, with its figure, among those that are quoted only."""
    sections = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    (own,) = (part for part in sections if part.startswith(table))
    rows = [line for line in own.splitlines() if line.startswith("| ") and not line.startswith("| row")]
    first = [line.split("|")[1].strip() for line in rows]
    quoted = " ".join(line for line in own.splitlines() if not line.startswith("|"))
    for row in ROWS[table]:
        assert any(re.match(rf"{re.escape(row)}(,| \(in|$)", cell) for cell in first) or f"{row} " in quoted, row
    for line in rows:
        assert commands(line), line


class Planned(Exception):
    """The command would begin here."""


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """Searches and trainings end before they begin; searches leave a run folder with some genotype of their space."""
    monkeypatch.chdir(tmp_path)
    (file,) = re.findall(r"^echo '(.*)' > (\S+)$", TEXT, re.MULTILINE)
    (tmp_path / file[1]).write_text(file[0] + "\n")

    def search(config, *, out, **_):
        check(config)
        space = get_space(config.space).restricted(config.rules, config.operations)
        genotype = random_genotype(space, torch.Generator().manual_seed(0))
        with RunFolder.create(out) as folder:
            folder.write_config("search", config.settings())
            folder.write(GENOTYPE, genotype.to_json())
        raise Planned

    def stop(*_, **__):
        raise Planned

    monkeypatch.setattr(bf, "search", search)
    for name in ("train", "compare_rules", "repeat_training", "compare_genotypes", "repeat_search"):
        monkeypatch.setattr(bf, name, stop)
    for kind in map(get_kind, kind_names()):
        if kind.sources:
            monkeypatch.setattr(kind.trainer, "start", stop)


def test_every_command_is_valid(planned):
    assert len(commands()) > 70
    for words in commands():
        with pytest.raises(Planned):
            main([*words, "--debug"])


@pytest.mark.parametrize("scale", scale_names())
def test_every_command_of_reproduce_is_valid(planned, tmp_path, scale):
    own = Scale.read(scale)
    for step in Plan(own, tmp_path / "runs", 1, ("--device", "cpu")).steps(list(own.runs)):
        with pytest.raises(Planned):
            main([*step.command(), "--debug"])


@pytest.fixture
def small_data(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (file,) = re.findall(r"^echo '(.*)' > (\S+)$", TEXT, re.MULTILINE)
    (tmp_path / file[1]).write_text(file[0] + "\n")

    def load(data_dir=None, *, download=False, seed=0):
        x = torch.randint(256, (40, 1, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        y = torch.arange(40) % 10
        return Dataset.from_tensors("fashion-mnist", (x, y), (x[:10], y[:10]), 10)

    registries.load()
    monkeypatch.setitem(names.registry._items, "fashion-mnist", load)


#: Desk commands of every form, which run here; the others differ in names and settings, which are checked above.
FORMS = """\
search --preset cpu-fashion --out runs/desk
train runs/desk --preset cpu-fashion-train
train biodarts2 --preset cpu-fashion-train --shuffle-rules 1
train biodarts2 --preset cpu-fashion-train --set stem=imagenet --set label_smoothing=0.1
train resnet20 --preset cpu-fashion-resnet20 --rule bp
train softhebb --preset softhebb-fashion-mnist
search --preset cpu-fashion --space nb201 --cells 1 --out runs/desk-nb201
train runs/desk-nb201 --preset cpu-fashion-train --cells 1
""".splitlines()


def test_desk_commands_run(small_data, capsys):
    """Each for two steps or more, on 40 images."""
    for words in map(str.split, FORMS):
        assert words in commands()
        sizes = (
            [] if words[1] in ("resnet20", "softhebb") or "--cells" in words else ["--channels", "2", "--cells", "3"]
        )
        with pytest.raises(SystemExit) as stop:
            main([*words, *sizes, "--epochs", "1", "--batch-size", "8"])
        assert stop.value.code == 0, (words, capsys.readouterr().err)


def costs() -> list[list[str]]:
    """The cells of the table of costs."""
    lines = TEXT.partition("## Costs")[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    assert len(rows) > 15
    return rows


def number(text: str) -> float:
    return float(text.replace(",", ""))


def test_every_preset_of_a_command_has_its_costs():
    named = {words[words.index("--preset") + 1] for words in commands() if "--preset" in words}
    listed = {cell.strip("`") for row in costs() for cell in row[0].split(", ")}
    assert named <= listed


def test_steps_and_batches_of_the_costs():
    for row in costs():
        for name in (cell.strip("`") for cell in row[0].split(", ")):
            preset = presets.get(name)
            config = get_kind(preset.kind).settings(**preset.settings)
            assert number(row[4]) == steps(config), name
            assert number(row[5]) == config.batch_size, name


@pytest.mark.parametrize(
    "name", ["cifar10-train", "imagenet-train", "resnet20-cifar10-biotorch", "softhebb-cifar10", "cpu-fashion"]
)
def test_sizes_of_the_costs(name):
    """Sizes of the networks as the library's user builds them."""
    preset = presets.get(name)
    config = get_kind(preset.kind).settings(**preset.settings)
    size = dataset_size(config)
    shape = {"num_classes": size.num_classes, "in_channels": size.image[0]}
    if preset.kind == "train":
        options = NetworkOptions(config.stem, config.initialisation)
        network = bf.build_network(
            published("biodarts2").genotype, channels=config.channels, cells=config.cells, options=options, **shape
        )
    elif preset.kind == "search":
        network = bf.build_supernet(channels=config.channels, cells=config.cells, **shape)
    elif preset.kind == "resnet":
        network = bf.build_resnet(config.architecture, **shape)
    else:
        network = bf.build_softhebb(config.architecture, image_size=size.image[1:], **shape)
    row = next(row for row in costs() if f"`{name}`" in row[0].split(", "))
    found = measure_size(network, size.image)
    assert (number(row[2]), number(row[3])) == (found.parameters, round(found.operations / 1e6, 1))
