"""How far streams are: ends by a fetch, positions by marks, owners by what processes tell."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from schemas.actions import decode_batch
from schemas.errors import StreamError
from schemas.names import dead_letter_topic, late_topic
from schemas.spool import frame, segment_name
from store.memory import AsyncMemoryRowStore
from store.redis_store import AsyncRedisRowStore
from streams.admin import ensure_topics
from streams.ends import read_ends
from streams.heartbeat import BEAT_S, FRESH_MS, Counts, Heartbeat, Tally, parse_beat
from streams.producer import ActionProducer
from streams.servers import Servers, now_ms
from streams.ship import POSITION_NAME
from streams.status import Line, StreamStatus, read_status, unshipped_bytes, wait_settled
from tests.patience import WAIT_S
from tests.streams.support import (
    PARTITIONS,
    T0,
    Process,
    Stack,
    make_stack,
    patient,
    raw_producer,
    read_topic,
    running,
    some_actions,
    wait_stored,
    wait_until,
)


@pytest.fixture
def stack(broker: str, valkey: str, tmp_path: Path) -> Stack:
    spool = tmp_path / "spool"
    return make_stack(broker, valkey, tmp_path / "data", spool_dir=spool, roll_ms=300)


def status_of(stack: Stack, at_ms: int | None = None, wait_s: float | None = None) -> StreamStatus:
    async def read() -> StreamStatus:
        async with AsyncRedisRowStore(patient(stack.config.store_url)) as store:
            clock_ms = now_ms() if at_ms is None else at_ms
            if wait_s is None:
                return await read_status(stack.config, store, clock_ms)
            return await wait_settled(stack.config, store, clock_ms, wait_s)

    return asyncio.run(read())


def rows_of(status: StreamStatus) -> dict[int, Line]:
    return {line.partition: line for line in status.lines if line.does == "rows"}


def told(status: StreamStatus) -> tuple[int, int]:
    """Actions and dead letters that workers told of."""
    counts = [line.counts for line in rows_of(status).values()]
    return sum(each.actions for each in counts), sum(each.dead for each in counts)


def owners(status: StreamStatus) -> set[tuple[str, str]]:
    """Who does what, by process id."""
    return {(line.does, line.owner.rpartition(":")[2]) for line in status.lines}


def late_actions(stack: Stack, status: StreamStatus) -> int:
    """Those that lie in the late topic."""
    topic = late_topic(stack.config.topic)
    records = read_topic(stack.config.bootstrap, topic, 1, status.aside[topic])
    return sum(len(decode_batch(record.value).actions) for record in records)


def wait_told(stack: Stack, counts: tuple[int, int], worker: Process) -> StreamStatus:
    """The first status by which this worker has all partitions and told these counts. After a
    moment in which the machine stood still nobody has told lately."""
    found: list[StreamStatus] = []

    def all_told() -> bool:
        found.append(status_of(stack))
        told_by = {line.owner.rpartition(":")[2] for line in rows_of(found[-1]).values()}
        return told(found[-1]) == counts and told_by == {str(worker.popen.pid)}

    wait_until(all_told)
    return found[-1]


def test_a_worker_seen_from_outside(stack: Stack) -> None:
    config = stack.config
    ensure_topics(config.bootstrap, config.topics)
    actions = some_actions(400, 40)
    with running("worker", stack) as worker:
        with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
            ends = producer.send(actions, T0 + 20_000)
        with raw_producer(config.bootstrap) as raw:
            bad = raw.send(config.topic, value=b"nonsense", key=b"1", partition=0).get(60)
        ends[0] = bad.offset + 1
        wait_stored(stack, ends)
        status = wait_told(stack, (400, 1), worker)
        lines = rows_of(status)
        assert {p: (line.stored, line.end, line.lag) for p, line in lines.items()} == {
            p: (end, end, 0) for p, end in ends.items()
        }
        aside = sum(line.counts.late + line.counts.future for line in lines.values())
        assert aside == late_actions(stack, status) > 0
        assert lines[0].counts.dead == 1
        assert lines[0].epoch >= 1
        assert lines[0].watermark_ms == T0 + 20_000
        assert status.aside[dead_letter_topic(config.topic)] == 1
        wanted = ("archive", config.topic)
        archive = [each for each in status.lines if (each.does, each.topic) == wanted]
        assert sum(line.lag for line in archive) == sum(ends.values()), "no sink runs"
        gone = rows_of(status_of(stack, now_ms() + FRESH_MS + 60_000))
        assert {line.owner for line in gone.values()} == {""}, "it told nothing lately"
        ahead = rows_of(status_of(stack, now_ms() - 3_600_000))
        assert {line.owner for line in ahead.values()} == {""}, "the clock was set back since"
        assert worker.terminate() == 0
    assert {line.owner for line in rows_of(status_of(stack)).values()} == {""}, "it left"
    with pytest.raises(StreamError, match=r"needs nothing that lags within 0 s, got .*archive"):
        status_of(stack, wait_s=0)
    with running("sink", stack) as sink, running("items", stack) as items:
        assert status_of(stack, wait_s=WAIT_S).lag == 0
        pids = {
            "archive": sink.popen.pid,
            "re-keying": items.popen.pid,
            "item rows": items.popen.pid,
        }
        everybody = {(does, str(pid)) for does, pid in pids.items()} | {("rows", "")}
        wait_until(lambda: owners(status_of(stack)) == everybody)


def test_topics_that_are_not_there_yet_have_no_lines(stack: Stack) -> None:
    assert status_of(stack) == StreamStatus((), {}, 0)


def test_ends_are_those_of_the_log(broker: str, stack: Stack) -> None:
    topic = stack.config.topic
    ensure_topics(broker, {topic: 3})
    with raw_producer(broker) as producer:
        for number in range(7):
            producer.send(topic, value=b"x" * 1_000, partition=number % 2).get(60)
    starts = {(topic, 0): 0, (topic, 1): 3, (topic, 2): 0}
    assert asyncio.run(read_ends(broker, starts)) == {
        (topic, 0): 4,
        (topic, 1): 3,
        (topic, 2): 0,
    }
    beyond = {(topic, 0): 1_000}  # as a mark of a log that was lost
    assert asyncio.run(read_ends(broker, beyond)) == {(topic, 0): 4}
    assert asyncio.run(read_ends(broker, {})) == {}
    with pytest.raises(StreamError, match=r"needs the ends of 1 partitions within 300 ms"):
        asyncio.run(read_ends("127.0.0.1:9", {(topic, 0): 0}, 300))


def test_what_is_told_and_how_often() -> None:
    """Rates from one word to the next, counts of the partitions that are one's own."""
    clock_s = [100.0]
    store, tally = AsyncMemoryRowStore(), Tally()
    servers = Servers(clock_s=lambda: clock_s[0], wall_ms=lambda: T0)

    async def told(partition: int) -> object:
        return parse_beat(await store.get_text(f"encore:worker:{{t:g:{partition}}}"))

    async def life() -> None:
        beat = Heartbeat(store, ("t", "g"), tally, servers)
        tally.of(7).actions = 3
        beat.begin([0, 1])
        tally.of(0).actions = 10
        await beat.now_and_then()
        assert await told(0) is None, "too early"
        clock_s[0] += BEAT_S
        await beat.now_and_then()
        first = await told(0)
        assert (first.rate, first.counts, first.at_ms) == (10 / BEAT_S, Counts(10), T0)  # type: ignore[attr-defined]
        assert await told(7) is None
        beat.begin([1])
        assert tally.counts == {1: Counts()}
        clock_s[0] += 1
        await beat.leave()
        assert (await told(1)).owner == ""  # type: ignore[attr-defined]
        assert (await told(0)).owner != "", "another's by now"  # type: ignore[attr-defined]

    asyncio.run(life())
    assert parse_beat("of another version") is None


def test_bytes_of_the_spool_that_are_not_shipped(tmp_path: Path) -> None:
    assert unshipped_bytes(tmp_path / "absent") == 0
    one = frame(b"one")
    for sequence in (3, 4):
        (tmp_path / segment_name(sequence)).write_bytes(one * 2)
    assert unshipped_bytes(tmp_path) == 4 * len(one)
    (tmp_path / POSITION_NAME).write_text(f"3 {len(one)}\n")
    assert unshipped_bytes(tmp_path) == 3 * len(one)
    (tmp_path / POSITION_NAME).write_text(f"4 {2 * len(one)}\n")
    assert unshipped_bytes(tmp_path) == 0
