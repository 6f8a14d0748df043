"""The row store in memory: for tests and tools that need no server. Same conformance suite.

`MemoryRowStore` is the blocking face, `AsyncMemoryRowStore(store)` the async face of the same rows.
A fault is a value: `store.fail_next(StoreTimeout(...), StoreError(...))` makes the next two calls
raise before they do anything.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Self

from schemas.errors import StoreError
from schemas.row import FENCE_SLICE
from store.base import (
    Progress,
    ServerFacts,
    Write,
    check_facts,
    check_progress,
    check_writes,
    merge_progress,
)

_PLACE: Final = "memory://"


class MemoryRowStore:
    """`store.base.RowStore` in a dict. Threads may share it."""

    def __init__(self, maxmemory_policy: str = "noeviction") -> None:
        self._policy = maxmemory_policy
        self._lock = threading.Lock()
        self._values: dict[str, bytes] = {}
        self._progress: dict[tuple[str, str], dict[int, Progress]] = {}
        self._epochs: dict[str, dict[str, int]] = {}
        self._faults: deque[StoreError] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fail_next(self, *faults: StoreError) -> None:
        """Each of the next calls raises one of these, in order, and does nothing else."""
        self._faults.extend(faults)

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """As `RowStore.read`."""
        with self._call():
            return [self._values.get(key) for key in keys]

    def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
        """As `RowStore.compare_and_set`."""
        check_writes(writes)
        with self._call():
            return [self._land(write) for write in writes]

    def get_text(self, key: str) -> str | None:
        """As `RowStore.get_text`."""
        with self._call():
            value = self._values.get(key)
            return None if value is None else value.decode()

    def put_text(self, key: str, text: str) -> None:
        """As `RowStore.put_text`."""
        with self._call():
            self._values[key] = text.encode()

    def compare_and_set_text(
        self, key: str, version_key: str, expected_version: int, text: str
    ) -> bool:
        """As `RowStore.compare_and_set_text`."""
        with self._call():
            if self._values.get(version_key, b"0") != str(expected_version).encode():
                return False
            self._values[key] = text.encode()
            self._values[version_key] = str(expected_version + 1).encode()
            return True

    def put_progress(
        self, topic: str, group: str, progress: Mapping[int, tuple[int, int, int]]
    ) -> None:
        """As `RowStore.put_progress`."""
        check_progress(progress)
        with self._call():
            marks = self._progress.setdefault((topic, group), {})
            for partition, numbers in progress.items():
                marks[partition] = merge_progress(marks.get(partition), Progress(*numbers))

    def get_progress(self, topic: str, group: str) -> dict[int, Progress]:
        """As `RowStore.get_progress`."""
        with self._call():
            return dict(self._progress.get((topic, group), {}))

    def epoch_of(self, topic: str, topic_id: str) -> int:
        """As `RowStore.epoch_of`."""
        with self._call():
            epochs = self._epochs.setdefault(topic, {})
            return epochs.setdefault(topic_id, len(epochs) + 1)

    def facts(self) -> ServerFacts:
        """As `RowStore.facts`."""
        with self._call():
            used = sum(map(len, self._values.values()))
            return ServerFacts("memory", self._policy, False, False, used, len(self._values))

    def check_policy(self) -> None:
        """As `RowStore.check_policy`."""
        check_facts(self.facts(), _PLACE)

    def ping(self) -> None:
        """As `RowStore.ping`."""
        with self._call():
            return

    def close(self) -> None:
        """As `RowStore.close`; the rows stay."""

    @contextmanager
    def _call(self) -> Iterator[None]:
        with self._lock:
            if self._faults:
                raise self._faults.popleft()
            yield

    def _land(self, write: Write) -> bool:
        stored = self._values.get(write.key)
        fence = None if stored is None else stored[FENCE_SLICE]
        if fence != write.fence:
            return False
        self._values[write.key] = write.value
        return True


class AsyncMemoryRowStore:
    """`store.base.AsyncRowStore` over a MemoryRowStore. Each call yields to the event loop once."""

    def __init__(self, store: MemoryRowStore | None = None) -> None:
        self.store = store or MemoryRowStore()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """As `RowStore.read`."""
        await asyncio.sleep(0)
        return self.store.read(keys)

    async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
        """As `RowStore.compare_and_set`."""
        await asyncio.sleep(0)
        return self.store.compare_and_set(writes)

    async def get_text(self, key: str) -> str | None:
        """As `RowStore.get_text`."""
        await asyncio.sleep(0)
        return self.store.get_text(key)

    async def put_text(self, key: str, text: str) -> None:
        """As `RowStore.put_text`."""
        await asyncio.sleep(0)
        self.store.put_text(key, text)

    async def compare_and_set_text(
        self, key: str, version_key: str, expected_version: int, text: str
    ) -> bool:
        """As `RowStore.compare_and_set_text`."""
        await asyncio.sleep(0)
        return self.store.compare_and_set_text(key, version_key, expected_version, text)

    async def put_progress(
        self, topic: str, group: str, progress: Mapping[int, tuple[int, int, int]]
    ) -> None:
        """As `RowStore.put_progress`."""
        await asyncio.sleep(0)
        self.store.put_progress(topic, group, progress)

    async def get_progress(self, topic: str, group: str) -> dict[int, Progress]:
        """As `RowStore.get_progress`."""
        await asyncio.sleep(0)
        return self.store.get_progress(topic, group)

    async def epoch_of(self, topic: str, topic_id: str) -> int:
        """As `RowStore.epoch_of`."""
        await asyncio.sleep(0)
        return self.store.epoch_of(topic, topic_id)

    async def facts(self) -> ServerFacts:
        """As `RowStore.facts`."""
        await asyncio.sleep(0)
        return self.store.facts()

    async def check_policy(self) -> None:
        """As `RowStore.check_policy`."""
        await asyncio.sleep(0)
        self.store.check_policy()

    async def ping(self) -> None:
        """As `RowStore.ping`."""
        await asyncio.sleep(0)
        self.store.ping()

    async def close(self) -> None:
        """As `RowStore.close`."""
        self.store.close()
