"""Values at and beyond the edges of every setting, discovered from the settings themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

from bionas_fast.config import Config

#: Values of every type, most of them wrong for most settings.
ANYTHING: tuple[Any, ...] = (
    *(-1, 0, 1, 2**31, 2**62, 2**64, 10**400),
    *(-1.0, 0.0, 0.5, 5e-324, 1e300, math.nan, math.inf, -math.inf),
    *(True, False, None, "", "nan", "inf", "1e300", "x", "\x00", "é" * 5000, "../" * 2000),
    *([], [None], [1, 2, 3], [math.nan, 1], [math.inf, math.inf], ["x" * 5000]),
    *([0.5, 0.5], [0.0, 0.0], [5e-324, 5e-324], [1e300, 1e300], [math.nextafter(1, 0)] * 2),
    *({}, {"x": 1}, {"stem": "x"}, b"x", object),
)  # fmt: skip


def values(config: type[Config], name: str) -> Iterator[Any]:
    """Yield values for a setting: its default, the edges of its range and beyond, and values of every type."""
    field = config.model_fields[name]
    yield field.get_default(call_default_factory=True)
    for mark in field.metadata:
        for edge in ("ge", "gt", "le", "lt"):
            limit = getattr(mark, edge, None)
            if limit is not None:
                yield from (limit, limit - 1, limit + 1)
                yield from (math.nextafter(limit, side) for side in (-math.inf, math.inf))
    yield from get_args(field.annotation)
    yield from ANYTHING
