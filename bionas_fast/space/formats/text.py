"""A genotype in any text: the form is recognised, and what surrounds the genotype is ignored."""

from __future__ import annotations

import re
from collections.abc import Callable

from bionas_fast.errors import InputError
from bionas_fast.space.edges import Cell
from bionas_fast.space.formats import darts, json, nb201
from bionas_fast.space.formats.source import Call, calls, refuse

_READERS: dict[str, Callable[[Call], dict[str, Cell]]] = {"Genotype": darts.read, "Structure": nb201.read_call}
_SHOWN = 8


def read(text: str) -> tuple[dict[str, Cell], dict[str, str] | None]:
    """Read the cells and, from JSON, the fixed rules; see :meth:`Genotype.from_text`."""
    text = text.removeprefix("\ufeff")
    if cells := read_calls(text):
        return cells, None
    if nb201.find(text):
        return nb201.read(text), None
    if text.lstrip().startswith("{"):
        return json.read(text)
    raise refuse(text)


def read_calls(text: str) -> dict[str, Cell]:
    """Read the genotype that the calls in a text construct; empty if there is no call.

    Raises:
        InputError: a call that cannot be read; calls that construct different genotypes.
    """
    found = {re.sub(r"\s", "", call.source): call for call in calls(text)}
    if not found:
        return {}
    first, *others = found.values()
    if not others:
        return _READERS[first.function](first)
    try:
        cells = _READERS[first.function](first)
        if all(_READERS[call.function](call) == cells for call in others):
            return cells
    except InputError:
        pass  # which of them is meant matters more than what is wrong with one
    names = [f"{call.name or call.function} (line {call.line})" for call in found.values()]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise InputError(f"genotype: expected one, got {len(names)}: {', '.join(names[:_SHOWN])}{more}")
