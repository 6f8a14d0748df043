"""History that is not of our log: files of actions that happened before it began.

    *.parquet   columns user, item, action, time_ms; optional value, author, music, tags, scene,
                position, sent_ms, as in the archive (`streams.action_table`). An id that is a
                string is hashed as in JSON, a timestamp of any unit is taken for what it says
    *.jsonl     one action a line, as in docs/actions.md

An action that is in the log, too, must not count twice, and nothing but its time tells: those from
the first logged action on are left out and counted. They are judged late or not by `sent_ms` where
it is known, else never.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.actions import ACTION, action_of_line, check_actions
from schemas.errors import ActionError, SettingsError, StreamError
from schemas.ids import string_id
from schemas.plan import ViewPlan
from streams.action_table import ACTION_SCHEMA, action_table
from streams.archive import write_file
from streams.history import WHOLE, HistoryFile, fill_actions
from streams.messages import ActionRun

BATCH_ACTIONS: Final = 200_000
BATCH_LINES: Final = 2_000
IDS: Final = ("user", "item", "author", "music")
REQUIRED: Final = ("user", "item", "action", "time_ms")
OPTIONAL: Final = ("value", "author", "music", "tags", "scene", "position", "sent_ms")

Actions = tuple[NDArray[np.void], NDArray[np.int64]]  # (a,) ACTION, (a,) sent_ms


@dataclass(slots=True)
class ForeignCounts:
    """Actions of foreign files. after: left out, since the log has them. before_ms: the border."""

    taken: int = 0
    after: int = 0
    before_ms: int | None = None


def first_logged_ms(files: Sequence[HistoryFile], view: ViewPlan) -> int:
    """The event time of the earliest action in these files that the view takes, ms.

    Raises SettingsError where there is none: then nothing says what is in the log, too.
    """
    earliest: list[int] = []
    for file in files:
        table = pq.read_table(file.path, columns=["time_ms", "sent_ms"])
        time_ms, sent_ms = (column.to_numpy() for column in table.columns)
        taken = (time_ms >= sent_ms - view.skew_ms) & (time_ms <= sent_ms + view.future_ms)
        if taken.any():
            earliest.append(int(time_ms[taken].min()))
    if not earliest:
        raise SettingsError(
            "--before-ms",
            required="the time from which on actions are in the log",
            got="none, and nothing is logged below the floors",
            do="run `encore backfill --cancel`, then again with it, ms since 1970",
        )
    return min(earliest)


def named_history(paths: Sequence[Path], before_ms: int | None) -> str:
    """A text for just these files as they are now, by name, size and time; "" without any.

    paths, before_ms: as `take_foreign` takes them. Raises StreamError for what is no such file.
    """
    if not paths:
        return ""
    facts = [(str(file.absolute()), file.stat()) for file in _files(paths)]
    lines = [f"{name}\t{stat.st_size}\t{stat.st_mtime_ns}" for name, stat in facts]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    border = "" if before_ms is None else f", before {before_ms}"
    size = sum(stat.st_size for _, stat in facts)
    count = "1 file" if len(facts) == 1 else f"{len(facts)} files"
    return f"{count} of {size:,} bytes ({digest}){border}"


def check_foreign(paths: Sequence[Path]) -> None:
    """Read all of it, so that a file that cannot be used is known before anything is begun.

    Raises as `take_foreign`.
    """
    for path in _files(paths):
        for _ in _read(path):
            pass


def take_foreign(
    paths: Sequence[Path], before_ms: int | None, aside: Path
) -> tuple[list[HistoryFile], ForeignCounts]:
    """The actions before `before_ms`, written as history files below `aside`, which is emptied.

    paths: files, or directories of them. Raises StreamError for a file that cannot be read,
    ActionError for what is no action.
    """
    shutil.rmtree(aside, ignore_errors=True)
    counts = ForeignCounts(before_ms=before_ms if paths else None)
    files: list[HistoryFile] = []
    for path in _files(paths):
        for actions, sent_ms in _read(path):
            keep = np.ones(len(actions), bool) if before_ms is None else _before(actions, before_ms)
            taken = int(keep.sum())
            counts.after += len(actions) - taken
            if taken:
                run = _run(actions[keep], sent_ms[keep], counts.taken)
                last = counts.taken + taken - 1
                written = write_file(aside, counts.taken, last, action_table(run))
                files.append(HistoryFile(str(written), taken, WHOLE))
                counts.taken += taken
    return files, counts


def _before(actions: NDArray[np.void], before_ms: int) -> NDArray[np.bool_]:
    earlier: NDArray[np.bool_] = actions["time_ms"] < before_ms
    return earlier


def _run(actions: NDArray[np.void], sent_ms: NDArray[np.int64], first: int) -> ActionRun:
    n = len(actions)
    zeros = np.zeros(n, np.int32)
    return ActionRun(actions, zeros, first + np.arange(n), zeros, sent_ms)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        usable = [each for each in found if each.suffix in (".parquet", ".jsonl")]
        if not usable:
            raise StreamError(
                str(path),
                required="a .parquet or .jsonl file, or a directory with some",
                got="a directory without" if path.is_dir() else "another file",
            )
        yield from usable


def _read(path: Path) -> Iterator[Actions]:
    """A file's actions, checked, some at a time."""
    try:
        yield from _lines(path) if path.suffix == ".jsonl" else _table(path)
    except (OSError, pa.ArrowException) as error:
        raise StreamError(
            str(path), required="a file of actions", got=f"{type(error).__name__}: {error}"
        ) from error


def _lines(path: Path) -> Iterator[Actions]:
    """Each line is parsed by itself: none can end the one before it, or take its place."""
    with path.open("rb") as file:
        filled = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        while lines := list(islice(filled, BATCH_LINES)):
            parsed = [action_of_line(line, f"{path}:{number}") for number, line in lines]
            actions = np.zeros(len(parsed), ACTION)
            np.concatenate(parsed, out=actions)  # without it, it would unalign them
            check_actions(actions, f"{path}, from line {lines[0][0]}")
            yield actions, actions["time_ms"].astype(np.int64)


def _table(path: Path) -> Iterator[Actions]:
    with pq.ParquetFile(path) as file:
        there = file.schema_arrow.names
        lacking = [name for name in REQUIRED if name not in there]
        if lacking:
            raise ActionError(
                str(path),
                required=f"the columns {', '.join(REQUIRED)}",
                got=f"none of the name {lacking[0]}",
            )
        columns = [name for name in (*REQUIRED, *OPTIONAL) if name in there]
        for batch in file.iter_batches(BATCH_ACTIONS, columns=columns):
            if len(batch):
                yield _batch(pa.table(batch), str(path))


def _batch(table: pa.Table, where: str) -> Actions:
    for name in (*REQUIRED, *(n for n in ("value", "scene") if n in table.column_names)):
        if table.column(name).null_count:
            raise ActionError(f"{where}.{name}", required="a value in each row", got="null")
    fields = {name: _cast(table.column(name), name, where) for name in table.column_names}
    table = pa.table(fields).combine_chunks()
    actions = np.zeros(len(table), ACTION)
    fill_actions(actions, table)
    check_actions(actions, where)
    if "sent_ms" in fields:
        return actions, pc.coalesce(table.column("sent_ms"), table.column("time_ms")).to_numpy()
    return actions, actions["time_ms"].astype(np.int64)


def _cast(column: Any, name: str, where: str) -> Any:
    """A column as the archive has it."""
    wanted = ACTION_SCHEMA.field(name).type
    try:
        if name == "action":
            return pc.dictionary_encode(column.cast(pa.string())).combine_chunks()
        if name in IDS and _is_text(column.type):
            return _hashed(column.cast(pa.string()))
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("ms", column.type.tz), safe=False)
        made = column.cast(wanted)
    except pa.ArrowException as error:
        raise ActionError(
            f"{where}.{name}", required=str(wanted), got=f"{column.type} ({error})"
        ) from None
    if name == "tags" and (_is_text(column.type.value_type) or _flat(made).null_count):
        raise ActionError(
            f"{where}.{name}", required="lists of whole numbers", got="text or null in a list"
        )
    return made


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return kind in (pa.string(), pa.large_string())


def _hashed(texts: Any) -> Any:
    """Ids of strings, as of those in JSON."""
    encoded = pc.dictionary_encode(texts).combine_chunks()
    ids = pa.array([string_id(text) for text in encoded.dictionary.to_pylist()], pa.int64())
    return ids.take(encoded.indices)


def _flat(lists: Any) -> Any:
    return lists.combine_chunks().flatten()
