"""What the cache gives is what the store gives, bit for bit, at any time and after any change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregation.cache import index
from aggregation.cache.memory import (
    RETIRED,
    W_BOOT,
    W_COUNT,
    W_STATE,
    CacheMemory,
    now_ns,
)
from aggregation.cache.reader import ItemCache, cache_path
from aggregation.cache.record import SEQUENCE, ItemCodec
from aggregation.cache.writer import CacheWriter
from aggregation.native.library import Kernels
from aggregation.program import ServiceProgram
from schemas.errors import LocalError
from schemas.layout import layout_of
from schemas.names import row_key
from schemas.plan import load_plan
from schemas.row import seal
from schemas.status import Status
from tests.aggregation.cache.worlds import (
    DEMO,
    FLEETING,
    STEADY,
    assert_as_stored,
    batch_rows,
    clicks,
    folded,
    go_live,
    looked_up,
    raw_of,
    reader_of,
    tombstone,
    writer_in,
)
from tests.aggregation.strategies import T0, histories

ITEMS = np.array([0, 7, -5, 2**62, 11], np.int64)
UNKNOWN = np.array([99, 100], np.int64)
STATES = ("there", "absent", "corrupt", "tombstone")
PLAN_LOCK = Path(__file__).parents[3] / "feature_repo" / "plan.lock.json"


def draw_rows(program: ServiceProgram, data: st.DataObject, offset: int) -> dict[str, bytes]:
    """Rows of all items in every state."""
    stored: dict[str, bytes] = {}
    for view in program.item_views:
        if view.kind == "batch":
            rows = batch_rows(view, ITEMS, data.draw(st.integers(0, 99)))
        else:
            history = data.draw(histories(rows=len(ITEMS)))
            rows = folded(view, ITEMS, history, (1, offset))
        for item, row in zip(ITEMS.tolist(), rows, strict=True):
            state = data.draw(st.sampled_from(STATES))
            key = row_key(view.name, view.generation, item)
            if state == "corrupt":
                row = row[:-7] + bytes([row[-7] ^ 1]) + row[-6:]
            if state == "tombstone":
                row = tombstone(view, item)
            if state != "absent":
                stored[key] = row
    return stored


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.parametrize("program", [STEADY, FLEETING], ids=["steady", "fleeting"])
def test_the_cache_gives_what_the_store_gives(
    tmp_path: Path, built: Kernels, program: ServiceProgram, data: st.DataObject
) -> None:
    """By numpy and by the kernels."""
    writer, cache = writer_in(tmp_path, program), reader_of(tmp_path)
    readers = [
        ServiceProgram(program.plan, "ranking", library)
        for library in (lambda: None, lambda: built)
    ]
    asked = np.concatenate((ITEMS[::-1], UNKNOWN))
    now_ms = T0
    for step in range(3):
        stored = draw_rows(program, data, step)
        now_ms += data.draw(st.integers(-3_000, 12_000))
        writer.put(ITEMS, raw_of(program, stored, ITEMS), now_ms)
        go_live(writer)
        for _ in range(3):
            request_ms = now_ms + data.draw(st.integers(-5_000, 9_000))
            reader = data.draw(st.sampled_from(readers))
            side = looked_up(cache, reader, stored, asked, request_ms)
            assert_as_stored(side, program, stored, asked, request_ms)
        now_ms += data.draw(st.integers(0, 20_000))
        while writer.refresh(now_ms):
            assert writer.due_ms > now_ms
        side = looked_up(cache, readers[step % 2], stored, asked, now_ms)
        assert_as_stored(side, program, stored, asked, now_ms)
    assert cache.counts.missed == 0
    writer.memory.close()
    cache.close()


def steady_world(
    directory: Path, n: int = 300, capacity: int = 0
) -> tuple[CacheWriter, dict[str, bytes], Any]:
    """A cache of n items, full unless it has another capacity; and what the store holds of them."""
    ids = np.arange(n, dtype=np.int64)
    stored = {
        row_key(view.name, view.generation, item): row
        for view in DEMO.item_views
        if view.kind == "batch"
        for item, row in zip(ids.tolist(), batch_rows(view, ids, 1), strict=True)
    }
    writer = writer_in(directory, DEMO, capacity or n)
    writer.put(ids, raw_of(DEMO, stored, ids), T0)
    go_live(writer)
    return writer, stored, ids


def test_only_values_that_aged_are_made_anew(tmp_path: Path) -> None:
    writer, cache = writer_in(tmp_path, STEADY), reader_of(tmp_path)
    view = STEADY.item_views[1]
    assert view.name == "small"
    rows = folded(view, ITEMS, clicks(T0, T0 + 2_000))
    stored = {row_key(view.name, 1, int(item)): row for item, row in zip(ITEMS, rows, strict=True)}
    writer.put(ITEMS, raw_of(STEADY, stored, ITEMS), T0 + 2_500)
    go_live(writer)
    assert writer.due_ms == T0 + 4_000  # a window of two seconds, and the younger click
    assert writer.refresh(T0 + 3_999) == 0
    looked_up(cache, STEADY, stored, ITEMS, T0 + 3_999)
    assert cache.counts.aged == 0
    looked_up(cache, STEADY, stored, ITEMS, T0 + 4_000)
    assert cache.counts.aged == 1  # the four others never had anything
    assert writer.refresh(T0 + 4_000) == 1
    looked_up(cache, STEADY, stored, ITEMS, T0 + 4_000)
    assert cache.counts.aged == 1


def test_values_of_a_time_to_come_are_made_anew_once_the_clock_is_set_back(
    tmp_path: Path,
) -> None:
    """Also of a file that was taken up: nobody knows what time it was then."""
    writer, cache = writer_in(tmp_path, STEADY), reader_of(tmp_path)
    rows = folded(STEADY.item_views[1], ITEMS, clicks(T0, T0 + 2_000))
    stored = {row_key("small", 1, int(item)): row for item, row in zip(ITEMS, rows, strict=True)}
    hour_later = T0 + 3_600_000
    for taken_up in (False, True):
        writer.put(ITEMS, raw_of(STEADY, stored, ITEMS), hour_later)
        writer.refresh(hour_later)
        if taken_up:
            writer = CacheWriter(writer.memory)
        go_live(writer)
        looked_up(cache, STEADY, stored, ITEMS, T0 + 2_500)
        aged = cache.counts.aged
        assert aged > 0
        assert writer.refresh(T0 + 2_500) == 1
        side = looked_up(cache, STEADY, stored, ITEMS, T0 + 2_500)
        assert_as_stored(side, STEADY, stored, ITEMS, T0 + 2_500)
        assert cache.counts.aged == aged
        assert writer.refresh(T0 + 2_500) == 0
        cache.counts.aged = 0


def test_a_row_written_elsewhere_is_kept_in_our_layout(tmp_path: Path) -> None:
    writer, stored, ids = steady_world(tmp_path, 4)
    view = DEMO.item_views[0]
    layout, key = layout_of(view), row_key(view.name, view.generation, 2)
    foreign = seal(stored[key][: layout.size - 28], 0, (0, 9), 5)
    stored[key] = foreign
    writer.put(ids, raw_of(DEMO, stored, ids), T0)
    side = looked_up(reader_of(tmp_path), DEMO, stored, ids, T0)
    assert_as_stored(side, DEMO, stored, ids, T0)
    assert side.block.status[2, 0] == Status.PRESENT
    at = np.array([2])
    again = DEMO.item_block(writer.rows_of(at), ids[at], T0)
    assert again.values.tobytes() == side.block.values[at].tobytes()
    assert again.fences.tolist() == side.block.fences[at].tolist()


def test_more_items_than_the_capacity_are_read_from_the_store(tmp_path: Path) -> None:
    writer, stored, ids = steady_world(tmp_path, 50)
    more = np.arange(50, 60, dtype=np.int64)
    views = [view for view in DEMO.item_views if view.kind == "batch"]
    for view in views:
        for item, row in zip(more.tolist(), batch_rows(view, more, 2), strict=True):
            stored[row_key(view.name, view.generation, item)] = row
    writer.put(more, raw_of(DEMO, stored, more), T0)
    go_live(writer)
    cache, asked = reader_of(tmp_path), np.concatenate((ids, more))
    side = looked_up(cache, DEMO, stored, asked, T0)
    assert_as_stored(side, DEMO, stored, asked, T0)
    assert writer.full
    assert (cache.counts.missed, cache.counts.hits) == (10, 50)
    with pytest.raises(LocalError, match="item_cache_items"):
        writer.memory.reserve(51)


def test_items_for_which_the_index_has_no_room_are_read_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others stay in the cache, and the writer goes on."""
    writer, stored, ids = steady_world(tmp_path, 100, capacity=1_000)
    reserve = os.posix_fallocate

    def no_index(file: int, start: int, length: int) -> None:
        if start < writer.memory._record_start:
            raise OSError(28, "No space left on device")
        reserve(file, start, length)

    monkeypatch.setattr("os.posix_fallocate", no_index)
    more = np.arange(1_000, 1_400, dtype=np.int64)
    writer.put(more, raw_of(DEMO, {}, more), T0)
    assert (writer.full, writer.memory.count) == (True, 100)
    writer.put(ids, raw_of(DEMO, stored, ids), T0)
    go_live(writer)
    cache = reader_of(tmp_path)
    found = cache.look_up(DEMO, np.concatenate((ids, more)), T0)
    assert found is not None
    assert found.missing_ids().tolist() == more.tolist()
    assert (cache.counts.hits, cache.counts.absent) == (100, 0)


def test_the_index_grows_under_its_readers(tmp_path: Path) -> None:
    writer, cache = writer_in(tmp_path, DEMO, capacity=20_000), reader_of(tmp_path)
    go_live(writer)
    for start in range(0, 12_000, 3_000):
        ids = np.arange(start, start + 3_000, dtype=np.int64) * 7_919
        writer.put(ids, raw_of(DEMO, {}, ids), T0)
        every = np.arange(0, start + 3_000, dtype=np.int64) * 7_919
        found = cache.look_up(DEMO, every, T0)
        assert found is not None
        assert not len(found.missing_ids())
    assert cache.counts.absent == 0
    assert writer.memory.bytes_per_item() < 1_500


def test_records_that_are_being_written_come_from_the_store(tmp_path: Path) -> None:
    writer, stored, ids = steady_world(tmp_path, 20)
    writer.memory.words[5, SEQUENCE] += np.uint64(1)
    cache = reader_of(tmp_path)
    side = looked_up(cache, DEMO, stored, ids, T0)
    assert_as_stored(side, DEMO, stored, ids, T0)
    assert cache.counts.missed == 1
    assert cache.counts.retried > 0
    found = cache.look_up(DEMO, ids, T0)
    assert found is not None
    failed = found.completed([], Status.STORE_ERROR)
    assert failed.block.status[:, 0].tolist().count(Status.STORE_ERROR) == 1
    assert writer.torn().tolist() == [5]


def test_who_may_be_read(tmp_path: Path) -> None:
    writer, _, ids = steady_world(tmp_path)
    assert reader_of(tmp_path).look_up(DEMO, ids, T0) is not None
    old = ItemCache(tmp_path, max_age_ms=0.0)
    assert old.look_up(DEMO, ids, T0) is None
    assert old.counts.unusable == 1
    writer.live(now_ns() + 10**15)  # another boot's clock
    assert reader_of(tmp_path).look_up(DEMO, ids, T0) is None
    writer.unsure()
    cache = reader_of(tmp_path)
    assert cache.look_up(DEMO, ids, T0) is None
    assert cache.age_ms() is None
    assert reader_of(tmp_path / "nowhere").look_up(DEMO, ids, T0) is None
    assert reader_of(tmp_path).look_up(STEADY, ids, T0) is None  # another program, another file
    writer.retire()
    codec = ItemCodec(DEMO)
    memory = CacheMemory.open(cache_path(tmp_path, codec), codec)
    assert memory is not None
    assert int(memory.header[W_STATE]) == RETIRED


def test_readers_cannot_write(tmp_path: Path) -> None:
    writer, _, _ = steady_world(tmp_path)
    memory = CacheMemory.open(cache_path(tmp_path, writer.codec), writer.codec)
    assert memory is not None
    for held in (memory.header, memory.words, memory.records, memory.rows, memory.buckets()):
        with pytest.raises(ValueError, match="read-only"):
            held[0] = held[0]


def test_an_item_of_the_demo_takes_at_most_one_and_a_half_kilobytes() -> None:
    """With its share of an index that is twice as large as it must be."""
    plan = load_plan(PLAN_LOCK.read_text("utf-8"))
    codec = ItemCodec(ServiceProgram(plan, "ranking"))
    places = index.LINE_BYTES / (index.PLACES * index.FULLEST)
    assert codec.dtype.itemsize + codec.row_bytes + 2 * places <= 1_500
    assert codec.dtype.itemsize % 64 == 0, "whole cache lines"


def test_a_snapshot_of_this_boot_is_taken_up(tmp_path: Path) -> None:
    writer, stored, ids = steady_world(tmp_path)
    codec = writer.codec
    lost = np.arange(290, 300)
    writer.memory.buckets()[:] = 0
    writer.memory.header[W_COUNT] = 290
    writer.memory.index_new(ids[:290], np.arange(290))
    writer.memory.header[W_COUNT] = 300  # its process ended in between
    writer.memory.close()
    memory = CacheMemory.open(cache_path(tmp_path, codec), codec, writable=True)
    assert memory is not None
    assert memory.lost().tolist() == lost.tolist()
    again = CacheWriter(memory)
    assert not len(memory.lost())
    go_live(again)
    side = looked_up(reader_of(tmp_path), DEMO, stored, ids, T0)
    assert_as_stored(side, DEMO, stored, ids, T0)
    memory.header[W_BOOT] += np.uint64(1)
    assert CacheMemory.open(cache_path(tmp_path, codec), codec) is None


@pytest.mark.parametrize("size", [0, 13, 4_095, 4_096, 5_000])
def test_a_file_that_is_no_cache_is_not_read(tmp_path: Path, size: int) -> None:
    codec = ItemCodec(DEMO)
    cache_path(tmp_path, codec).write_bytes(b"x" * size)
    assert CacheMemory.open(cache_path(tmp_path, codec), codec) is None


def test_two_programs_are_read_side_by_side(tmp_path: Path) -> None:
    first, _, ids = steady_world(tmp_path)
    second = writer_in(tmp_path, STEADY)
    go_live(second)
    cache = reader_of(tmp_path)
    for program in (DEMO, STEADY, DEMO, STEADY, FLEETING, STEADY):
        found = cache.look_up(program, ids, T0)
        assert (found is None) == (program is FLEETING)
    assert cache.items() == 0
    cache.close()
    assert cache.items() == 0
    first.memory.close()


def test_no_room_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, start: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    writer, *_ = steady_world(tmp_path, 10)
    (tmp_path / "no directory").touch()
    with pytest.raises(LocalError, match=r"Not a directory|File exists"):
        CacheMemory.create(tmp_path / "no directory" / "x", writer.codec, 10)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(LocalError, match="No space left"):
        CacheMemory.create(tmp_path / "other", writer.codec, 10)
    with pytest.raises(LocalError, match="No space left"):
        writer.memory._reserve_level(7)
    memory = CacheMemory.open(cache_path(tmp_path, writer.codec), writer.codec, writable=True)
    assert memory is not None
    memory.header[W_COUNT] = memory._reserved = 0
    with pytest.raises(LocalError, match="No space left"):
        memory.reserve(1)
