"""Services, rows and caches for the tests of the item cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregation.cache.memory import CacheMemory, now_ns
from aggregation.cache.reader import ItemCache, ItemSide, cache_path
from aggregation.cache.record import ItemCodec
from aggregation.cache.writer import CacheWriter
from aggregation.fold import fold
from aggregation.program import ServiceProgram
from schemas.actions import ACTION, ActionType
from schemas.fingerprint import service_fingerprint
from schemas.ids import log_boundaries
from schemas.layout import layout_of
from schemas.plan import Plan, ServicePlan, SlotPlan, TransformPlan, ViewPlan
from schemas.row import TOMBSTONE_MS, empty_rows, encode_rows
from tests.aggregation.functions import functions_view
from tests.aggregation.plans import demo_plan, small_view, videos_view

COUNTS = TransformPlan("boundaries", 23, boundaries=log_boundaries(20, 1, 1e6))
HASHED = TransformPlan("hash", 1_002, buckets=1_000)
DEMO = ServiceProgram(demo_plan(), "ranking")


def slots(view: ViewPlan, without: tuple[str, ...] = ()) -> tuple[SlotPlan, ...]:
    return tuple(
        SlotPlan(f"{view.name}_{each.name}", view.name, each.name, COUNTS, each.name)
        for each in view.features
        if not each.capacity and each.name not in without
    )


def aging_plan(without: tuple[str, ...] = (), ttl_ms: int = 0) -> Plan:
    """Item views with every function and window, in seconds, and a batch view."""
    functions = replace(functions_view(ttl_ms), entity="item")
    small = replace(small_view(ttl_ms), entity="item")
    videos = videos_view()
    views = {view.name: view for view in (functions, small, videos)}
    item_slots = (
        *slots(functions, without),
        *slots(small),
        SlotPlan("video", "videos", "video_id", HASHED, "video"),
    )
    fingerprint = service_fingerprint(views, (), item_slots, ())
    service = ServicePlan("ranking", (), item_slots, (), fingerprint)
    return Plan(1, 0, tuple(views.values()), (service,))


#: `last_age` is of the request's own millisecond.
STEADY = ServiceProgram(aging_plan(("last_age",), ttl_ms=9_000), "ranking")
FLEETING = ServiceProgram(aging_plan(), "ranking")


def folded(
    view: ViewPlan, ids: NDArray[np.int64], history: Any, fence: tuple[int, int] = (1, 5)
) -> list[bytes]:
    """Rows of these items after a history of as many rows."""
    actions, row, sent_ms = history
    layout = layout_of(view)
    rows = empty_rows(layout, ids)
    fold(view, rows, row, actions, sent_ms)
    rows.epoch[:], rows.offset[:] = fence
    return encode_rows(layout, rows)


def clicks(*times_ms: int) -> Any:
    """A history of clicks on the first row."""
    actions = np.zeros(len(times_ms), ACTION)
    actions["time_ms"], actions["type"] = times_ms, ActionType.CLICK.value
    return actions, np.zeros(len(times_ms), np.intp), actions["time_ms"].astype(np.int64)


def batch_rows(view: ViewPlan, ids: NDArray[np.int64], seed: int) -> list[bytes]:
    random = np.random.default_rng(seed)
    layout = layout_of(view)
    rows = empty_rows(layout, ids)
    for field in view.fields:
        rows.values[field.name][:] = random.integers(0, 50, rows.values[field.name].shape)
        rows.present[field.name][:] = random.random(len(ids)) < 0.9
        if field.capacity:
            rows.lengths[field.name][:] = field.capacity
    rows.newest_ms[:] = random.integers(1, 10**12, len(ids))
    rows.offset[:] = rows.newest_ms
    return encode_rows(layout, rows)


def tombstone(view: ViewPlan, item_id: int) -> bytes:
    layout = layout_of(view)
    rows = empty_rows(layout, np.array([item_id], np.int64))
    rows.newest_ms[:], rows.epoch[:], rows.offset[:] = TOMBSTONE_MS, 3, 77
    return encode_rows(layout, rows)[0]


def writer_in(directory: Path, program: ServiceProgram, capacity: int = 64) -> CacheWriter:
    codec = ItemCodec(program)
    return CacheWriter(CacheMemory.create(cache_path(directory, codec), codec, capacity))


def go_live(writer: CacheWriter) -> None:
    writer.verified()
    writer.live(now_ns())


def reader_of(directory: Path) -> ItemCache:
    """One to which no busy machine is too slow."""
    return ItemCache(directory, max_age_ms=600_000)


def raw_of(
    program: ServiceProgram, stored: Mapping[str, bytes], ids: NDArray[np.int64]
) -> list[bytes | None]:
    return [stored.get(key) for key in program.item_keys(ids)]


def looked_up(
    cache: ItemCache,
    program: ServiceProgram,
    stored: Mapping[str, bytes],
    ids: NDArray[np.int64],
    now_ms: int,
) -> ItemSide:
    found = cache.look_up(program, ids, now_ms)
    assert found is not None
    return found.completed(raw_of(program, stored, found.missing_ids()))


def assert_as_stored(
    side: ItemSide,
    program: ServiceProgram,
    stored: Mapping[str, bytes],
    ids: NDArray[np.int64],
    now_ms: int,
) -> None:
    """Bit for bit what the store path gives."""
    block = program.item_block(raw_of(program, stored, ids), ids, now_ms)
    assert side.own_ids is not None
    assert side.block.values.tobytes() == block.values.tobytes()
    assert side.block.status.tolist() == block.status.tolist()
    assert side.block.fences.tolist() == block.fences.tolist()
    assert side.own_ids.tolist() == program.own_ids(block).tolist()
    assert side.block.newest_ms == block.newest_ms
