"""Export of trained networks for programs without this package: ONNX and torch.export."""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bionas_fast.config import RunRecord
from bionas_fast.data import DataShape
from bionas_fast.errors import InputError
from bionas_fast.runs.files import write_atomic
from bionas_fast.runs.folder import GENOTYPE, RunFolder
from bionas_fast.runtime.machine import machine
from bionas_fast.training.loading import load

#: Name of the metadata in a file of torch.export.
METADATA = "metadata.json"
#: Names of the input and the output in an ONNX file.
INPUT, OUTPUT = "images", "logits"
#: Packages that PyTorch's exporter to ONNX needs.
_ONNX = ("onnx", "onnxscript")
#: Bytes that a file of protocol buffers can hold.
_LARGEST = 2**31 - 1


class Normalised(nn.Module):
    """A network with the normalisation of its images: images in [0, 1], [N, C, H, W] → logits [N, classes].

    Args:
        network: maps normalised images to logits.
        mean, std: one value per channel, in units of [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def export(
    run_dir: str | Path,
    file: str | Path,
    *,
    best: bool = False,
    normalised: bool = False,
    plugins: Sequence[str] = (),
) -> dict[str, Any]:
    """Export the trained network of a run to a file that other programs read without this package.

    The network is in evaluation mode, without auxiliary head, in float32. Its input ``images`` [N, C, H, W] has the
    size of the training images and any N; its output is ``logits`` [N, classes].

    Args:
        run_dir: folder of a training run.
        file: ``FILE.onnx``, or ``FILE.pt2`` for :func:`torch.export.load`; written atomically, and replaced if it
            exists. An ONNX file holds its weights.
        best: export the checkpoint with the best accuracy on held-out images instead of the last one.
        normalised: leave the normalisation out: the network then takes images that are normalised already, instead of
            images in [0, 1].
        plugins: modules to import first, as for :func:`bionas_fast.load`.

    Returns:
        The metadata in the file: sizes, classes, mean and std, dataset, accuracy, genotype. In ONNX they are its
        metadata properties, as JSON; in the other format the extra file :data:`METADATA`.

    Raises:
        InputError: another ending, a missing folder, a package that ONNX needs is not installed, a run without a
            trained network.
    """
    file = Path(file)
    write = _writer(file)
    network = load(run_dir, plugins=plugins, best=best)
    folder = RunFolder.open(run_dir)
    metadata = _metadata(folder, folder.read(), best=best, normalised=normalised)
    if not normalised:
        network = Normalised(network, metadata["mean"], metadata["std"])
    # Of two images: sizes of 0 and 1 would become constants.
    images = torch.zeros(2, metadata["in_channels"], *metadata["image_size"])
    # Without gradients: the regions of Hebbian layers that turn them off cannot be written.
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(network.eval(), (images,), dynamic_shapes=_any_number())
        except Exception as error:  # of user-defined operations, too
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InputError(f"{run_dir}: torch.export cannot trace the network: {reason:.300}") from error
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        write_atomic(file, write(program, metadata))
    return metadata


def _any_number() -> tuple[dict[int, Any], ...]:
    """Describe the input to torch.export: its first dimension is free."""
    return ({0: torch.export.Dim("batch", min=1)},)


def _writer(file: Path) -> Callable[[torch.export.ExportedProgram, Mapping[str, Any]], bytes]:
    """Choose the format by the ending, and check that it can be written."""
    writers = {".onnx": _onnx, ".pt2": _pt2}
    write = writers.get(file.suffix.lower())
    if write is None:
        raise InputError(f"{file}: expected a file that ends in {' or '.join(writers)}")
    if not os.path.isdir(file.parent):
        raise InputError(f"cannot write {file}: there is no folder {file.parent}")
    if os.path.isdir(file):
        raise InputError(f"cannot write {file}: it is a folder")
    absent = [package for package in _ONNX if find_spec(package) is None]
    if write is _onnx and absent:
        raise InputError(
            f'{file}: ONNX needs the package {" and ".join(absent)}: pip install "bionas-fast[onnx]"; '
            "FILE.pt2 needs none"
        )
    return write


def _pt2(program: torch.export.ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
    return buffer.getvalue()


def _onnx(program: torch.export.ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    exported = torch.onnx.export(
        program, input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=_any_number(), dynamo=True, verbose=False
    )
    assert exported is not None
    model = exported.model_proto
    model.producer_name, model.producer_version = "bionas-fast", metadata["bionas-fast"]
    for name, value in metadata.items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    if model.ByteSize() > _LARGEST:
        raise InputError(f"{model.ByteSize() / 1e9:.1f} GB are too large for ONNX; export to FILE.pt2")
    return model.SerializeToString()


def _metadata(folder: RunFolder, record: RunRecord, *, best: bool, normalised: bool) -> dict[str, Any]:
    """Describe the network of a run."""
    genotype = folder.path / GENOTYPE
    return {
        **DataShape.read(record).entries(),
        "input": "normalised images: (images - mean) / std" if normalised else "images in [0, 1]",
        "dataset": record.settings.get("dataset"),
        "kind": record.kind,
        "architecture": record.settings.get("architecture"),
        "genotype": json.loads(genotype.read_text(encoding="utf-8")) if os.path.isfile(genotype) else None,
        "test_accuracy": _test_accuracy(folder.read_checkpoint(best=best)),
        "bionas-fast": machine()["bionas-fast"],
    }


def _test_accuracy(checkpoint: Mapping[str, Any]) -> float | None:
    """Return the accuracy of the weights in a checkpoint, in percent; None within an epoch, when it is unknown."""
    rows, tally = checkpoint.get("metrics"), checkpoint.get("tally")
    if not rows or not isinstance(rows, list) or not isinstance(tally, dict) or tally.get("steps"):
        return None
    found = rows[-1].get("test_accuracy") if isinstance(rows[-1], dict) else None
    return found if isinstance(found, float) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own workings from the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
