"""What a reader must get of one row at `now_ms`, one value at a time.

A row is a dict field → number or list, None for null, and `newest_ms`; {} is the empty row.
"""

from __future__ import annotations

from typing import Any

from schemas.plan import FeaturePlan, ViewPlan
from schemas.row import Rows

Row = dict[str, Any]

RANGES = {
    f"{sign}{bits}": (0, 2**bits - 1) if sign == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for sign in "iu"
    for bits in (8, 16, 32, 64)
}


def value_of(view: ViewPlan, feature: FeaturePlan, row: Row, now_ms: int) -> Any:
    """A number, a list, or None for null."""
    if view.ttl_ms and row.get("newest_ms", 0) < now_ms - view.ttl_ms:
        row = {}
    if feature.kind == "field":
        value = row.get(feature.source)
        return value[: feature.capacity] if isinstance(value, list) else value
    if feature.kind in ("sequence", "age"):
        times_field = next(
            sequence.time_field
            for sequence in view.sequences
            if feature.source in (*sequence.fields, sequence.time_field)
        )
        pairs = zip(row.get(times_field) or [], row.get(feature.source) or [], strict=True)
        values = [value for time_ms, value in pairs if time_ms <= now_ms][: feature.capacity]
        return [now_ms - time_ms for time_ms in values] if feature.kind == "age" else values
    ring = next(ring for ring in view.accumulators if ring.field == feature.source)
    head, slots = row.get(ring.head), row.get(ring.field)
    total = 0
    if head is not None and slots is not None:
        now_tile = now_ms // ring.hop_ms
        for tile in range(now_tile - feature.tiles + 1, now_tile + 1):
            if head - ring.tiles < tile <= head:
                total += slots[tile % ring.tiles]
    low, high = RANGES[feature.dtype]
    return min(max(total, low), high)


def row_of(view: ViewPlan, rows: Rows, index: int) -> Row:
    """One of `Rows` as a dict."""
    row: Row = {"newest_ms": int(rows.newest_ms[index])}
    for field in view.fields:
        if not rows.present[field.name][index]:
            row[field.name] = None
        elif field.capacity:
            length = int(rows.lengths[field.name][index])
            row[field.name] = rows.values[field.name][index, :length].tolist()
        else:
            row[field.name] = rows.values[field.name][index].item()
    return row
