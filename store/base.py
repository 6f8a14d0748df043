"""What a row store is. One conformance suite holds every implementation to this page.

A store keeps three things:

rows         opaque bytes under `schemas.names.row_key`. They change only by compare-and-set on the
             12 fence bytes of their trailer: a write names the fence it read, absent being a value
             too, and lands only if the stored fence still equals it.
small texts  the published plan, whose publication is compare-and-set on a version number.
marks        per (topic, group) how far each partition is stored, per topic the epoch numbers.

What a caller may rely on, for every implementation:

- A `read` or `read_rows` is one round trip and answers in the order of its keys, duplicates
  included.
- A compare-and-set write is atomic for its key; the writes of one call are not atomic together.
  After a StoreError or StoreTimeout from `compare_and_set` any subset of the call's writes may have
  landed: read again, the fences tell which.
- Nothing is retried inside: a server that is gone is a StoreError at once, one that does not answer
  a StoreTimeout within the bound the store was opened with.
- A call that was cancelled, timed out or failed never leaves its reply for another call.

A *history* is one unbroken life of the data. A restart, a failover or a wipe begins another one, in
which whatever was not confirmed durable may be missing, the newest writes first: what is left is
what the store held at an earlier moment. Writers fix their history before they read anything, so
none of their writes ever lands in a later one, on top of a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Final, NamedTuple, Protocol, cast

from schemas.errors import HistoryError, StoreError
from schemas.layout import TRAILER_BYTES
from schemas.row import FENCE_SLICE
from schemas.stored import RowKeys, StoredRows

FENCE_BYTES: Final = FENCE_SLICE.stop - FENCE_SLICE.start  # epoch u32, offset i64
MAX_VALUE_BYTES: Final = 1 << 20  # a row is a few hundred bytes; a megabyte is a defect
MAX_EXACT: Final = 1 << 53  # numbers compared inside Lua are doubles


class Write(NamedTuple):
    """One compare-and-set.

    key: a row key.
    fence: the 12 fence bytes of the row as it was read, None where there was no row.
    value: the new row, trailer and its own fence included.
    expire_ms: the row leaves the store when it was not written for so long; 0: it stays.
    """

    key: str
    fence: bytes | None
    value: bytes
    expire_ms: int = 0


class Progress(NamedTuple):
    """How far one partition is stored.

    next_offset: the first offset that is not stored yet. watermark_ms: event time, ms.
    """

    epoch: int
    next_offset: int
    watermark_ms: int


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself, for `doctor` and for the head of a benchmark."""

    server: str  # "valkey 9.1.0"
    maxmemory_policy: str
    appendonly: bool
    replicas: int  # connected
    loading: bool
    used_memory_bytes: int
    keys: int


class RowStore(Protocol):
    """The blocking face: stream workers, materialization, tools. Safe to share among threads."""

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Values in the order of `keys`, None where there is none. No keys: no round trip.

        Raises StoreTimeout, StoreError.
        """
        ...

    def read_rows(self, keys: Sequence[RowKeys]) -> StoredRows:
        """As `read` of all these keys, the values left in the buffer they came in.

        What requests are read by: nothing is made of a key or a value one at a time.
        """
        ...

    def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
        """True for each write that landed, False where the stored fence was another.

        Writes of one call are applied in order. Raises StoreError before anything is sent for a
        malformed write (fence not 12 bytes, value shorter than a trailer or over MAX_VALUE_BYTES);
        StoreTimeout or StoreError afterwards, when some may have landed.
        """
        ...

    def get_text(self, key: str) -> str | None:
        """The text at `key`, None where there is none."""
        ...

    def put_text(self, key: str, text: str) -> None:
        """Replaces the text at `key`."""
        ...

    def compare_and_set_text(
        self, key: str, version_key: str, expected_version: int, text: str
    ) -> bool:
        """Sets `key` to `text` and the version to `expected_version + 1`, both or neither.

        False, and nothing changed, where the version at `version_key` is not `expected_version`;
        absent counts as 0.
        """
        ...

    def put_progress(
        self, topic: str, group: str, progress: Mapping[int, tuple[int, int, int]]
    ) -> None:
        """Records {partition: (epoch, next_offset, watermark_ms)}; never moves a partition back.

        A lower epoch than the stored one is ignored; within one epoch offset and watermark each
        keep their maximum. So a worker that lost its partition cannot undo its successor's marks.
        """
        ...

    def get_progress(self, topic: str, group: str) -> dict[int, Progress]:
        """What `put_progress` recorded, by partition; empty where nothing was."""
        ...

    def epoch_of(self, topic: str, topic_id: str) -> int:
        """The number of this topic id, from 1; a new id takes the topic's next number, atomically.

        Epoch 0 belongs to batch rows, whose fence is (0, event time).
        """
        ...

    def begin_history(self) -> str:
        """Fix the history that this object talks to; returns its name.

        From then on a call that would reach another one raises HistoryError and changes nothing
        there. (What happens under a running server, FLUSHALL, shows at the next `confirm` or
        `check_history` only.)
        """
        ...

    def check_history(self) -> None:
        """One small round trip. Raises HistoryError where the store is in another history than the
        one that was fixed, StoreError where it does not say. Where none was fixed nothing is asked.
        """
        ...

    def confirm(self) -> None:
        """Returns once every write answered before this call is on the master's disk.

        Raises HistoryError where the store went into another history, StoreError where none was
        fixed or the server keeps no append-only file, StoreTimeout where its disk takes longer.
        """
        ...

    def facts(self) -> ServerFacts:
        """What the server says of itself."""
        ...

    def check_policy(self) -> None:
        """Raises StoreError unless the server never evicts (`maxmemory-policy noeviction`)."""
        ...

    def ping(self) -> None:
        """One round trip. Raises StoreTimeout, StoreError."""
        ...

    def close(self) -> None:
        """Releases the connections; closing twice is allowed."""
        ...


class AsyncRowStore(Protocol):
    """The same for an event loop: each method as in `RowStore`. Any call may be cancelled."""

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """As `RowStore.read`."""
        ...

    async def read_rows(self, keys: Sequence[RowKeys]) -> StoredRows:
        """As `RowStore.read_rows`."""
        ...

    async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
        """As `RowStore.compare_and_set`."""
        ...

    async def get_text(self, key: str) -> str | None:
        """As `RowStore.get_text`."""
        ...

    async def put_text(self, key: str, text: str) -> None:
        """As `RowStore.put_text`."""
        ...

    async def compare_and_set_text(
        self, key: str, version_key: str, expected_version: int, text: str
    ) -> bool:
        """As `RowStore.compare_and_set_text`."""
        ...

    async def put_progress(
        self, topic: str, group: str, progress: Mapping[int, tuple[int, int, int]]
    ) -> None:
        """As `RowStore.put_progress`."""
        ...

    async def get_progress(self, topic: str, group: str) -> dict[int, Progress]:
        """As `RowStore.get_progress`."""
        ...

    async def epoch_of(self, topic: str, topic_id: str) -> int:
        """As `RowStore.epoch_of`."""
        ...

    async def begin_history(self) -> str:
        """As `RowStore.begin_history`."""
        ...

    async def check_history(self) -> None:
        """As `RowStore.check_history`."""
        ...

    async def confirm(self) -> None:
        """As `RowStore.confirm`."""
        ...

    async def facts(self) -> ServerFacts:
        """As `RowStore.facts`."""
        ...

    async def check_policy(self) -> None:
        """As `RowStore.check_policy`."""
        ...

    async def ping(self) -> None:
        """As `RowStore.ping`."""
        ...

    async def close(self) -> None:
        """As `RowStore.close`."""
        ...


def writes_of(
    keys: Iterable[str], fences: Iterable[bytes | None], values: Iterable[bytes], expire_ms: int = 0
) -> list[Write]:
    """A write of each, all of one expiry."""
    # What a named tuple's own constructor does, without a call in Python a write.
    make = cast(Callable[[object], Write], partial(tuple.__new__, Write))
    return list(map(make, zip(keys, fences, values, repeat(expire_ms))))


def check_writes(writes: Sequence[Write]) -> None:
    """Raises StoreError for the first write that no store may accept."""
    if not writes:
        return
    _, fences, values, _ = zip(*writes, strict=True)
    sizes = {*map(len, values)}
    if (
        {len(fence) for fence in fences if fence is not None} <= {FENCE_BYTES}
        and min(sizes) >= TRAILER_BYTES
        and max(sizes) <= MAX_VALUE_BYTES
    ):
        return
    for write in writes:
        if write.fence is not None and len(write.fence) != FENCE_BYTES:
            raise StoreError(
                f"store.compare_and_set[{write.key}].fence",
                required=f"{FENCE_BYTES} bytes, or None for an absent row",
                got=f"{len(write.fence)} bytes",
                do="pass the fence bytes of the row as it was read",
            )
        if not TRAILER_BYTES <= len(write.value) <= MAX_VALUE_BYTES:
            raise StoreError(
                f"store.compare_and_set[{write.key}].value",
                required=f"{TRAILER_BYTES} to {MAX_VALUE_BYTES} bytes",
                got=f"{len(write.value)} bytes",
                do="write rows made by schemas.row.encode_rows",
            )


def check_progress(progress: Mapping[int, tuple[int, int, int]]) -> None:
    """Raises StoreError where a number cannot be compared exactly."""
    for partition, numbers in progress.items():
        epoch, next_offset, watermark_ms = numbers
        if min(partition, epoch, next_offset) < 0 or not all(
            -MAX_EXACT < number < MAX_EXACT for number in (epoch, next_offset, watermark_ms)
        ):
            raise StoreError(
                f"store.put_progress[{partition}]",
                required=f"partition, epoch and offset from 0, all numbers below {MAX_EXACT}",
                got=repr(tuple(numbers)),
            )


def check_history(known: str, found: str, place: str = "store") -> None:
    """Raises HistoryError where one was fixed, and the store is in another."""
    if known and found != known:
        raise other_history(place, known, found)


def other_history(place: str, known: str, found: str) -> HistoryError:
    """The store is in the history `found`; this process began in `known`."""
    return HistoryError(
        f"{place}, its history",
        required=known,
        got=f"{found}: it restarted, failed over or was wiped, and may lack its newest writes",
        do="restart this process: it goes on from the marks that are there",
    )


def no_history(place: str) -> StoreError:
    """`confirm` before `begin_history`."""
    return StoreError(
        f"{place} confirm",
        required="a history to confirm",
        got="none",
        do="call begin_history before the first read",
    )


def check_facts(facts: ServerFacts, where: str) -> None:
    """Raises StoreError where the server may evict rows."""
    if facts.maxmemory_policy != "noeviction":
        raise StoreError(
            f"{where}.maxmemory-policy",
            required="noeviction, since an evicted row would come back as an empty one",
            got=facts.maxmemory_policy,
            do="run CONFIG SET maxmemory-policy noeviction and put it into the server's config",
        )


def merge_progress(old: Progress | None, new: Progress) -> Progress:
    """The rule of `put_progress` for one partition."""
    if old is None or new.epoch > old.epoch:
        return new
    if new.epoch < old.epoch:
        return old
    return Progress(
        new.epoch,
        max(old.next_offset, new.next_offset),
        max(old.watermark_ms, new.watermark_ms),
    )
