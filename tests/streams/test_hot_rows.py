from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import StreamError
from schemas.names import row_key
from schemas.row import read_fence
from store.base import Write
from store.memory import AsyncMemoryRowStore
from streams import folding
from streams.hot_rows import BESIDE_BYTES, HotRows
from streams.overlap import overlapped
from tests.streams.support import assert_rows_equal_oracle
from tests.streams.test_folding import VIEW, Bench, messages, run_of


def test_the_rows_that_were_not_written_for_longest_go_first() -> None:
    hot = HotRows(room_bytes=300 + 3 * BESIDE_BYTES)
    hot.keep(["a", "b", "c"], [bytes(100)] * 3)
    hot.keep(["a"], [bytes(120)])
    assert [len(row or b"") for row in hot.take(["a", "b", "c", "d"])] == [120, 0, 100, 0]
    assert (len(hot), hot.used_bytes) == (2, 220 + 2 * BESIDE_BYTES)
    hot.clear()
    assert (len(hot), hot.used_bytes, hot.get("a")) == (0, 0, None)


def test_a_row_larger_than_the_room_is_not_kept() -> None:
    hot = HotRows(room_bytes=50)
    hot.keep(["a"], [bytes(100)])
    assert (len(hot), hot.used_bytes) == (0, 0)


@given(
    st.integers(1, 20),
    st.lists(st.lists(st.integers(0, 30), unique=True, max_size=8), max_size=30),
)
def test_what_was_written_last_is_kept(room: int, calls: list[list[int]]) -> None:
    """As many rows as there is room for, each as it was written last."""
    hot, newest = HotRows(room * (4 + BESIDE_BYTES)), dict[str, bytes]()
    for number, call in enumerate(calls, 1):
        keys = [str(key) for key in call]
        hot.keep(keys, [number.to_bytes(4, "little")] * len(keys))
        for key in keys:
            newest.pop(key, None)
            newest[key] = number.to_bytes(4, "little")
        known = list(newest)[-room:]
        assert hot.take(known) == [newest[key] for key in known]
        assert (len(hot), hot.used_bytes) == (len(known), len(known) * (4 + BESIDE_BYTES))


def test_what_was_written_is_not_read_again() -> None:
    reads: list[Sequence[str]] = []

    class Counting(AsyncMemoryRowStore):
        async def read(self, keys: Sequence[str]) -> list[bytes | None]:
            reads.append(keys)
            return await super().read(keys)

    bench, sent = Bench(), messages(6, users=3)
    folder = bench.folder()
    folder.store = Counting(bench.store)
    bench.apply(folder, run_of(sent[:3]))
    bench.apply(folder, run_of(sent[3:], 3))
    assert len(reads) == 1
    assert_rows_equal_oracle(bench.store, VIEW, sent)


def test_a_held_row_that_another_writer_replaced_is_read_again() -> None:
    """A worker that got a partition back holds rows from before it lost it."""
    bench, sent = Bench(), messages(9)
    mine, other = bench.folder(), bench.folder()
    bench.apply(mine, run_of(sent[:3]))
    bench.apply(other, run_of(sent[3:6], 3))
    bench.apply(mine, run_of(sent[3:], 3))
    assert mine.counts.conflicts > 0
    assert_rows_equal_oracle(bench.store, VIEW, sent)


def test_a_held_row_that_the_store_lost_is_noticed() -> None:
    bench, sent = Bench(), messages(4)
    folder = bench.folder()
    bench.apply(folder, run_of(sent[:2]))
    folder.store = AsyncMemoryRowStore()
    with pytest.raises(StreamError, match="the store went back"):
        bench.apply(folder, run_of(sent[2:], 2))


@pytest.mark.parametrize("rows_at_once", [1, 3, 7])
def test_parts_make_the_rows_that_one_fold_makes(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    """The same rows, counts and late actions, whatever the parts; repetitions and all."""
    sent = messages(8, size=30, users=20)
    sent[6][0]["time_ms"][::5] -= 900_000

    def fold() -> tuple[Bench, folding.Folder]:
        bench = Bench()
        folder = bench.folder()
        bench.apply(folder, run_of(sent[:5]))
        bench.apply(folder, run_of(sent[3:], 3))
        assert_rows_equal_oracle(bench.store, VIEW, sent)
        return bench, folder

    whole, at_once = fold()
    monkeypatch.setattr(folding, "ROWS_AT_ONCE", rows_at_once)
    parts, by_part = fold()
    assert by_part.counts == at_once.counts
    assert at_once.counts.late > 6 and at_once.counts.repeated > 0
    assert sorted(parts.outside) == sorted(whole.outside)


def test_one_part_that_fails_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "ROWS_AT_ONCE", 1)
    bench, sent = Bench(), messages(2, size=30, users=12)

    class Failing(AsyncMemoryRowStore):
        writes = 0

        async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
            self.writes += 1
            if self.writes == 4:
                raise ZeroDivisionError
            return await super().compare_and_set(writes)

    folder = bench.folder()
    folder.store = Failing(bench.store)

    async def run() -> None:
        with pytest.raises(ZeroDivisionError):
            await folder.apply(run_of(sent), allowed)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())
    bench.apply(bench.folder(), run_of(sent))  # whoever comes next finishes what is left
    assert_rows_equal_oracle(bench.store, VIEW, sent)
    user = int(sent[-1][0]["user"][-1])
    assert read_fence(bench.store.read([row_key(VIEW.name, 1, user)])[0]) == (1, 1)


async def allowed() -> None:
    """The log is still the same."""


def test_no_more_are_under_way_than_asked_for() -> None:
    running = most = 0

    async def work(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (number % 3))
        running -= 1

    asyncio.run(overlapped((work(number) for number in range(20)), 3))
    assert (running, most) == (0, 3)
