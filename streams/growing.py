"""The operator's side of a move to a new topic: make it, and end the old one.

    grow   the new topic is there and recorded; producers that start now write to it
    end    an end record in each partition of the old topic; readers go on to the new one

Each may be run again after any crash. An end record counts from where it lies in the log, whoever
hears of it when: readers that know of no move stop there, too. `end` looks for the first one from
where the partition ended before any was sent, so one that was sent and not heard of does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from schemas.errors import StreamError
from schemas.names import (
    by_item_topic,
    root_topic,
    successor_topic,
    topics_keys,
)
from schemas.succession import End, Life, Succession, dump_succession
from store.base import AsyncRowStore
from streams.config import StreamConfig
from streams.log_reader import LogReader
from streams.moving import Done, Ended, config_of, items_done, read_succession, users_done
from streams.plans import staged_plan
from streams.positions import end_among
from streams.servers import REAL_SERVERS, Servers, TopicAdmin
from streams.source import Source

ROUNDS: Final = 3
#: Which rows are read, and whether all of a topic is in them.
SIDES: Final[tuple[tuple[str, Done], ...]] = (("user", users_done), ("item", items_done))


async def grow(
    store: AsyncRowStore, config: StreamConfig, partitions: int, servers: Servers = REAL_SERVERS
) -> Succession:
    """Make the next topic, with that many partitions, and record it. config: of the first topic.

    Made again where the record is gone and the topic is there. Raises StoreError, StreamError.
    """
    await store.begin_history()
    version = await _version(store, config)
    before = await read_succession(store, config)
    last, number = before.newest, len(before.topics) + 1
    if last.partitions == partitions:
        raise StreamError(
            "partitions",
            required=f"another number than {last.partitions}, which {last.name} has",
            got=str(partitions),
        )
    if number > 2 and (left := await unfinished(store, config, before, servers)):
        raise StreamError(
            f"topic {last.name}",
            required="the last move to be over before another begins",
            got=f"not all of {left} is stored, or its end was not declared",
            do="see `encore topics show`",
        )
    after = before.grown(successor_topic(root_topic(config.topic), number), partitions)
    name = after.newest.name
    wanted = {name: partitions, by_item_topic(name): partitions}
    async with _asking(config, servers) as admin:
        await asyncio.to_thread(admin.ensure_topics, wanted)
    await _save(store, config, after, version)
    if config.fsynced:
        await store.confirm()  # before any producer is told
    return after


async def unfinished(
    store: AsyncRowStore,
    config: StreamConfig,
    succession: Succession,
    servers: Servers = REAL_SERVERS,
) -> str | None:
    """The oldest topic that readers still need, of those that have a successor; None for none.

    Raises StoreError, StreamError.
    """
    async with _asking(config, servers) as admin:
        for number, life in enumerate(succession.topics[:-1], 1):
            if life.end is None or not life.ended:
                return life.name
            here = config_of(config, succession, number)
            facts = await asyncio.to_thread(admin.describe, here.topic)
            lost = facts is None or facts.topic_id != life.end.topic_id
            for _, done in SIDES:
                if not await done(store, Ended(here, life.end, lost)):
                    return life.name
    return None


async def end(
    store: AsyncRowStore,
    config: StreamConfig,
    again: bool = False,
    servers: Servers = REAL_SERVERS,
) -> Succession:
    """Declare the end of the topic before the newest. config: of the first topic.

    again: the store was wiped; look through the whole topic for the end it was given before.
    Raises StoreError, StreamError; run it again then, nothing was ended twice.
    """
    await store.begin_history()
    for _ in range(ROUNDS):
        found = await _begin(store, config, again, servers)
        life = found.topics[-2]
        if life.ended:
            return found
        if config.fsynced:
            await store.confirm()  # were it forgotten, a second run would look from too far on
        async with _asking(config, servers) as admin:
            facts = await asyncio.to_thread(admin.describe, life.name)
            assert life.end is not None
            if facts is None or facts.topic_id != life.end.topic_id:
                continue  # the broker lost that log; whoever opens the next one is told to wait
            offsets = await _mark_ends(config, life, found.newest.name, servers)
            version = await _version(store, config)
            final = found.with_end(life.name, End(facts.topic_id, offsets, True))
            await _save(store, config, final, version)
            if config.fsynced:
                await store.confirm()
            return final
    raise StreamError(
        f"topic {life.name}",
        required="a log that stays while its end is declared",
        got=f"another each time, {ROUNDS} times",
        do="see that the broker runs and keeps its log, then run this again",
    )


async def _begin(
    store: AsyncRowStore, config: StreamConfig, again: bool, servers: Servers
) -> Succession:
    """Announce the end, so that nothing is filled from then on; then record from where on an end
    record may lie."""
    version = await _version(store, config)
    found = await read_succession(store, config)
    if len(found.topics) < 2:
        raise StreamError(
            f"topic {found.newest.name}",
            required="a topic to move to",
            got="none",
            do="make one with `encore topics grow`",
        )
    life = found.topics[-2]
    async with _asking(config, servers) as admin:
        wanted = {life.name: life.partitions}
        facts = (await asyncio.to_thread(admin.ensure_topics, wanted))[life.name]
        if life.end is None or (not life.ended and life.end.topic_id != facts.topic_id):
            await Source.open(admin, facts, store, config.patience_ms)
            found = found.with_end(life.name, End(facts.topic_id, {}, False))
            await _save(store, config, found, version)
            version += 1
    end_now = found.topics[-2].end
    assert end_now is not None
    if end_now.offsets:
        return found
    # Announced by now, so a backfill that is staged later does not begin; and nothing is sent yet.
    if (await staged_plan(store)).active:
        await _save(store, config, found.with_end(life.name, None), version)
        raise StreamError(
            f"end of {life.name}",
            required="no backfill under way",
            got="a staged generation, which is filled up to an offset of this topic",
            do="wait for `encore backfill`, or give it up with `encore backfill --cancel`",
        )
    places = {(life.name, p): 0 for p in range(life.partitions)}
    look = servers.read_starts if again else servers.read_ends
    begins = await look(config.bootstrap, places)
    begun = End(end_now.topic_id, {p: at for (_, p), at in begins.items()}, False)
    found = found.with_end(life.name, begun)
    await _save(store, config, found, version)
    return found


async def _mark_ends(
    config: StreamConfig, life: Life, successor: str, servers: Servers
) -> dict[int, int]:
    """An end record in each partition; where the first one lies."""
    assert life.end is not None
    reader = servers.open_reader(config)
    found: dict[int, int] = {}
    try:
        for partition, begin in sorted(life.end.offsets.items()):
            sent = await servers.send_end(config.bootstrap, (life.name, partition), successor)
            at = await _first_end(reader, life.name, partition, (begin, sent + 1))
            found[partition] = sent if at is None else at
    finally:
        await reader.close()
    return found


async def _first_end(
    reader: LogReader, topic: str, partition: int, span: tuple[int, int]
) -> int | None:
    at, before = span
    while at < before:
        records = await reader.read(topic, partition, at, before)
        place = end_among(records)
        if place is not None:
            return int(records[place].offset)
        at = int(records[-1].offset) + 1
    return None


@asynccontextmanager
async def _asking(config: StreamConfig, servers: Servers) -> AsyncIterator[TopicAdmin]:
    admin = await servers.admin(config)
    try:
        yield admin
    finally:
        await asyncio.to_thread(admin.close)


async def _version(store: AsyncRowStore, config: StreamConfig) -> int:
    _, version_key = topics_keys(root_topic(config.topic))
    return int(await store.get_text(version_key) or 0)


async def _save(
    store: AsyncRowStore, config: StreamConfig, succession: Succession, version: int
) -> None:
    key, version_key = topics_keys(root_topic(config.topic))
    text = dump_succession(succession)
    if not await store.compare_and_set_text(key, version_key, version, text):
        raise StreamError(
            f"store, {key}",
            required="a record that nobody changes meanwhile",
            got="another run, which changed it",
            do="see `encore topics show`, then run this again",
        )
