"""What a log does not hold any more is told as that: `tests/streams/test_catching_up.py` reads what
it holds.

The embedded broker says of no offset that it is out of range, as Kafka does, so a consumer that is
told so is played here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import OffsetOutOfRangeError
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import NotHeldError
from streams.admin import ensure_topics
from streams.log_reader import KafkaLogReader, first_held
from streams.producer import ActionProducer
from tests.streams.bucket import Bucket, broker_over, offset_of
from tests.streams.support import T0, some_actions

PLACE = TopicPartition("actions", 0)
LAST = 30


class Consumer:
    """Of a log that begins at `start` and lacks what is `gone`, too; it ends behind LAST. hole:
    what lies before `start` is missing in its midst as well."""

    def __init__(self, start: int, hole: bool, gone: Collection[int] = ()) -> None:
        self.start, self.hole, self.gone = start, hole, gone
        self.position = 0

    def assign(self, places: list[TopicPartition]) -> None:
        assert places == [PLACE]

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.position = offset

    async def getmany(
        self, place: TopicPartition, **limits: int
    ) -> dict[TopicPartition, list[Any]]:
        if self.position < self.start and not self.hole:
            raise OffsetOutOfRangeError({place: self.position})
        first = max(self.position, self.start)
        there = [offset for offset in range(first, LAST + 1) if offset not in self.gone]
        return {place: [SimpleNamespace(offset=offset) for offset in there[:3]]}


class Reader(KafkaLogReader):
    """Reads from a played consumer, and looks again at once."""

    pauses_s = (0.0, 0.0)

    def __init__(self, consumer: Consumer) -> None:
        super().__init__("127.0.0.1:1", 1_000)
        self.consumer = consumer

    async def _connected(self) -> Consumer:
        return self.consumer


@pytest.mark.parametrize(
    ("hole", "says"),
    [
        (False, "needs the record at offset 4, got a log that does not hold it any more"),
        (True, "needs the record at offset 4, got offset 7"),
    ],
    ids=["expired", "compacted"],
)
def test_what_a_log_does_not_hold(hole: bool, says: str) -> None:
    reader = Reader(Consumer(7, hole))
    with pytest.raises(NotHeldError, match=says):
        asyncio.run(reader.read("actions", 0, 4, 9))
    records = asyncio.run(reader.read("actions", 0, 7, 9))
    assert [record.offset for record in records] == [7, 8]


class Late(Consumer):
    """Shows what is gone once it was asked for it that often."""

    def __init__(self, gone: Collection[int], looks: int) -> None:
        super().__init__(0, False, gone)
        self.looks = looks

    def seek(self, place: TopicPartition, offset: int) -> None:
        super().seek(place, offset)
        self.looks -= offset in self.gone
        if self.looks < 0:
            self.gone = ()


@pytest.mark.parametrize("looks", [1, 2])
def test_what_is_shown_late_is_read(looks: int) -> None:
    """Also where the records before it came by, and the next ones follow them."""
    reader = Reader(Late({2}, looks))

    async def read() -> list[int]:
        at, offsets = 0, []
        while at < 6:
            offsets += [int(each.offset) for each in await reader.read("actions", 0, at, 6)]
            at = offsets[-1] + 1
        return offsets

    assert asyncio.run(read()) == list(range(6))


def test_what_is_not_shown_in_time_is_missing() -> None:
    with pytest.raises(NotHeldError, match="record at offset 2, got offset 3"):
        asyncio.run(Reader(Late({2}, 3)).read("actions", 0, 2, 6))


class Replacing(KafkaLogReader):
    """Has the batch put back after the first look."""

    def __init__(self, bootstrap: str, bucket: Bucket, batch: tuple[str, bytes]) -> None:
        super().__init__(bootstrap, 10_000)
        self.bucket, self.batch, self.looks = bucket, batch, 0

    async def _asked(self, where: str, *span: Any) -> list[Any]:
        records = await super()._asked(where, *span)
        if self.looks == 0:
            self.bucket.put(*self.batch, absent=True, tag=None)
        self.looks += 1
        return records


def test_a_broker_that_shows_a_later_batch_first_is_asked_again(tmp_path: Path) -> None:
    with Bucket() as bucket, broker_over(bucket, tmp_path) as bootstrap:
        ensure_topics(bootstrap, {"t": 1})
        with ActionProducer(bootstrap, "t", 1) as producer:
            for seed in range(4):
                producer.send(some_actions(3, 2, seed), T0)
        records = f"clusters/encore/topics/t/partitions/{0:010}/records/"
        batches = {offset_of(key): (key, held) for key, held in bucket.below(records)}
        key, held = batches[2]
        assert bucket.drop("t", 0, 2, 3) == 1

        async def read() -> tuple[list[int], int]:
            reader = Replacing(bootstrap, bucket, (key, held.content))
            try:
                return [each.offset for each in await reader.read("t", 0, 2, 4)], reader.looks
            finally:
                await reader.close()

        assert asyncio.run(read()) == ([2, 3], 2)


def test_a_log_that_lost_a_part_is_read_up_to_there(tmp_path: Path) -> None:
    """Of a broker: one fetch brings what lies before and behind, and says nothing of it."""
    with Bucket() as bucket, broker_over(bucket, tmp_path) as bootstrap:
        ensure_topics(bootstrap, {"t": 1})
        with ActionProducer(bootstrap, "t", 1) as producer:
            for seed in range(8):
                producer.send(some_actions(3, 2, seed), T0)
        assert bucket.drop("t", 0, 2, 5) == 3

        async def read() -> tuple[list[int], int]:
            reader = KafkaLogReader(bootstrap, 10_000)
            try:
                first = [each.offset for each in await reader.read("t", 0, 0, 8)]
                with pytest.raises(NotHeldError, match="record at offset 2, got offset 5"):
                    await reader.read("t", 0, 2, 8)
                behind = [each.offset for each in await reader.read("t", 0, 5, 7)]
                return first + behind, await first_held(reader, "t", 0, 8, 2)
            finally:
                await reader.close()

        assert asyncio.run(read()) == ([0, 1, 5, 6], 5)


@given(
    start=st.integers(0, LAST),
    hole=st.booleans(),
    gone=st.sets(st.integers(0, LAST - 1)),
    span=st.tuples(st.integers(0, LAST), st.integers(0, LAST)).map(sorted),
)
def test_the_first_offset_that_is_held(
    start: int, hole: bool, gone: set[int], span: list[int]
) -> None:
    """Of a log that lost any parts, whichever of them."""
    begin, before = span
    held = (at for at in range(begin, before) if at >= start and at not in gone)
    reader = Reader(Consumer(start, hole, gone))
    assert asyncio.run(first_held(reader, "actions", 0, before, begin)) == next(held, before)
