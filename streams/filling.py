"""Rows of a new generation from the history below its floors: one task of a backfill.

A task owns a share of a view's entities and reads all files that may hold some of their actions. It
folds them with the fold that the stream uses, in memory, and writes each row once, by a
compare-and-set from absent, under the fence of the message before the floor. So a task may run any
number of times, and whoever ran it first has done it: a row that is there under that fence is the
row.

Memory is bounded: entities are taken in groups whose rows fit `memory_bytes`; a further group reads
the files again.

Symbols: a actions of a chunk, n entities of a group, P partitions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.deletion import fold_in_order
from schemas.errors import HistoryError, StoreError, StreamError
from schemas.ids import partitions_of
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import ViewPlan
from schemas.row import Rows, empty_rows, encode_rows, read_fence
from store.base import RowStore, Write
from streams.history import WHOLE, HistoryFile, columns_of, read_chunks, read_ids

WRITE_ROWS: Final = 2_000
#: A row while it is folded, as numpy columns with what a fold copies of them, against its bytes.
MEMORY_FACTOR: Final = 3
_SPREAD: Final = np.uint64(0x9E37_79B9_7F4A_7C15)

Array = NDArray[Any]
#: Told how many actions were read since it was told last, every so often while a task runs: what
#: it raises ends the task.
Note = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class FillTask:
    """A share of a view's entities: those of `partitions` whose hash is `way` of `ways`.

    files: those that may hold their actions, in the log's order. bounds: {partition: {log
    partition: the first offset that is no history of the entities of `partition`}}. fences:
    {partition: (epoch, offset)} of the rows. of: the partition count of the view's topic.
    expire_ms: as of `store.base.Write`. store_history: the one in which the generation is staged,
    "" for any; in a later one its number may be another's.
    """

    view: ViewPlan
    files: tuple[HistoryFile, ...]
    partitions: tuple[int, ...]
    of: int
    bounds: dict[int, dict[int, int]]
    fences: dict[int, tuple[int, int]]
    way: int = 0
    ways: int = 1
    memory_bytes: int = 1 << 30
    patience_ms: int = 30_000
    expire_ms: int = 0
    store_history: str = ""

    @property
    def actions(self) -> int:
        """What its files hold; some of it belongs to other tasks."""
        return sum(file.rows for file in self.files)


@dataclass(slots=True)
class FillCounts:
    """What filling did. Actions count once; rows: written, there: found written already."""

    folded: int = 0
    late: int = 0
    future: int = 0
    saturated: int = 0
    rows: int = 0
    there: int = 0

    def add(self, other: FillCounts) -> None:
        """Add another task's."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class _Group:
    """Entities that are folded together. ids: (n,) i64, ascending. partition: (n,) of each."""

    ids: NDArray[np.int64]
    partition: NDArray[np.int32]
    rows: Rows
    touched: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.touched = np.zeros(len(self.ids), bool)


def fill(task: FillTask, store: RowStore, note: Note) -> FillCounts:
    """Run a task. Raises StreamError for a file, a row or a store that cannot be used, HistoryError
    where the store is in another history than the task's, before any row and after every few."""
    counts, first = FillCounts(), True
    check_history(task, store)
    for group in _groups(task):
        _fold(task, group, counts, note if first else lambda _: note(0))
        _write(task, group, store, counts, note)
        first = False  # what is read again is not progress
    return counts


def check_history(task: FillTask, store: RowStore) -> None:
    """Raises HistoryError where the store restarted, failed over or was wiped since the staging.

    A wipe under a running server breaks no connection, so it is asked for as rows are written.
    """
    if task.store_history and (found := store.begin_history()) != task.store_history:
        raise HistoryError(
            f"store of {task.view.name}@{task.view.generation}, its history",
            required=f"{task.store_history}, in which it was staged",
            got=f"{found}: it restarted, failed over or was wiped while the generation was filled",
            do="run the same command again: it goes on, or says what a wiped store lacks",
        )


def _groups(task: FillTask) -> Iterator[_Group]:
    """The task's entities, in groups whose rows fit the memory."""
    layout = layout_of(task.view)
    ids = read_ids(task.files, task.view.entity)
    if task.ways > 1:
        mixed = ids.view(np.uint64) * _SPREAD >> np.uint64(32)
        ids = ids[mixed % np.uint64(task.ways) == task.way]
    partition = partitions_of(ids, task.of)
    own = np.isin(partition, task.partitions)
    ids, partition = ids[own], partition[own]
    most = max(1, task.memory_bytes // (layout.size * MEMORY_FACTOR))
    for start in range(0, len(ids), most):
        part = slice(start, start + most)
        yield _Group(ids[part], partition[part], empty_rows(layout, ids[part]))


def _fold(task: FillTask, group: _Group, counts: FillCounts, note: Note) -> None:
    bounds = _bounds(task)
    for chunk in read_chunks(task.files, columns_of(task.view)):
        ids = np.ascontiguousarray(chunk.actions[task.view.entity])  # (a,)
        place = np.searchsorted(group.ids, ids).clip(max=len(group.ids) - 1)  # (a,)
        takes = group.ids[place] == ids  # (a,)
        in_log = chunk.log_partition != WHOLE
        bound = bounds[group.partition[place], chunk.log_partition]  # (a,)
        takes &= ~in_log | (chunk.offset < bound)
        at = np.flatnonzero(takes)
        place = place[at]
        report = fold_in_order(task.view, group.rows, place, chunk.actions[at], chunk.sent_ms[at])
        group.touched |= report.touched
        counts.folded += int(report.folded.sum())
        counts.late += int(report.late.sum())
        counts.future += int(report.future.sum())
        counts.saturated += report.saturated
        note(len(ids))


def _bounds(task: FillTask) -> NDArray[np.int64]:
    """(P, P) i64: of each partition's entities, the bound in each partition of the log."""
    wide = max(task.of, 1 + max((file.log_partition for file in task.files), default=0))
    bounds = np.zeros((task.of, wide), np.int64)
    for partition, ends in task.bounds.items():
        for log_partition, end in ends.items():
            if log_partition < wide:
                bounds[partition, log_partition] = end
    return bounds


def _write(task: FillTask, group: _Group, store: RowStore, counts: FillCounts, note: Note) -> None:
    layout = layout_of(task.view)
    fences = np.array([task.fences.get(p, (0, -1)) for p in range(task.of)], np.int64)  # (P, 2)
    group.rows.epoch = fences[group.partition, 0].astype(np.uint32)  # (n,)
    group.rows.offset = fences[group.partition, 1]  # (n,)
    touched = np.flatnonzero(group.touched)
    for start in range(0, len(touched), WRITE_ROWS):
        at = touched[start : start + WRITE_ROWS]
        keys = row_keys(task.view.name, task.view.generation, group.ids[at].tolist())
        values = encode_rows(layout, _rows_at(group.rows, at))
        writes = [
            Write(key, None, value, task.expire_ms) for key, value in zip(keys, values, strict=True)
        ]
        fresh = _put(writes, store, task.patience_ms)
        check_history(task, store)
        note(0)
        counts.rows += fresh
        counts.there += len(writes) - fresh


def _rows_at(rows: Rows, at: NDArray[np.intp]) -> Rows:
    return Rows(
        rows.entity_ids[at],
        {name: column[at] for name, column in rows.values.items()},
        {name: column[at] for name, column in rows.lengths.items()},
        {name: column[at] for name, column in rows.present.items()},
        rows.epoch[at],
        rows.offset[at],
        rows.newest_ms[at],
    )


def _put(writes: Sequence[Write], store: RowStore, patience_ms: int) -> int:
    """Write rows that are not there. Returns how many this call wrote.

    After an error some may have landed: they are found under their own fence.
    """
    waited_s, pause_s = 0.0, 0.05
    while True:
        try:
            landed = store.compare_and_set(writes)
            lost = [write for write, won in zip(writes, landed, strict=True) if not won]
            _check_same(lost, store.read([write.key for write in lost]))
            return len(writes) - len(lost)
        except StoreError as error:
            if waited_s * 1000 >= patience_ms:
                raise StreamError(
                    "rows of a new generation",
                    required=f"a store that takes them within {patience_ms} ms",
                    got=str(error),
                    do="run the same command again once it answers: it goes on",
                ) from error
        time.sleep(pause_s)
        waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, 2.0)


def _check_same(lost: Sequence[Write], found: Sequence[bytes | None]) -> None:
    """Raises StreamError where another row than ours is at a key."""
    for write, raw in zip(lost, found, strict=True):
        if read_fence(raw) != read_fence(write.value):
            raise StreamError(
                f"row {write.key}",
                required=f"none, or one under the fence {read_fence(write.value)}",
                got=str(read_fence(raw)),
                do="`encore backfill --cancel`, then begin again: a generation is filled by one",
            )
