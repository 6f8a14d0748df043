"""Messages that a topic dropped before they were archived: refused, accepted, told, filled over."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from aiokafka.structs import ConsumerRecord
from faust.types import TP

from schemas.actions import encode_batch
from schemas.errors import NotHeldError, StreamError
from schemas.names import PLAN_KEY
from schemas.plan import Plan, dump_plan
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from streams.admin import ensure_topics
from streams.app import Fetched
from streams.archive import list_files, next_offset
from streams.losses import ARCHIVE, Accepted, Loss, accepted_losses, parse_losses, record_losses
from streams.servers import Servers
from streams.sink import Sink
from streams.transport import Marks
from tests.aggregation.plans import small_view
from tests.streams.support import T0, Stack, make_stack, record, some_actions, user_of

VIEW = replace(small_view(), name="v", source="t")


@dataclass
class Holding:
    """A log that does not hold what lies in the hole [first, next)."""

    hole: tuple[int, int]

    async def read(
        self, topic: str, partition: int, first: int, before: int
    ) -> tuple[ConsumerRecord, ...]:
        if self.hole[0] <= first < self.hole[1]:
            raise NotHeldError(topic, required=f"{first}", got="none")
        return (record(None, first, topic=topic, partition=partition),)

    async def close(self) -> None:
        """There is no connection."""


async def send_nothing(
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: dict[str, bytes],
    partition: int | None = None,
) -> None:
    """No record here is refused."""


def fetched(topic: str, *offsets: int) -> Fetched:
    """Messages of two actions each."""
    user = user_of(0)
    actions = some_actions(2, 1)
    actions["user"] = user
    value, key = encode_batch(actions, T0 + 20_000), b"%d" % user
    return Fetched(TP(topic, 0), tuple(record(value, at, key=key, topic=topic) for at in offsets))


async def archived(stack: Stack, hole: tuple[int, int], accept_loss: bool) -> Marks:
    """What a sink acknowledges that is given the offsets 0 to 2, and 7 to 9 with 12 in one list."""
    servers = Servers(open_reader=lambda config: Holding(hole))
    sink, marks = Sink(stack.config, servers, accept_loss=accept_loss), Marks()
    await sink.open(send_nothing, marks)
    topic = stack.config.topic
    try:
        await sink.start_at(frozenset({TP(topic, 0)}))
        await sink.handle([fetched(topic, 0, 1, 2)])
        await sink.handle([fetched(topic, 7, 8, 9, 12)])
    finally:
        await sink.close()
    return marks


@pytest.fixture
def stack(broker: str, valkey: str, tmp_path: Path) -> Stack:
    made = make_stack(broker, valkey, tmp_path / "data")
    ensure_topics(broker, made.config.topics)
    return made


def test_a_hole_ends_the_sink_until_the_loss_is_accepted(stack: Stack) -> None:
    topic = stack.config.topic
    says = r"4 messages are missing, offsets 3 to 6; .*`encore sink --accept-loss`"
    with pytest.raises(NotHeldError, match=says):
        asyncio.run(archived(stack, (3, 7), accept_loss=False))
    with pytest.raises(NotHeldError, match=says):  # the log holds them: this process skipped them
        asyncio.run(archived(stack, (3, 5), accept_loss=True))
    (directory,) = stack.config.archive_dir.joinpath(topic).glob("topic_id=*/partition=0")
    assert next_offset(list_files(directory)) == 3, "nothing behind the hole"


def test_what_is_accepted_is_archived_as_lost(stack: Stack) -> None:
    topic, root = stack.config.topic, stack.config.archive_dir / stack.config.topic
    marks = asyncio.run(archived(stack, (3, 12), accept_loss=True))
    assert marks.get(TP(topic, 0)) == 13
    (directory,) = root.glob("topic_id=*/partition=0")
    files = list_files(directory)
    spans = [(file.first, file.last, file.lost) for file in files]
    lost = [(3, 6, True), (10, 11, True)]
    assert spans == [(0, 2, False), lost[0], (7, 9, False), lost[1], (12, 12, False)]
    tables = [pq.ParquetFile(file.path).read() for file in files]
    assert [table.num_rows for table in tables] == [6, 0, 6, 0, 2]
    assert len({str(table.schema) for table in tables}) == 1
    store = AsyncMemoryRowStore(MemoryRowStore())
    found = asyncio.run(accepted_losses(store, [(topic, root)]))
    assert [(each.whose, each.loss.first, each.loss.messages) for each in found] == [
        (ARCHIVE, 3, 4),
        (ARCHIVE, 10, 2),
    ]
    assert "is without offsets 3 to 6 of" in str(found[0])


def test_what_a_generation_was_filled_without_is_kept_with_it() -> None:
    store = AsyncMemoryRowStore(MemoryRowStore())
    one, two = Loss("t", "id-1", 0, 3, 7), Loss("t", "id-1", 1, 0, 2)

    async def scenario() -> tuple[Accepted, ...]:
        await record_losses(store, VIEW, [two])
        await record_losses(store, VIEW, [one, two])
        assert await accepted_losses(store, []) == (), "nobody uses the view"
        await store.compare_and_set_text(PLAN_KEY, "version", 0, dump_plan(Plan(1, 0, (VIEW,), ())))
        return await accepted_losses(store, [])

    assert asyncio.run(scenario()) == (Accepted("v@1", one), Accepted("v@1", two))
    with pytest.raises(StreamError, match=r"needs losses, .* got '\[1\]'; rebuild the view"):
        parse_losses("[1]", "losses")


def test_losses_that_others_record_at_once() -> None:
    class Contended(MemoryRowStore):
        def compare_and_set_text(self, *what: object) -> bool:
            return False

    store = AsyncMemoryRowStore(Contended())
    with pytest.raises(StreamError, match=r"losses of v@1: needs to be recorded, got another"):
        asyncio.run(record_losses(store, VIEW, [Loss("t", "id-1", 0, 3, 7)]))
