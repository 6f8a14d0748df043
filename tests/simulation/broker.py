"""A log in memory: topics with ids, partitions and offsets; they can be lost, and expire.

Nothing that was ever appended is forgotten here: what a reader can still get is a window of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiokafka.structs import ConsumerRecord

from schemas.errors import NotHeldError, StreamError
from streams.admin import TopicFacts
from streams.positions import end_among
from tests.simulation.loop import VirtualLoop

Headers = dict[str, bytes]


@dataclass(eq=False)
class TopicLog:
    """One life of a topic. first: per partition the lowest offset it still holds."""

    name: str
    topic_id: str
    records: list[list[ConsumerRecord]]
    first: list[int] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)  # partition → its first end record

    def __post_init__(self) -> None:
        self.first = [0] * len(self.records)

    def end(self, partition: int) -> int:
        return len(self.records[partition])

    def stop(self, partition: int) -> int:
        """Up to where it is read."""
        return self.ends.get(partition, self.end(partition))

    def fetch(self, partition: int, position: int, count: int) -> list[ConsumerRecord]:
        """As a consumer that resets to the earliest record where its position is out of range."""
        low, high = self.first[partition], self.end(partition)
        start = position if low <= position <= high else low
        return self.records[partition][start : start + count]


class Broker:
    """Every topic. heard: is told of each record. ids: topic → the id it has now. facts: id → its
    topic and how many partitions it has."""

    def __init__(
        self,
        heard: Callable[[TopicLog, ConsumerRecord], None],
        ids: dict[str, str],
        facts: dict[str, tuple[str, int]],
    ) -> None:
        self._heard, self._ids, self._facts = heard, ids, facts
        self._made = 0
        self.logs: dict[str, TopicLog] = {}
        self.by_id: dict[str, TopicLog] = {}

    def create(self, name: str, partitions: int) -> TopicLog:
        """A new log under that name."""
        self._made += 1
        log = TopicLog(name, f"id-{self._made}", [[] for _ in range(partitions)])
        self.logs[name] = self.by_id[log.topic_id] = log
        self._ids[name] = log.topic_id
        self._facts[log.topic_id] = name, partitions
        return log

    def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers
    ) -> ConsumerRecord:
        """Raises StreamError where there is no such topic."""
        log = self.logs.get(topic)
        if log is None:
            raise StreamError(f"topic {topic}", required="to be there", got="no such topic")
        offset = log.end(partition)
        record = ConsumerRecord(
            topic, partition, offset, 0, 0, key, value, 0, 0, 0, tuple(headers.items())
        )
        log.records[partition].append(record)
        if end_among((record,)) is not None:
            log.ends.setdefault(partition, offset)
        self._heard(log, record)
        return record


class BrokerAdmin:
    """`streams.servers.TopicAdmin`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def describe(self, topic: str) -> TopicFacts | None:
        """The id and partition count."""
        log = self._broker.logs.get(topic)
        return None if log is None else TopicFacts(topic, log.topic_id, len(log.records))

    def ensure_topics(self, topics: Mapping[str, int]) -> dict[str, TopicFacts]:
        """Create what is missing."""
        found = {}
        for name, partitions in topics.items():
            log = self._broker.logs.get(name) or self._broker.create(name, partitions)
            if len(log.records) != partitions:
                raise StreamError(f"topic {name}", required=str(partitions), got="another count")
            found[name] = TopicFacts(name, log.topic_id, partitions)
        return found

    def close(self) -> None:
        """There is no connection."""


@dataclass(frozen=True)
class VirtualReader:
    """`streams.log_reader.LogReader`: a few records at a time."""

    loop: VirtualLoop
    broker: Broker

    async def read(
        self, topic: str, partition: int, first: int, before: int
    ) -> tuple[ConsumerRecord, ...]:
        """As `LogReader.read`."""

        def missing(how: str, kind: type[StreamError] = StreamError) -> StreamError:
            return kind(f"{topic}/{partition}", required=f"offset {first}", got=how)

        def read() -> tuple[ConsumerRecord, ...]:
            log = self.broker.logs.get(topic)
            if log is None or first == log.end(partition):
                raise missing("no answer")
            if not log.first[partition] <= first < log.end(partition):
                raise missing("no such record", NotHeldError)
            return tuple(log.records[partition][first : min(before, first + 3)])

        found: tuple[ConsumerRecord, ...] = await self.loop.ask(
            f"read {topic}/{partition}/{first}", read, missing
        )
        return found

    async def close(self) -> None:
        """There is no connection."""


@dataclass(frozen=True)
class VirtualSender:
    """`streams.app.Sender`: each record is one operation."""

    loop: VirtualLoop
    broker: Broker

    async def __call__(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        partition: int | None = None,
    ) -> None:
        """The side topics have one partition."""

        def fault(how: str) -> StreamError:
            return StreamError(f"topic {topic}", required="a confirmed record", got=how)

        await self.loop.ask(
            f"send {topic}/{partition or 0}",
            lambda: self.broker.append(topic, partition or 0, key, value, headers),
            fault,
        )
