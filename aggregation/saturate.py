"""Narrowing that never wraps around."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def saturate(values: Array, dtype: np.dtype[Any]) -> Array:
    """int64 values as `dtype`: cut off at an integer type's ends, rounded to a float type.

    >>> saturate(np.array([-1, 300]), np.dtype("u1"))
    array([  0, 255], dtype=uint8)
    """
    if values.dtype == dtype:
        return values
    if dtype.kind in "iu":
        ends = np.iinfo(dtype)
        low, high = max(ends.min, -(1 << 63)), min(ends.max, (1 << 63) - 1)
        return np.clip(values, low, high).astype(dtype)
    return values.astype(dtype)
