"""The sink: actions, re-keyed actions and rank log from Kafka to Parquet (`streams.archive`).

    <data_dir>/archive/actions/…                               `streams.action_table`
    <data_dir>/archive/actions.by-item/…                       the same, with each action's source
    <data_dir>/archive/<rank topic>/candidates/…               `streams.rank_tables`
    <data_dir>/archive/<rank topic>/requests/…                 the same ranges, written second
    <data_dir>/archive/<rank topic>/plans/<fingerprint>.json   the plan that types the columns

Records are held back until there are enough rows or they are old enough, written and made durable,
and only then acknowledged. After a crash reading begins where the files end. Of the rank log, the
file of requests completes a range; a candidates file without its twin is removed at the start.

Refused actions are not archived: the worker has put their bytes into the dead-letter topic. Rank
records that cannot be read go to the rank log's own dead-letter topic. A record that the shipper
sent twice is archived twice: readers tell by request id (`audit.join`).

Each written range moves the progress mark of `StreamConfig.archive_group` in the store.

What a topic dropped before it came ends the sink, until somebody accepts the loss: then a file
without rows says so of these offsets (`streams.losses`), and what lies behind them is archived.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from faust.types import TP

from schemas.errors import StoreError, StreamError
from schemas.names import BY_ITEM_SUFFIX, dead_letter_topic, root_topic
from streams.app import Fetched, Sender, StreamApp, run_apps
from streams.archives import ActionArchive, Held, RankArchive, RekeyedArchive, TopicArchive
from streams.config import StreamConfig
from streams.heartbeat import Heartbeat, Tally
from streams.log_reader import is_held
from streams.messages import DeadLetter
from streams.moving import LOOK_S, check_no_other, find_all
from streams.positions import OVER_ARCHIVE, Positions
from streams.servers import REAL_SERVERS, Servers
from streams.side_outputs import send_letter
from streams.source import Source
from streams.transport import Marks

log = logging.getLogger("encore.streams")

#: Nobody waits for a file: it takes what comes in gulps, at a tenth of the fetches.
FETCH_WAIT_MS: Final = 100


def run_sink(config: StreamConfig, accept_loss: bool = False) -> int:
    """Run the sink until SIGTERM or SIGINT. Blocking. Returns the exit code, 0 after a drain.

    accept_loss: go on without what the topics dropped before it was archived.
    """
    config = replace(config, fetch_wait_ms=max(config.fetch_wait_ms, FETCH_WAIT_MS))

    async def next_app() -> StreamApp:
        every = await find_all(config, REAL_SERVERS)
        newest = every[-1]
        topics = [name for each in every for name in (each.topic, each.item_topic)]
        sink = Sink(newest, earlier=every[:-1], accept_loss=accept_loss)
        group = newest.members(newest.archive_group)
        return StreamApp(newest, group, (*topics, newest.rank_topic), sink)

    return run_apps(next_app, config.core)


@dataclass(slots=True)
class Buffer:
    """Parts of one partition that wait for their file. opened_s: when the first came."""

    opened_s: float
    parts: list[Held] = field(default_factory=list)
    rows: int = 0
    kind: str = ""

    def fits(self, part: Held) -> bool:
        """A part without content is of no kind and fits anywhere."""
        return "" in (self.kind, part.kind) or self.kind == part.kind

    def add(self, part: Held) -> None:
        """Hold a part back."""
        self.parts.append(part)
        self.rows += part.rows
        self.kind = self.kind or part.kind


@dataclass(frozen=True, slots=True)
class Topic:
    """One archived topic."""

    source: Source
    positions: Positions
    archive: TopicArchive
    beat: Heartbeat


class Sink:
    """A `streams.app.Handler` that archives. config: of the newest topic that may be read; earlier:
    of those before it, whose archives may still lack something and lie beside the newest one's.
    accept_loss: archive as lost what a topic does not hold any more."""

    def __init__(
        self,
        config: StreamConfig,
        servers: Servers = REAL_SERVERS,
        earlier: tuple[StreamConfig, ...] = (),
        accept_loss: bool = False,
    ) -> None:
        self._config, self._servers, self._earlier = config, servers, earlier
        self._accept_loss = accept_loss
        self._looked_s = servers.clock_s()
        self._topics: dict[str, Topic] = {}
        self._buffers: dict[TP, Buffer] = {}

    # --- life -------------------------------------------------------------------------------

    async def open(self, send: Sender, marks: Marks) -> None:
        """Connect, create missing topics, look at the files."""
        config = self._config
        self._send, self._marks = send, marks
        self._store = self._servers.open_store(config)
        self._admin = await self._servers.admin(config)
        wanted = {
            name: each.partitions
            for each in (*self._earlier, config)
            for name in (each.topic, each.item_topic)
        }
        wanted[config.rank_topic] = config.topics[config.rank_topic]
        ensure = self._admin.ensure_topics
        facts = await asyncio.to_thread(ensure, wanted | config.topics)
        for name, partitions in wanted.items():
            source = await Source.open(
                self._admin, facts[name], self._store, config.patience_ms, self._servers.clock_s
            )
            positions = Positions(
                self._store, name, config.archive_group, source.epoch, OVER_ARCHIVE
            )
            place = name, config.archive_group
            beat = Heartbeat(self._store, place, Tally(), self._servers)
            archive = self._archive(source, partitions)
            self._topics[name] = Topic(source, positions, archive, beat)

    def _archive(self, source: Source, partitions: int) -> TopicArchive:
        root = self._config.archive_dir / root_topic(source.topic)
        if source.topic == self._config.rank_topic:
            return RankArchive(root, source.topic_id, self._store)
        if source.topic.endswith(BY_ITEM_SUFFIX):
            return RekeyedArchive(root, source.topic_id, partitions)
        return ActionArchive(root, (source.topic, source.topic_id), partitions)

    async def start_at(self, tps: frozenset[TP]) -> dict[TP, int]:
        """Where the files end. What was held back before a rebalance is read again."""
        self._buffers.clear()
        places: dict[TP, int] = {}
        for name, topic in self._topics.items():
            own = [tp for tp in tps if tp.topic == name]
            topic.beat.begin(tp.partition for tp in own)
            found = {tp.partition: topic.archive.end(tp.partition) for tp in own}
            ends = {partition: end for partition, end in found.items() if end is not None}
            places |= topic.positions.begin(own, ends)
        return places

    async def idle(self) -> None:
        """Write what is old enough, and look whether the logs are still the same."""
        for topic in self._topics.values():
            await topic.source.watch()
            await topic.beat.now_and_then()
        await self._write_old()
        now_s = self._servers.clock_s()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            try:
                await check_no_other(self._store, self._config)
            except StoreError as error:  # it is waited for where something is to be stored
                log.warning("a newer topic could not be looked for: %s", error)

    async def close(self) -> None:
        """Write everything held back."""
        for tp in list(self._buffers):
            await self._write(tp)
        for topic in self._topics.values():
            await topic.beat.leave()
        await self._store.close()
        await asyncio.to_thread(self._admin.close)

    # --- work -------------------------------------------------------------------------------

    async def handle(self, lists: list[Fetched]) -> None:
        """Hold back; write what is full or old."""
        for fetched in lists:
            topic = self._topics[fetched.tp.topic]
            if topic.positions.goes_back(fetched):
                await topic.source.check()
            while (hole := await self._accepted(topic, fetched)) is not None:
                before = [record for record in fetched.records if record.offset < hole[0]]
                if before:
                    await self._take(topic, replace(fetched, records=tuple(before)))
                await self._lose(topic, fetched.tp, hole)
                fetched = replace(fetched, records=fetched.records[len(before) :])
            await self._take(topic, fetched)
        await self._write_old()
        for topic in self._topics.values():
            await topic.beat.now_and_then()

    async def _take(self, topic: Topic, fetched: Fetched) -> None:
        records = topic.positions.unseen(fetched)
        if not records:
            return
        parts, dead = await topic.archive.take(records)
        await self._send_dead(fetched.tp.topic, dead)
        counts = topic.beat.tally.of(fetched.tp.partition)
        counts.actions += sum(part.rows for part in parts)
        counts.dead += len(dead)
        for part in parts:
            await self._hold(fetched.tp, part)

    async def _accepted(self, topic: Topic, fetched: Fetched) -> tuple[int, int] | None:
        """The next offsets [first, next) to go on without. Not where the log does hold an end of
        them: then it is this process that skipped them."""
        hole = topic.positions.hole(fetched) if self._accept_loss else None
        if hole is None:
            return None
        reader, tp = self._servers.open_reader(self._config), fetched.tp
        try:
            ends = {hole[0], hole[1] - 1}
            held = [await is_held(reader, tp.topic, tp.partition, at) for at in ends]
        finally:
            await reader.close()
        return None if any(held) else hole

    async def _lose(self, topic: Topic, tp: TP, hole: tuple[int, int]) -> None:
        """Archive these offsets as lost."""
        first, after = hole
        if tp in self._buffers:
            await self._write(tp)
        log.error(
            "archived as lost, as was accepted: %d messages, offsets %d to %d of %s/%d",
            after - first,
            first,
            after - 1,
            tp.topic,
            tp.partition,
        )
        await self._keep(tp, after, partial(topic.archive.lose, tp.partition, first, after - 1))
        topic.positions.skip(tp, after)

    async def _hold(self, tp: TP, part: Held) -> None:
        if tp in self._buffers and not self._buffers[tp].fits(part):
            await self._write(tp)
        if tp not in self._buffers:
            self._buffers[tp] = Buffer(self._servers.clock_s())
        buffer = self._buffers[tp]
        buffer.add(part)
        if buffer.rows >= self._config.roll_rows:
            await self._write(tp)

    async def _write_old(self) -> None:
        oldest_s = self._servers.clock_s() - self._config.roll_ms / 1000
        for tp, buffer in list(self._buffers.items()):
            if buffer.opened_s <= oldest_s:
                await self._write(tp)

    async def _write(self, tp: TP) -> None:
        """Make a buffer durable, then acknowledge it."""
        buffer, topic = self._buffers.pop(tp), self._topics[tp.topic]
        topic.positions.saw(tp.partition, max(part.time_ms for part in buffer.parts))
        write = partial(topic.archive.write, tp.partition, buffer.parts)
        await self._keep(tp, buffer.parts[-1].last + 1, write)

    async def _keep(self, tp: TP, upto: int, write: Callable[[], None]) -> None:
        """Write all before that offset of the log that there is, then acknowledge it."""
        topic = self._topics[tp.topic]
        await topic.source.check()
        try:
            await asyncio.to_thread(write)
        except OSError as error:
            raise StreamError(
                f"archive of {tp.topic}/{tp.partition}",
                required="a disk that takes a file",
                got=str(error),
                do="make room, then restart the sink: nothing was acknowledged",
            ) from error
        await topic.positions.store({tp: upto}, self._config.patience_ms)
        self._marks.advance(tp, upto)

    async def _send_dead(self, topic: str, dead: list[DeadLetter]) -> None:
        for letter in dead:
            await send_letter(self._send, dead_letter_topic(topic), letter)
