"""Dead letters: as they lie there, and put back once whatever dies between."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.actions import encode_batch
from schemas.errors import NotHeldError, StreamError
from schemas.names import (
    CONTENT_JSON,
    HEADER_CODE,
    HEADER_CONTENT,
    HEADER_REASON,
    HEADER_REDRIVEN,
    HEADER_SOURCE,
    dead_letter_topic,
    redriven_keys,
)
from store.redis_store import AsyncRedisRowStore
from streams.admin import Admin, ensure_topics
from streams.clients import KafkaProducer
from streams.config import StreamConfig
from streams.dead_letters import (
    LEASE_MS,
    Letter,
    Message,
    Record,
    Redriven,
    Redriver,
    dump_record,
    parse_record,
    refusal,
    send_all,
)
from streams.desk import Desk
from streams.log_reader import KafkaLogReader
from streams.messages import record_headers
from streams.producer import MAX_MADE_BYTES, producer_settings
from tests.streams.support import T0, patient, raw_producer, read_topic, some_actions, user_of

PARTITIONS = 2


@dataclass
class Post:
    """A topic with letters, and runs of a redriver that may die."""

    config: StreamConfig
    letters: list[Letter] = field(default_factory=list)
    now_ms: int = T0

    @property
    def topic(self) -> str:
        return self.config.topic

    def run(self, wrap: Callable[[Any], Any] = lambda send: send) -> Redriven:
        return asyncio.run(self._run(wrap))

    def run_beside(self) -> Redriven:
        """Another run, while one is in its loop."""
        with ThreadPoolExecutor(1) as beside:
            return beside.submit(self.run).result()

    async def _run(self, wrap: Callable[[Any], Any]) -> Redriven:
        with Admin(self.config.bootstrap) as admin:
            facts = admin.ensure_topics({self.topic: PARTITIONS, dead_letter_topic(self.topic): 1})
        producer: Any = KafkaProducer(**producer_settings(self.config.bootstrap))
        reader = KafkaLogReader(self.config.bootstrap, 5_000)
        try:
            async with AsyncRedisRowStore(patient(self.config.store_url)) as store:
                redriver = Redriver(
                    self.config.bootstrap,
                    store,
                    reader,
                    facts[dead_letter_topic(self.topic)],
                    facts[self.topic],
                    wrap(send_all(producer, self.topic)),
                    lambda: self.now_ms,
                )
                return await redriver.run(self.letters, lambda letter: None)
        finally:
            await reader.close()
            producer.close(timeout=1)

    def came_back(self) -> list[str]:
        """Which letters lie in the topic again, each as often as it does."""
        with raw_producer(self.config.bootstrap) as producer:  # a last record says where to stop
            for partition in range(PARTITIONS):
                producer.send(self.topic, value=b"end", partition=partition).get(60)
            self._ends += PARTITIONS
        found: list[str] = []
        count = self._ends
        while True:
            records = read_topic(self.config.bootstrap, self.topic, PARTITIONS, count)
            if sum(record.value == b"end" for record in records) == self._ends:
                break
            count += 1
        for record in records:
            if (name := record_headers(record).get(HEADER_REDRIVEN)) is not None:
                found.append(name.decode().rpartition("/")[2])
        return sorted(found)

    _ends: int = 0


@pytest.fixture
def post(broker: str, valkey: str, tmp_path: Path) -> Iterator[Post]:
    topic = f"t{uuid.uuid4().hex[:10]}"
    ensure_topics(broker, {topic: PARTITIONS, dead_letter_topic(topic): 1})
    config = StreamConfig(broker, valkey, tmp_path, topic=topic, partitions=PARTITIONS)
    made = Post(config)
    users = [user_of(0), user_of(1), user_of(0, 1)]
    with raw_producer(broker) as producer:
        for number, user in enumerate(users):
            actions = some_actions(1, 1)
            actions["user"] = user
            headers = {
                HEADER_SOURCE: f"{topic}/0/{number}".encode(),
                HEADER_CODE: b"action",
                HEADER_REASON: b"a reason",
            }
            key, value = b"%d" % user, encode_batch(actions, T0)
            sent = producer.send(
                dead_letter_topic(topic), value=value, key=key, headers=list(headers.items())
            )
            sent.get(60)
            made.letters.append(
                Letter(number, f"{topic}/0/{number}", "action", "a reason", key, value, {})
            )
    yield made


class DiedError(Exception):
    """The process, at this point."""


def dies_before(send: Any) -> Any:
    def instead(messages: Sequence[Message]) -> None:
        raise DiedError

    return instead


def dies_within(send: Any) -> Any:
    def instead(messages: Sequence[Message]) -> None:
        send(messages[:2])
        raise DiedError

    return instead


def dies_after(send: Any) -> Any:
    def instead(messages: Sequence[Message]) -> None:
        send(messages)
        raise DiedError

    return instead


def test_each_is_put_back_once_by_any_number_of_runs(post: Post) -> None:
    assert post.run().sent == (0, 1, 2)
    again = post.run()
    assert (again.sent, again.before) == ((), (0, 1, 2))
    assert post.came_back() == ["0", "1", "2"]


@pytest.mark.parametrize(
    "deaths",
    [
        [dies_before],
        [dies_within],
        [dies_after],
        [dies_before, dies_within],
        [dies_within, dies_before],
        [dies_within, dies_after],
    ],
)
def test_each_is_put_back_once_when_runs_die(
    post: Post, deaths: list[Callable[[Any], Any]]
) -> None:
    for death in deaths:
        with pytest.raises(DiedError):
            post.run(death)
        with pytest.raises(StreamError, match=r"needs one run at a time.*run it again in 60 s"):
            post.run()
        post.now_ms += LEASE_MS
    post.run()
    assert post.run().before == (0, 1, 2)
    assert post.came_back() == ["0", "1", "2"]


def test_two_runs_at_once_do_not_both_send(post: Post) -> None:
    def meanwhile(send: Any) -> Any:
        def instead(messages: Sequence[Message]) -> None:
            with pytest.raises(StreamError, match="needs one run at a time"):
                post.run_beside()
            send(messages)

        return instead

    assert post.run(meanwhile).sent == (0, 1, 2)
    assert post.came_back() == ["0", "1", "2"]


def test_a_run_that_lost_its_lease_records_nothing(post: Post) -> None:
    """It was stopped for longer than the lease, and finds that another took over."""

    def late(send: Any) -> Any:
        def instead(messages: Sequence[Message]) -> None:
            send(messages)
            post.now_ms += LEASE_MS
            assert post.run_beside().before == (0, 1, 2), "the other finds what arrived"

        return instead

    with pytest.raises(StreamError, match="needs the record as this run read it, got another run"):
        post.run(late)
    assert post.came_back() == ["0", "1", "2"]


def test_a_record_reads_back() -> None:
    record = Record({1, 2, 3, 9}, {4}, {0: 7, 1: 8}, 5)
    assert parse_record(dump_record(record), "here") == record
    assert parse_record(None, "here") == Record()


@pytest.mark.parametrize("text", ["", "[]", '{"done": 1}', '{"done": [], "ends": {}}'])
def test_a_record_that_cannot_be_read_stops_a_run(post: Post, text: str) -> None:
    with Admin(post.config.bootstrap) as admin:
        facts = admin.describe(dead_letter_topic(post.topic))
    assert facts is not None

    async def damage() -> None:
        async with AsyncRedisRowStore(patient(post.config.store_url)) as store:
            await store.put_text(redriven_keys(facts.name, facts.topic_id)[0], text)

    asyncio.run(damage())
    with pytest.raises(StreamError, match="needs a record of what was put back"):
        post.run()
    assert post.came_back() == []


class TestDesk:
    """What the commands ask."""

    def ask(self, post: Post, work: Callable[[Desk], Any], topic: str = "") -> Any:
        async def run() -> Any:
            async with (
                AsyncRedisRowStore(patient(post.config.store_url)) as store,
                Desk(post.config, store, topic or post.topic, lambda: T0) as desk,
            ):
                return await work(desk)

        return asyncio.run(run())

    def test_letters_are_listed_and_shown(self, post: Post) -> None:
        assert self.ask(post, lambda desk: desk.last(10)) == post.letters
        assert self.ask(post, lambda desk: desk.last(2)) == post.letters[1:]
        assert self.ask(post, lambda desk: desk.some([2, 0, 2])) == [
            post.letters[0],
            post.letters[2],
        ]
        with pytest.raises(StreamError, match="needs a letter from 0 to 2, got 3"):
            self.ask(post, lambda desk: desk.some([3]))
        with pytest.raises(StreamError, match="needs a letter, got an empty topic"):
            self.ask(post, lambda desk: desk.some([0]), topic=f"{post.topic}-other")

    def test_they_are_put_back_with_key_bytes_and_partition(self, post: Post) -> None:
        """A message that came by another partition goes to the one of its key."""
        done = self.ask(post, lambda desk: desk.redrive([1, 2]))
        assert (done.sent, done.refused) == ((1, 2), {})
        records = {r.key: r for r in read_topic(post.config.bootstrap, post.topic, PARTITIONS, 2)}
        for letter, partition in zip(post.letters[1:], (1, 0), strict=True):
            record = records[letter.key]
            assert (record.value, record.partition) == (letter.value, partition)
            assert record_headers(record) == {
                HEADER_REDRIVEN: f"{dead_letter_topic(post.topic)}/{letter.offset}".encode()
            }
        assert self.ask(post, lambda desk: desk.put_back()) == {1, 2}
        assert self.ask(post, lambda desk: desk.redrive(None)).sent == (0,)
        assert self.ask(post, lambda desk: desk.put_back()) == {0, 1, 2}

    def test_a_letter_larger_than_what_producers_send(self, post: Post) -> None:
        """Another producer's: the broker took it."""
        actions = np.repeat(some_actions(1, 1), 100_000)
        actions["user"] = user_of(0)
        value = encode_batch(actions, T0)
        settings = producer_settings(post.config.bootstrap)
        assert len(value) > settings["max_request_size"]
        headers = [(HEADER_SOURCE, f"{post.topic}/1/3".encode())]
        producer: Any = KafkaProducer(**settings | {"max_request_size": MAX_MADE_BYTES})
        dead, key = dead_letter_topic(post.topic), b"%d" % user_of(0)
        producer.send(dead, value=value, key=key, headers=headers).get(60)
        producer.close()
        assert self.ask(post, lambda desk: desk.redrive([3])).sent == (3,)

    def test_letters_that_the_topic_dropped_are_in_nobodys_way(
        self, post: Post, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Retention took the first two."""
        read = KafkaLogReader.read

        async def shorter(
            self: KafkaLogReader, topic: str, partition: int, first: int, before: int
        ) -> Any:
            if first < 2:
                raise NotHeldError(topic, required="r", got="g")
            return await read(self, topic, partition, first, before)

        monkeypatch.setattr(KafkaLogReader, "read", shorter)
        assert self.ask(post, lambda desk: desk.last(10)) == post.letters[2:]
        with pytest.raises(StreamError, match="needs a letter from 2 to 2, got 1"):
            self.ask(post, lambda desk: desk.some([1]))
        assert self.ask(post, lambda desk: desk.redrive(None)).sent == (2,)

    def test_the_re_keyed_topic_takes_none_back(self, post: Post) -> None:
        with pytest.raises(StreamError, match="needs a topic that applications write to"):
            self.ask(post, lambda desk: desk.redrive(None), topic=post.config.item_topic)


def test_what_would_be_refused_again_is_left(post: Post) -> None:
    with Admin(post.config.bootstrap) as admin:
        target = admin.describe(post.topic)
    assert target is not None
    good = post.letters[0]
    assert refusal(good, target, actions=True) is None
    body = json.dumps({"nonsense": 1}).encode()
    bad = Letter(4, good.source, "action", "", b"7", body, {HEADER_CONTENT: CONTENT_JSON})
    assert "the JSON form" in str(refusal(bad, target, actions=True))
    assert refusal(bad, target, actions=False) is None
    keyless = Letter(5, good.source, "action", "", None, good.value, {})
    assert "key" in str(refusal(keyless, target, actions=True))
    for key in (b"--5", b"-", b"7 8", b"9" * 5_000):
        unnumbered = Letter(7, good.source, "action", "", key, good.value, {})
        assert "key" in str(refusal(unnumbered, target, actions=True))
    elsewhere = Letter(6, "00000000000000000001.spool", "record", "", b"7", b"", {})
    assert "which is no message of" in str(refusal(elsewhere, target, actions=False))


def test_a_broker_that_does_not_confirm(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have arrived all the same: the next run finds out."""
    with monkeypatch.context() as patched:
        patched.setattr("streams.dead_letters.SEND_TIMEOUT_S", -1.0)
        with pytest.raises(StreamError, match=r"needs confirmed messages.*run it again in 60"):
            post.run()
    post.now_ms += LEASE_MS
    post.run()
    assert post.run().before == (0, 1, 2)
    assert post.came_back() == ["0", "1", "2"]
