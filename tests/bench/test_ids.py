"""The pipelines keyed by strings see the values that ours sees, and tell apart what ours does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.ids import Case, case_of, without_crosses
from bench.peers.string_ids import HASHER_COLUMNS, StringSlots, feature_hasher
from bench.server import own_store
from bench.workload import Workload, load_workload
from store.redis_store import RedisRowStore
from tests.oracle.ids import id_of

ITEMS = 30


@pytest.fixture(scope="module")
def work() -> tuple[Workload, Case]:
    with (
        own_store() as (host, port),
        RedisRowStore(f"redis://{host}:{port}/0") as store,
        load_workload(store, 5, ITEMS) as loaded,
    ):
        workload = without_crosses(loaded)
        return workload, case_of(workload, store, workload.requests(1, ITEMS, seed=0)[0])


def test_the_values_are_those_of_the_tensor(work: tuple[Workload, Case]) -> None:
    """Each value by the slow transform is the id at its place in our tensor."""
    workload, case = work
    service, found = workload.program.service, case.assembled.tensors
    assert [
        id_of(value, slot.transform)
        for value, slot in zip(case.strings.user, service.user_slots, strict=True)
    ] == found.user_slots[0].tolist()
    for place, (column, slot) in enumerate(
        zip(case.strings.items, service.item_slots, strict=True)
    ):
        expected = [id_of(value, slot.transform) for value in column]
        assert expected == found.item_slots[:, place].tolist(), slot.name


def test_a_dictionary_of_tokens_gives_our_ids_back(work: tuple[Workload, Case]) -> None:
    workload, case = work
    slots, ours = StringSlots(workload.program.service), case.assembled.tensors.expand()
    known: dict[str, int] = {}
    slots.learn(known, case.strings, ours)
    np.testing.assert_array_equal(slots.known_ids(known, case.strings), ours)
    changed = [list(reversed(column)) for column in case.strings.items]
    other = slots.known_ids(known, replace(case.strings, items=changed))
    assert not np.array_equal(other, ours)


def test_hashed_ids_tell_tokens_apart(work: tuple[Workload, Case]) -> None:
    workload, case = work
    slots, ours = StringSlots(workload.program.service), case.assembled.tensors.expand()
    murmur, xxhash = slots.murmur_ids(case.strings), slots.xxhash_ids(case.strings)
    np.testing.assert_array_equal(slots.split_ids(case.strings), murmur)
    assert murmur.shape == xxhash.shape == ours.shape
    assert not np.array_equal(murmur, xxhash)
    for place in range(ours.shape[1]):
        tokens = slots.whole(case.strings)[place]
        assert len(set(tokens)) >= len(set(ours[:, place].tolist()))
        assert len(set(tokens)) >= len(set(murmur[:, place].tolist()))


def test_scikit_learn_hashes_the_same_tokens(work: tuple[Workload, Case]) -> None:
    hasher = feature_hasher()
    if hasher is None:
        pytest.skip("scikit-learn is not installed: pip install -e '.[bench]'")
    workload, case = work
    slots = StringSlots(workload.program.service)
    assert hasher.agrees(slots, case.strings)
    assert hasher.ids(slots, case.strings).max() < HASHER_COLUMNS
