"""After the chaos: every row against the oracle, bit for bit, and each action counted once.

The oracle is the slow one of the tests, fed with what the producer was told is in the log. Besides
the demo's views two hold nothing but the number of an entity's actions: their difference to the
truth says how many actions are lost and how many counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import AccumulatorPlan, FeaturePlan, FieldPlan, Side, ViewPlan
from schemas.row import TOMBSTONE_MS, encode_rows, read_fence
from store.base import RowStore
from tests.oracle.fold import Sent, as_dicts, rows_of, since_deletion, state_of

DAY_MS: Final = 86_400_000
TILES: Final = 4

#: What one message held, and when it was sent.
Logged = tuple[NDArray[np.void], int]
#: Of each side: entity → its actions, in the order of its log, and when each was sent.
Histories = Mapping[Side, Mapping[int, Sequence[Sent]]]


@dataclass(slots=True)
class Verdict:
    """actions: logged. rows: that must be there. unequal: of them, and rows that nobody expects.
    unlogged: actions that the broker confirmed, and that are in no log."""

    actions: int = 0
    rows: int = 0
    unequal: int = 0
    lost: int = 0
    doubled: int = 0
    unlogged: int = 0


def totals_view(name: str, entity: Side, source: str, like: ViewPlan) -> ViewPlan:
    """Counts all actions of an entity, within the time bounds of another view."""
    fields = (FieldPlan(0, "head", "i64"), FieldPlan(1, "total_tiles", "u32", TILES))
    ring = AccumulatorPlan("total_tiles", "head", "count", "*", "", DAY_MS, TILES)
    feature = FeaturePlan("total", "i64", "window", "total_tiles", tiles=TILES)
    return ViewPlan(
        name=name,
        entity=entity,
        kind="streamed",
        generation=1,
        fields=fields,
        features=(feature,),
        source=source,
        skew_ms=like.skew_ms,
        future_ms=like.future_ms,
        accumulators=(ring,),
    )


def histories_of(logged: Sequence[Logged]) -> Histories:
    """Whose rows must be there, and of what."""
    found: dict[Side, dict[int, list[Sent]]] = {"user": {}, "item": {}}
    for actions, sent_ms in logged:
        for action in as_dicts(actions):
            for side, histories in found.items():
                histories.setdefault(action[side], []).append((action, sent_ms))
    return found


def check_view(store: RowStore, view: ViewPlan, histories: Histories, verdict: Verdict) -> None:
    """Compare all rows of one view; adds to the verdict."""
    history = histories[view.entity]
    entities = sorted(history)
    states = [_state(view, history[entity]) for entity in entities]
    raw = store.read(row_keys(view.name, view.generation, entities))
    wanted = rows_of(view, entities, states)
    for index, row in enumerate(raw):
        wanted.epoch[index], wanted.offset[index] = read_fence(row) or (0, 0)
    encoded = encode_rows(layout_of(view), wanted)
    for state, row, right in zip(states, raw, encoded, strict=True):
        verdict.rows += state is not None
        verdict.unequal += row != (None if state is None else right)
        if "total_tiles" in {field.name for field in view.fields}:
            surplus = _total(view, row) - sum((state or {}).get("total_tiles", ()))
            verdict.lost += max(0, -surplus)
            verdict.doubled += max(0, surplus)


def unlogged(confirmed: list[Logged], logged: list[Logged]) -> int:
    """How many actions were confirmed and are not in the log."""
    missing = _count(confirmed)
    missing.subtract(_count(logged))
    return sum(count for count in missing.values() if count > 0)


def _count(batches: list[Logged]) -> Counter[tuple[int, ...]]:
    names = ("user", "item", "type", "time_ms", "value")
    return Counter(
        action
        for actions, _ in batches
        for action in zip(*(actions[name].tolist() for name in names), strict=True)
    )


def _state(view: ViewPlan, history: Sequence[Sent]) -> dict[str, Any] | None:
    """What the row must hold; of a deleted user without anything since, a tombstone."""
    if view.entity == "item":
        return state_of(view, history)
    counts = since_deletion(history)
    if len(counts) == len(history):
        return state_of(view, history)
    return state_of(view, counts) or {"newest_ms": TOMBSTONE_MS}


def _total(view: ViewPlan, row: bytes | None) -> int:
    record = layout_of(view).record
    if row is None or len(row) != record.itemsize:
        return 0
    return int(np.frombuffer(row, record)["total_tiles"].sum())
