"""Values in one buffer read as the list they stand for, and rows decode from them as from bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.layout import RowLayout, layout_of
from schemas.row import Rows, decode_rows, encode_rows, seal
from schemas.rows import TOMBSTONE_MS
from schemas.status import Status
from schemas.stored import RowKeys, Run, StoredRows
from tests.schemas.views import OLDER, SAMPLE, assert_same, random_rows

VALUES = st.lists(st.one_of(st.none(), st.binary(max_size=3), st.just(b"like this")), max_size=12)


Make = Callable[[list[bytes | None]], StoredRows]


def framed(values: list[bytes | None]) -> StoredRows:
    """As they lie in a reply: a header before each, equal ones in one run where they follow."""
    parts, runs, at = [], list[Run](), 0
    for place, value in enumerate(values):
        size = -1 if value is None else len(value)
        head = b"$%d\r\n" % size
        stride = len(head) if value is None else len(head) + size + 2
        parts += [head, b"" if value is None else value + b"\r\n"]
        if runs and runs[-1].size == size:
            runs[-1] = runs[-1]._replace(many=runs[-1].many + 1)
        else:
            runs.append(Run(place, 1, at + len(head), stride, size))
        at += stride
    return StoredRows(np.frombuffer(b"".join(parts), np.uint8), tuple(runs))


@pytest.mark.parametrize("make", [StoredRows.of, framed])
@given(values=VALUES, data=st.data())
def test_it_is_the_sequence_of_its_values(
    make: Make, values: list[bytes | None], data: st.DataObject
) -> None:
    rows = make(values)
    assert list(rows) == values
    assert len(rows) == len(values)
    assert [rows[place] for place in range(-len(values), len(values))] == values * 2
    first, end = sorted(data.draw(st.tuples(st.integers(0, 12), st.integers(0, 12))))
    part = rows[first:end]
    assert list(part) == values[first:end]
    assert list(part[1:]) == values[first:end][1:]
    for beyond in (len(values), -len(values) - 1):
        with pytest.raises(IndexError, match="out of range"):
            rows[beyond]
    with pytest.raises(ValueError, match="step 1, got 2"):
        rows[::2]


def test_keys_are_named_as_rows_are() -> None:
    keys = RowKeys("users", 3, np.array([7, -1]))
    assert keys.names() == ["users@3:{7}", "users@3:{-1}"]


# --- decoding: the same as from a list of bytes ----------------------------------------------

KINDS = ("whole", "absent", "flipped", "cut", "long", "stranger", "foreign", "tombstone", "lying")


def stored(layout: RowLayout, rows: Rows, kinds: list[str], seed: int) -> list[bytes | None]:
    """The bytes of those rows, each as its kind says."""
    draw = np.random.default_rng(seed)
    for place, kind in enumerate(kinds):
        if kind == "tombstone":
            rows.newest_ms[place], rows.epoch[place] = TOMBSTONE_MS, 1
    raw: list[bytes | None] = []
    older = encode_rows(layout_of(OLDER), random_rows(layout_of(OLDER), seed, len(kinds)))
    for place, (row, kind) in enumerate(zip(encode_rows(layout, rows), kinds, strict=True)):
        at = int(draw.integers(len(row)))
        made: dict[str, bytes | None] = {
            "absent": None,
            "flipped": row[:at] + bytes([row[at] ^ 1 << int(draw.integers(8))]) + row[at + 1 :],
            "cut": row[:at],
            "long": row + b"\0",
            "stranger": older[place],
            "foreign": seal(row[:-28], 0, (1, 2), 3),
            "lying": seal(b"\xff" * 40 + row[40:-28], layout.layout_id, (1, 2), 3),
        }
        raw.append(made.get(kind, row))
    return raw


@pytest.mark.parametrize("make", [StoredRows.of, framed])
@given(st.integers(0, 1 << 32), st.lists(st.sampled_from(KINDS), max_size=20), st.booleans())
def test_rows_decode_alike(make: Make, seed: int, kinds: list[str], mostly_whole: bool) -> None:
    if mostly_whole:
        kinds = ["whole"] * 5 + kinds[:3] + ["whole"] * 5
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, seed, len(kinds))
    raw = stored(layout, rows, kinds, seed)
    held = make(raw)
    before = held.buffer.tobytes()
    one_by_one, expected = decode_rows(layout, raw, rows.entity_ids)
    together, status = decode_rows(layout, held, rows.entity_ids)
    assert status.tolist() == expected.tolist()
    assert_same(together, one_by_one)
    together.epoch[:] = 0  # the arrays are the caller's
    assert held.buffer.tobytes() == before


@given(st.integers(0, 1 << 32), st.integers(2, 40), st.data())
def test_of_a_long_run_only_the_damaged_rows_are_corrupt(
    seed: int, n: int, data: st.DataObject
) -> None:
    """Also where all are damaged alike: their share in the checksum of all does not cancel."""
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, seed, n)
    raw = encode_rows(layout, rows)
    damaged = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    at, flip = data.draw(st.integers(0, layout.size - 1)), data.draw(st.integers(1, 255))
    for place in damaged:
        row = bytearray(raw[place])
        row[at] ^= flip
        raw[place] = bytes(row)
    _, status = decode_rows(layout, framed([*raw]), rows.entity_ids)
    wanted = [Status.CORRUPT if place in damaged else Status.PRESENT for place in range(n)]
    assert status.tolist() == wanted


def test_rows_that_changed_places_are_corrupt() -> None:
    layout = layout_of(SAMPLE)
    rows = random_rows(layout, 1, 3)
    first, second, third = encode_rows(layout, rows)
    _, status = decode_rows(layout, framed([second, first, third]), rows.entity_ids)
    assert status.tolist() == [Status.CORRUPT, Status.CORRUPT, Status.PRESENT]
