"""What somebody wrote into a topic behind its end, carried into the newest topic.

Nobody reads it where it lies (`streams.moving`). It is put into the newest topic as dead letters
are put back into theirs (`streams.dead_letters`): each part at most once by any sequence of runs,
and once by a run that ends well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from schemas.actions import encode_batch
from schemas.ids import partitions_of
from schemas.succession import Life
from store.base import AsyncRowStore
from streams.admin import Admin, TopicFacts
from streams.clients import KafkaProducer, close_producer
from streams.config import StreamConfig
from streams.dead_letters import Letter, Redriver, send_all
from streams.ends import read_ends
from streams.log_reader import KafkaLogReader, LogReader
from streams.messages import decode_records
from streams.moving import read_succession
from streams.positions import end_among
from streams.producer import producer_settings


@dataclass(frozen=True, slots=True)
class Carried:
    """What a run did with the messages behind the ends. sent, before: parts that are in the newest
    topic now, by this run and by earlier ones. refused: place → why a worker would refuse it."""

    sent: int
    before: int
    refused: dict[str, str]


async def behind_ends(config: StreamConfig, life: Life) -> dict[int, int]:
    """Partition → records behind the end record of a topic that has ended, where there are any;
    further end records are among them. Of a log that is gone none. Raises StreamError."""
    assert life.end is not None
    with await asyncio.to_thread(Admin, config.bootstrap) as admin:
        facts = await asyncio.to_thread(admin.describe, life.name)
    if facts is None or facts.topic_id != life.end.topic_id:
        return {}
    places = {(life.name, p): at for p, at in life.end.offsets.items()}
    ends = await read_ends(config.bootstrap, places)
    behind = {p: ends[life.name, p] - at - 1 for p, at in life.end.offsets.items()}
    return {p: count for p, count in behind.items() if count > 0}


async def carry(store: AsyncRowStore, config: StreamConfig, clock: Callable[[], int]) -> Carried:
    """Put what lies behind the ends of earlier topics into the newest one.

    config: of the first topic. clock: ms since 1970. Raises StoreError, StreamError.
    """
    found = await read_succession(store, config)
    newest = found.newest
    with await asyncio.to_thread(Admin, config.bootstrap) as admin:
        wanted = {newest.name: newest.partitions}
        target = (await asyncio.to_thread(admin.ensure_topics, wanted))[newest.name]
    reader = KafkaLogReader(config.bootstrap, config.patience_ms)
    producer: Any = await asyncio.to_thread(
        partial(KafkaProducer, **producer_settings(config.bootstrap))
    )
    sent, before, refused = 0, 0, dict[str, str]()
    try:
        for life in (each for each in found.topics if each.ended):
            assert life.end is not None
            for partition, count in (await behind_ends(config, life)).items():
                first = life.end.offsets[partition] + 1
                letters, bad = await _letters(reader, (life, partition), first, count, target)
                source = TopicFacts(f"{life.name}/{partition}", life.end.topic_id, 1)
                send = send_all(producer, newest.name)
                redriver = Redriver(config.bootstrap, store, reader, source, target, send, clock)
                done = await redriver.run(letters, lambda _: None)
                sent, before = sent + len(done.sent), before + len(done.before)
                refused |= bad
    finally:
        await reader.close()
        await asyncio.to_thread(close_producer, producer)
    return Carried(sent, before, refused)


async def _letters(
    reader: LogReader, place: tuple[Life, int], first: int, count: int, target: TopicFacts
) -> tuple[list[Letter], dict[str, str]]:
    """The records [first, first + count) cut by the partitions of the target: a message holds users
    of one. A part's number is record offset * partitions + partition."""
    life, partition = place
    letters: list[Letter] = []
    refused: dict[str, str] = {}
    at, before = first, first + count
    while at < before:
        records = await reader.read(life.name, partition, at, before)
        at = int(records[-1].offset) + 1
        for record in records:
            if end_among((record,)) is not None:
                continue
            run, dead = decode_records((record,), life.partitions)
            where = f"{life.name}/{partition}/{record.offset}"
            if dead:
                refused[where] = str(dead[0].error)
                continue
            owner = partitions_of(run.actions["user"].copy(), target.partitions)  # (a,)
            for part in sorted(set(owner.tolist())):
                own = run.actions[owner == part]
                number = int(record.offset) * target.partitions + part
                value = encode_batch(own, int(run.sent_ms[0]))
                key = b"%d" % int(own["user"][0])
                letters.append(Letter(number, where, "", "", key, value, {}))
    return letters, refused
