"""The hash table against a dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation.cache import index

IDS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 60), unique=True, max_size=300)


def table(level: int) -> index.Buckets:
    return np.zeros((1 << level, index.WORDS), np.uint32)


@settings(max_examples=100, deadline=None)
@given(known=IDS, asked=IDS, level=st.integers(6, 8), cut=st.integers(0, 300))
def test_ids_are_found_where_they_were_put(
    known: list[int], asked: list[int], level: int, cut: int
) -> None:
    buckets, entities = table(level), np.array(known, np.int64)
    slots = np.arange(len(known))
    for part in (slice(0, cut), slice(cut, None)):
        index.insert(buckets, entities[part], slots[part])
    places = {item: slot for slot, item in enumerate(known)}
    wanted = np.array([*asked, *known], np.int64)
    held = entities if len(known) else np.zeros(1, np.int64)
    expected = [places.get(item, index.NONE) for item in wanted.tolist()]
    assert index.find(buckets, wanted, held).tolist() == expected
    simple = index.probe(buckets, entities)
    if simple is not None and (entities[simple % max(len(known), 1)] == entities).all():
        assert simple.tolist() == list(range(len(known)))


def test_ids_of_one_bucket_and_one_tag_are_told_apart() -> None:
    """A table of one line and its neighbours: everything collides."""
    buckets = table(1)
    entities = np.arange(15, dtype=np.int64)
    index.insert(buckets, entities, np.arange(15))
    assert index.find(buckets, entities, entities).tolist() == list(range(15))
    tags = index.hashed(entities, 1)[1]
    buckets[:, : index.PLACES] = np.where(buckets[:, : index.PLACES] > 0, tags[3], 0)
    assert int(index.find(buckets, entities[3:4], entities)[0]) == 3


def test_a_level_has_room_to_spare() -> None:
    for items in (0, 1, 1_000, 5_000_000):
        assert (index.PLACES << index.level_for(items)) * index.FULLEST >= items
