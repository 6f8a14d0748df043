"""Moving on from one action topic to the next: who reads which, and from when on.

A topic ends at the end record of each partition; what lies behind it is read by nobody. A user's
actions lie in one partition of the old topic and another of the new one, and fences only grow, so
nothing of the new topic is folded before *all* of the old one is stored, in every generation that
is folded (`users_done`, `items_done`). Who reads the new topic makes sure of that in its own
history of the store, once that is fixed: a store that went back takes both topics' rows along.

Generations that are published later have nothing of the old topic: their floors there are closed at
its end before anything is folded into them, so a process that still reads it, since it was stopped
for long, folds nothing of it either.

A log that was lost before all of it was stored ends its topic as well: what generations lack of it
is recorded (`streams.gaps`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from schemas.errors import MovedError, StoreError, StreamError
from schemas.names import generation_group, root_topic, successor_topic, topics_keys
from schemas.plan import ViewPlan
from schemas.succession import End, Life, Succession, load_succession
from store.base import AsyncRowStore, RowStore
from streams.config import StreamConfig
from streams.gaps import END, Gap, record_gaps, recorded_gaps
from streams.generations import record_floors
from streams.plans import folded_views
from streams.servers import Servers, TopicAdmin
from streams.source_table import Pair, PairStore

log = logging.getLogger("encore.streams")

LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Ended:
    """A topic that has ended. config: of its readers. lost: its log is not there any more."""

    config: StreamConfig
    end: End
    lost: bool


#: Whether all of an ended topic is stored, for one kind of reader. Raises StoreError, StreamError.
Done = Callable[[AsyncRowStore, Ended], Awaitable[bool]]


async def read_succession(store: AsyncRowStore, config: StreamConfig) -> Succession:
    """Raises StoreError, StreamError."""
    key, _ = topics_keys(root_topic(config.topic))
    text = await store.get_text(key)
    return load_succession(text, config.topic, config.partitions, f"store, {key}")


def every_config(store: RowStore, config: StreamConfig) -> tuple[StreamConfig, ...]:
    """For each topic, oldest first. config: of the first topic. Raises StoreError, StreamError."""
    found = _recorded(store, config)
    return tuple(config_of(config, found, number + 1) for number in range(len(found.topics)))


def newest_config(store: RowStore, config: StreamConfig) -> StreamConfig:
    """For the topic that producers write to. As `every_config`."""
    return every_config(store, config)[-1]


def open_config(store: RowStore, config: StreamConfig) -> StreamConfig:
    """For the newest topic that may be read. As `every_config`."""
    found = _recorded(store, config)
    return config_of(config, found, len(found.open))


def _recorded(store: RowStore, config: StreamConfig) -> Succession:
    key, _ = topics_keys(root_topic(config.topic))
    text = store.get_text(key)
    return load_succession(text, config.topic, config.partitions, f"store, {key}")


async def check_open(store: AsyncRowStore, config: StreamConfig) -> None:
    """Raises StreamError where nobody reads the topic yet."""
    found = await read_succession(store, config)
    if all(each.name != config.topic for each in found.open):
        raise StreamError(
            f"topic {config.topic}",
            required="to be open for readers",
            got=f"{found.open[-1].name} before it, which has not ended",
            do="run `encore topics end`",
        )


async def check_settled(store: AsyncRowStore, admin: TopicAdmin, config: StreamConfig) -> None:
    """Raises StreamError while the actions are on their way to another topic, or have moved on to
    another than the config's: then nobody can say up to which offsets a generation is filled."""
    found = await read_succession(store, config)
    last, left = found.open[-1], ""
    for number, life in enumerate(found.open[:-1], 1):
        assert life.end is not None
        ended = await _ended(admin, config_of(config, found, number), life.end)
        if not (await users_done(store, ended) and await items_done(store, ended)):
            left = life.name
    if left or last.end is not None or last.name != config.topic:
        raise StreamError(
            f"topic {config.topic}",
            required="actions that stay where they are",
            got=f"a move: {left or last.name} is not stored to its end",
            do="see `encore topics show`; once the move is over run this again, it goes on;"
            " where workers cannot read it to its end: docs/topics.md, A hole in the old topic",
        )


def config_of(config: StreamConfig, succession: Succession, number: int) -> StreamConfig:
    """For the topic of that number, from 1. config: for any of them."""
    return config.at(succession.topics[number - 1], number)


async def check_known(store: AsyncRowStore, admin: TopicAdmin, config: StreamConfig) -> None:
    """Raises StreamError where the broker has a successor of a topic that the store says has none:
    producers may write to it."""
    key, _ = topics_keys(root_topic(config.topic))
    if await store.get_text(key) is not None:
        return
    name = successor_topic(root_topic(config.topic), 2)
    if await asyncio.to_thread(admin.describe, name) is not None:
        raise StreamError(
            f"store, {key}",
            required=f"a record of {name}, which the broker has",
            got="none: the store was wiped, or is another",
            do="stop the workers, run `encore topics grow` and `encore topics end` as before, then"
            " `encore rebuild` each view",
        )


async def find_place(config: StreamConfig, servers: Servers, done: Done) -> StreamConfig:
    """For the topic that a reader that starts now has to read: the first of which not all is
    stored. config: of the first topic. Raises StoreError, StreamError."""
    store = servers.open_store(config)
    admin = await servers.admin(config)
    try:
        await check_known(store, admin, config)
        succession = await read_succession(store, config)
        for number, life in enumerate(succession.open, 1):
            here = config_of(config, succession, number)
            if life.end is None or not life.ended:
                return here
            if not await done(store, await _ended(admin, here, life.end)):
                return here
        return here
    finally:
        await store.close()
        await asyncio.to_thread(admin.close)


async def find_all(config: StreamConfig, servers: Servers) -> tuple[StreamConfig, ...]:
    """For every topic that may be read, oldest first; those before the newest only as long as the
    broker has them. config: of the first topic. Raises StoreError, StreamError."""
    store = servers.open_store(config)
    admin = await servers.admin(config)
    try:
        await check_known(store, admin, config)
        succession = await read_succession(store, config)
        count = len(succession.open)
        every = [config_of(config, succession, number) for number in range(1, count + 1)]
        there = [await asyncio.to_thread(admin.describe, each.topic) for each in every]
        return (*(c for c, facts in zip(every[:-1], there, strict=False) if facts), every[-1])
    finally:
        await store.close()
        await asyncio.to_thread(admin.close)


async def check_no_other(store: AsyncRowStore, config: StreamConfig) -> None:
    """Raises MovedError where a newer topic may be read by now; StoreError, StreamError."""
    newest = (await read_succession(store, config)).open[-1]
    if newest.name != config.topic:
        raise MovedError(
            f"topic {config.topic}",
            required="to be the newest that may be read",
            got=newest.name,
            do="that is read from here on, too",
        )


class Place:
    """The topic that one process reads, among those before and after. Used by one task."""

    def __init__(
        self,
        store: AsyncRowStore,
        admin: TopicAdmin,
        config: StreamConfig,
        done: Done,
        clock_s: Callable[[], float],
    ) -> None:
        self._store, self._admin, self._config = store, admin, config
        self._done, self._clock_s = done, clock_s
        self._next_look_s = 0.0

    async def check(self) -> None:
        """Raises StreamError unless all of the topics before is stored, in every generation that
        is folded now. The store's history is fixed before."""
        succession = await read_succession(self._store, self._config)
        config = self._config
        if [(each.name, each.partitions) for each in succession.open[config.number - 1 :]][:1] != [
            (config.topic, config.partitions)
        ]:
            raise StreamError(
                f"topic {config.topic}",
                required=f"{config.partitions} partitions, and to be open for readers",
                got=", ".join(f"{each.name} with {each.partitions}" for each in succession.open),
                do="restart this process: it begins where the store says",
            )
        for number, life in enumerate(succession.topics[: config.number - 1], 1):
            assert life.end is not None
            before = config_of(config, succession, number)
            if not await self._done(self._store, await _ended(self._admin, before, life.end)):
                raise StreamError(
                    f"topic {config.topic}",
                    required=f"all of {before.topic} to be stored before",
                    got="not all of it, or not in every generation",
                    do=f"restart this process: it goes on with {before.topic}",
                )

    async def check_log(self, topic_id: str) -> None:
        """Raises StreamError where the topic's end was begun in another log than this one. Asked
        once this log has its number."""
        end = (await self._life()).end
        if end is not None and end.topic_id != topic_id:
            raise StreamError(
                f"topic {self._config.topic}",
                required=f"the log {end.topic_id}, in which its end was begun",
                got=f"{topic_id}: the broker lost that log",
                do="run `encore topics end` again, then restart this process",
            )

    async def look_now_and_then(self, at_end: bool) -> None:
        """Raises MovedError once all of the topic is stored, by everyone.

        at_end: this process has read its own partitions to their end. A store that is away is
        waited for.
        """
        now_s = self._clock_s()
        if not at_end or now_s < self._next_look_s:
            return
        self._next_look_s = now_s + LOOK_S
        try:
            over = await self._over()
        except StoreError as error:
            log.warning(
                "whether %s has ended could not be looked at: %s", self._config.topic, error
            )
            return
        if over:
            raise MovedError(
                f"topic {self._config.topic}",
                required="something left to read",
                got="its end, and all of it stored",
                do="the next topic is read from here on",
            )

    async def _over(self) -> bool:
        life = await self._life()
        if life.end is None or not life.ended:
            return False
        return await self._done(self._store, await _ended(self._admin, self._config, life.end))

    async def _life(self) -> Life:
        succession = await read_succession(self._store, self._config)
        return succession.topics[self._config.number - 1]


async def _ended(admin: TopicAdmin, config: StreamConfig, end: End) -> Ended:
    facts = await asyncio.to_thread(admin.describe, config.topic)
    return Ended(config, end, facts is None or facts.topic_id != end.topic_id)


# --- users' rows ----------------------------------------------------------------------------


async def users_done(store: AsyncRowStore, ended: Ended) -> bool:
    """All of the topic is in the rows of users, of every generation that is folded now."""
    config, end = ended.config, ended.end
    epoch = await store.epoch_of(root_topic(config.topic), end.topic_id)
    marks = await store.get_progress(config.topic, config.group)
    stands = {p: mark[:2] for p, mark in marks.items()}
    if not ended.lost and not _reaches(stands, epoch, end):
        return False
    views = await folded_views(store, "user", config.topic)
    return all([await _generation_done(store, ended, view, epoch, stands) for view in views])


async def _generation_done(
    store: AsyncRowStore,
    ended: Ended,
    view: ViewPlan,
    epoch: int,
    stands: dict[int, tuple[int, int]],
) -> bool:
    """Its floors in the topic are closed: where it has none yet, it has nothing of it."""
    config, end = ended.config, ended.end
    wanted = {partition: (epoch, at) for partition, at in end.offsets.items()}
    floors = await record_floors(store, config.topic, config.group, view, wanted)
    group = generation_group(config.group, view.name, view.generation)
    marks = await store.get_progress(config.topic, group)
    reached = {p: max(floor, marks[p][:2] if p in marks else floor) for p, floor in floors.items()}
    if _reaches(reached, epoch, end):
        return True
    if not ended.lost:
        return False
    lacks: dict[int, Gap] = {}
    for partition, at in reached.items():
        upto = max(stands.get(partition, (0, 0)), wanted.get(partition, (0, 0)))
        if at < upto:
            lacks[partition] = Gap(*at, upto[1] if upto[0] == at[0] else END)
    await record_gaps(store, (config.topic, config.group), view, lacks)
    return True


def _reaches(reached: dict[int, tuple[int, int]], epoch: int, end: End) -> bool:
    return all(
        at == 0 or reached.get(partition, (0, 0)) >= (epoch, at)
        for partition, at in end.offsets.items()
    )


# --- items' rows ----------------------------------------------------------------------------


async def items_done(store: AsyncRowStore, ended: Ended) -> bool:
    """All of the topic is re-keyed, and in the rows of items: every source table says so."""
    config, end = ended.config, ended.end
    epoch = await store.epoch_of(root_topic(config.topic), end.topic_id)
    tables = PairStore(store, config.item_topic, config.item_group, config.patience_ms)
    pairs = {p: await tables.load(p) for p in range(config.partitions)}
    stored = all(_reaches(pair.table.reached, epoch, end) for pair in pairs.values())
    if not stored and not ended.lost:
        return False
    views = await folded_views(store, "item", config.item_topic)
    lags = [await _behind(store, ended, view, pairs, stored) for view in views]
    return ended.lost or not any(lags)


async def _behind(
    store: AsyncRowStore, ended: Ended, view: ViewPlan, pairs: dict[int, Pair], stored: bool
) -> bool:
    """Whether it lacks what it can still catch up; what it cannot is recorded."""
    config = ended.config
    reader = config.item_topic, config.item_group
    name = generation_group(config.item_group, view.name, view.generation)
    own = PairStore(store, config.item_topic, name, config.patience_ms)
    known = await recorded_gaps(store, reader, view)
    lacks: dict[int, Gap] = {}
    for partition, pair in pairs.items():
        at = pair if view.key in pair.folded else await own.load(partition)
        whole = at is pair and stored
        told = any(gap.holds(at.epoch, at.next_offset) for gap in known.get(partition, ()))
        if at.version and not whole and not told:
            lacks[partition] = Gap(at.epoch, at.next_offset, END)
    if ended.lost:
        await record_gaps(store, reader, view, lacks)
    return bool(lacks)
