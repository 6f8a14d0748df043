"""Dead letters: messages that were refused, as they lie in the dead-letter topic, and their return.

`redrive` puts letters back into the topic they came from, bytes unchanged, with the header
`encore-redriven` that names the letter. What it promises: **each letter is put back at most once,
by any sequence of runs, whatever dies between, and once by a run that ends well.** The record of it
lies in the store, under the dead-letter topic's id:

1. The letters of a run are recorded as under way, with where each partition of the target ended.
2. They are sent, acks=all, and confirmed.
3. They are recorded as done.

A run that finds letters under way (an earlier one died between 1 and 3) reads the target from the
recorded ends on: letters found there are done, the others go again. The record changes only by
compare-and-set on its version, and a run that is younger than LEASE_MS keeps others out, so two at
once do not both send. The conditions: the store keeps the record; the target topic still holds what
came since the run that died; and no run is stopped for longer than LEASE_MS between 1 and 2 and
then goes on.

To be put back is not to be accepted: a message that is refused again is a new letter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka.structs import ConsumerRecord

from schemas.errors import StreamError
from schemas.ids import partition_of
from schemas.names import (
    HEADER_CODE,
    HEADER_LEFT_OUT,
    HEADER_REASON,
    HEADER_REDRIVEN,
    HEADER_SOURCE,
    HEADER_VIEW,
    dead_letter_topic,
    redriven_keys,
    root_topic,
)
from store.base import AsyncRowStore
from streams.admin import TopicFacts
from streams.clients import KafkaError
from streams.ends import read_ends
from streams.log_reader import LogReader
from streams.messages import decode_records, record_headers

LEASE_MS: Final = 60_000
SEND_TIMEOUT_S: Final = 20.0
LETTER: Final = "letter"  # stands for a topic where a letter is tried
PARTITION: Final = 0  # a dead-letter topic has one
OWN_HEADERS: Final = (
    *(HEADER_CODE, HEADER_REASON, HEADER_SOURCE, HEADER_LEFT_OUT),
    *(HEADER_VIEW, HEADER_REDRIVEN),
)


@dataclass(frozen=True, slots=True)
class Letter:
    """One refused message. offset: in the dead-letter topic. source: topic/partition/offset.
    left_out_bytes: of a message that is not in the letter, since it was too large; else 0."""

    offset: int
    source: str
    code: str
    reason: str
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]
    left_out_bytes: int = 0


@dataclass(slots=True)
class Record:
    """What was put back. done: offsets. under_way: offset → nothing known yet; ends: where each
    partition of the target ended before they were sent. at_ms: of the last change."""

    done: set[int] = field(default_factory=set)
    under_way: set[int] = field(default_factory=set)
    ends: dict[int, int] = field(default_factory=dict)
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Redriven:
    """What a run did. sent: put back now. before: put back by earlier runs. refused: offset → why
    the message would be refused again; it was left where it is."""

    sent: tuple[int, ...]
    before: tuple[int, ...]
    refused: Mapping[int, str]


def letter_of(record: ConsumerRecord) -> Letter:
    """A record of a dead-letter topic."""
    headers = record_headers(record)

    def text(name: str) -> str:
        return headers.get(name, b"").decode(errors="replace")

    return Letter(
        int(record.offset),
        text(HEADER_SOURCE),
        text(HEADER_CODE),
        text(HEADER_REASON),
        record.key,
        record.value,
        {name: value for name, value in headers.items() if name not in OWN_HEADERS},
        int(text(HEADER_LEFT_OUT) or 0),
    )


async def read_letters(reader: LogReader, topic: str, first: int, before: int) -> list[Letter]:
    """The letters of a topic's dead-letter topic with offsets in [first, before).

    Raises StreamError where the log does not hold `first` any more.
    """
    letters: list[Letter] = []
    while first < before:
        records = await reader.read(dead_letter_topic(topic), PARTITION, first, before)
        letters += map(letter_of, records)
        first = int(records[-1].offset) + 1
    return letters


def refusal(letter: Letter, target: TopicFacts, actions: bool) -> str | None:
    """Why the message is not put back: it is of no record of the target, or of no use there.

    actions: the target's messages are action messages, so it is known what a worker refuses.
    """
    if root_topic(letter.source.partition("/")[0]) != root_topic(target.name):
        return f"it came from {letter.source or 'nowhere'}, which is no message of {target.name}"
    if letter.left_out_bytes:
        return f"{letter.left_out_bytes} bytes were too many for a letter; {letter.source} has them"
    if not actions:
        return None
    partitions = target.partitions
    try:
        partition = partition_of(int(letter.key or b""), partitions)
    except ValueError:
        partition = 0  # a key that is no number is refused in any
    headers = tuple(letter.headers.items())
    record: ConsumerRecord[Any, Any] = ConsumerRecord(
        LETTER, partition, letter.offset, 0, 0, letter.key, letter.value, 0, 0, 0, headers
    )
    _, dead = decode_records((record,), partitions)
    place = f"{LETTER}/{partition}/{letter.offset}"  # where it would lie, which it never did
    return str(dead[0].error).removeprefix(place).lstrip(".: ") if dead else None


def parse_record(text: str | None, where: str) -> Record:
    """The inverse of `dump_record`; empty where there is none. Raises StreamError."""
    if text is None:
        return Record()
    try:
        held = json.loads(text)
        done = {n for first, last in held["done"] for n in range(int(first), int(last) + 1)}
        ends = {int(p): int(at) for p, at in held["ends"].items()}
        return Record(done, set(map(int, held["under_way"])), ends, int(held["at_ms"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StreamError(
            where,
            required="a record of what was put back",
            got=repr(text[:80]),
            do="nobody knows what was put back: look into the topic before any is sent again",
        ) from None


def dump_record(record: Record) -> str:
    """As JSON, offsets done as ranges.

    >>> dump_record(Record(done={1, 2, 3, 7}))
    '{"done": [[1, 3], [7, 7]], "under_way": [], "ends": {}, "at_ms": 0}'
    """
    ranges: list[list[int]] = []
    for offset in sorted(record.done):
        if ranges and ranges[-1][1] == offset - 1:
            ranges[-1][1] = offset
        else:
            ranges.append([offset, offset])
    ends = {str(partition): at for partition, at in sorted(record.ends.items())}
    return json.dumps(
        {
            "done": ranges,
            "under_way": sorted(record.under_way),
            "ends": ends,
            "at_ms": record.at_ms,
        }
    )


#: (key, value, headers); the partition is left to Kafka's default partitioner.
Message = tuple[bytes | None, bytes | None, dict[str, bytes]]
#: Sends all and returns once they are confirmed. Blocking. Raises StreamError.
SendAll = Callable[[Sequence[Message]], None]


@dataclass(slots=True)
class Redriver:
    """Puts letters of one topic back. For one run.

    letters: the dead-letter topic's facts. target: the facts of the topic they came from. clock: ms
    since 1970.
    """

    bootstrap: str
    store: AsyncRowStore
    reader: LogReader
    letters: TopicFacts
    target: TopicFacts
    send: SendAll
    clock: Callable[[], int]
    _record: Record = field(default_factory=Record)
    _version: int = 0

    async def run(
        self, letters: Sequence[Letter], refuses: Callable[[Letter], str | None]
    ) -> Redriven:
        """Put these back, each once. refuses: says why a letter is left.

        Raises StreamError where another run is under way, or the broker does not confirm: run it
        again then, which finds out what arrived.
        """
        await self._load()
        await self._settle()
        before = tuple(sorted(each.offset for each in letters if each.offset in self._record.done))
        left = [each for each in letters if each.offset not in self._record.done]
        refused = {each.offset: why for each in left if (why := refuses(each)) is not None}
        chosen = [each for each in left if each.offset not in refused]
        if chosen:
            await self._send(chosen)
        return Redriven(tuple(each.offset for each in chosen), before, refused)

    async def _send(self, chosen: Sequence[Letter]) -> None:
        places = {(self.target.name, p): 0 for p in range(self.target.partitions)}
        ends = await read_ends(self.bootstrap, places)
        record = self._record
        record.under_way = {each.offset for each in chosen}
        record.ends = {partition: end for (_, partition), end in ends.items()}
        await self._save()
        self.send([(each.key, each.value, self._headers(each)) for each in chosen])
        await self._done(record.under_way)

    async def _settle(self) -> None:
        """What an earlier run left under way: done where it arrived, open again where not."""
        record = self._record
        if not record.under_way:
            return
        age_ms = self.clock() - record.at_ms
        if age_ms < LEASE_MS:
            raise StreamError(
                f"redrive of {self.letters.name}",
                required="one run at a time",
                got=f"another that began {age_ms / 1000:.0f} s ago, or died then",
                do=f"run it again in {(LEASE_MS - age_ms) / 1000:.0f} s: it finds out what arrived",
            )
        await self._save()  # takes the lease: a second run that waited fails here
        arrived = await self._arrived()
        await self._done(record.under_way & arrived)

    async def _arrived(self) -> set[int]:
        """Offsets of letters that lie in the target behind the recorded ends."""
        starts = {(self.target.name, p): at for p, at in self._record.ends.items()}
        found: set[int] = set()
        for (topic, partition), end in (await read_ends(self.bootstrap, starts)).items():
            first = starts[topic, partition]
            while first < end:
                records = await self.reader.read(topic, partition, first, end)
                names = (record_headers(each).get(HEADER_REDRIVEN, b"") for each in records)
                prefix = f"{self.letters.name}/".encode()
                found |= {int(name[len(prefix) :]) for name in names if name.startswith(prefix)}
                first = int(records[-1].offset) + 1
        return found

    async def _done(self, offsets: set[int]) -> None:
        self._record = Record(self._record.done | offsets)
        await self._save()

    def _headers(self, letter: Letter) -> dict[str, bytes]:
        return {**letter.headers, HEADER_REDRIVEN: f"{self.letters.name}/{letter.offset}".encode()}

    async def _load(self) -> None:
        key, version_key = redriven_keys(self.letters.name, self.letters.topic_id)
        self._version = int(await self.store.get_text(version_key) or 0)
        self._record = parse_record(await self.store.get_text(key), key)

    async def _save(self) -> None:
        key, version_key = redriven_keys(self.letters.name, self.letters.topic_id)
        self._record.at_ms = self.clock()
        text = dump_record(self._record)
        if not await self.store.compare_and_set_text(key, version_key, self._version, text):
            raise StreamError(
                f"redrive of {self.letters.name}",
                required="the record as this run read it",
                got="another run, which changed it",
                do="wait for it to end, then run this again",
            )
        self._version += 1


def send_all(producer: Any, topic: str) -> SendAll:
    """`SendAll` over a kafka-python producer."""

    def send(messages: Sequence[Message]) -> None:
        try:
            waiting = [
                producer.send(topic, value=value, key=key, headers=list(headers.items()))
                for key, value, headers in messages
            ]
            producer.flush(SEND_TIMEOUT_S)
            for future in waiting:
                future.get(SEND_TIMEOUT_S)
        except KafkaError as error:
            raise StreamError(
                f"topic {topic}",
                required="confirmed messages",
                got=f"{type(error).__name__}: {error}",
                do=f"run it again in {LEASE_MS // 1000} s: it finds out what arrived",
            ) from error

    return send
