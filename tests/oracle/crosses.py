"""A cross of two values, by plain Python: the table of operators, one result at a time."""

from __future__ import annotations

import math
from typing import Any

from schemas.plan import CrossPlan


def cross_value(cross: CrossPlan, left: Any, right: Any) -> float | None:
    """The value, None where it is missing. left, right: numbers, lists, or None for null."""
    for operand, value in zip(cross.operands, (left, right), strict=True):
        if value is None or value in operand.sentinels:
            return None
        if not isinstance(value, list) and math.isnan(value):
            return None
    if cross.operator == "contains":
        return bool(right in left)
    if cross.operator == "share":
        return float(left.count(right) / len(left)) if left else 0.0
    if cross.operator == "position":
        return int(left.index(right)) if right in left else -1
    if cross.operator == "equals":
        return bool(left == right)
    if cross.operator == "difference":
        return float(left) - float(right)
    if cross.operator == "dot":
        return float(sum(a * b for a, b in zip(left, right, strict=False)))
    if right + cross.weight == 0:
        return None
    return float((left + cross.prior * cross.weight) / (right + cross.weight))
