"""Logged actions as they lie in Parquet, read back to be folded again.

The files are those of `streams.action_table`, so what is read is what a fold takes of an action:
everything but its request id. Files are small (the sink closes one every few seconds) and are
joined into chunks that are large enough for vectorised work.

Symbols: a actions of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.actions import (
    ACTION,
    ACTION_TYPES,
    KNOWN_AUTHOR,
    KNOWN_MUSIC,
    KNOWN_POSITION,
    KNOWN_TAGS_SHIFT,
    MAX_TAGS,
)
from schemas.errors import StreamError
from schemas.plan import ViewPlan

#: Actions that are folded at once: 96 bytes each, and far more than a row has of them.
CHUNK_ACTIONS: Final = 500_000
#: `HistoryFile.log_partition` of a file of which every action is taken.
WHOLE: Final = -1

_ALWAYS: Final = ("offset", "sent_ms", "time_ms", "action")
_KNOWN: Final = {"author": KNOWN_AUTHOR, "music": KNOWN_MUSIC, "position": KNOWN_POSITION}

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class HistoryFile:
    """log_partition: the partition of the topic's present log whose offsets it holds, of which only
    those below a bound are history; WHOLE for an earlier log, or history from elsewhere."""

    path: str
    rows: int
    log_partition: int = WHOLE


@dataclass(frozen=True, slots=True)
class Chunk:
    """actions: (a,) ACTION without request ids, and zero in the columns that were not asked for.
    sent_ms, offset: (a,) i64 of the message of each. log_partition: (a,) i32."""

    actions: NDArray[np.void]
    sent_ms: NDArray[np.int64]
    offset: NDArray[np.int64]
    log_partition: NDArray[np.int32]


def columns_of(view: ViewPlan) -> tuple[str, ...]:
    """The Parquet columns that a view's rows are made of."""
    used = {condition.column for part in view.accumulators for condition in part.where}
    used |= {condition.column for part in view.sequences for condition in part.where}
    used |= {part.column for part in view.accumulators if part.column}
    used |= {column for part in view.sequences for column in part.columns}
    used = {"tags" if column == "tag" else column for column in used} | {view.entity, *_ALWAYS}
    return tuple(sorted(used))


def read_ids(files: Iterable[HistoryFile], entity: str) -> NDArray[np.int64]:
    """The distinct users or items of some files, ascending. Raises StreamError."""
    found: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for file in files:
        column = _read(file, (entity,)).column(0)
        found.append(np.unique(column.to_numpy()))
        if len(found) > 64:
            found = [np.unique(np.concatenate(found))]
    return np.unique(np.concatenate(found))


def read_chunks(files: Sequence[HistoryFile], columns: Sequence[str]) -> Iterator[Chunk]:
    """The files' actions in their order, joined up to about CHUNK_ACTIONS.

    columns: as `columns_of` gives. Raises StreamError.
    """
    held: list[tuple[HistoryFile, pa.Table]] = []
    size = 0
    for file in files:
        table = _read(file, columns)
        held.append((file, table))
        size += len(table)
        if size >= CHUNK_ACTIONS:
            yield _chunk(held, size)
            held, size = [], 0
    if size:
        yield _chunk(held, size)


def _read(file: HistoryFile, columns: Sequence[str]) -> pa.Table:
    try:
        with pq.ParquetFile(file.path) as opened:
            return opened.read(columns=list(columns), use_threads=False).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise StreamError(
            file.path,
            required="a whole file of the archive",
            got=f"{type(error).__name__}: {error}",
            do="see that every machine that fills sees the archive, then run it again",
        ) from error


def _chunk(held: Sequence[tuple[HistoryFile, pa.Table]], size: int) -> Chunk:
    chunk = Chunk(
        np.zeros(size, ACTION),
        np.zeros(size, np.int64),
        np.zeros(size, np.int64),
        np.zeros(size, np.int32),
    )
    start = 0
    for file, table in held:
        if len(table):
            place = slice(start, start + len(table))
            fill_actions(chunk.actions[place], table)
            chunk.sent_ms[place] = table.column("sent_ms").to_numpy()
            chunk.offset[place] = table.column("offset").to_numpy()
            chunk.log_partition[place] = file.log_partition
            start += len(table)
    return chunk


def fill_actions(actions: NDArray[np.void], table: pa.Table) -> None:
    """The inverse of `streams.action_table.action_table`, for the columns that are there.

    actions: (a,) ACTION of zeros. table: a rows in one chunk, a at least 1.
    """
    names = set(table.column_names)
    actions["type"] = _types(table.column("action").chunk(0))
    for name in names & {"user", "item", "time_ms", "value", "scene"}:
        actions[name] = table.column(name).to_numpy()
    for name in names & _KNOWN.keys():
        column = table.column(name).chunk(0)
        there = column.is_valid().to_numpy(zero_copy_only=False)  # (a,)
        actions[name] = column.fill_null(0).to_numpy(zero_copy_only=False)
        actions["known"] |= np.where(there, np.uint8(_KNOWN[name]), np.uint8(0))
    if "tags" in names:
        _fill_tags(actions, table.column("tags").chunk(0))


def _fill_tags(actions: NDArray[np.void], lists: pa.ListArray) -> None:
    offsets = lists.offsets.to_numpy()  # (a + 1,)
    lengths = np.diff(offsets)  # (a,)
    elements = lists.values.to_numpy(zero_copy_only=False)
    for place in range(MAX_TAGS):
        there = lengths > place  # (a,)
        actions["tags"][there, place] = elements[offsets[:-1][there] + place]
    count = np.minimum(lengths, 0xF)  # what fits; more than MAX_TAGS is refused by who checks
    actions["known"] |= (count << KNOWN_TAGS_SHIFT).astype(np.uint8)


def _types(column: pa.DictionaryArray) -> NDArray[np.uint8]:
    """Action numbers (a,) of a column of names."""
    names = column.dictionary.to_pylist()
    numbers = np.array([ACTION_TYPES.get(name, 0) for name in names] or [0], np.uint8)
    found: NDArray[np.uint8] = numbers[column.indices.to_numpy()]
    return found
