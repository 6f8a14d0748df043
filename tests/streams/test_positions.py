from __future__ import annotations

import asyncio

import pytest
from faust.types import TP

from schemas.errors import StoreError, StreamError
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from streams.app import Fetched
from streams.patience import patiently
from streams.positions import Positions
from streams.transport import Marks
from tests.streams.support import record

PLACE = TP("t", 0)


def fetched(first: int, count: int) -> Fetched:
    return Fetched(PLACE, tuple(record(b"", first + i) for i in range(count)))


def positions(store: MemoryRowStore | None = None, epoch: int = 1) -> Positions:
    return Positions(AsyncMemoryRowStore(store or MemoryRowStore()), "t", "g", epoch)


def test_reading_begins_at_the_mark_of_this_log() -> None:
    store = MemoryRowStore()
    store.put_progress("t", "g", {0: (1, 40, 0), 1: (2, 7, 0)})
    first = positions(store, epoch=2)
    tps = [TP("t", 0), TP("t", 1), TP("t", 2)]
    assert first.begin(tps, asyncio.run(first.marks())) == {tps[0]: 0, tps[1]: 7, tps[2]: 0}


def test_what_came_by_is_cut() -> None:
    mine = positions()
    mine.begin([PLACE], {0: 10})
    assert [r.offset for r in mine.unseen(fetched(8, 4))] == [10, 11]
    assert mine.unseen(fetched(8, 4)) == ()
    assert [r.offset for r in mine.unseen(fetched(12, 2))] == [12, 13]


@pytest.mark.parametrize("first", [11, 500])
def test_a_hole_is_an_error(first: int) -> None:
    mine = positions()
    mine.begin([PLACE], {0: 10})
    with pytest.raises(StreamError, match="offset 10 next, without a hole"):
        mine.unseen(fetched(first, 3))


def test_a_hole_inside_a_list_is_an_error() -> None:
    torn = Fetched(PLACE, (record(b"", 0), record(b"", 2)))
    with pytest.raises(StreamError, match="2 records from 0 to 2"):
        positions().unseen(torn)


def test_a_log_that_no_longer_holds_its_beginning_is_read_from_what_it_holds() -> None:
    mine = positions()
    mine.begin([PLACE], {})
    assert len(mine.unseen(fetched(700, 3))) == 3
    assert mine.goes_back(fetched(0, 1))
    assert not mine.goes_back(fetched(703, 1))


def test_marks_that_vanished_are_noticed() -> None:
    store = MemoryRowStore()
    mine = positions(store)
    mine.saw(0, 77)
    mine.saw(0, 5)
    asyncio.run(mine.store({PLACE: 5}, 100))
    assert store.get_progress("t", "g")[0] == (1, 5, 77)
    lost = positions()
    lost._stored = {0: 5}
    with pytest.raises(StreamError, match="the store went back"):
        asyncio.run(lost.store({PLACE: 9}, 100))


def test_marks_of_the_transport_only_advance() -> None:
    marks = Marks()
    marks.advance(PLACE, 5)
    marks.advance(PLACE, 3)
    assert (marks.get(PLACE), list(marks.partitions())) == (5, [PLACE])
    marks.forget([PLACE, TP("t", 9)])
    assert marks.get(PLACE) is None


def test_patience_ends_and_other_errors_pass() -> None:
    calls = 0

    async def failing() -> None:
        nonlocal calls
        calls += 1
        raise StoreError("s", required="r", got=f"call {calls}")

    async def wrong() -> None:
        raise ZeroDivisionError

    with pytest.raises(StreamError, match="the store: needs success within 120 ms, got s: needs r"):
        asyncio.run(patiently("the store", failing, 120, (StoreError,)))
    assert calls == 3  # pauses of 50 and 100 ms
    with pytest.raises(ZeroDivisionError):
        asyncio.run(patiently("the store", wrong, 120, (StoreError,)))
