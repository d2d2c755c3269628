"""Parsing with the place of an error in its message."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from bionas_fast.errors import InputError

T = TypeVar("T")


def located(where: str, parse: Callable[[str], T], text: str) -> T:
    """Call ``parse(text)`` and prefix the message of an InputError with the place."""
    try:
        return parse(text)
    except InputError as error:
        raise error.at(where) from None
