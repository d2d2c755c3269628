"""Loading of trained networks from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from bionas_fast.data import DataShape
from bionas_fast.errors import InputError
from bionas_fast.plugins import import_plugins, plugins_explained
from bionas_fast.runs.checkpoint import expect_form
from bionas_fast.runs.folder import RunFolder
from bionas_fast.runs.kinds import get_kind, kind_names
from bionas_fast.runtime.isolation import exclusive, ordinary_modes


def load(run_dir: str | Path, *, plugins: Sequence[str] = (), best: bool = False) -> nn.Module:
    """Load the trained network of a training run, in evaluation mode on the CPU.

    Args:
        run_dir: folder of the run.
        plugins: modules to import first; plugins named by the run are imported only if listed here.
        best: load the checkpoint with the best accuracy on held-out images instead of the last one.

    Raises:
        InputError: no such run, a run of another kind, a missing or damaged checkpoint.
    """
    folder = expect_trained(run_dir)
    record = folder.read()
    DataShape.read(record)
    import_plugins(plugins)
    with ordinary_modes(), exclusive():
        with plugins_explained(folder.path, given=plugins):
            network = get_kind(record.kind).trainer.load_network(folder, record)
        state = get_kind(record.kind).trainer.network_state(folder.read_checkpoint(best=best))
        try:
            expect_form(state, network.state_dict(), "net")
        except InputError as error:
            raise InputError(f"{folder.path}: the checkpoint does not fit the run: {error}") from None
        network.load_state_dict(state)
    return network.eval()


def expect_trained(run_dir: str | Path) -> RunFolder:
    """Open the folder of a training run.

    Raises:
        InputError: no such run, or a run of another kind; the message names the command that trains a network.
    """
    folder = RunFolder.open(run_dir)
    kind = folder.read().kind
    if kind not in kind_names() or not get_kind(kind).trains_network:
        raise InputError(f"{folder.path} holds no trained network; train one first: bionas-fast train {folder.path}")
    return folder
