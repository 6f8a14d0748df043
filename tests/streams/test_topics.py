"""Admin and producer on the real broker."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest

from schemas.actions import decode_batch
from schemas.errors import StreamError
from schemas.ids import partition_of
from streams.admin import Admin, TopicFacts, ensure_topics
from streams.producer import MESSAGE_ACTIONS, ActionProducer
from tests.streams.support import T0, plain, read_topic, some_actions


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
