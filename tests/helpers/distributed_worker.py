"""One of the processes of test_distributed; ``torchrun … distributed_worker.py FOLDER`` is the one that dies."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

from bionas_fast.runtime import distributed
from bionas_fast.searching import Search, SearchConfig, loop, search
from bionas_fast.space import Space, get_space, register_space

SPACE = "two-nodes"
BASE = SearchConfig(
    space=SPACE,
    channels=2,
    cells=3,
    epochs=2,
    batch_size=32,
    dataset="small:digits,images=140",
    rules=("usf", "brsf"),
    operations=("sep_conv_3x3", "dil_conv_5x5", "skip_connect", "max_pool_3x3"),
    checkpoint_every=0,
)
CASES = {
    "darts": BASE,
    "modular": BASE.with_settings(engine="modular", epochs=1),
    # With seed 0 a difference of weights meets the kink of a ReLU, where rounding decides.
    "darts2": BASE.with_settings(method="darts2", epochs=1, seed=1),
    "eg": BASE.with_settings(method="eg", population=7, generations=2, robustness="fgsm"),
    "random": BASE.with_settings(method="random", population=6, generations=1, robustness="noise"),
}


def two_nodes() -> Space:
    """The space of the searches: cells of 5 edges."""
    return dataclasses.replace(get_space("bionas"), nodes=2)


def run(folder: Path) -> None:
    """Every search, one after the other."""
    register_space(SPACE)(two_nodes)
    for name, config in CASES.items():
        search(config, out=folder / name)


def die(folder: Path) -> None:
    """The second process is killed in the middle of the second epoch; the first is slow to say so."""
    register_space(SPACE)(two_nodes)
    step = Search.train_step

    def train_step(self, x, y):
        if self.epoch == 1 and self.steps_done == 1 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, x, y)

    Search.train_step = train_step
    from bionas_fast.cli import app

    def slow_console(*words, **options):
        time.sleep(1)
        return console(*words, **options)

    console, app.Console = app.Console, slow_console
    words = ["search", "--space", SPACE, "--channels", "2", "--cells", "3", "--epochs", "2", "--batch-size", "32"]
    words += ["--dataset", BASE.dataset, "--set", "checkpoint_every=0"]
    words += ["--rules", "usf,brsf", "--ops", ",".join(BASE.operations), "--out", str(folder / "dead")]
    app.main(words)


def blind(folder: Path) -> None:
    """The second process does not find the data."""
    from bionas_fast import InputError
    from bionas_fast.cli.app import main

    load = loop.configured

    def configured(config):
        if distributed.rank() == 1:
            raise InputError(f"{config.dataset}: not on this machine")
        return load(config)

    loop.configured = configured
    main(["search", "--out", str(folder / "blind")])


if __name__ == "__main__":
    die(Path(sys.argv[1]))
