"""Keeps an item cache at what the store holds: what the writer process runs.

    connect, track, verify everything  →  live  →  apply changes, refresh what ages, beat
        ↑                                                                            │
        └── connection lost, store flushed ─────────────────────────────────────────┘

- Tracking begins before anything is read, and changes are told in order, so a row in the cache is
  either what the store holds or about to be read again.
- Verifying walks over all keys (SCAN) and reads the rows. Of one that is in the cache the trailer
  is compared: its checksum is over the whole row, so an equal trailer is an equal row. So a restart
  of this process, or of the store, costs a walk, and values only of what has changed.
- A beat is a round trip on the tracking connection. When its answer came and the changes told until
  then are applied, all that the store had answered when the beat began is in the cache: that moment
  is what readers see, and they turn to the store where it is too long ago.
- A feed keeps the cache of the plan that was published when it began. Once one is published that
  has another cache it says so, and goes on until it is told to stop (`aggregation.cache.keeper`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregation.cache.index import NONE, Slots
from aggregation.cache.memory import LIVE, W_CAPACITY, W_STATE, CacheMemory, now_ns
from aggregation.cache.reader import cache_path
from aggregation.cache.record import ItemCodec
from aggregation.cache.writer import AT_ONCE, CacheWriter
from aggregation.program import ServiceProgram
from schemas.errors import PlanError, StoreError
from schemas.layout import TRAILER_BYTES
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY, row_key
from schemas.plan import load_published
from schemas.stored import RowKeys
from store.changes import ChangingRows

log: Final = logging.getLogger(__name__)
_LEAST, _MOST = int(np.iinfo(np.int64).min), int(np.iinfo(np.int64).max)

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """directory: of the cache's files; best in memory (/dev/shm). capacity: most items. beat_ms:
    between two beats. retry_s: before another try where the store failed. standby: wait where
    another process keeps the cache, and take over when it ends. linger_s: how long the cache of the
    plan before is kept once that of the next is live. room_s: between two looks for room, where
    there was none."""

    service: str
    directory: Path
    capacity: int = 1 << 22
    beat_ms: float = 50.0
    retry_s: float = 0.1
    standby: bool = False
    linger_s: float = 5.0
    room_s: float = 10.0


class _StopError(Exception):
    """Told to stop in the middle of something long."""


class ItemFeed:
    """The cache of one plan. One thread runs it; another may look at `live`, `full`, `outdated`.

    clock_ms: of the values, the wall clock. spared: a file of another plan that is kept beside.
    outdated: the published plan has another cache. moved_ns: when it last came to a step; with a
    store that answers or fails in its time the next is moments away.
    """

    def __init__(
        self,
        config: CacheConfig,
        source: ChangingRows,
        stop: threading.Event,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        spared: Path | None = None,
    ) -> None:
        self.outdated = False
        self.moved_ns = now_ns()
        self.path: Path | None = None
        self._spared = spared
        self._config, self._stop, self._clock_ms = config, stop, clock_ms
        self._source = source
        self._writer: CacheWriter | None = None
        self._publication: str | None = None
        self._seen = np.zeros((0, 0), bool)  # (slots, V) verified since the last connection
        self._beat_ns = self._looked_ns = 0

    def run(self) -> None:
        """Follow the store until told to stop."""
        told = ""
        while not self._stop.is_set():
            self.moved_ns = now_ns()
            try:
                self._follow()
                told = ""
            except (StoreError, PlanError) as error:
                if str(error) != told:
                    log.warning("item cache: %s", error)
                told = str(error)
                self._stop.wait(self._config.retry_s)
            except _StopError:
                return
            finally:
                if self._writer is not None:
                    self._writer.unsure()

    @property
    def live(self) -> bool:
        """Readers may take from it."""
        return self._writer is not None and int(self._writer.memory.header[W_STATE]) == LIVE

    @property
    def full(self) -> bool:
        """There is no room for further items."""
        return self._writer is not None and self._writer.full

    def close(self, *, retire: bool = False) -> None:
        """Nobody keeps the cache any more: readers turn to the store. The file stays, unless
        `retire`."""
        self._source.close()
        if self._writer is None:
            return
        if retire:
            self._writer.retire()
            if self.path is not None:
                self.path.unlink(missing_ok=True)
        else:
            self._writer.unsure()
            self._writer.memory.close()
        self._writer = None

    # --- the cycle ---------------------------------------------------------------------------

    def _follow(self) -> None:
        """One connection, until told to stop. Raises StoreError, PlanError."""
        self._source.connect()
        writer = self._opened()
        views = writer.codec.program.item_views
        prefixes = [_prefix(view.name, view.generation) for view in views]
        self._source.track([*prefixes, PLAN_VERSION_KEY])
        if self._source.get_text(PLAN_VERSION_KEY) != self._publication:
            return
        self._verify(writer)
        while not self._stop.is_set():
            self._step(writer)

    def _step(self, writer: CacheWriter) -> None:
        """Wait for changes until the next beat, apply them."""
        self.moved_ns = now_ns()
        beat_s = self._beat_ns / 1e9 + self._config.beat_ms / 1e3 - now_ns() / 1e9
        due_s = (writer.due_ms - self._clock_ms()) / 1e3
        changes = self._source.changes(max(0.0, min(beat_s, due_s)))
        if changes.everything:
            self._verify(writer)
            return
        self._apply(writer, changes.keys)
        writer.refresh(self._clock_ms())
        if now_ns() - self._beat_ns >= self._config.beat_ms * 1e6:
            self._beat(writer)

    def _beat(self, writer: CacheWriter) -> None:
        began_ns = now_ns()
        self._source.ping()
        changes = self._source.changes(0.0)
        if changes.everything:
            self._verify(writer)
            return
        self._apply(writer, changes.keys)
        writer.live(began_ns)
        self._beat_ns = began_ns
        if writer.full and now_ns() - self._looked_ns >= self._config.room_s * 1e9:
            self._looked_ns = now_ns()
            if writer.has_room_again():
                log.info("item cache: there is room for further items again")
                self._verify(writer)

    # --- plans -------------------------------------------------------------------------------

    def _published(self) -> ServiceProgram:
        """Raises PlanError where no plan with the service is published."""
        self._publication = self._source.get_text(PLAN_VERSION_KEY)
        plan = load_published(self._source.get_text(PLAN_KEY))
        return ServiceProgram(plan, self._config.service)

    def _opened(self) -> CacheWriter:
        """The cache that is open, or at first that of the published plan."""
        if self._writer is not None:
            self._judge(self._writer)
            return self._writer
        return self._open(self._published())

    def _open(self, program: ServiceProgram) -> CacheWriter:
        """The cache of this program: a file that is there, or a new one."""
        codec = ItemCodec(program)
        self.path = path = cache_path(self._config.directory, codec)
        for other in path.parent.glob(f"{self._config.service}-*.items"):
            if other not in (path, self._spared):
                other.unlink(missing_ok=True)
        memory = CacheMemory.open(path, codec, writable=True)
        if memory is None or int(memory.header[W_CAPACITY]) != self._config.capacity:
            memory = CacheMemory.create(path, codec, self._config.capacity)
        self._writer = CacheWriter(memory)
        self._writer.unsure()
        return self._writer

    def _judge(self, writer: CacheWriter) -> None:
        """Note whether the plan that is published now has another cache."""
        try:
            self.outdated = ItemCodec(self._published()).identity != writer.codec.identity
        except PlanError as error:  # servers go on with the plan they have, and so does this
            log.warning("item cache: %s", error)

    # --- rows --------------------------------------------------------------------------------

    def _apply(self, writer: CacheWriter, keys: Collection[bytes]) -> None:
        """Read again what has changed."""
        if not keys:
            return
        if PLAN_VERSION_KEY.encode() in keys:
            self._judge(writer)
        ids: set[int] = set()
        for view in writer.codec.program.item_views:
            ids.update(_ids(keys, _prefix(view.name, view.generation)).tolist())
        self._load(writer, np.fromiter(ids, np.int64, len(ids)))

    def _load(self, writer: CacheWriter, item_ids: Ids) -> None:
        """Read all rows of items into the cache."""
        if writer.full:
            item_ids = item_ids[writer.memory.find(item_ids) != NONE]
        for start in range(0, len(item_ids), AT_ONCE):
            self._go_on()
            ids = item_ids[start : start + AT_ONCE]
            raw = self._source.read_rows(writer.codec.program.item_row_keys(ids))
            writer.put(ids, raw, self._clock_ms())
            writer.walked(len(ids))

    def _go_on(self) -> None:
        self.moved_ns = now_ns()
        if self._stop.is_set():
            raise _StopError

    def _verify(self, writer: CacheWriter) -> None:
        """Make the cache what the store holds, whatever happened before; then it is live."""
        writer.unsure()
        began_s, memory = time.monotonic(), writer.memory
        while True:
            views = writer.codec.program.item_views
            self._seen = np.zeros((memory.count, len(views)), bool)
            self._load(writer, memory.entities[writer.torn()])
            for index, view in enumerate(views):
                for keys in self._source.scan(_prefix(view.name, view.generation)):
                    self._go_on()
                    self._compare(
                        writer, index, np.unique(_ids(keys, _prefix(view.name, view.generation)))
                    )
            for index in range(len(views)):
                self._load(writer, memory.entities[self._gone(writer, index)])
            began_ns = now_ns()
            self._source.ping()
            changes = self._source.changes(0.0)
            if not changes.everything:
                break
        self._apply(writer, changes.keys)
        while made := writer.refresh(self._clock_ms()):
            writer.walked(made)
            self._go_on()
        writer.verified()
        writer.live(began_ns)
        self._beat_ns = began_ns
        took_s = time.monotonic() - began_s
        log.info("item cache: %d items verified in %.2f s", memory.count, took_s)

    def _compare(self, writer: CacheWriter, view: int, item_ids: Ids) -> None:
        """Load of these items, which have a row of that view, those whose row is another one."""
        memory, seen = writer.memory, self._seen
        slots = memory.find(item_ids)  # (n,)
        known = (slots != NONE) & (slots < len(seen))
        known[known] = ~seen[slots[known], view]
        at = np.flatnonzero(known)
        for start in range(0, len(at), AT_ONCE):
            some = at[start : start + AT_ONCE]
            writer.walked(len(some))
            equal = some[self._equal(writer, view, item_ids[some], slots[some])]
            seen[slots[equal], view] = True
            known[equal] = False
        stale = known | (slots == NONE)
        self._load(writer, item_ids[stale])
        seen[slots[known], :] = True

    def _equal(
        self, writer: CacheWriter, view: int, item_ids: Ids, slots: Slots
    ) -> NDArray[np.bool_]:
        """Which items' rows of a view are in the cache as they are in the store. Returns (n,)."""
        plan = writer.codec.program.item_views[view]
        stored = self._source.read_rows([RowKeys(plan.name, plan.generation, item_ids)])
        kept = writer.codec.trailers(writer.memory.rows[slots], view)  # (n, TRAILER_BYTES)
        equal = np.zeros(len(item_ids), bool)  # (n,)
        for run in stored.runs:
            if run.size > TRAILER_BYTES:
                some = slice(run.first, run.first + run.many)
                equal[some] = (stored.matrix(run)[:, -TRAILER_BYTES:] == kept[some]).all(axis=1)
        return equal

    def _gone(self, writer: CacheWriter, view: int) -> NDArray[np.intp]:
        """Slots whose row of a view was there and was not met in the store."""
        count = len(self._seen)
        there = writer.codec.there(writer.memory.rows[:count], view)  # (count,)
        return np.flatnonzero(there & ~self._seen[:, view])


def _prefix(view: str, generation: int) -> str:
    """What all row keys of a generation begin with, and no other key does."""
    return row_key(view, generation, 0).removesuffix("0}")


def _ids(keys: Collection[bytes], prefix: str) -> Ids:
    """The entities of the keys that are row keys below the prefix. (k,)."""
    start, front = len(prefix), prefix.encode()
    found = []
    for key in keys:
        if key.startswith(front) and key.endswith(b"}"):
            text = key[start:-1]
            if text.isdigit() or (text[:1] == b"-" and text[1:].isdigit()):
                found.append(int(text))
    return np.array([each for each in found if _LEAST <= each <= _MOST], np.int64)
