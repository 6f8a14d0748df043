"""What stream processes refuse where nothing else tests it: settings, and servers that go away."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faust.transport.consumer import Fetcher

from encore.local import Server, start_broker
from schemas.errors import RecordError, SettingsError, StreamError
from store.memory import AsyncMemoryRowStore
from streams import admin
from streams.admin import Admin, ensure_topics
from streams.app import StreamApp
from streams.archives import RankArchive
from streams.backfill import BackfillConfig, _history
from streams.config import StreamConfig
from streams.producer import ActionProducer
from streams.replay import find_mark
from streams.servers import REAL_SERVERS
from tests.aggregation.plans import small_view
from tests.streams.support import T0, record, some_actions, wait_until


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Server]:
    """A broker that a test may kill."""
    server = start_broker(tmp_path)
    yield server
    server.child.kill()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("partitions", 0, "partitions: needs 1 or more, got 0"),
        ("roll_ms", -1, "roll_ms: needs 1 or more, got -1"),
        ("session_timeout_s", 0, "session_timeout_s, commit_interval_s: needs more than 0"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, name: str, value: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        StreamConfig("127.0.0.1:9", "redis://127.0.0.1:9/0", tmp_path, **{name: value})  # type: ignore[arg-type]


def test_a_broker_that_stops_answering(own_broker: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_topics(own_broker.address, {"t": 1})
    with hurried(own_broker.address) as asked, ActionProducer(own_broker.address, "t", 1) as p:
        p.send(some_actions(1, 1), T0)
        own_broker.child.signal(signal.SIGSTOP)
        monkeypatch.setattr("streams.producer.SEND_TIMEOUT_S", 1.2)
        with pytest.raises(StreamError, match=r"broker 127.*: needs an answer, got \w+"):
            for _ in range(10_000):  # a process stops a moment after it was told to
                asked.describe("t")
        with pytest.raises(StreamError, match=r"topic t: needs confirmed actions.*compare with"):
            p.send(some_actions(1, 1), T0)


def hurried(bootstrap: str) -> Admin:
    """An admin that waits for 300 ms, as soon as the machine lets it begin."""
    made: list[Admin] = []

    def opened() -> bool:
        with suppress(StreamError):
            made.append(Admin(bootstrap, 300))
        return bool(made)

    wait_until(opened)
    return made[0]


def test_a_topic_that_does_not_appear(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a broker's controller is away: creation is accepted, the topic is not there."""
    monkeypatch.setattr(admin, "REQUEST_TIMEOUT_MS", 50)
    with Admin(broker) as asked:
        monkeypatch.setattr(asked, "describe", lambda topic: None)
        with pytest.raises(StreamError, match="needs to be there within 50 ms of its creation"):
            asked.ensure_topics({f"t{uuid.uuid4().hex[:10]}": 1})


def test_a_mark_of_a_topic_that_is_not_there(broker: str) -> None:
    with pytest.raises(StreamError, match="topic absent: needs an existing topic, got none"):
        asyncio.run(find_mark(AsyncMemoryRowStore(), broker, "absent", "g"))


def test_a_rank_record_without_a_value(tmp_path: Path) -> None:
    archive = RankArchive(tmp_path, "id", AsyncMemoryRowStore())
    (part,), (letter,) = asyncio.run(archive.take((record(None, 7, topic="rank-log"),)))
    assert isinstance(letter.error, RecordError)
    assert str(letter.error) == "rank-log/0/7: needs a rank record, got null"
    assert part.content is None


class FaustThatEnds:
    """The part of an application that a StreamApp asks; it sends nothing, and ends at once."""

    consumer_generation_id = 0
    crash_reason = OSError("the coordinator is gone")

    async def wait_until_stopped(self) -> None:
        return

    @property
    def producer(self) -> Any:
        return self

    async def send_and_wait(self, *arguments: Any) -> None:
        raise OSError("no acknowledgement")


class Events:
    """A stream whose first event cannot be read."""

    def noack(self) -> Events:
        return self

    def events(self) -> Events:
        return self

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Any:
        raise OSError("half a message")


class Handles:
    """A handler that is never given anything."""

    async def idle(self) -> None:
        return


def app_of(tmp_path: Path) -> StreamApp:
    config = StreamConfig("127.0.0.1:9", "redis://127.0.0.1:9/0", tmp_path)
    return StreamApp(config, "g", ("t",), Handles())  # type: ignore[arg-type]


def test_faust_that_ends_by_itself_ends_the_process(tmp_path: Path) -> None:
    async def work() -> None:
        app = app_of(tmp_path)
        app._failure = asyncio.get_running_loop().create_future()
        await app._work(FaustThatEnds())

    with pytest.raises(StreamError, match=r"needs a running consumer.*coordinator is gone"):
        asyncio.run(work())


def test_an_agent_that_fails_ends_the_process(tmp_path: Path) -> None:
    async def work() -> None:
        app = app_of(tmp_path)
        app._failure = asyncio.get_running_loop().create_future()
        with pytest.raises(OSError, match="half a message"):
            await app._agent(Events())
        await app._failure

    with pytest.raises(StreamError, match=r"group g: needs a running agent.*half a message"):
        asyncio.run(work())


def test_a_drain_that_the_store_holds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def drain() -> None:
        app = app_of(tmp_path)
        app._handler.close = asyncio.Event().wait  # type: ignore[assignment,method-assign]
        await app._drain()

    monkeypatch.setattr("streams.app.DRAIN_S", 0.05)
    told = r"group g: needs a store and a broker that take what was in hand within 0\.05 s"
    with pytest.raises(StreamError, match=told):
        asyncio.run(drain())


class Rebalancing:
    """The part of an application that its fetcher asks, while the group is being formed."""

    rebalancing = True

    def __init__(self) -> None:
        self.consumer, self.fetcher = self, Fetcher(self)  # type: ignore[arg-type]

    async def _drain_messages(self, fetcher: Any) -> None:
        await asyncio.sleep(60)

    async def stop(self) -> None:
        await self.fetcher.stop()


def test_a_drain_while_the_group_is_formed_is_no_crash(tmp_path: Path) -> None:
    async def drain() -> Fetcher:
        app = Rebalancing()
        await app.fetcher.start()
        await asyncio.sleep(0.05)
        await app_of(tmp_path)._shut(app)
        return app.fetcher

    fetcher = asyncio.run(drain())
    assert not fetcher.crashed
    assert fetcher.crash_reason is None


def test_a_record_that_is_not_confirmed(tmp_path: Path) -> None:
    send = app_of(tmp_path)._sender(FaustThatEnds())
    with pytest.raises(StreamError, match=r"topic t: needs a confirmed record.*no acknowledgement"):
        asyncio.run(send("t", b"k", b"v", {}))


def test_history_of_a_topic_that_no_worker_reads(tmp_path: Path) -> None:
    stream = StreamConfig("127.0.0.1:9", "redis://127.0.0.1:9/0", tmp_path)
    view = replace(small_view(), source="elsewhere")
    work = _history(
        BackfillConfig(stream, 1, 1 << 24), view, AsyncMemoryRowStore(), REAL_SERVERS, tmp_path
    )
    with pytest.raises(StreamError, match=r"source: needs actions or actions\.by-item, which work"):
        asyncio.run(work)
