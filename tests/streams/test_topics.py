"""Admin and producer on the real broker."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest

from schemas.actions import MAX_ACTIONS, decode_batch
from schemas.errors import StreamError
from schemas.ids import partition_of
from schemas.rekeyed import SOURCE_RANGE, encode_rekeyed
from streams.admin import Admin, TopicFacts, _options, ensure_topics
from streams.producer import MAX_MADE_BYTES, MESSAGE_ACTIONS, ActionProducer
from streams.rekey import ROUND_BYTES, rekey
from tests.streams.support import T0, plain, read_topic, some_actions
from tests.streams.test_folding import run_of


@pytest.fixture
def topic() -> str:
    return f"t{uuid.uuid4().hex[:10]}"


def test_topics_are_created_once_and_keep_their_id(broker: str, topic: str) -> None:
    with Admin(broker) as admin:
        assert admin.describe(topic) is None
        made = admin.ensure_topics({topic: 3})[topic]
        assert made == TopicFacts(topic, made.topic_id, 3)
        assert uuid.UUID(made.topic_id).int
        assert admin.describe(topic) == made
    assert ensure_topics(broker, {topic: 3})[topic] == made


def test_what_is_made_of_messages_may_be_larger_than_they_are() -> None:
    """The embedded broker has no such limit; Kafka's own are 1 MB, and 8 MB in `docs/deploy.md`."""
    most = {"configs": {"max.message.bytes": str(MAX_MADE_BYTES)}}
    for made in ("actions.dead", "actions.late", "actions.by-item", "actions.2.by-item"):
        assert _options(made, 3) == _options("actions", 3) | most
    assert "configs" not in _options("actions.2", 3)
    run = run_of([(np.repeat(some_actions(1, 1), MAX_ACTIONS), T0)])
    covers = np.zeros(1, SOURCE_RANGE)
    (batch,) = rekey(run, covers, 1, 1)
    assert len(encode_rekeyed(batch)) < MAX_MADE_BYTES - 3 * ROUND_BYTES


def test_another_partition_count_is_refused(broker: str, topic: str) -> None:
    ensure_topics(broker, {topic: 3})
    with pytest.raises(StreamError, match=f"topic {topic}: needs 4 partitions, got 3"):
        ensure_topics(broker, {topic: 4})


def test_a_broker_that_is_not_there(topic: str) -> None:
    with pytest.raises(StreamError, match=r"broker 127\.0\.0\.1:1: needs an answer"):
        Admin("127.0.0.1:1", timeout_ms=300)


def test_each_message_is_of_one_partition_and_in_order(broker: str, topic: str) -> None:
    ensure_topics(broker, {topic: 3})
    actions = some_actions(500, 60)
    with ActionProducer(broker, topic, 3) as producer:
        ends = producer.send(actions[:400], T0)
        assert ends == {0: 1, 1: 1, 2: 1}
        producer.put(actions[400:], T0 + 1)
        assert producer.flush() == {0: 2, 1: 2, 2: 2}
        assert producer.send(actions[:0], T0) == {}
    seen: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    for message in read_topic(broker, topic, 3, 6):
        batch = decode_batch(message.value)
        assert batch.sent_ms == T0 + message.offset
        assert message.key == b"%d" % batch.actions["user"][0]
        owners = {partition_of(user, 3) for user in batch.actions["user"].tolist()}
        assert owners == {message.partition}
        seen[message.partition].append(batch.actions)
    owner = np.array([partition_of(user, 3) for user in actions["user"].tolist()])
    for partition, parts in seen.items():
        assert plain(np.concatenate(parts)) == plain(actions[owner == partition])


def test_large_batches_become_several_messages(broker: str, topic: str) -> None:
    ensure_topics(broker, {topic: 1})
    actions = some_actions(2 * MESSAGE_ACTIONS + 1, 5)
    with ActionProducer(broker, topic, 1) as producer:
        assert producer.send(actions, T0) == {0: 3}


def test_a_producer_without_a_broker(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.producer.CONNECT_TIMEOUT_MS", 300)
    with pytest.raises(StreamError, match=r"broker 127\.0\.0\.1:1: needs an answer"):
        ActionProducer("127.0.0.1:1", topic, 1)
