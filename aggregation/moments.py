"""Means and standard deviations from the exact sums of values and of their squares.

Symbols: n rows.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.tiles import WORD_BITS

Array = NDArray[Any]
Floats = NDArray[np.float64]

_TWO_TO_64: Final = float(1 << 64)


def mean(count: NDArray[np.int64], total: NDArray[np.int64]) -> Floats:
    """(n,) each; 0 where count is 0."""
    result: Floats = total / np.maximum(count, 1)
    return result


def deviation(count: Array, total: Array, low: Array, high: Array) -> Floats:
    """The standard deviation of the whole population, sqrt(E[v^2] - E[v]^2).

    count, total: (n,) int64. low, high: (n,) int64, S = sum of v^2 = high * 2^40 + low. Returns
    (n,), 0 where count is 0.

    With m the mean rounded to a whole number and r = total - count * m, D = sum of (v - m)^2 =
    S - m * (count * m + 2r) and the variance is D / count - (r / count)^2, where little cancels:
    the latter is at most half of the former. D is exact: it is known mod 2^64, and in floats to
    within 2^53, since S < 2^103.
    """
    count = np.maximum(count, 1)
    whole, rest = np.divmod(total, count)
    up = 2 * rest > count
    whole, rest = whole + up, rest - count * up
    shift = count * whole + 2 * rest  # mod 2^64, as all int64 arrays
    exact = ((high << WORD_BITS) + low - whole * shift).view(np.uint64).astype(np.float64)
    near = _wide(high, low) - whole * (count.astype(np.float64) * whole + 2.0 * rest)
    spread = exact + np.rint((near - exact) / _TWO_TO_64) * _TWO_TO_64  # D
    variance = spread / count - (rest / count) ** 2
    result: Floats = np.sqrt(np.maximum(variance, 0.0))
    return result


def _wide(high: Array, low: Array) -> Floats:
    """high * 2^40 + low in floats."""
    return high.astype(np.float64) * float(1 << WORD_BITS) + low.astype(np.float64)
