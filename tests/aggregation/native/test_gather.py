"""Items out of the cache by the kernels are those that numpy reads: crowded buckets, records that
are being written, values that have aged, and memory that nobody should trust."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregation.cache import index
from aggregation.cache.memory import CacheMemory
from aggregation.cache.record import FROM, SEQUENCE, UNTIL
from aggregation.native.gather import ABSENT, AGED, HELD, TORN, Gather
from aggregation.native.library import Kernels
from aggregation.program import ServiceProgram
from schemas.plan import Plan
from tests.aggregation.cache.worlds import (
    STEADY,
    aging_plan,
    batch_rows,
    go_live,
    raw_of,
    reader_of,
    writer_in,
)
from tests.aggregation.strategies import T0

NOW_MS = T0
NEWEST = 4
CAPACITY = 120


def plans() -> Plan:
    """One batch view of items: records are quickly made."""
    plan = aging_plan(("last_age",))
    service = plan.services[0]
    slots = tuple(slot for slot in service.item_slots if slot.view == "videos")
    return replace(plan, services=(replace(service, item_slots=slots),))


PLAN = plans()
SLOW = ServiceProgram(PLAN, "ranking", lambda: None)


def crowded(rng: np.random.Generator, level: int) -> NDArray[np.int64]:
    """Ids of which many belong into the same few buckets, the last one among them."""
    ids = rng.integers(-(2**63), 2**63 - 1, 40_000)
    bucket, _ = index.hashed(ids, level)
    last = (1 << level) - 1
    near = ids[np.isin(bucket, np.array([0, 1, last], np.uint64))]
    return np.unique(np.concatenate((near[:30], ids[:60], [0, -1, 2**63 - 1])))


def filled(directory: Path, ids: NDArray[np.int64]) -> CacheMemory:
    writer = writer_in(directory, SLOW, CAPACITY)
    view = SLOW.item_views[0]
    rows = batch_rows(view, ids, 1)
    stored = dict(zip(SLOW.item_keys(ids), rows, strict=True))
    writer.put(ids, raw_of(SLOW, stored, ids), NOW_MS)
    go_live(writer)
    return writer.memory


def expected(memory: CacheMemory, ids: NDArray[np.int64]) -> tuple[Any, Any]:
    """Slots and states by the definition: one id after the other."""
    slots = memory.find(ids)
    states = []
    for slot in slots.tolist():
        words = memory.words[slot]
        if slot == index.NONE:
            states.append(ABSENT)
        elif int(words[SEQUENCE]) % 2:
            states.append(TORN)
        elif not int(words[FROM].view(np.int64)) <= NOW_MS < int(words[UNTIL].view(np.int64)):
            states.append(AGED)
        else:
            states.append(HELD)
    return slots, states


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10**9), asked=st.sampled_from([0, 1, 31, 32, 33, 100]))
def test_what_is_gathered_is_what_lies_there(
    built: Kernels, tmp_path: Path, seed: int, asked: int
) -> None:
    rng = np.random.default_rng(seed)
    ids = crowded(rng, index.level_for(CAPACITY))
    kept = rng.permutation(ids)[: rng.integers(1, len(ids) + 1)]
    memory = filled(tmp_path, kept)
    for _ in range(rng.integers(0, 4)):
        some = memory.words[rng.integers(len(kept))]
        match int(rng.integers(3)):
            case 0:
                some[SEQUENCE] |= np.uint64(1)
            case 1:
                some[UNTIL] = NOW_MS
            case 2:
                some[FROM] = NOW_MS + 1
    wanted = np.concatenate((rng.permutation(ids), rng.integers(-9, 9, 10)))[:asked]
    got = Gather(built, memory)(wanted, NOW_MS)
    slots, states = expected(memory, wanted)
    assert got.slots.tolist() == slots.tolist()
    assert got.states.tolist() == states
    assert got.left == sum(state != HELD for state in states)
    assert (got.retried > 0) == (TORN in states)
    newest = 0
    for place, state in enumerate(states):
        if state in (HELD, AGED):
            assert got.words[place].tolist() == memory.words[slots[place]].tolist()
        else:
            assert not got.words[place].any()
        if state == HELD:
            newest = max(newest, int(got.words[place, NEWEST]))
    assert got.newest_ms == newest
    memory.close()


def test_a_request_that_finds_all_finds_what_numpy_finds(built: Kernels, tmp_path: Path) -> None:
    fast = ServiceProgram(PLAN, "ranking", lambda: built)
    ids = np.arange(80, dtype=np.int64) * 7_919
    memory = filled(tmp_path, ids)
    for torn, aged in ((None, None), (3, None), (3, 5), (None, 5)):
        for at, word in ((torn, SEQUENCE), (aged, UNTIL)):
            if at is not None:
                memory.words[at, word] |= np.uint64(1)
                memory.words[at, word] = memory.words[at, word] if word == SEQUENCE else NOW_MS
        sides, missing = [], []
        for program in (SLOW, fast):
            cache = reader_of(tmp_path)
            found = cache.look_up(program, np.append(ids[::-1], 10**15), NOW_MS)
            assert found is not None
            missing.append(found.missing_ids().tolist())
            sides.append(found.completed([None] * len(missing[-1])))
            cache.close()
        assert missing[0] == missing[1] == ([] if torn is None else [3 * 7_919])
        one, other = sides
        assert one.block.values.tobytes() == other.block.values.tobytes()
        assert one.block.status.tolist() == other.block.status.tolist()
        assert one.block.fences.tolist() == other.block.fences.tolist()
        assert one.block.newest_ms == other.block.newest_ms
        assert one.own_ids is not None
        assert other.own_ids is not None
        assert one.own_ids.tolist() == other.own_ids.tolist()
        memory.words[3, SEQUENCE] &= ~np.uint64(1)
    memory.close()


@pytest.mark.parametrize("slot", [CAPACITY, 2**31, 2**32 - 1])
def test_a_slot_that_is_not_there_is_never_read(built: Kernels, tmp_path: Path, slot: int) -> None:
    ids = np.arange(20, dtype=np.int64)
    memory = filled(tmp_path, ids)
    memory.buckets()[:, index.PLACES :] = slot
    got = Gather(built, memory)(ids, NOW_MS)
    assert got.states.tolist() == [ABSENT] * 20
    assert got.left == 20
    memory.close()


def test_an_index_without_a_free_place_ends_the_search(built: Kernels, tmp_path: Path) -> None:
    memory = filled(tmp_path, np.arange(5, dtype=np.int64))
    memory.buckets()[:] = 1
    assert Gather(built, memory)(np.array([12_345]), NOW_MS).states.tolist() == [ABSENT]
    memory.close()


def test_a_program_brings_its_kernels(built: Kernels) -> None:
    assert SLOW.library is None
    assert ServiceProgram(PLAN, "ranking", lambda: built).library is built
    assert STEADY.library is None or isinstance(STEADY.library, Kernels)
