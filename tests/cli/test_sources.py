"""Genotypes as arguments of ``bionas-fast train``: searches with one seed or with several, files, published names."""

from __future__ import annotations

import csv

import pytest

import bionas_fast as bf
from bionas_fast import InputError
from bionas_fast.cli.app import main
from bionas_fast.cli.options import Given
from bionas_fast.cli.sources import Source, configuration
from bionas_fast.space import published
from helpers import killing
from helpers.genotypes import GENOTYPE
from helpers.runs import SETTINGS, put_dataset

SEARCH = bf.SearchConfig(**{**SETTINGS["search"], "epochs": 1, "batch_size": 24, "method": "random"})
WORDS = ("--epochs", "1", "--channels", "1", "--cells", "2", "--batch-size", "24")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    put_dataset(monkeypatch, killing.specks)


@pytest.fixture(scope="module")
def searches(tmp_path_factory):
    """The folders of two searches with two seeds each; of the second, one has no skip rules."""
    folder = tmp_path_factory.mktemp("searches")
    with pytest.MonkeyPatch.context() as patch:
        put_dataset(patch, killing.specks)
        bf.repeat_search(SEARCH, seeds=2, out=folder / "first")
        bf.repeat_search(SEARCH.with_settings(seed=1, skip_rules=False), seeds=1, out=folder / "second")
    return folder


def train(*words):
    with pytest.raises(SystemExit) as end:
        main(["train", *map(str, words)])
    return end.value.code


def test_what_a_word_names(searches, tmp_path, monkeypatch):
    genotypes = [bf.Genotype.load(searches / "first" / f"seed-{seed}" / "genotype.json") for seed in (0, 1)]
    several = Source.read(str(searches / "first"))
    assert (several.name, several.found) == ("first", dict(enumerate(genotypes)))
    one = Source.read(f"mine={searches / 'first' / 'seed-1'}")
    assert (one.name, one.found) == ("mine", genotypes[1])
    assert Source.read("biodarts2") == Source("biodarts2", published("biodarts2").genotype, {})
    monkeypatch.chdir(tmp_path)
    # A file whose name has an equals sign.
    (tmp_path / "lr=1.json").write_text(GENOTYPE.to_json())
    assert Source.read("lr=1.json") == Source("lr=1", GENOTYPE, {})
    assert Source.read("new=lr=1.json").name == "new"
    with pytest.raises(InputError, match="cannot read genotype nowhere"):
        Source.read("mine=nowhere")


def test_settings_are_those_of_the_searches(searches):
    first, second = (Source.read(str(searches / name)) for name in ("first", "second"))
    assert configuration([first], Given(None, None, {})).dataset == killing.DATASET
    assert configuration([second], Given(None, None, {})).skip_rules is False
    with pytest.raises(InputError, match=r"skip_rules: .*first/seed-0 has True, .*second/seed-1 has False"):
        configuration([first, second], Given(None, None, {}))
    with pytest.raises(InputError, match=r"skip_rules: expected False as in the run .*second/seed-1, got True"):
        configuration([first, second], Given(None, None, {"skip_rules": True}))
    assert configuration([first], Given(None, None, {"dataset": "digits"})).dataset == "digits"


def test_a_search_that_is_not_complete_is_not_trained(searches, tmp_path):
    folder = tmp_path / "seed-0"
    folder.mkdir()
    for name in ("config.yaml", "genotype.json"):
        (folder / name).write_bytes((searches / "first" / "seed-0" / name).read_bytes())
    with pytest.raises(InputError, match="seed-0: the search is not complete"):
        Source.read(str(tmp_path))


def test_several_genotypes_are_compared(searches, tmp_path, capsys):
    (tmp_path / "mine.json").write_text(GENOTYPE.to_json())
    words = (searches / "first", tmp_path / "mine.json", *WORDS, "--dataset", killing.DATASET)
    assert train(*words, "--rule", "brsf", "--everywhere", "--out", tmp_path / "all") == 0
    out = capsys.readouterr().out
    with (tmp_path / "all" / "table.csv").open() as file:
        rows = [(row["variant"], row["seed"], row["bp %"]) for row in csv.DictReader(file)]
    names = ("first brsf:everywhere", "mine brsf:everywhere")
    assert rows == [(name, seed, "0.0") for name in names for seed in ("0", "1")]
    assert all(name in out for name in ("first", "mine", "minus", str(tmp_path / "all")))
    trained = bf.load(tmp_path / "all" / "mine-brsf-everywhere" / "seed-1").genotype
    assert trained == GENOTYPE.with_rule("brsf", everywhere=True)
    # One folder of searches alone; to be continued, the folder must exist.
    assert train(searches / "first", *WORDS, "--resume", tmp_path / "all") == 0
    assert (tmp_path / "all" / "first" / "seed-1" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["biodarts2", "biodarts2"], "expected different names, got biodarts2, biodarts2; give NAME=GENOTYPE"),
        (["resnet20", "biodarts2"], "resnet20: expected nothing else to train"),
        (["biodarts2", "--seeds", "2", "--out", "a", "--resume", "b"], "--out and --resume: give one of them"),
        (["biodarts2", "--seeds", "2", "--resume", "."], "no runs to resume"),
        (["biodarts2", "--compare", "usf", "--rule", "bp"], "--compare names the rules of all variants"),
        (["biodarts2", "--everywhere"], "--everywhere needs --rule"),
        (["resnet20", "--shuffle-rules", "1"], "a resnet has one rule"),
    ],
)
def test_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(*words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
