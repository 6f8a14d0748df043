"""History back from Parquet, and rows filled from it: to the last byte what the stream makes."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.actions import ACTION, ActionType
from schemas.errors import StoreError, StreamError
from schemas.ids import partitions_of
from schemas.layout import layout_of
from schemas.names import row_key
from schemas.row import empty_rows, encode_rows, read_fence
from store.base import Write
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from streams.action_table import ACTION_SCHEMA, action_table
from streams.archive import write_file
from streams.catching_up import nowhere
from streams.filling import FillCounts, FillTask, fill
from streams.folding import Folder
from streams.history import WHOLE, HistoryFile, columns_of, read_chunks, read_ids
from streams.messages import ActionRun
from tests.aggregation.plans import small_view
from tests.streams.support import PARTITIONS, assert_rows_equal_oracle, plain, some_actions
from tests.streams.test_folding import Batch, allowed, run_of

VIEW = small_view()
FENCES = dict.fromkeys(range(PARTITIONS), (3, 99))


def messages(count: int, seed: int = 0, users: int = 30) -> list[list[Batch]]:
    """Messages of each partition, in order: some late, one deletes a user."""
    found: list[list[Batch]] = [[] for _ in range(PARTITIONS)]
    for number in range(count):
        part = some_actions(40, users, seed + number)
        owner = partitions_of(part["user"], PARTITIONS)
        for partition in range(PARTITIONS):
            own = part[owner == partition]
            if number == count // 2 and len(own):
                own["type"][-1] = ActionType.DELETE_USER
            if len(own):
                late_ms = VIEW.skew_ms + 1 if number % 7 == 3 else 0
                found[partition].append((own, int(own["time_ms"].max()) + late_ms))
    return found


def archive(
    root: Path, partition: int, batches: Sequence[Batch], log: int, a_file: int = 5
) -> list[HistoryFile]:
    """Files of `a_file` messages each."""
    files = []
    for first in range(0, len(batches), a_file):
        part = batches[first : first + a_file]
        run = run_of(part, first)
        path = write_file(root / str(partition), first, first + len(part) - 1, action_table(run))
        files.append(HistoryFile(str(path), len(run), log))
    return files


def all_files(root: Path, sent: list[list[Batch]]) -> tuple[HistoryFile, ...]:
    every = (archive(root, p, batches, p) for p, batches in enumerate(sent))
    return tuple(file for files in every for file in files)


def task(files: Sequence[HistoryFile], bounds: dict[int, int], **others: int) -> FillTask:
    """Of all users; bounds: {partition: offset}."""
    own = {partition: {partition: at} for partition, at in bounds.items()}
    made = FillTask(VIEW, tuple(files), tuple(bounds), PARTITIONS, own, FENCES)
    return replace(made, **others)  # type: ignore[arg-type]


def run(made: FillTask, store: MemoryRowStore) -> FillCounts:
    return fill(made, store, lambda actions: None)


def test_what_a_fold_takes_comes_back_from_parquet(tmp_path: Path) -> None:
    actions = some_actions(700, 20)
    actions["known"] &= 0b0001_1111 & ~4  # the request id stays behind
    actions["known"] |= (np.arange(700) % 4 << 4).astype(np.uint8)
    sent = run_of([(actions[:300], 5_000), (actions[300:], 6_000)], 7)
    path = write_file(tmp_path, 7, 8, action_table(sent))
    names = [name for name in ACTION_SCHEMA.names if name != "request_id"]
    (chunk,) = read_chunks([HistoryFile(str(path), 700, 1)], names)
    wanted = actions.copy()
    wanted["request_hi"] = wanted["request_lo"] = 0
    for name, bit in (("author", 1), ("music", 2), ("position", 8)):
        wanted[name][wanted["known"] & bit == 0] = 0
    for place in range(3):
        wanted["tags"][wanted["known"] >> 4 <= place, place] = 0
    assert plain(chunk.actions) == plain(wanted)
    assert chunk.offset.tolist() == sent.offset.tolist()
    assert chunk.sent_ms.tolist() == sent.sent_ms.tolist()
    assert set(chunk.log_partition.tolist()) == {1}


def test_only_what_a_view_is_made_of_is_read() -> None:
    assert set(columns_of(VIEW)) < set(ACTION_SCHEMA.names)
    assert {"offset", "sent_ms", "time_ms", "action", "user"} <= set(columns_of(VIEW))


@pytest.mark.parametrize("ways", [1, 3])
@pytest.mark.parametrize("memory_bytes", [1 << 30, 1])
def test_rows_equal_the_oracle_up_to_the_bounds(
    tmp_path: Path, ways: int, memory_bytes: int
) -> None:
    sent = messages(24)
    files = all_files(tmp_path, sent)
    bounds = {0: 17, 1: len(sent[1])}
    store, counts = MemoryRowStore(), FillCounts()
    for way in range(ways):
        counts.add(run(task(files, bounds, ways=ways, way=way, memory_bytes=memory_bytes), store))
    below = [batch for p, batches in enumerate(sent) for batch in batches[: bounds[p]]]
    assert_rows_equal_oracle(store, VIEW, below)
    users = read_ids(files, "user").tolist()
    found = store.read([row_key(VIEW.name, VIEW.generation, user) for user in users])
    fences = {read_fence(row) for row in found}
    assert fences <= {(3, 99), None}
    assert counts.rows == sum(row is not None for row in found) > 10
    assert counts.late > 0
    total = sum(len(actions) for actions, _ in below)
    deleted = sum(int((a["type"] == ActionType.DELETE_USER).sum()) for a, _ in below)
    assert counts.folded + counts.late + counts.future + deleted == total


def test_again_changes_nothing_and_finishes_what_was_begun(tmp_path: Path) -> None:
    sent = messages(12)
    made = task(all_files(tmp_path, sent), {0: 99, 1: 99})
    whole, broken = MemoryRowStore(), MemoryRowStore()
    first = run(made, whole)
    run(replace(made, ways=4, way=2), broken)
    again = run(made, broken)
    assert (again.rows > 0, again.there > 0) == (True, True)
    assert again.rows + again.there == first.rows
    assert run(made, whole) == replace(first, rows=0, there=first.rows)
    every = [batch for batches in sent for batch in batches]
    assert_rows_equal_oracle(broken, VIEW, every)


def test_a_failing_store_is_asked_again(tmp_path: Path) -> None:
    sent = messages(6)
    made = task(all_files(tmp_path, sent), {0: 99, 1: 99})
    store, fault = MemoryRowStore(), StoreError("s", required="r", got="g")
    store.fail_next(fault, fault)
    run(made, store)
    assert_rows_equal_oracle(store, VIEW, [batch for batches in sent for batch in batches])
    away = MemoryRowStore()
    away.fail_next(*[fault] * 9)
    with pytest.raises(StreamError, match="a store that takes them within 100 ms"):
        run(replace(made, patience_ms=100), away)


def test_a_row_of_somebody_else_is_refused(tmp_path: Path) -> None:
    made = task(all_files(tmp_path, messages(6)), {0: 99, 1: 99})
    user = int(read_ids(made.files, "user")[0])
    rows = empty_rows(layout_of(VIEW), np.array([user], np.int64))
    store = MemoryRowStore()
    (value,) = encode_rows(layout_of(VIEW), rows)
    store.compare_and_set([Write(row_key(VIEW.name, VIEW.generation, user), None, value)])
    with pytest.raises(StreamError, match=r"one under the fence \(3, 99\), got \(0, -1\)"):
        run(made, store)


def test_earlier_logs_and_foreign_history_are_taken_whole(tmp_path: Path) -> None:
    sent = messages(10)
    earlier = [archive(tmp_path / "old", p, batches, WHOLE) for p, batches in enumerate(sent)]
    later = messages(10, seed=500)
    files = [*earlier[0], *earlier[1], *all_files(tmp_path / "new", later)]
    store = MemoryRowStore()
    run(task(files, {0: 4, 1: 0}), store)
    taken = [*sent[0], *sent[1], *later[0][:4]]
    assert_rows_equal_oracle(store, VIEW, taken)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=2), st.integers(1, 9))
def test_a_filling_at_any_cut_and_the_stream_behind_it(cuts: list[int], a_file: int) -> None:
    """Filled up to a cut, folded from there: what the stream alone makes."""
    sent = messages(20, users=6)
    bounds = {p: min(cut, len(sent[p])) for p, cut in enumerate(cuts)}
    with tempfile.TemporaryDirectory() as directory:
        files = [
            file
            for p, batches in enumerate(sent)
            for file in archive(Path(directory), p, batches, p, a_file)
        ]
        store = MemoryRowStore()
        fences = {p: (1, at - 1) for p, at in bounds.items()}
        run(replace(task(files, bounds), fences=fences), store)
    folder = Folder(AsyncMemoryRowStore(store), (VIEW,), 1, nowhere, 1_000, {VIEW.key: bounds})
    for partition, batches in enumerate(sent):
        run_ = run_of(batches)
        whole = ActionRun(
            run_.actions,
            np.full(len(run_), partition, np.int32),
            run_.offset,
            run_.index,
            run_.sent_ms,
        )
        asyncio.run(folder.apply(whole, allowed))
    assert_rows_equal_oracle(store, VIEW, [batch for batches in sent for batch in batches])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(StreamError, match=r"x\.parquet: needs a whole file of the archive"):
        read_ids([HistoryFile(str(path), 1)], "user")
    assert len(np.zeros(0, ACTION)) == len(read_ids([], "user"))
