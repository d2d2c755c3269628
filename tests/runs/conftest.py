"""Runs that the tests of this folder share: each is made once per worker."""

from __future__ import annotations

import pytest
import yaml

from bionas_fast.runs.folder import RunFolder
from helpers import killing
from helpers.genotypes import GENOTYPE
from helpers.runs import SETTINGS, advance, make, put_dataset


@pytest.fixture(autouse=True)
def _small_runs(monkeypatch):
    put_dataset(monkeypatch, killing.specks)


@pytest.fixture(scope="session")
def runner():
    with killing.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def begin(tmp_path_factory):
    """The arguments that begin a run of each kind."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "genotype.json").write_text(GENOTYPE.to_json())
    words = {"search": ["search"], "train": ["train", folder / "genotype.json"], "softhebb": ["train", "softhebb"]}
    for kind, settings in SETTINGS.items():
        text = yaml.safe_dump({n: list(v) if isinstance(v, tuple) else v for n, v in settings.items()})
        (folder / f"{kind}.yaml").write_text(text)
    return {kind: [*own, "--config", folder / f"{kind}.yaml"] for kind, own in words.items()}


@pytest.fixture(scope="session")
def whole(runner, begin, tmp_path_factory):
    """For each kind the folder of a run that nothing stopped, and how long it took."""
    found = {}
    for kind, words in begin.items():
        folder = tmp_path_factory.mktemp("whole") / kind
        end = runner(*words, "--out", folder)
        assert end.code == 0, end.stderr
        found[kind] = folder, end.seconds
    return found


@pytest.fixture
def stopped(tmp_path):
    """A search that was stopped in its second epoch, and the folder of it."""
    trainer = make("search")
    with RunFolder.create(tmp_path / "stopped") as folder:
        trainer.write_beginning(folder)
        advance(trainer, 4)
        folder.write_metrics(trainer.metrics)
        trainer.write_results(folder)
        folder.write_checkpoint(trainer.state_dict(), best=True)
        advance(trainer, 2)
        folder.write_checkpoint(trainer.state_dict())
    return folder.path
