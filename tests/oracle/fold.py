"""What a row must hold after a set of actions, computed from the whole set, one value at a time."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from schemas.actions import ActionType
from schemas.layout import layout_of
from schemas.plan import AccumulatorPlan, ConditionPlan, SequencePlan, ViewPlan
from schemas.row import Rows, empty_rows

#: One action: its ACTION record as a dict, and when its message was sent.
Sent = tuple[dict[str, Any], int]
State = dict[str, Any]

LIMITS = {"u8": 2**8 - 1, "u16": 2**16 - 1, "u32": 2**32 - 1}
TYPE_NAMES = {int(each): each.name.lower() for each in ActionType}


def least(dtype: str) -> int:
    """What stands for a column that is not known."""
    return 0 if dtype.startswith("u") else -(2 ** (int(dtype[1:]) - 1))


def as_dicts(actions: NDArray[np.void]) -> list[dict[str, Any]]:
    """ACTION records as dicts of Python numbers."""
    names = actions.dtype.names or ()
    return [dict(zip(names, record, strict=True)) for record in actions.tolist()]


def in_time(view: ViewPlan, action: dict[str, Any], sent_ms: int) -> bool:
    time_ms: int = action["time_ms"]
    return sent_ms - view.skew_ms <= time_ms <= sent_ms + view.future_ms


def since_deletion(sent: Sequence[Sent]) -> Sequence[Sent]:
    """What counts in a user's row: all that lies behind the last delete_user in the log."""
    deletions = [n for n, (action, _) in enumerate(sent) if action["type"] == 12]
    return sent[deletions[-1] + 1 :] if deletions else sent


def column_of(action: dict[str, Any], column: str) -> int | None:
    """A column's value, None where the edge did not know it."""
    if column == "tag":
        return int(action["tags"][0]) if action["known"] >> 4 else None
    bit = {"author": 1, "music": 2, "position": 8}.get(column, 0)
    return int(action[column]) if not bit or action["known"] & bit else None


def state_of(view: ViewPlan, sent: Sequence[Sent]) -> State | None:
    """The state fields of one row after exactly these actions; None when none is folded."""
    folded = [
        action
        for action, sent_ms in sent
        if action["type"] != ActionType.DELETE_USER and in_time(view, action, sent_ms)
    ]
    if not folded:
        return None
    newest = max(action["time_ms"] for action in folded)
    dtypes = {field.name: field.dtype for field in view.fields}
    state: State = {"newest_ms": newest}
    hops = {ring.hop_ms: by_tile(folded, ring.hop_ms) for ring in view.accumulators}
    for ring in view.accumulators:
        head = state[ring.head] = newest // ring.hop_ms
        state[ring.field] = [0] * ring.tiles * ring.width
        for tile in range(head - ring.tiles + 1, head + 1):
            inside = hops[ring.hop_ms].get(tile, [])
            numbers = tile_of(ring, dtypes[ring.field], inside)
            start = tile % ring.tiles * ring.width
            state[ring.field][start : start + len(numbers)] = numbers
    for sequence in view.sequences:
        entries = []
        for action in matching(folded, sequence):
            kept = [column_of(action, column) for column in sequence.columns]
            if sequence.gaps or None not in kept:
                lowest = [least(dtypes[field]) for field in sequence.fields]
                filled = [low if k is None else k for k, low in zip(kept, lowest, strict=True)]
                entries.append((action["time_ms"], *filled))
        newest_first = sorted(entries, reverse=True)[: sequence.capacity]
        for place, field in enumerate((sequence.time_field, *sequence.fields)):
            state[field] = [entry[place] for entry in newest_first]
    return state


def by_tile(actions: Sequence[dict[str, Any]], hop_ms: int) -> dict[int, list[dict[str, Any]]]:
    """Tile → its actions."""
    tiles: dict[int, list[dict[str, Any]]] = {}
    for action in actions:
        tiles.setdefault(action["time_ms"] // hop_ms, []).append(action)
    return tiles


def tile_of(ring: AccumulatorPlan, dtype: str, actions: Sequence[dict[str, Any]]) -> list[int]:
    """What is kept of the actions of one tile; nothing for none."""
    taken = matching(actions, ring)
    known = (
        [column_of(action, ring.column) for action in taken] if ring.column else [0] * len(taken)
    )
    values = [value for value in known if value is not None]
    if not values:
        return []
    if ring.function == "count":
        return [min(len(values), LIMITS[dtype])]
    if ring.function == "sum":
        return [min(sum(values), 2**51 - 1)]
    if ring.function == "squares":
        total = min(sum(value * value for value in values), 2**91 - 1)
        return [total % 2**40, total // 2**40]
    if ring.function in ("min", "max"):
        return [1 + (min(values) if ring.function == "min" else max(values))]
    hashes = {xxhash.xxh3_64_intdigest(struct.pack("<q", value)) for value in values}
    return sorted(min(each, 2**64 - 2) + 1 for each in hashes)[: ring.width]


def matching(
    actions: Sequence[dict[str, Any]], program: AccumulatorPlan | SequencePlan
) -> list[dict[str, Any]]:
    """The actions of the program's types that meet its conditions."""
    names = program.action.split("|")
    return [
        action
        for action in actions
        if ("*" in names or TYPE_NAMES[action["type"]] in names)
        and all(meets(action, condition) for condition in program.where)
    ]


def meets(action: dict[str, Any], condition: ConditionPlan) -> bool:
    value = column_of(action, condition.column)
    if value is None:
        return False
    if condition.op == "in":
        return value in condition.values
    (constant,) = condition.values
    return bool(eval(f"{value} {condition.op} {constant}"))


def rows_of(view: ViewPlan, entity_ids: Sequence[int], states: Sequence[State | None]) -> Rows:
    """The states as `Rows` with unstored fences, for comparison byte by byte."""
    rows = empty_rows(layout_of(view), np.array(entity_ids, np.int64))
    for index, state in enumerate(states):
        for name, value in (state or {}).items():
            if name == "newest_ms":
                rows.newest_ms[index] = value
            elif isinstance(value, list):
                rows.values[name][index, : len(value)] = value
                rows.lengths[name][index] = len(value)
                rows.present[name][index] = True
            else:
                rows.values[name][index] = value
                rows.present[name][index] = True
    return rows
