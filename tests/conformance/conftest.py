"""One suite for all row stores: the `store` fixture is each implementation in turn.

The async faces are driven through `Blocking`, so that every test is written once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast
from uuid import uuid4

import pytest

from store.base import AsyncRowStore, RowStore
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from store.redis_store import AsyncRedisRowStore, RedisRowStore
from store.wire import StoreConfig

KINDS = ("memory", "memory-async", "redis", "redis-async")


class Blocking:
    """The blocking face of an async store: each method runs to its end on a loop of its own."""

    def __init__(self, store: AsyncRowStore, runner: asyncio.Runner) -> None:
        self._store = store
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Awaitable[Any]] = getattr(self._store, name)

        def call(*args: Any) -> Any:
            async def run() -> Any:
                return await method(*args)

            return self._runner.run(run())

        return call


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return cast(str, request.param)


@pytest.fixture
def store(kind: str, request: pytest.FixtureRequest) -> Iterator[RowStore]:
    if kind == "memory":
        yield MemoryRowStore()
        return
    patient = StoreConfig(request.getfixturevalue("valkey"), timeout_ms=20_000)
    if kind == "redis":
        with RedisRowStore(patient) as blocking:
            yield blocking
        return
    with asyncio.Runner() as runner:
        inner: AsyncRowStore = (
            AsyncMemoryRowStore() if kind == "memory-async" else AsyncRedisRowStore(patient)
        )
        face = cast(RowStore, Blocking(inner, runner))
        yield face
        face.close()


@pytest.fixture
def prefix() -> str:
    """Key prefix of one test: the server is shared."""
    return f"test_{uuid4().hex[:12]}"
