"""Foreign history: what is taken, what the log has, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.actions import KNOWN_AUTHOR
from schemas.errors import ActionError, SettingsError, StreamError
from schemas.ids import string_id
from streams.action_table import action_table
from streams.archive import write_file
from streams.foreign import first_logged_ms, named_history, take_foreign
from streams.history import HistoryFile, read_chunks
from tests.aggregation.plans import small_view
from tests.streams.support import T0, some_actions
from tests.streams.test_folding import run_of

COLUMNS = ("user", "item", "time_ms", "action", "value", "tags", "offset", "sent_ms")


def table(**others: object) -> pa.Table:
    columns = {
        "user": [1, 2, 3],
        "item": [7, 8, 9],
        "action": ["click", "play", "like"],
        "time_ms": [T0, T0 + 1, T0 + 2],
    }
    return pa.table(columns | others)


def test_what_lies_before_the_log_is_taken_and_the_rest_counted(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    pq.write_table(table(value=[0, 50, 0], tags=[[4, 5], [], None]), old / "a.parquet")
    lines = [{"user": 9, "item": 1, "type": "share", "time_ms": T0 + at} for at in (0, 5)]
    (old / "b.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    files, counts = take_foreign([old], T0 + 2, tmp_path / "aside")
    assert (counts.taken, counts.after, counts.before_ms) == (3, 2, T0 + 2)
    (chunk,) = read_chunks(files, COLUMNS)
    assert chunk.actions["user"].tolist() == [1, 2, 9]
    assert chunk.actions["value"].tolist() == [0, 50, 0]
    assert chunk.actions["tags"][0].tolist() == [4, 5, 0]
    assert (chunk.actions["known"] >> 4).tolist() == [2, 0, 0]
    assert chunk.sent_ms.tolist() == chunk.actions["time_ms"].tolist(), "never late"
    again, _ = take_foreign([old / "a.parquet"], None, tmp_path / "aside")
    assert sum(file.rows for file in again) == 3
    assert take_foreign([], None, tmp_path / "aside")[0] == []


def test_columns_of_other_types_mean_what_they_mean_in_json(tmp_path: Path) -> None:
    """Strings are hashed, also those of digits; a time has its unit with it; null is not known."""
    at_s = T0 // 1000
    others = {
        "user": ["bob", "7", "bob"],
        "item": pa.array(["a", "b", "a"]).dictionary_encode(),
        "author": ["x", None, "y"],
        "time_ms": pa.array([at_s, at_s + 1, at_s + 2], pa.timestamp("s")),
        "sent_ms": [None, T0 + 9_000, None],
    }
    pq.write_table(table(**others), tmp_path / "a.parquet")
    files, _ = take_foreign([tmp_path / "a.parquet"], None, tmp_path / "aside")
    (chunk,) = read_chunks(files, (*COLUMNS, "author"))
    assert chunk.actions["user"].tolist() == [string_id(text) for text in ("bob", "7", "bob")]
    assert chunk.actions["item"].tolist() == [string_id(text) for text in "aba"]
    assert chunk.actions["author"].tolist() == [string_id("x"), 0, string_id("y")]
    assert chunk.actions["known"].tolist() == [KNOWN_AUTHOR, 0, KNOWN_AUTHOR]
    assert chunk.actions["time_ms"].tolist() == [T0, T0 + 1_000, T0 + 2_000]
    assert chunk.sent_ms.tolist() == [T0, T0 + 9_000, T0 + 2_000]


def test_a_history_is_named_by_its_files_as_they_are(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        pq.write_table(table(), tmp_path / name)
    named = named_history([tmp_path], None)
    assert named.startswith("2 files of ")
    assert named_history([tmp_path / "a.parquet", tmp_path / "b.parquet"], None) == named
    others = {
        named,
        named_history([], None),
        named_history([tmp_path / "a.parquet"], None),
        named_history([tmp_path], T0),
    }
    pq.write_table(table(value=[0, 50, 0]), tmp_path / "b.parquet")
    assert len(others | {named_history([tmp_path], None)}) == 5
    with pytest.raises(StreamError, match="got another file"):
        named_history([tmp_path / "c.csv"], None)


def test_the_border_is_the_first_action_that_the_log_counts(tmp_path: Path) -> None:
    view = small_view()
    actions = some_actions(50, 5)
    actions["time_ms"][0] = 1  # late: no view counts it, so history before the log may
    sent_ms = int(actions["time_ms"].max())
    path = write_file(tmp_path, 0, 0, action_table(run_of([(actions, sent_ms)])))
    found = first_logged_ms([HistoryFile(str(path), 50)], view)
    assert found == int(actions["time_ms"][actions["time_ms"] >= sent_ms - view.skew_ms].min())
    with pytest.raises(SettingsError, match="--before-ms"):
        first_logged_ms([], view)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (table().drop_columns("item"), "got none of the name item"),
        (table(action=["click", "buy", "like"]), r"actions\[1\]\.type: needs 1 to 12"),
        (table(time_ms=[T0, None, T0]), r"time_ms: needs a value in each row, got null"),
        (table(user=[1.0, float("nan"), 2.0]), r"user: needs int64, got double"),
        (table(value=["1", "x", "2"]), r"value: needs int64, got string"),
        (table(tags=[["a"], [], []]), r"tags: needs list<item: int64>, got list<element: string>"),
        (table(tags=[["7"], [], []]), r"tags: needs lists of whole numbers, got text"),
        (table(tags=[[1, None], [], None]), r"tags: needs lists of whole numbers, got .* null"),
        (table(tags=[[1] * 4, [], []]), "at most 3 tags"),
        (table(tags=[[1] * 16, [], []]), "at most 3 tags"),
    ],
)
def test_what_is_no_action_is_refused(tmp_path: Path, made: pa.Table, message: str) -> None:
    pq.write_table(made, tmp_path / "a.parquet")
    with pytest.raises(ActionError, match=message):
        take_foreign([tmp_path / "a.parquet"], None, tmp_path / "aside")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item")
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(StreamError, match=r"a \.parquet or \.jsonl file"):
        take_foreign([tmp_path / "a.csv"], None, tmp_path / "aside")
    with pytest.raises(StreamError, match=r"b\.parquet: needs a file of actions"):
        take_foreign([tmp_path / "b.parquet"], None, tmp_path / "aside")
    (tmp_path / "c.jsonl").write_text('{"user": 1}\n')
    with pytest.raises(ActionError, match=r"c\.jsonl:1\.item"):
        take_foreign([tmp_path / "c.jsonl"], None, tmp_path / "aside")


LINE = '{"user": %d, "item": 7, "type": "click", "time_ms": 1650000000000}'
#: What a line may be that means something only where lines are read as one text.
CRAFTED = {
    "two actions": f"{LINE % 8},{LINE % 9}",
    "two without a comma": f"{LINE % 8}{LINE % 9}",
    "in the place of all before it": f'{LINE % 8}], "actions": [{LINE % 9}',
    "with a time of sending": f'{LINE % 8}], "sent_ms": 7, "actions": [{LINE % 9}',
    "begun": '{"user": 8, "item": 7',
    "ended": '"type": "click", "time_ms": 1650000000000}',
    "a list": f"[{LINE % 8}]",
    "brackets": "[" * 100_000,
    "no text": "\udcff",
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_line_is_read_by_itself(tmp_path: Path, name: str) -> None:
    """A crafted one is refused by its number, and does not hide others."""
    lines = [LINE % 1, "", CRAFTED[name], LINE % 3]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines), errors="surrogateescape")
    with pytest.raises(ActionError, match=r"a\.jsonl:3[.:]"):
        take_foreign([path], None, tmp_path / "aside")
    path.write_text("\n".join((*lines[:2], lines[3])))
    (chunk,) = read_chunks(take_foreign([path], None, tmp_path / "aside")[0], COLUMNS)
    assert chunk.actions["user"].tolist() == [1, 3]
