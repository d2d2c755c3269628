"""Checkpoints: written and read with checks of completeness, format and shape.

A checkpoint holds plain values and tensors, saved by ``torch.save`` and readable with
``torch.load(weights_only=True)``. Reading never executes code from the file.
"""

from __future__ import annotations

import copy
import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bionas_fast.config import RunConfig, changeable
from bionas_fast.errors import InputError

#: The format version written, and the only one accepted.
FORMAT = 1


def pack(state: Mapping[str, Any]) -> bytes:
    """Serialise a state of plain values and tensors."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    return buffer.getvalue()


def unpack(path: Path) -> dict[str, Any]:
    """Read the state from a file, onto the CPU.

    Raises:
        InputError: the file cannot be read, is damaged, is not a checkpoint, or has another format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        _check_archive(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns before it raises on a damaged file
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # on a damaged file, zipfile and torch raise many types of exceptions
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is damaged or no checkpoint: {reason}") from None
    number = state.get("format") if isinstance(state, dict) else None
    if type(number) is not int or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path} is no checkpoint of a run")
    if number != FORMAT:
        advice = "a newer version of bionas-fast wrote it" if number > FORMAT else "nothing reads that any more"
        raise InputError(f"{path} has format {number}, and this version of bionas-fast reads {FORMAT}: {advice}")
    return state


def _check_archive(data: bytes) -> None:
    """Verify all checksums, which ``torch.load`` does not do."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("its entries exceed the file size")
        wrong = archive.testzip()
        if wrong is not None:
            raise ValueError(f"the checksum of {wrong} does not fit")


def expect_form(value: Any, sample: Any, place: str) -> None:
    """Compare the types, keys, lengths, shapes and dtypes of two nested values, but not their numbers.

    Raises:
        InputError: at the first difference; the message names its place.
    """
    if isinstance(sample, Tensor):
        if not (type(value) is Tensor and value.layout == torch.strided and value.device.type == "cpu"):
            raise InputError(f"{place}: expected a tensor, got {type(value).__name__}")
        if value.dtype != sample.dtype or value.shape != sample.shape:
            raise InputError(f"{place}: expected {_form(sample)}, got {_form(value)}")
    elif isinstance(sample, Mapping):
        if not isinstance(value, dict):
            raise InputError(f"{place}: expected named values, got {type(value).__name__}")
        for name in (*sample, *value):
            if name not in value or name not in sample:
                raise InputError(f"{place}: {name!r:.80} is {'missing' if name in sample else 'unexpected'}")
            expect_form(value[name], sample[name], f"{place}.{name}")
    elif isinstance(sample, (list, tuple)):
        if type(value) is not type(sample) or len(value) != len(sample):
            raise InputError(f"{place}: expected a {type(sample).__name__} of {len(sample)}")
        for index, (entry, like) in enumerate(zip(value, sample, strict=True)):
            expect_form(entry, like, f"{place}[{index}]")
    elif type(value) is not type(sample):
        raise InputError(f"{place}: expected {type(sample).__name__}, got {type(value).__name__}")


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def load_optimizer(optimizer: torch.optim.Optimizer, state: Any, place: str = "optimizer") -> None:
    """Load the state of each parameter from the ``state_dict()`` of another optimiser.

    The settings of ``optimizer``, including the learning rate, are unchanged: they follow from a configuration.

    Raises:
        InputError: the state does not fit the parameters. The optimiser is then unchanged.
    """
    states = state.get("state") if isinstance(state, dict) else None
    if not isinstance(states, dict):
        raise InputError(f"{place}: not the state of an optimiser")
    sample = _state_after_a_step(optimizer)
    for index, entry in states.items():
        if index not in sample:
            raise InputError(f"{place}: {index!r:.80} is none of its {len(sample)} parameters")
        expect_form(entry, sample[index], f"{place}.{index}")
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _state_after_a_step(optimizer: torch.optim.Optimizer) -> dict[int, Any]:
    """Build a sample of an optimiser's state by stepping a copy with zero gradients."""
    sample = copy.deepcopy(optimizer)
    for group in sample.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    sample.step()
    return sample.state_dict()["state"]


def expect_run(state: Mapping[str, Any], kind: str, config: RunConfig) -> None:
    """Compare the kind and the settings in a checkpoint with those of the run to resume.

    Raises:
        InputError: kind or settings differ. The message names the setting and both values.
    """
    if state.get("kind") != kind:
        raise InputError(f"it holds a run of kind {state.get('kind')!r:.40}, not {kind!r}")
    saved = state.get("config")
    if not isinstance(saved, dict) or not all(isinstance(name, str) for name in saved):
        raise InputError("it holds no settings")
    expect_same(type(config)(**saved), config, "the checkpoint")


def expect_same(saved: RunConfig, config: RunConfig, where: str) -> None:
    """Compare all settings that affect the result of a run.

    Raises:
        InputError: a setting differs.
    """
    before, free = saved.model_dump(), changeable(type(config))
    for name, new in config.model_dump().items():
        old = before[name]
        if name not in free and new != old:
            raise InputError(
                f"{name}: {where} has {old!r}, not {new!r}; a resumed run keeps its settings "
                f"(all but {', '.join(free)})"
            )
