"""The row store in memory: for tests and tools that need no server. Same conformance suite.

`MemoryRowStore` is the blocking face, `AsyncMemoryRowStore(store)` the async face of the same rows.
A fault is a value: `store.fail_next(StoreTimeout(...), StoreError(...))` makes the next two calls
raise before they do anything. A store that went back: `store.restore(store.image())`, later, or
`store.restore(store.confirmed)`; a wiped one: `store.restore(Image())`. Under running clients, none
of which is cut off: `store.flush()`, `store.go_back(image)`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Self

from schemas.errors import StoreError
from schemas.row import FENCE_SLICE
from schemas.stored import RowKeys, StoredRows
from store.base import (
    Progress,
    ServerFacts,
    Write,
    check_facts,
    check_history,
    check_progress,
    check_writes,
    merge_progress,
    no_history,
)

_PLACE: Final = "memory://"
NEVER_MS: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Image:
    """All that a memory store held at one moment."""

    values: dict[str, bytes] = field(default_factory=dict)
    progress: dict[tuple[str, str], dict[int, Progress]] = field(default_factory=dict)
    epochs: dict[str, dict[str, int]] = field(default_factory=dict)
    expires_ms: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Image:
        """One that nobody changes."""
        progress = {key: dict(marks) for key, marks in self.progress.items()}
        epochs = {topic: dict(ids) for topic, ids in self.epochs.items()}
        return Image(dict(self.values), progress, epochs, dict(self.expires_ms))


class MemoryRowStore:
    """`store.base.RowStore` in a dict. Threads may share it. clock_ms: what rows expire by."""

    def __init__(
        self,
        maxmemory_policy: str = "noeviction",
        clock_ms: Callable[[], float] = lambda: time.monotonic() * 1000,
    ) -> None:
        self._policy, self._clock_ms = maxmemory_policy, clock_ms
        self._lock = threading.Lock()
        self._data = Image()
        self._confirmed = Image()
        self._lives = self._markers = 1
        self._history = ""
        self._faults: deque[StoreError] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fail_next(self, *faults: StoreError) -> None:
        """Each of the next calls raises one of these, in order, and does nothing else."""
        self._faults.extend(faults)

    def image(self) -> Image:
        """What the store holds now, for `restore`."""
        with self._lock:
            return self._data.copy()

    def restore(self, image: Image) -> None:
        """Go back, as a server does that comes up with an older file: another history begins."""
        with self._lock:
            self._data, self._lives = image.copy(), self._lives + 1

    def flush(self) -> None:
        """FLUSHALL: everything is gone, and nobody is cut off."""
        with self._lock:
            self._data, self._markers = Image(), self._markers + 1

    def go_back(self, image: Image) -> None:
        """Keys are put back as they were, the marker of the history among them."""
        with self._lock:
            self._data = image.copy()

    @property
    def confirmed(self) -> Image:
        """What a crash leaves at least: the store as it was at the last `confirm`."""
        return self._confirmed

    def confirm_all(self) -> None:
        """What is here now is confirmed."""
        with self._call():
            self._confirmed = self._data.copy()

    @property
    def history(self) -> str:
        """The name of the history that the store is in."""
        return f"{_PLACE}{self._markers}-{self._lives}"

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """As `RowStore.read`."""
        with self._call():
            return [self._row(key) for key in keys]

    def read_rows(self, keys: Sequence[RowKeys]) -> StoredRows:
        """As `RowStore.read_rows`."""
        return StoredRows.of(self.read([name for each in keys for name in each.names()]))

    def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
        """As `RowStore.compare_and_set`."""
        check_writes(writes)
        with self._call():
            return [self._land(write) for write in writes]

    def get_text(self, key: str) -> str | None:
        """As `RowStore.get_text`."""
        with self._call():
            value = self._data.values.get(key)
            return None if value is None else value.decode()

    def put_text(self, key: str, text: str) -> None:
        """As `RowStore.put_text`."""
        with self._call():
            self._data.values[key] = text.encode()

    def compare_and_set_text(
        self, key: str, version_key: str, expected_version: int, text: str
    ) -> bool:
        """As `RowStore.compare_and_set_text`."""
        with self._call():
            if self._data.values.get(version_key, b"0") != str(expected_version).encode():
                return False
            self._data.values[key] = text.encode()
            self._data.values[version_key] = str(expected_version + 1).encode()
            return True

    def put_progress(
        self, topic: str, group: str, progress: Mapping[int, tuple[int, int, int]]
    ) -> None:
        """As `RowStore.put_progress`."""
        check_progress(progress)
        with self._call():
            marks = self._data.progress.setdefault((topic, group), {})
            for partition, numbers in progress.items():
                marks[partition] = merge_progress(marks.get(partition), Progress(*numbers))

    def get_progress(self, topic: str, group: str) -> dict[int, Progress]:
        """As `RowStore.get_progress`."""
        with self._call():
            return dict(self._data.progress.get((topic, group), {}))

    def epoch_of(self, topic: str, topic_id: str) -> int:
        """As `RowStore.epoch_of`."""
        with self._call():
            epochs = self._data.epochs.setdefault(topic, {})
            return epochs.setdefault(topic_id, len(epochs) + 1)

    def begin_history(self) -> str:
        """As `RowStore.begin_history`."""
        with self._call():
            self._history = self.history
            return self._history

    def check_history(self) -> None:
        """As `RowStore.check_history`."""
        with self._call():
            check_history(self._history, self.history)

    def confirm(self) -> None:
        """As `RowStore.confirm`."""
        if not self._history:
            raise no_history(_PLACE)
        self.check_history()
        self.confirm_all()

    def facts(self) -> ServerFacts:
        """As `RowStore.facts`."""
        with self._call():
            used = sum(map(len, self._data.values.values()))
            return ServerFacts("memory", self._policy, True, 0, False, used, len(self._data.values))

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
            check_history(life_of(self._history), life_of(self.history))
            yield

    def _land(self, write: Write) -> bool:
        stored = self._row(write.key)
        fence = None if stored is None else stored[FENCE_SLICE]
        if fence != write.fence:
            return False
        self._data.values[write.key] = write.value
        self._data.expires_ms.pop(write.key, None)
        if write.expire_ms:
            self._data.expires_ms[write.key] = int(self._clock_ms()) + write.expire_ms
        return True

    def _row(self, key: str) -> bytes | None:
        if self._clock_ms() >= self._data.expires_ms.get(key, NEVER_MS):
            del self._data.values[key], self._data.expires_ms[key]
        return self._data.values.get(key)


def life_of(history: str) -> str:
    """What of a memory store's history every call is checked by; a server cuts connections.

    >>> life_of("memory://1-4")
    '4'
    """
    return history.rpartition("-")[2]


class AsyncMemoryRowStore:
    """`store.base.AsyncRowStore` over a MemoryRowStore. Each call yields to the event loop once."""

    def __init__(self, store: MemoryRowStore | None = None) -> None:
        self.store = store or MemoryRowStore()
        self._history = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """As `RowStore.read`."""
        await self._turn()
        return self.store.read(keys)

    async def read_rows(self, keys: Sequence[RowKeys]) -> StoredRows:
        """As `RowStore.read_rows`."""
        await self._turn()
        return self.store.read_rows(keys)

    async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
        """As `RowStore.compare_and_set`."""
        await self._turn()
        return self.store.compare_and_set(writes)

    async def get_text(self, key: str) -> str | None:
        """As `RowStore.get_text`."""
        await self._turn()
        return self.store.get_text(key)

    async def put_text(self, key: str, text: str) -> None:
        """As `RowStore.put_text`."""
        await self._turn()
        self.store.put_text(key, text)

    async def compare_and_set_text(
        self, key: str, version_key: str, expected_version: int, text: str
    ) -> bool:
        """As `RowStore.compare_and_set_text`."""
        await self._turn()
        return self.store.compare_and_set_text(key, version_key, expected_version, text)

    async def put_progress(
        self, topic: str, group: str, progress: Mapping[int, tuple[int, int, int]]
    ) -> None:
        """As `RowStore.put_progress`."""
        await self._turn()
        self.store.put_progress(topic, group, progress)

    async def get_progress(self, topic: str, group: str) -> dict[int, Progress]:
        """As `RowStore.get_progress`."""
        await self._turn()
        return self.store.get_progress(topic, group)

    async def epoch_of(self, topic: str, topic_id: str) -> int:
        """As `RowStore.epoch_of`."""
        await self._turn()
        return self.store.epoch_of(topic, topic_id)

    async def begin_history(self) -> str:
        """As `RowStore.begin_history`."""
        await self._turn()
        self._history = self.store.history
        return self._history

    async def check_history(self) -> None:
        """As `RowStore.check_history`."""
        await self._turn()
        self.store.ping()
        check_history(self._history, self.store.history)

    async def confirm(self) -> None:
        """As `RowStore.confirm`."""
        await self._turn()
        if not self._history:
            raise no_history(_PLACE)
        check_history(self._history, self.store.history)
        self.store.confirm_all()

    async def facts(self) -> ServerFacts:
        """As `RowStore.facts`."""
        await self._turn()
        return self.store.facts()

    async def check_policy(self) -> None:
        """As `RowStore.check_policy`."""
        await self._turn()
        self.store.check_policy()

    async def ping(self) -> None:
        """As `RowStore.ping`."""
        await self._turn()
        self.store.ping()

    async def close(self) -> None:
        """As `RowStore.close`."""
        self.store.close()

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        check_history(life_of(self._history), life_of(self.store.history))
