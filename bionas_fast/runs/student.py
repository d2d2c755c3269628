"""Quantiles of Student's t distribution with a whole number of degrees of freedom."""

from __future__ import annotations

import math


def two_sided_probability(angle: float, freedom: int) -> float:
    """Compute the probability that \\|T\\| is less than t, for t = √freedom · tan(angle).

    The finite series of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.

    Args:
        angle: in radians, from 0 to π/2.
        freedom: degrees of freedom, at least 1.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def student_quantile(confidence: float, freedom: int) -> float:
    """Compute t such that \\|T\\| is less than t with a probability of ``confidence``, by bisection.

    Args:
        confidence: between 0 and 1.
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if two_sided_probability(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)
