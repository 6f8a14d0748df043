"""Topics: create them, and ask the broker for their ids and partition counts.

A topic id is given by the broker and is new when a log was lost or created again under its name.
It is the only sign of that: a consumer would silently read the new log at an old offset.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Self

from schemas.errors import StreamError
from schemas.names import is_made
from streams.clients import KafkaAdminClient, KafkaError, require_broker
from streams.producer import CONNECT_TIMEOUT_MS, MAX_MADE_BYTES
from streams.topic_line import NO_ERROR, TopicLine
from streams.topic_line import TopicFacts as TopicFacts

REQUEST_TIMEOUT_MS: Final = 30_000
#: Of replicas of a topic that is made: `default.replication.factor` (Kafka, KIP-464).
BROKERS_DEFAULT: Final = -1


class Admin:
    """Connections for asking and making. Not to be shared among threads."""

    def __init__(self, bootstrap: str, timeout_ms: int = REQUEST_TIMEOUT_MS) -> None:
        """timeout_ms: for each answer; for a broker that is not there CONNECT_TIMEOUT_MS at most.

        Raises StreamError where it does not answer.
        """
        self.bootstrap = bootstrap
        self._line = TopicLine(bootstrap, timeout_ms)
        require_broker(bootstrap, min(timeout_ms, CONNECT_TIMEOUT_MS))
        try:
            self._client: Any = KafkaAdminClient(
                bootstrap_servers=bootstrap,
                request_timeout_ms=timeout_ms,
                bootstrap_timeout_ms=timeout_ms,
            )
        except (KafkaError, OSError) as error:
            raise _unreachable(bootstrap, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._line.close()
        self._client.close()

    def describe(self, topic: str) -> TopicFacts | None:
        """The topic's facts, None where there is no such topic. Raises StreamError."""
        try:
            return self._line.ask(topic)
        except TimeoutError as error:
            raise _unreachable(self.bootstrap, error) from error
        except (OSError, ValueError):
            return self._described(topic)

    def _described(self, topic: str) -> TopicFacts | None:
        """By kafka-python's client, which agrees with the broker on a version and finds others."""
        try:
            answers: list[dict[str, Any]] = self._client.describe_topics([topic])
        except (KafkaError, OSError) as error:
            raise _unreachable(self.bootstrap, error) from error
        for answer in answers:
            if answer["name"] == topic and answer["error_code"] == NO_ERROR:
                return TopicFacts(topic, str(answer["topic_id"]), len(answer["partitions"]))
        return None

    def ensure_topics(self, topics: Mapping[str, int]) -> dict[str, TopicFacts]:
        """Create the topics that are missing and give the facts of all.

        topics: name → partition count. Raises StreamError where a topic has another count: the
        count of a topic never changes, since each row's fence is an offset of one partition.
        """
        found: dict[str, TopicFacts] = {}
        for name, partitions in topics.items():
            facts = self.describe(name) or self._create(name, partitions)
            if facts.partitions != partitions:
                raise StreamError(
                    f"topic {name}",
                    required=f"{partitions} partitions",
                    got=str(facts.partitions),
                    do="a topic's count never changes: set partitions back, or see"
                    " `encore topics grow`",
                )
            found[name] = facts
        return found

    def delete_topic(self, name: str) -> None:
        """Its log is gone; one made again under its name has another id. Raises StreamError."""
        try:
            self._client.delete_topics([name])
        except (KafkaError, OSError) as error:
            raise _unreachable(self.bootstrap, error) from error

    def _create(self, name: str, partitions: int) -> TopicFacts:
        try:
            # Another process may create it at the same moment: what counts is that it is there.
            self._client.create_topics({name: _options(name, partitions)}, raise_errors=False)
        except (KafkaError, OSError) as error:
            raise _unreachable(self.bootstrap, error) from error
        deadline = time.monotonic() + REQUEST_TIMEOUT_MS / 1000
        while time.monotonic() < deadline:
            facts = self.describe(name)
            if facts is not None and facts.partitions:
                return facts
            time.sleep(0.02)
        raise StreamError(
            f"topic {name}",
            required=f"to be there within {REQUEST_TIMEOUT_MS} ms of its creation",
            got="no such topic",
            do="look at the broker's log",
        )


def ensure_topics(bootstrap: str, topics: Mapping[str, int]) -> dict[str, TopicFacts]:
    """`Admin.ensure_topics` over a connection of its own."""
    with Admin(bootstrap) as admin:
        return admin.ensure_topics(topics)


def _options(name: str, partitions: int) -> dict[str, Any]:
    """Of a topic that is made, as kafka-python takes them.

    What is made of a message (its dead letter, its actions re-keyed) is larger than it is. Were it
    refused for that, the process that made it would end at that message for ever.
    """
    made = {"configs": {"max.message.bytes": str(MAX_MADE_BYTES)}} if is_made(name) else {}
    return {"num_partitions": partitions, "replication_factor": BROKERS_DEFAULT, **made}


def _unreachable(bootstrap: str, error: Exception) -> StreamError:
    return StreamError(
        f"broker {bootstrap}",
        required="an answer",
        got=f"{type(error).__name__}: {error}",
        do="check that the broker runs and the bootstrap setting names it",
    )
