"""The double's own part: faults that are values."""

from __future__ import annotations

import asyncio

import pytest

from schemas.errors import StoreError, StoreTimeout
from schemas.row import seal
from store.base import Write
from store.memory import AsyncMemoryRowStore, MemoryRowStore

ROW = seal(b"front", 0, (1, 1), newest_ms=0)


def test_the_next_calls_fail_in_order_and_do_nothing() -> None:
    store = MemoryRowStore()
    store.fail_next(
        StoreTimeout("here", required="an answer", got="none"),
        StoreError("there", required="a connection", got="none"),
    )
    with pytest.raises(StoreTimeout, match="here"):
        store.compare_and_set([Write("a", None, ROW)])
    with pytest.raises(StoreError, match="there"):
        store.read(["a"])
    assert store.read(["a"]) == [None]


def test_the_async_face_shows_the_same_rows() -> None:
    store = MemoryRowStore()
    face = AsyncMemoryRowStore(store)
    assert asyncio.run(face.compare_and_set([Write("a", None, ROW)])) == [True]
    assert store.read(["a"]) == [ROW]


def test_a_policy_that_evicts_is_refused() -> None:
    with pytest.raises(StoreError, match="noeviction"):
        MemoryRowStore("allkeys-lru").check_policy()
