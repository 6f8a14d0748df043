"""What a reader must get of one row at `now_ms`, one value at a time.

A row is a dict field → number or list, None for null, and `newest_ms`; {} is the empty row.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from schemas.plan import AccumulatorPlan, FeaturePlan, ViewPlan
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
    if feature.kind == "last":
        held = next(s for s in view.sequences if feature.source in (*s.fields, s.time_field))
        pairs = zip(row.get(held.time_field) or [], row.get(feature.source) or [], strict=True)
        past = [(time_ms, value) for time_ms, value in pairs if time_ms <= now_ms]
        if past and (not feature.within_ms or past[0][0] > now_ms - feature.within_ms):
            return now_ms - past[0][0] if feature.source == held.time_field else past[0][1]
        return None
    if feature.kind == "ratio":
        above, below = (value_of(view, view.feature(name), row, now_ms) for name in feature.sources)
        if above is None or below is None or below + feature.weight == 0:
            return None
        return (float(above) + feature.prior * feature.weight) / (float(below) + feature.weight)
    rings = [ring for name in feature.sources for ring in view.accumulators if ring.field == name]
    return of_tiles(
        feature, rings[0].hop_ms, [tiles_of(ring, feature, row, now_ms) for ring in rings]
    )


def tiles_of(ring: AccumulatorPlan, feature: FeaturePlan, row: Row, now_ms: int) -> list[list[int]]:
    """What each tile of the feature's window keeps, the newest first; zeros for nothing."""
    head, held = row.get(ring.head), row.get(ring.field)
    tiles = []
    for age in range(feature.tiles):
        tile = now_ms // ring.hop_ms - age
        if head is None or held is None or not head - ring.tiles < tile <= head:
            tiles.append([0] * ring.width)
        else:
            start = tile % ring.tiles * ring.width
            tiles.append(held[start : start + ring.width])
    return tiles


def of_tiles(feature: FeaturePlan, hop_ms: int, rings: list[list[list[int]]]) -> Any:
    """The value from the tiles of each of the feature's rings."""
    first = [tile[0] for tile in rings[0]]
    if feature.kind == "window":
        low, high = RANGES[feature.dtype]
        return min(max(sum(first), low), high)
    if feature.kind == "decayed_sum":
        decayed = 0.0
        for age, kept in enumerate(first):
            weight = 0.5 ** (age * hop_ms / feature.half_life_ms)
            decayed += kept * float(f"{weight:.12g}")
        return decayed
    if feature.kind == "mean":
        count = sum(tile[0] for tile in rings[1])
        return float(sum(first)) / float(count) if count else None
    if feature.kind == "std":
        squares = sum(low + high * 2**40 for low, high in rings[0])
        total, count = (sum(tile[0] for tile in ring) for ring in rings[1:])
        if not count:
            return None
        variance = Fraction(squares, count) - Fraction(total, count) ** 2
        return math.sqrt(variance) if variance > 0 else 0.0
    if feature.kind in ("min", "max"):
        ends = [value - 1 for value in first if value]
        return (min(ends) if feature.kind == "min" else max(ends)) if ends else None
    full = [tile[-1] for tile in rings[0] if tile[-1]]
    known = {each for tile in rings[0] for each in tile if each and each < min(full, default=2**64)}
    return round(len(known) * 2**64 / min(full)) if full else len(known)


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
