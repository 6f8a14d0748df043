"""Parquet files named by the offsets they cover.

    <root>/topic_id=<uuid>/partition=<p>/<first:020d>-<last:020d>.parquet
    <root>/topic_id=<uuid>/partition=<p>/<first:020d>-<last:020d>.lost.parquet
    <root>/topic_id=<uuid>/_topic         the name of the topic whose log it is, as text
    <root>/topic_id=<uuid>/_partitions    how many it has, with and without messages, as text

Both offsets are inclusive. A file is complete once it has its name: it is written beside, fsynced,
and renamed, and the directory is fsynced, before its offsets are acknowledged. No two files of a
root cover one offset: a writer begins where the files end (`next_offset`), whatever the broker
believes to be committed. Offsets that the topic dropped before they were archived, which somebody
accepted, have a file without rows that says so by its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import StreamError
from store.durable import replacing, sync_directory

SUFFIX: Final = ".parquet"
UNFINISHED: Final = ".unfinished"
LOST: Final = ".lost"
TOPIC: Final = "_topic"
PARTITIONS: Final = "_partitions"
_NAME: Final = re.compile(r"(\d{20})-(\d{20})(\.lost)?\.parquet")


@dataclass(frozen=True, slots=True)
class OffsetFile:
    """One file and the offsets it covers, both inclusive. lost: nothing of them is in it."""

    path: Path
    first: int
    last: int
    lost: bool = False


def partition_dir(root: Path, topic_id: str, partition: int) -> Path:
    """Where the files of one partition of one log lie."""
    return root / f"topic_id={topic_id}" / f"partition={partition}"


def name_log(root: Path, topic_id: str, topic: str, partitions: int) -> None:
    """Say durably which topic's log this is, and how many partitions that has: a topic and its
    successors share a root."""
    write_text(root / f"topic_id={topic_id}" / TOPIC, topic)
    write_text(root / f"topic_id={topic_id}" / PARTITIONS, str(partitions))


def topic_of_log(root: Path, topic_id: str) -> str | None:
    """What `name_log` said, None where nobody did."""
    path = root / f"topic_id={topic_id}" / TOPIC
    return path.read_text() if path.is_file() else None


def partitions_of_log(root: Path, topic_id: str) -> int | None:
    """As `topic_of_log`. Raises StreamError where it is no number."""
    path = root / f"topic_id={topic_id}" / PARTITIONS
    if not path.is_file():
        return None
    text = path.read_text()
    if not text.isdecimal():
        raise StreamError(
            str(path), required="a number of partitions", got=repr(text[:40]), do="remove it"
        )
    return int(text)


def file_name(first: int, last: int, lost: bool = False) -> str:
    """A file's name; names sort as their offsets do.

    >>> file_name(7, 12)
    '00000000000000000007-00000000000000000012.parquet'
    """
    return f"{first:020d}-{last:020d}{LOST if lost else ''}{SUFFIX}"


def list_files(directory: Path) -> list[OffsetFile]:
    """The files of a partition by offset; a directory that is not there has none."""
    if not directory.is_dir():
        return []
    found = []
    for path in directory.iterdir():
        match = _NAME.fullmatch(path.name)
        if match:
            found.append(OffsetFile(path, int(match[1]), int(match[2]), match[3] is not None))
    return sorted(found, key=lambda file: file.first)


def next_offset(files: list[OffsetFile]) -> int | None:
    """The offset after the last file, None without files.

    Raises StreamError where files overlap or leave a hole: then nobody can say what is archived.
    """
    for before, after in pairwise(files):
        if after.first != before.last + 1:
            raise StreamError(
                str(after.path),
                required=f"offset {before.last + 1} next",
                got=str(after.first),
                do="move the files from here on away; they are written again from the topic",
            )
    return files[-1].last + 1 if files else None


def remove_unfinished(root: Path) -> int:
    """Remove what a killed writer left half written. Returns how many files."""
    leftovers = list(root.rglob(f"*{UNFINISHED}")) if root.is_dir() else []
    for path in leftovers:
        path.unlink()
    return len(leftovers)


def write_file(
    directory: Path, first: int, last: int, table: pa.Table, *, lost: bool = False
) -> Path:
    """Write a table durably under its offsets' name. Raises StreamError where the name is taken."""
    _make_directory(directory)
    path = directory / file_name(first, last, lost)
    if path.exists():
        raise StreamError(str(path), required="a name that is free", got="an existing file")
    unfinished = path.with_suffix(path.suffix + UNFINISHED)
    options: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
    with replacing(path, unfinished) as file:
        pq.write_table(table, file, **options)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a small file durably, unless it is there."""
    if path.exists():
        return
    _make_directory(path.parent)
    unfinished = path.with_suffix(path.suffix + UNFINISHED)
    with replacing(path, unfinished) as file:
        file.write(text.encode())


def _make_directory(directory: Path) -> None:
    """Create it with its parents, each name made durable."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_directory(path.parent)
