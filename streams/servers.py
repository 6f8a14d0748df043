"""What a stream process reaches beyond its own memory: the row store, the broker's facts, a clock.

Handlers are given `Servers` and open what they need from it, so the same code runs against real
servers, against doubles, and under a clock that is moved by hand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from store.base import AsyncRowStore, RowStore
from store.redis_store import AsyncRedisRowStore, RedisRowStore
from store.wire import StoreConfig
from streams.admin import REQUEST_TIMEOUT_MS, Admin, TopicFacts
from streams.config import StreamConfig
from streams.ends import Partition, read_ends, read_starts
from streams.log_reader import KafkaLogReader, LogReader
from streams.producer import send_end

#: Where these partitions of a broker begin, or end. Raises StreamError.
ReadOffsets = Callable[[str, Mapping[Partition, int]], Awaitable[Mapping[Partition, int]]]

#: Writing a few thousand rows waits behind requests at worst.
WRITE_TIMEOUT_MS: Final = 20_000


class TopicAdmin(Protocol):
    """What is asked of a broker about its topics; blocking, called from a thread, one at a time."""

    def describe(self, topic: str) -> TopicFacts | None:
        """As `Admin.describe`."""
        ...

    def ensure_topics(self, topics: Mapping[str, int]) -> dict[str, TopicFacts]:
        """As `Admin.ensure_topics`."""
        ...

    def close(self) -> None:
        """Release the connection."""
        ...


def open_redis(config: StreamConfig) -> AsyncRowStore:
    """The row store that the settings name; it connects when it is first asked."""
    timeout_ms, disks = config.store_timeout_ms, config.disks
    return AsyncRedisRowStore(StoreConfig(config.store_url, timeout_ms, disks=disks))


def open_rows(store_url: str) -> RowStore:
    """The same, for a blocking writer of many rows."""
    return RedisRowStore(StoreConfig(store_url, timeout_ms=WRITE_TIMEOUT_MS))


def open_broker(config: StreamConfig) -> TopicAdmin:
    """The broker that the settings name. Blocking. Raises StreamError where none answers."""
    return Admin(config.bootstrap, min(config.patience_ms, REQUEST_TIMEOUT_MS))


def open_log(config: StreamConfig) -> LogReader:
    """The log of the broker that the settings name; it connects when it is first asked."""
    return KafkaLogReader(config.bootstrap, config.patience_ms)


def now_ms() -> int:
    """The machine's clock, ms since 1970."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Servers:
    """open_admin may block and is called in a thread. open_reader: for spans of the log that are
    read again. clock_s: seconds, never going back. wall_ms: ms since 1970, for what people read.
    open_rows: of a store's URL, blocking. read_ends, read_starts: of a broker's address, where
    partitions end and begin; send_end: to a partition of it (`streams.producer.send_end`).
    """

    open_store: Callable[[StreamConfig], AsyncRowStore] = open_redis
    open_admin: Callable[[StreamConfig], TopicAdmin] = open_broker
    open_reader: Callable[[StreamConfig], LogReader] = open_log
    clock_s: Callable[[], float] = time.monotonic
    wall_ms: Callable[[], int] = now_ms
    open_rows: Callable[[str], RowStore] = open_rows
    read_ends: ReadOffsets = read_ends
    read_starts: ReadOffsets = read_starts
    send_end: Callable[[str, Partition, str], Awaitable[int]] = send_end

    async def admin(self, config: StreamConfig) -> TopicAdmin:
        """`open_admin`, beside the event loop."""
        return await asyncio.to_thread(self.open_admin, config)


REAL_SERVERS = Servers()
