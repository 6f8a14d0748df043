"""Rows → values in C, held to numpy bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from aggregation.block import SideBlock, SideProgram
from aggregation.fold import fold
from aggregation.native.library import Kernels
from aggregation.native.row_tables import RECORDS
from schemas.actions import ACTION, ActionType
from schemas.layout import layout_of
from schemas.plan import (
    Dtype,
    FeaturePlan,
    FieldPlan,
    Plan,
    SequenceSlotPlan,
    ServicePlan,
    SlotPlan,
    TransformPlan,
    ViewPlan,
)
from schemas.row import CRC_RESIDUE, TOMBSTONE_MS, Rows, empty_rows, encode_rows, seal
from schemas.status import Status
from schemas.stored import Run, StoredRows
from schemas.values import null_mask
from tests.aggregation.functions import functions_view
from tests.aggregation.native.worlds import unaligned
from tests.aggregation.plans import activity_view, batch_view, small_view, users_view
from tests.aggregation.strategies import T0, histories, nows

ANY = TransformPlan("hash", 12, buckets=10)
FLOATS: tuple[Dtype, ...] = ("f32", "f64")
WHOLE: tuple[Dtype, ...] = ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")
EDGES = [0, 1, -1, 255, 2**15, 2**31 - 1, 2**40, 2**63 - 1, -(2**63), 5, 7]


def numbers_view(ttl_ms: int = 0) -> ViewPlan:
    """A scalar and a vector of each dtype, some read as another."""
    kinds: tuple[Dtype, ...] = ("bool", *WHOLE, *FLOATS)
    fields = [(f"s_{dtype}", dtype, 0) for dtype in kinds]
    fields += [(f"v_{dtype}", dtype, 5) for dtype in kinds]
    view = batch_view("numbers", "user", tuple(fields))
    more = [
        FeaturePlan(f"{name}_as_{dtype}", dtype, "field", name, capacity)
        for name, capacity in (("s_i64", 0), ("v_i64", 3), ("s_u16", 0), ("s_bool", 0))
        for dtype in WHOLE
    ]
    ratio = FeaturePlan("share", "f32", "ratio", "s_i32", others=("s_f32",), prior=0.5, weight=3.0)
    return replace(view, features=(*view.features, *more, ratio), ttl_ms=ttl_ms)


VIEWS = (
    small_view(),
    small_view(ttl_ms=6_000),
    functions_view(),
    functions_view(ttl_ms=6_000),
    users_view(),
    numbers_view(),
    numbers_view(ttl_ms=6_000),
    activity_view(),
)


def sides(
    views: Sequence[ViewPlan], library: Kernels, some: NDArray[np.bool_] | None = None
) -> tuple[SideProgram, SideProgram]:
    """All features of the views, or some, by the kernel and by numpy."""
    features = [(view, feature) for view in views for feature in view.features]
    if some is not None:
        features = [each for each, taken in zip(features, some, strict=False) if taken] or features
    slots = tuple(
        SlotPlan(f.name, view.name, f.name, ANY, f.name) for view, f in features if not f.capacity
    )
    sequences = tuple(
        SequenceSlotPlan(f.name, view.name, f.name, f.capacity, ANY, f.name)
        for view, f in features
        if f.capacity
    )
    service = ServicePlan("all", slots, (), sequences, "0" * 16)
    plan = Plan(1, 0, tuple(views), (service,))
    native = SideProgram(plan, service, "user", library)
    assert native.kernel is not None
    return native, SideProgram(plan, service, "user", None)


def meant(block: SideBlock, name: str) -> NDArray[Any]:
    """One field of a block, zero behind its length, its truths 0 or 1: where another writer left
    something else in a row, numpy may hand it on."""
    values = block.values[name]
    if name + "__len" in (block.values.dtype.names or ()):
        inside = np.arange(values.shape[1]) < block.values[name + "__len"][:, None]
        values = np.where(inside, values, np.zeros(1, values.dtype))
    return values.view(np.uint8) != 0 if values.dtype == bool else values


def same(left: SideBlock, right: SideBlock, foreign: bool = False) -> None:
    """Equal to the last bit. foreign: of rows that another writer may have written."""
    assert left.values.dtype == right.values.dtype
    for name in left.values.dtype.names or ():
        one, other = left.values[name], right.values[name]
        if foreign:
            one, other = meant(left, name), meant(right, name)
        assert one.tobytes() == other.tobytes(), (name, one, other)
    for side in (left, right):
        assert side.null is None or np.array_equal(side.null, null_mask(side.values))
    assert np.array_equal(left.status, right.status)
    assert np.array_equal(left.fences, right.fences)
    assert left.newest_ms == right.newest_ms


def any_rows(view: ViewPlan, ids: NDArray[np.int64], rng: np.random.Generator) -> Rows:
    """Rows whose fields are anything, whether or not a fold could have made them."""
    layout = layout_of(view)
    rows = empty_rows(layout, ids)
    heads = {ring.head: ring.hop_ms for ring in view.accumulators}
    times = {sequence.time_field for sequence in view.sequences}
    for field in view.fields:
        values = rows.values[field.name]
        if field.dtype in FLOATS:
            drawn: Any = rng.choice([np.nan, -0.0, np.inf, 0.1, -3.0, 1e30], values.shape)
        elif field.name in times:
            drawn = -np.sort(-(T0 + rng.integers(-9_000, 5_000, values.shape)))
        elif field.name in heads:
            drawn = T0 // heads[field.name] + rng.integers(-20, 20, values.shape)
            drawn[rng.random(values.shape) < 0.05] = rng.choice(EDGES)
        else:
            drawn = rng.choice(np.array(EDGES), values.shape)
        with np.errstate(all="ignore"):
            values[:] = np.asarray(drawn).astype(values.dtype)
        rows.present[field.name][:] = rng.random(len(ids)) < 0.8
        if field.capacity:
            rows.lengths[field.name][:] = rng.integers(0, field.capacity + 1, len(ids))
            behind = np.arange(field.capacity) >= rows.lengths[field.name][:, None]
            values[behind | ~rows.present[field.name][:, None]] = 0
    for sequence in view.sequences:
        for name in sequence.fields:
            rows.lengths[name][:] = rows.lengths[sequence.time_field]
            rows.present[name][:] = rows.present[sequence.time_field]
    rows.epoch[:], rows.offset[:] = rng.integers(0, 3, len(ids)), rng.integers(0, 1 << 40, len(ids))
    rows.newest_ms[:] = T0 + rng.integers(-20_000, 2_000, len(ids))
    rows.newest_ms[rng.random(len(ids)) < 0.1] = TOMBSTONE_MS
    return rows


def left_by(side: SideProgram, raw: StoredRows, ids: NDArray[np.int64], now_ms: int) -> list[int]:
    """The entities that the kernel leaves to numpy."""
    assert side.kernel is not None
    made = side.kernel(raw, ids, now_ms)
    assert made is not None
    return [] if made[1] is None else made[1].tolist()


clocks = st.one_of(nows, st.sampled_from([0, -1, T0 + 10**12]))


def test_both_sides_of_the_call_mean_the_same_records(built: Kernels) -> None:
    sizes = [built.rows_record_bytes(which) for which in range(len(RECORDS) + 1)]
    assert sizes == [*(record.itemsize for record in RECORDS), 0]


@settings(max_examples=80, deadline=None)
@given(
    view=st.sampled_from(VIEWS[:4]),
    history=histories(),
    now_ms=clocks,
)
def test_state_of_any_actions_at_any_time(
    built: Kernels, view: ViewPlan, history: tuple[Any, Any, Any], now_ms: int
) -> None:
    actions, row, sent_ms = history
    ids, layout = np.array([11, 12, 13], np.int64), layout_of(view)
    rows = empty_rows(layout, ids)
    fold(view, rows, row, actions, sent_ms)
    stored = StoredRows.of(encode_rows(layout, rows))
    native, plain = sides([view], built)
    assert left_by(native, stored, ids, now_ms) == []
    same(native.block(stored, ids, now_ms), plain.block(stored, ids, now_ms))


def test_numbers_of_many_plays(built: Kernels) -> None:
    """Means, deviations, decayed sums and estimates of values that have little in common."""
    rng, ids, view = np.random.default_rng(9), np.arange(300), VIEWS[2]
    actions = np.zeros(6_000, ACTION)
    actions["time_ms"] = T0 + rng.integers(0, 8_000, len(actions))
    actions["type"], actions["scene"], actions["known"] = ActionType.PLAY, 1, 0x1F
    actions["value"] = rng.integers(0, 1 << rng.integers(1, 41, len(actions)))
    for name in ("item", "author"):
        actions[name] = rng.integers(0, 40, len(actions))
    rows = empty_rows(layout_of(view), ids)
    fold(view, rows, rng.integers(0, len(ids), len(actions)), actions, actions["time_ms"])
    native, plain = sides([view], built)
    stored = StoredRows.of(encode_rows(layout_of(view), rows))
    block = native.block(stored, ids, T0 + 9_000)
    assert left_by(native, stored, ids, T0 + 9_000) == []
    assert len(np.unique(block.values["functions__std_ms"])) > 250
    same(block, plain.block(stored, ids, T0 + 9_000))


@pytest.mark.parametrize("wait_ms", [5_999, 6_000, 6_001])
def test_rows_at_the_end_of_their_time_to_live(built: Kernels, wait_ms: int) -> None:
    rng, ids = np.random.default_rng(8), np.arange(64)
    views = [view for view in VIEWS if view.ttl_ms == 6_000]
    native, plain = sides([replace(each, name=f"view{at}") for at, each in enumerate(views)], built)
    raw: list[bytes | None] = []
    for view in native.views:
        rows = any_rows(view, ids, rng)
        rows.newest_ms[:] = T0
        raw += encode_rows(layout_of(view), rows)
    block = native.block(StoredRows.of(raw), ids, T0 + wait_ms)
    same(block, plain.block(StoredRows.of(raw), ids, T0 + wait_ms))
    assert (block.status == (Status.PRESENT if wait_ms <= 6_000 else Status.NOT_FOUND)).all()


@settings(max_examples=150, deadline=None)
@given(
    chosen=st.lists(st.sampled_from(range(len(VIEWS))), min_size=1, max_size=2, unique=True),
    n=st.sampled_from([0, 1, 2, 15, 16, 17, 40]),
    seed=st.integers(0, 2**32),
    now_ms=clocks,
    absent=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_any_bytes_of_any_rows(
    built: Kernels, chosen: list[int], n: int, seed: int, now_ms: int, absent: float
) -> None:
    rng = np.random.default_rng(seed)
    views = [replace(VIEWS[at], name=f"view{at}") for at in chosen]
    ids = rng.choice(EDGES, n)
    native, plain = sides(views, built, rng.random(200) < rng.choice([0.2, 1.0]))
    raw: list[bytes | None] = []
    for view in native.views:
        raw += encode_rows(layout_of(view), any_rows(view, ids, rng))
    gone = rng.random(len(raw)) < absent
    stored = StoredRows.of([None if out else row for row, out in zip(raw, gone, strict=True)])
    assert left_by(native, stored, ids, now_ms) == []
    same(native.block(stored, ids, now_ms), plain.block(stored, ids, now_ms))
    same(native.block(list(stored), ids, now_ms), plain.block(list(stored), ids, now_ms))


def damaged(row: bytes, layout_id: int, how: str, rng: np.random.Generator) -> bytes:
    """A row that is not as it should be. Sealed ones have a right checksum."""
    changed = bytearray(row)
    at = int(rng.integers(len(row) - 4))
    if how == "bit":
        changed[at] ^= 1 << int(rng.integers(8))
    elif how == "cut":
        return row[:at]
    elif how == "longer":
        return row + bytes(int(rng.integers(1, 40)))
    else:
        changed[at : at + 4] = rng.integers(0, 256, 4, np.uint8).tobytes()[: len(row) - 4 - at]
        trailer = (int.from_bytes(row[-24:-20], "little"), int.from_bytes(row[-20:-12], "little"))
        foreign = 0 if how == "foreign" else layout_id
        return seal(bytes(changed[:-28]), foreign, trailer, T0)
    return bytes(changed)


def check_damaged(library: Kernels, seed: int) -> None:
    """Rows of which some are damaged have the values that numpy gives them, and only those of
    another layout are numpy's.

    Without truths as numbers: of one that is neither 0 nor 1 numpy makes either, as rows beside it
    are null or not.
    """
    rng = np.random.default_rng(seed)
    view, n = VIEWS[int(rng.integers(len(VIEWS)))], int(rng.integers(1, 20))
    kept = [each for each in view.features if not each.name.startswith("s_bool_as")]
    view = replace(view, features=tuple(kept))
    layout, ids = layout_of(view), rng.integers(0, 1 << 40, n)
    raw: list[bytes | None] = list(encode_rows(layout, any_rows(view, ids, rng)))
    for at in range(n):
        if rng.random() < 0.3:
            how = str(rng.choice(["bit", "cut", "longer", "sealed", "foreign"]))
            raw[at] = damaged(raw[at] or b"", layout.layout_id, how, rng)
    if rng.random() < 0.2:
        ids = ids + (rng.random(n) < 0.2)
    if rng.random() < 0.5:
        ids = unaligned(ids)
    stored = StoredRows.of(raw)
    native, plain = sides([view], library)
    with np.errstate(invalid="ignore"):  # any bytes may be a signalling NaN
        same(native.block(stored, ids, T0), plain.block(stored, ids, T0), foreign=True)
    whole = [row is not None and len(row) >= 36 and crc32(row) == CRC_RESIDUE for row in raw]
    other = [(row or b"")[-28:-24] != layout.layout_id.to_bytes(4, "little") for row in raw]
    odd = [len(row or b"") != layout.size for row in raw]
    places = [at for at in range(n) if whole[at] and (other[at] or odd[at])]
    assert left_by(native, stored, ids, T0) == places
    lost = StoredRows(stored.buffer[: int(rng.integers(len(stored.buffer)))].copy(), stored.runs)
    if native.kernel is not None and len(lost.buffer) < len(stored.buffer):
        assert native.kernel.of_whole(lost, ids, T0) is None


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damaged_rows_are_corrupt_among_others(built: Kernels, seed: int) -> None:
    check_damaged(built, seed)


@pytest.mark.parametrize("how", ["bit", "cut", "longer", "sealed", "foreign"])
def test_one_bad_row_leaves_all_others_to_the_kernel(built: Kernels, how: str) -> None:
    """In the middle of a long run, and of the second of two views."""
    views = [replace(VIEWS[at], name=f"view{at}") for at in (0, 4)]
    ids, rng = np.arange(1_000), np.random.default_rng(5)
    native, plain = sides(views, built)
    raw: list[bytes | None] = []
    for view in native.views:
        raw += encode_rows(layout_of(view), any_rows(view, ids, rng))
    layout = layout_of(native.views[1])
    for place in (1_000, 1_617, 1_999):
        row = raw[place] or b""
        if how == "sealed":  # whole, and another entity's
            row = encode_rows(layout, any_rows(native.views[1], ids[:1] + 2_000, rng))[0]
        raw[place] = row if how == "sealed" else damaged(row, layout.layout_id, how, rng)
    stored = StoredRows.of(raw)
    assert left_by(native, stored, ids, T0) == ([0, 617, 999] if how == "foreign" else [])
    block = native.block(stored, ids, T0)
    same(block, plain.block(stored, ids, T0), foreign=True)
    if how != "foreign":
        assert np.flatnonzero(block.status[:, 1] == Status.CORRUPT).tolist() == [0, 617, 999]


def test_rows_of_another_layout_are_read_among_others(built: Kernels) -> None:
    """As long as some of a view's rows are those of the plan before: by numpy, with their values,
    whether they are few or most."""
    old, rng, ids = users_view(), np.random.default_rng(6), np.arange(40)
    added = FieldPlan(900, "more", "i64", group=1)
    view = replace(old, fields=(*old.fields, added))
    assert layout_of(view).layout_id != layout_of(old).layout_id
    native, plain = sides([view], built)
    new = encode_rows(layout_of(view), any_rows(view, ids, rng))
    former = encode_rows(layout_of(old), any_rows(old, ids, rng))
    for few in (0.1, 0.9):
        is_old = rng.random(len(ids)) < few
        raw = [left if old else right for old, left, right in zip(is_old, former, new, strict=True)]
        stored = StoredRows.of(raw)
        assert left_by(native, stored, ids, T0) == np.flatnonzero(is_old).tolist()
        block = native.block(stored, ids, T0)
        same(block, plain.block(stored, ids, T0))
        assert (block.status != Status.CORRUPT).all()


@pytest.mark.parametrize(
    "run",
    [
        Run(0, 1, 1, 0, 0),
        Run(0, 2, 0, 8, 0),
        Run(0, 2, 0, -8, 0),
        Run(0, 2, -1, 0, 0),
        Run(0, 1, 0, 0, 1 << 62),
        Run(0, 1, 1 << 62, 0, 0),
        Run(0, 2, 0, 1 << 62, 0),
        Run(0, 3, 0, 0, 0),
        Run(0, 0, 0, 0, 0),
        Run(1, 2, 0, 0, 0),
        Run(0, -1, 0, 0, 0),
        Run(0, (1 << 62) + 1, 0, 4, 0),
    ],
)
def test_runs_that_leave_the_buffer_are_refused(built: Kernels, run: Run) -> None:
    view, ids = users_view(), np.array([3, 3], np.int64)
    layout = layout_of(view)
    (row, _) = encode_rows(layout, empty_rows(layout, ids))
    native, _ = sides([view], built)
    assert native.kernel is not None
    buffer = np.frombuffer(row, np.uint8)
    given_run = run._replace(size=run.size + layout.size)
    assert native.kernel.of_whole(StoredRows(buffer, (given_run,)), ids, T0) is None
    twice = StoredRows(buffer, (Run(0, 2, 0, 0, layout.size),))
    assert native.kernel.of_whole(twice, ids, T0) is not None


def test_lengths_beyond_their_capacity_are_not_read(built: Kernels) -> None:
    """The checksum is right: another writer may have been wrong."""
    view, ids = users_view(), np.array([3], np.int64)
    layout = layout_of(view)
    rows = empty_rows(layout, ids)
    rows.present["interests"][:], rows.lengths["interests"][:] = True, 3
    row = bytearray(encode_rows(layout, rows)[0])
    native, plain = sides([view], built)
    for length in (4, 1 << 20, (1 << 32) - 1):
        at = int(layout.length_words[0]) * 4
        row[at : at + 4] = length.to_bytes(4, "little")
        stored = StoredRows.of([seal(bytes(row[:-28]), layout.layout_id, (1, 2), T0)])
        assert left_by(native, stored, ids, T0) == []
        block = native.block(stored, ids, T0)
        same(block, plain.block(stored, ids, T0))
        assert block.status.tolist() == [[Status.CORRUPT]]


@pytest.mark.parametrize(
    "feature",
    [
        FeaturePlan("odd", "f32", "field", "s_f64"),
        FeaturePlan("odd", "f64", "field", "s_i64"),
        FeaturePlan("odd", "bool", "field", "s_i64"),
    ],
)
def test_what_the_kernel_does_not_know_is_left_to_numpy(
    built: Kernels, feature: FeaturePlan
) -> None:
    view = replace(numbers_view(), features=(feature,))
    service = ServicePlan("all", (SlotPlan("odd", view.name, "odd", ANY, "odd"),), (), (), "0" * 16)
    plan = Plan(1, 0, (view,), (service,))
    assert SideProgram(plan, service, "user", built).kernel is None


def test_a_view_of_more_windows_than_the_kernel_holds_is_left_to_numpy(built: Kernels) -> None:
    ring = small_view().accumulators[0]
    hops = [replace(ring, hop_ms=1_000 + at, field=f"ring{at}") for at in range(65)]
    view = replace(
        small_view(),
        fields=(
            *small_view().fields,
            *(replace(small_view().fields[1], id=900 + at, name=f"ring{at}") for at in range(65)),
        ),
        accumulators=tuple(hops),
        features=tuple(
            FeaturePlan(f"w{at}", "i64", "window", f"ring{at}", tiles=2) for at in range(65)
        ),
        sequences=(),
    )
    slots = tuple(SlotPlan(f.name, view.name, f.name, ANY, f.name) for f in view.features)
    service = ServicePlan("all", slots, (), (), "0" * 16)
    assert SideProgram(Plan(1, 0, (view,), (service,)), service, "user", built).kernel is None
