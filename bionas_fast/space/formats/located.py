"""The place of an error in a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from bionas_fast.errors import InputError

T = TypeVar("T")


def located(where: str, parse: Callable[[str], T], text: str) -> T:
    """Call ``parse(text)``, and put the place in front of its error message."""
    try:
        return parse(text)
    except InputError as error:
        raise error.at(where) from None
