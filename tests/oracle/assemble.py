"""A request's tensors from its stored rows, one slot of one entity at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from schemas.layout import layout_of
from schemas.names import row_key
from schemas.plan import (
    CrossPlan,
    OperandPlan,
    Plan,
    SequenceSlotPlan,
    ServicePlan,
    SlotPlan,
)
from schemas.row import decode_rows
from schemas.status import Status
from tests.oracle.crosses import cross_value
from tests.oracle.finalise import row_of, value_of
from tests.oracle.ids import id_of


def feature_value(
    plan: Plan,
    slot: SlotPlan | SequenceSlotPlan | OperandPlan,
    stored: Mapping[str, bytes],
    entity_id: int,
    now_ms: int,
) -> Any:
    """The slot's value of one entity: a number, a list, or None for null."""
    view = plan.view(slot.view)
    raw = stored.get(row_key(view.name, view.generation, entity_id))
    rows, (status,) = decode_rows(layout_of(view), [raw], np.array([entity_id], np.int64))
    if status == Status.CORRUPT or (status == Status.NOT_FOUND and view.kind == "batch"):
        return None
    row = row_of(view, rows, 0) if status == Status.PRESENT else {}
    return value_of(view, view.feature(slot.feature), row, now_ms)


def slots_of(
    plan: Plan,
    slots: tuple[SlotPlan, ...],
    stored: Mapping[str, bytes],
    entity_id: int,
    now_ms: int,
) -> list[int]:
    return [
        id_of(feature_value(plan, slot, stored, entity_id, now_ms), slot.transform)
        for slot in slots
    ]


def sequence_of(
    plan: Plan, slot: SequenceSlotPlan, stored: Mapping[str, bytes], user_id: int, now_ms: int
) -> tuple[list[int], int]:
    """The padded ids and the length."""
    values = (feature_value(plan, slot, stored, user_id, now_ms) or [])[: slot.capacity]
    ids = [id_of(value, slot.transform) for value in values]
    return ids + [0] * (slot.capacity - len(ids)), len(ids)


def expanded(
    plan: Plan,
    service: ServicePlan,
    stored: Mapping[str, bytes],
    request: tuple[int, list[int]],
    now_ms: int,
) -> list[list[int]]:
    """(N, Su + Si) for a request of (user, candidates)."""
    user_id, item_ids = request
    rows = []
    for item_id in item_ids:
        ids = {"user": user_id, "item": item_id}
        user = slots_of(plan, service.user_slots, stored, user_id, now_ms)
        item = slots_of(plan, service.item_slots, stored, item_id, now_ms)
        for scope, columns in (("user", user), ("item", item), ("pair", item)):
            for cross in service.crosses:
                if cross.scope == scope:
                    columns.append(cross_id(plan, cross, stored, ids, now_ms))
        rows.append(user + item)
    return rows


def cross_id(
    plan: Plan, cross: CrossPlan, stored: Mapping[str, bytes], ids: Mapping[str, int], now_ms: int
) -> int:
    """The id of a cross. ids: of the user and the item, by side."""
    left, right = (
        feature_value(plan, operand, stored, ids[plan.view(operand.view).entity], now_ms)
        for operand in cross.operands
    )
    return id_of(cross_value(cross, left, right), cross.transform)
