"""Each implementation has exactly the methods of its Protocol, with the same parameters."""

from __future__ import annotations

import inspect

import pytest

from store.base import AsyncRowStore, RowStore
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from store.redis_store import AsyncRedisRowStore, RedisRowStore


def methods(of: type) -> dict[str, tuple[str, ...]]:
    found = inspect.getmembers(of, inspect.isfunction)
    return {
        name: tuple(inspect.signature(function).parameters)
        for name, function in found
        if not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("face", "implementation"),
    [
        (RowStore, MemoryRowStore),
        (RowStore, RedisRowStore),
        (AsyncRowStore, AsyncMemoryRowStore),
        (AsyncRowStore, AsyncRedisRowStore),
    ],
)
def test_methods(face: type, implementation: type) -> None:
    faults = {"fail_next", "image", "restore", "confirm_all", "flush", "go_back"}
    extra = {MemoryRowStore: faults, AsyncRedisRowStore: {"reconnect"}}.get(implementation, set())
    found = methods(implementation)
    assert {name: found[name] for name in found.keys() - extra} == methods(face)


def test_both_faces_have_one_vocabulary() -> None:
    assert methods(RowStore) == methods(AsyncRowStore)


def test_async_methods_are_coroutines() -> None:
    for name in methods(AsyncRowStore):
        for implementation in (AsyncRedisRowStore, AsyncMemoryRowStore):
            assert inspect.iscoroutinefunction(getattr(implementation, name)), name
