"""Schedules of learning rates."""

from __future__ import annotations

import math


def cosine(epoch: int, epochs: int, first: float, last: float = 0.0) -> float:
    """Return the learning rate of an epoch under cosine annealing from ``first`` towards ``last``.

    Loshchilov and Hutter 2017. In closed form: it needs no state and can be resumed at any epoch.
    """
    return last + (first - last) * (1 + math.cos(math.pi * epoch / epochs)) / 2
