"""The request program against its oracle, and what each status means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregation.program import Assembled, ServiceProgram
from schemas.errors import PlanError
from schemas.layout import layout_of
from schemas.names import row_key
from schemas.plan import Plan, SequenceSlotPlan, SlotPlan, TransformPlan, ViewPlan
from schemas.row import empty_rows, encode_rows
from schemas.status import Status
from schemas.values import null_mask
from tests.aggregation.plans import AUTHOR, HOUR, demo_plan
from tests.aggregation.strategies import T0
from tests.oracle.assemble import expanded, sequence_of

PLAN = demo_plan()
PROGRAM = ServiceProgram(PLAN, "ranking")
SERVICE = PLAN.service("ranking")
USER = 42
NOW_MS = T0 + 3 * HOUR


def random_row(view: ViewPlan, entity_id: int, random: np.random.Generator) -> bytes:
    """A stored row whose fields are anything their dtype allows, near `NOW_MS`."""
    layout = layout_of(view)
    rows = empty_rows(layout, np.array([entity_id], np.int64))
    heads = {ring.head: ring.hop_ms for ring in view.accumulators}
    times = {sequence.time_field for sequence in view.sequences}
    companions = {name: s.time_field for s in view.sequences for name in s.fields}
    for field in view.fields:
        values: Any = random.integers(-130, 1_000, rows.values[field.name].shape)
        if field.dtype in ("u16", "bool"):
            values = values % 2 if field.dtype == "bool" else abs(values)
        elif field.dtype[0] == "f":
            values = np.where(random.random(values.shape) < 0.3, np.nan, values / 7)
        if field.name in heads:
            values = NOW_MS // heads[field.name] + random.integers(-3, 2, 1)
        elif field.name in times:
            values = -np.sort(-(NOW_MS + random.integers(-9_000, 900, values.shape)), axis=1)
        rows.values[field.name][:] = values
        rows.present[field.name][:] = view.kind == "streamed" or random.random() < 0.8
        if field.capacity:
            ring = field.name.endswith("_tiles")
            length = field.capacity if ring else int(random.integers(0, field.capacity + 1))
            rows.lengths[field.name][:] = length
    for name, time_field in companions.items():
        rows.lengths[name][:] = rows.lengths[time_field]
    rows.epoch[:], rows.offset[:] = random.integers(1, 9), random.integers(0, 1 << 40)
    rows.newest_ms[:] = NOW_MS - random.integers(0, 100)
    return encode_rows(layout, rows)[0]


@dataclass(frozen=True)
class World:
    """What is stored, and a request's candidates."""

    stored: dict[str, bytes]
    items: list[int]

    def raw(self) -> list[bytes | None]:
        return [self.stored.get(key) for key in PROGRAM.keys(USER, self.items)]

    def assembled(self) -> Assembled:
        return PROGRAM.assemble(self.raw(), USER, self.items, NOW_MS)


def world(seed: int, items: int = 5, missing: float = 0.2, corrupt: float = 0.1) -> World:
    random = np.random.default_rng(seed)
    stored = {}
    ids = random.choice(10_000, items, replace=False).tolist()
    for view in PLAN.views:
        for entity_id in [USER] if view.entity == "user" else ids:
            if random.random() >= missing:
                row = bytearray(random_row(view, entity_id, random))
                if random.random() < corrupt:
                    row[int(random.integers(len(row)))] ^= 1 << int(random.integers(8))
                stored[row_key(view.name, view.generation, entity_id)] = bytes(row)
    return World(stored, ids)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), items=st.integers(0, 6))
def test_tensors_equal_the_oracle(seed: int, items: int) -> None:
    case = world(seed, items)
    tensors = case.assembled().tensors
    oracle = expanded(PLAN, SERVICE, case.stored, (USER, case.items), NOW_MS)
    assert tensors.expand().tolist() == oracle
    for slot in SERVICE.sequences:
        ids, length = sequence_of(PLAN, slot, case.stored, USER, NOW_MS)
        assert tensors.sequences[slot.name].tolist() == [ids]
        assert tensors.lengths[slot.name].tolist() == [length]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_tensors_follow_from_the_bytes_of_the_value_blocks(seed: int) -> None:
    served = world(seed).assembled()
    user = np.frombuffer(served.user_values.tobytes(), PROGRAM.user_dtype)
    item = np.frombuffer(served.item_values.tobytes(), PROGRAM.item_dtype)
    assert_equal(PROGRAM.tensors(user, item), served.tensors)


def assert_equal(left: Any, right: Any) -> None:
    """Two `Tensors`, bit for bit."""
    pairs = [(left.user_slots, right.user_slots), (left.item_slots, right.item_slots)]
    for name in SERVICE.sequences:
        pairs.append((left.sequences[name.name], right.sequences[name.name]))
        pairs.append((left.lengths[name.name], right.lengths[name.name]))
    for one, other in pairs:
        assert one.dtype == other.dtype == np.int32
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def test_many_requests_at_once_equal_each_alone() -> None:
    served = [world(seed).assembled() for seed in range(8)]
    users = np.concatenate([each.user_values for each in served])
    items = np.concatenate([each.item_values for each in served])
    user_of = np.repeat(np.arange(8), [len(each.item_values) for each in served])
    together = PROGRAM.tensors(users, items, user_of)
    assert np.array_equal(
        together.user_slots, np.concatenate([each.tensors.user_slots for each in served])
    )
    assert np.array_equal(
        together.item_slots, np.concatenate([each.tensors.item_slots for each in served])
    )
    for slot in SERVICE.sequences:
        alone = [each.tensors.sequences[slot.name] for each in served]
        assert np.array_equal(together.sequences[slot.name], np.concatenate(alone))
    with pytest.raises(ValueError, match="one user, got 8"):
        together.expand()
    with pytest.raises(ValueError, match="needs user_of for crosses of 8 users, got none"):
        PROGRAM.tensors(users, items)


def test_shapes_and_keys() -> None:
    case = world(1, items=3, missing=0, corrupt=0)
    keys = PROGRAM.keys(USER, case.items)
    assert keys == PROGRAM.user_keys(USER) + PROGRAM.item_keys(np.array(case.items))
    assert keys[:2] == [f"users@1:{{{USER}}}", f"user_activity@1:{{{USER}}}"]
    assert keys[2:5] == [f"videos@1:{{{item}}}" for item in case.items]
    tensors = case.assembled().tensors
    assert tensors.user_slots.shape == (1, 24)
    assert tensors.item_slots.shape == (3, 17)
    assert tensors.expand().shape == (3, 41)
    assert {name: ids.shape for name, ids in tensors.sequences.items()} == {
        "last_videos": (1, 50),
        "authors": (1, 50),
        "ages": (1, 50),
        "liked_authors": (1, 10),
        "interests": (1, 3),
    }


def statuses(case: World, **changes: bytes | None) -> tuple[Assembled, NDArray[np.uint8]]:
    """Assembled with the user's rows of some views replaced, and the user's statuses."""
    raw = case.raw()
    for index, view in enumerate(PROGRAM.user_views):
        if view.name in changes:
            raw[index] = changes[view.name]
    assembled = PROGRAM.assemble(raw, USER, case.items, NOW_MS)
    return assembled, assembled.user_status


USERS = slice(0, 7)  # the slots of the batch view
WINDOWS = slice(7, 22)  # the slots of the streamed view


def test_a_missing_streamed_row_is_zero_counts_and_a_missing_batch_row_is_null() -> None:
    assembled, status = statuses(world(3, missing=0, corrupt=0), users=None, user_activity=None)
    assert status.tolist() == [Status.NOT_FOUND, Status.NOT_FOUND]
    slots = assembled.tensors.user_slots[0]
    assert (slots[USERS] == 0).all()
    assert (slots[WINDOWS] == 2).all()  # a count of 0 lies below the first boundary
    assert assembled.tensors.lengths["last_videos"].tolist() == [0]
    assert assembled.user_fences.tolist() == [(0, -1), (0, -1)]


def test_a_corrupt_row_is_null_whatever_its_kind() -> None:
    assembled, status = statuses(
        world(3, missing=0, corrupt=0), users=b"", user_activity=b"\xff" * 700
    )
    assert status.tolist() == [Status.CORRUPT, Status.CORRUPT]
    assert not assembled.tensors.user_slots.any()
    assert not any(ids.any() for ids in assembled.tensors.sequences.values())
    assert null_mask(assembled.user_values).all()
    assert assembled.tensors.item_slots.any()


def test_another_entitys_row_is_corrupt() -> None:
    row = random_row(PLAN.view("users"), USER + 1, np.random.default_rng(0))
    _, status = statuses(world(3, missing=0, corrupt=0), users=row)
    assert status.tolist() == [Status.CORRUPT, Status.PRESENT]


@pytest.mark.parametrize("failed", [Status.TIMEOUT, Status.STORE_ERROR])
def test_a_failed_read_is_null_throughout(failed: Status) -> None:
    assembled = PROGRAM.assemble([], USER, [1, 2], NOW_MS, failed)
    assert assembled.user_status.tolist() == [failed, failed]
    assert assembled.item_status.tolist() == [[failed, failed], [failed, failed]]
    assert null_mask(assembled.user_values).all()
    assert null_mask(assembled.item_values).all()
    assert not assembled.tensors.expand().any()
    assert_equal(PROGRAM.tensors(assembled.user_values, assembled.item_values), assembled.tensors)


def test_fences_and_the_newest_event_are_those_of_the_rows() -> None:
    case = world(5, items=2, missing=0, corrupt=0)
    assembled = case.assembled()
    fences = [*assembled.user_fences.tolist(), *assembled.item_fences.T.ravel().tolist()]
    for raw, fence in zip(case.raw(), fences, strict=True):
        assert raw is not None
        stored = int.from_bytes(raw[-24:-20], "little"), int.from_bytes(raw[-20:-12], "little")
        assert fence == stored
    assert NOW_MS - 100 < assembled.newest_ms <= NOW_MS


def test_a_row_beyond_its_ttl_is_not_found() -> None:
    mortal = replace_views(PLAN, {v.name: replace(v, ttl_ms=50) for v in PLAN.views})
    program = ServiceProgram(mortal, "ranking")
    case = world(5, missing=0, corrupt=0)
    late = program.assemble(case.raw(), USER, case.items, NOW_MS + 200)
    assert set(late.user_status) == set(late.item_status.ravel()) == {Status.NOT_FOUND}
    nothing = program.assemble([None] * len(case.raw()), USER, case.items, NOW_MS + 200)
    assert_equal(late.tensors, nothing.tensors)
    assert late.user_values.tobytes() == nothing.user_values.tobytes()


def test_a_wrong_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 6 values, one a key, got 5"):
        PROGRAM.assemble([None] * 5, USER, [1, 2], NOW_MS)


def replace_views(plan: Plan, views: dict[str, ViewPlan]) -> Plan:
    return replace(plan, views=tuple(views.values()))


COUNTED = TransformPlan("identity", 12, buckets=10)


@pytest.mark.parametrize(
    ("field", "slot", "message"),
    [
        ("user_slots", SlotPlan("s", "videos", "width", COUNTED, "s"), "keyed by user"),
        ("item_slots", SlotPlan("s", "users", "fans", COUNTED, "s"), "keyed by item"),
        ("user_slots", SlotPlan("s", "users", "fan", COUNTED, "s"), "needs one of user_id"),
        ("user_slots", SlotPlan("s", "users", "interests", COUNTED, "s"), "a scalar feature"),
        ("sequences", SequenceSlotPlan("s", "users", "interests", 4, AUTHOR, "s"), "1 to 3"),
        ("sequences", SequenceSlotPlan("s", "users", "fans", 4, AUTHOR, "s"), "1 to 0"),
    ],
)
def test_a_slot_that_cannot_be_filled_is_refused(field: str, slot: Any, message: str) -> None:
    changes: dict[str, Any] = {field: (slot,)}
    service = replace(SERVICE, **changes)
    plan = replace(PLAN, services=(service,))
    with pytest.raises(PlanError, match=message):
        ServiceProgram(plan, "ranking")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**9), items=st.integers(0, 6))
def test_the_items_side_may_come_with_the_ids_it_has_of_its_own(seed: int, items: int) -> None:
    case = world(seed, items)
    raw, split = case.raw(), len(PROGRAM.user_views)
    user = PROGRAM.user_block(raw[:split], USER, NOW_MS)
    item = PROGRAM.item_block(raw[split:], case.items, NOW_MS)
    own = PROGRAM.own_ids(item)
    assert own.shape == (items, PROGRAM.own_slots)
    combined, whole = PROGRAM.combine(user, item, own), case.assembled()
    assert_equal(combined.tensors, whole.tensors)
    assert combined.item_values.tobytes() == whole.item_values.tobytes()
    assert combined.newest_ms == whole.newest_ms
    assert_equal(PROGRAM.combine(user, item).tensors, whole.tensors)
