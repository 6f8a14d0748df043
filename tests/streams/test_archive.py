from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import StreamError
from streams.archive import (
    file_name,
    list_files,
    next_offset,
    partition_dir,
    remove_unfinished,
    write_file,
    write_text,
)

TABLE = pa.table({"offset": [1, 2, 3]})


def test_files_are_named_by_their_offsets_and_read_back(tmp_path: Path) -> None:
    directory = partition_dir(tmp_path / "archive", "an-id", 3)
    assert next_offset(list_files(directory)) is None
    write_file(directory, 0, 9, TABLE)
    path = write_file(directory, 10, 1234567890123, TABLE)
    assert path.parent == tmp_path / "archive" / "topic_id=an-id" / "partition=3"
    assert next_offset(list_files(directory)) == 1234567890124
    assert pq.ParquetFile(path).read() == TABLE


def test_one_offset_is_never_covered_twice(tmp_path: Path) -> None:
    write_file(tmp_path, 0, 9, TABLE)
    with pytest.raises(StreamError, match="a name that is free"):
        write_file(tmp_path, 0, 9, TABLE)


@pytest.mark.parametrize("first", [5, 11])
def test_an_overlap_or_a_hole_is_an_error(tmp_path: Path, first: int) -> None:
    write_file(tmp_path, 0, 9, TABLE)
    write_file(tmp_path, first, 20, TABLE)
    with pytest.raises(StreamError, match=f"offset 10 next, got {first}"):
        next_offset(list_files(tmp_path))


def test_what_a_killed_writer_left_is_no_file(tmp_path: Path) -> None:
    leftover = tmp_path / "topic_id=x" / (file_name(0, 9) + ".unfinished")
    leftover.parent.mkdir()
    leftover.write_bytes(b"PAR1 half")
    (leftover.parent / "notes.txt").write_text("not ours")
    assert list_files(leftover.parent) == []
    assert remove_unfinished(tmp_path) == 1
    assert [path.name for path in leftover.parent.iterdir()] == ["notes.txt"]
    assert remove_unfinished(tmp_path / "nowhere") == 0


def test_a_text_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "plans" / "a.json"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "one"
