"""The item worker: actions re-keyed by item, and folded into the rows of every item view.

One process does both, as two stages that know each other only through the re-keyed topic; several
of them share the partitions of both topics. Stage one is `streams.rekey`. Stage two, for each
micro-batch of the re-keyed topic: decode and check; drop what the source table has already; note
what its messages cover; fold and compare-and-set; then the table with its position, as one text;
and once the store's disk has all that, the commit (`streams.durability`). Two micro-batches are
under way at once, and pairs and commits trail behind (`streams.storing`): the table that drops is
ahead of the one that is saved.

A row's fence is the offset of the newest re-keyed message applied to it, so a batch that is read
again after a crash changes nothing; source offsets that were re-keyed twice are dropped by the
table, which is as old as the position that is read from. Where the log is lost before they are read
again, the notes tell what rows may have (`streams.refolding`). A missing message ends the process,
unless all generations were filled with what it held (`streams.item_holes`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Final

import numpy as np
from faust.types import TP
from numpy.typing import NDArray

from schemas.errors import NotHeldError
from streams.app import Fetched, Sender, StreamApp, run_apps
from streams.config import StreamConfig
from streams.durability import open_confirmations, tell_of_a_wipe
from streams.folding import Folder
from streams.following import PlanFollower
from streams.gaps import Gap, record_gaps
from streams.heartbeat import Heartbeat
from streams.holding import Holding
from streams.item_generations import ItemGenerations
from streams.item_marks import ItemMarks
from streams.item_messages import RekeyedMessage, decode_rekeyed_records, run_of
from streams.messages import ActionRun, DeadLetter, join_runs
from streams.moving import Place, find_place, items_done
from streams.overlap import ended
from streams.positions import OVER_ITEMS, OVER_REKEYED, Positions
from streams.refolding import Refolding, in_lost_log, unmakeable
from streams.rekey import Rekeyer, rekey_group
from streams.reporting import Reporter
from streams.servers import REAL_SERVERS, Servers
from streams.side_outputs import SideOutputs
from streams.source import Source
from streams.source_table import Covers, Pair, PairStore, SourceTable, check_epochs, covers_of
from streams.storing import Storing
from streams.transport import Marks

log = logging.getLogger("encore.streams")

#: How long a process goes on folding, and catching up, after re-keying has come to a hole in the
#: source.
HOLE_S: Final = 3.0

#: The next offset of a re-keyed partition, and the table that speaks up to there.
Reach = tuple[int, SourceTable]


def run_item_worker(config: StreamConfig) -> int:
    """Run until SIGTERM or SIGINT. Blocking. Returns the exit code, 0 after a drain.

    config: of the first topic; where the actions moved on to another, that is read.
    """

    async def next_app() -> StreamApp:
        here = await find_place(config, REAL_SERVERS, items_done)
        topics = here.topic, here.item_topic
        return StreamApp(here, here.members(here.item_group), topics, ItemWorker(here))

    return run_apps(next_app, config.core)


@dataclass(slots=True)
class Batch:
    """A micro-batch of the re-keyed topic. ends: how far each partition is by its end. notes: what
    its messages cover, by partition."""

    runs: list[ActionRun] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    ends: dict[TP, Reach] = field(default_factory=dict)
    notes: dict[int, dict[int, Covers]] = field(default_factory=lambda: defaultdict(dict))

    @property
    def actions(self) -> int:
        """Accepted actions."""
        return sum(len(run) for run in self.runs)


class ItemWorker:
    """A `streams.app.Handler` that re-keys and folds."""

    def __init__(self, config: StreamConfig, servers: Servers = REAL_SERVERS) -> None:
        self._config, self._servers = config, servers
        self._pairs: dict[int, Pair] = {}  # as they were saved
        self._read: dict[int, SourceTable] = {}  # ahead of them: of what came by
        self._storing = Storing(self._save)
        self._beats: dict[str, Heartbeat] = {}  # by topic
        self._dropped = 0
        self._hole_s: float | None = None  # when re-keying was first seen to stand at a hole
        self._reporter = Reporter(self._done, self._servers.clock_s)

    # --- life -------------------------------------------------------------------------------

    async def open(self, send: Sender, marks: Marks) -> None:
        """Connect, create missing topics, load the plan, learn the epochs."""
        self._send, self._marks = send, marks
        self._store = self._servers.open_store(self._config)
        await self._store.begin_history()
        await self._store.check_policy()
        await self._open_logs()
        # Also confirms the logs' numbers: a store that forgot one would give it to another log.
        self._confirmations = await open_confirmations(self._store, marks, self._config)
        self._open_rekeying()
        await self._open_folding(send)
        self._holding = Holding(
            self._store,
            self._servers.clock_s,
            self._sent.check,
            lambda: self._tables.check(self._pairs),
        )
        self._tell_views()

    async def _open_logs(self) -> None:
        """Both topics, as the broker has them now."""
        config, clock_s = self._config, self._servers.clock_s
        self._admin = await self._servers.admin(config)
        self._place = Place(self._store, self._admin, config, items_done, clock_s)
        await self._place.check()
        facts = await asyncio.to_thread(self._admin.ensure_topics, config.topics)
        self._source, self._target = [
            await Source.open(self._admin, facts[name], self._store, config.patience_ms, clock_s)
            for name in (config.topic, config.item_topic)
        ]
        await self._place.check_log(self._source.topic_id)

    def _open_rekeying(self) -> None:
        """What stage one needs."""
        config = self._config
        group = rekey_group(config.item_group, self._target.epoch)
        self._sent = Positions(self._store, config.topic, group, self._source.epoch, OVER_ITEMS)
        self._rekeyer = Rekeyer(
            self._source,
            self._target,
            config.partitions,
            self._sent,
            self._confirmations,
            config.patience_ms,
        )
        self._beats[config.topic] = Heartbeat(
            self._store, (config.topic, group), self._rekeyer.tally, self._servers
        )

    async def _open_folding(self, send: Sender) -> None:
        """What stage two needs, the plan among it."""
        config, store = self._config, self._store
        target = config.item_topic, config.item_group
        self._folded = Positions(store, *target, self._target.epoch, OVER_REKEYED)
        self._tables = PairStore(store, *target, config.patience_ms)
        self._aside = SideOutputs(config.item_topic, send)
        self._generations = ItemGenerations(config, self._servers, store, self._target)
        self._plan = PlanFollower(store, "item", config.item_topic, False, self._servers.clock_s)
        await self._plan.open()
        self._folder = Folder(
            store,
            self._plan.views,
            self._target.epoch,
            self._aside.send_late,
            config.patience_ms,
            retention_ms=config.retention_ms,
        )
        self._item_marks = ItemMarks(store, target, self._servers)
        self._beats[config.item_topic] = Heartbeat(store, target, self._aside.tally, self._servers)

    async def start_at(self, tps: frozenset[TP]) -> dict[TP, int]:
        """Of the source the marks of what was re-keyed; of the re-keyed topic the saved pairs.

        The plan is looked at first: whoever had a partition before may have followed a newer one.
        """
        await self._rekeyer.settle()
        await self._storing.settle()
        self._folder.hot.clear()
        if await self._plan.look():
            self._tell_views()
        source = [tp for tp in tps if tp.topic == self._config.topic]
        target = [tp for tp in tps if tp.topic == self._config.item_topic]
        for topic, beat in self._beats.items():
            beat.begin(tp.partition for tp in tps if tp.topic == topic)
        self._pairs = {tp.partition: await self._tables.load(tp.partition) for tp in target}
        saved = {partition for partition, pair in self._pairs.items() if pair.version}
        tell_of_a_wipe(target, saved, self._marks)
        for partition, pair in self._pairs.items():
            if pair.epoch != self._target.epoch:
                await self._refold(partition, pair)
                pair.enter(self._target.epoch, self._source.epoch)
                await self._tables.save(partition, pair)
        self._read = {partition: pair.table.copy() for partition, pair in self._pairs.items()}
        self._folder.ended = {partition: pair.ended for partition, pair in self._pairs.items()}
        ends = {p: pair.next_offset for p, pair in self._pairs.items() if pair.next_offset}
        await self._generations.begin(self._plan.views, self._pairs)
        self._use_views()
        await self._name_folded()
        sent = await self._sent.marks()
        places = self._sent.begin(source, sent, sent)
        return places | self._folded.begin(target, ends)

    async def _refold(self, partition: int, pair: Pair) -> None:
        """What rows may have of a lost log beyond the saved table: folded, and in the table."""
        gone = unmakeable(pair, self._source.epoch)
        if len(gone) == len(pair.ahead) or pair.epoch > self._target.epoch:
            return
        reader = self._servers.open_reader(self._config)
        try:
            views = await self._generations.level_with(self._plan.views, partition, pair)
            for view, at in product(views, gone):
                gap = {partition: Gap(pair.epoch, at, at + 1)}
                target = self._config.item_topic, self._config.item_group
                await record_gaps(self._store, target, view, gap)
            folder = in_lost_log(self._folder, views, self._plan.speakers, partition, pair)
            refolding = Refolding(self._source, self._config.partitions, reader, folder)
            if await refolding.fold(partition, pair):
                pair.folded = frozenset(view.key for view in views)
                await self._tables.save(partition, pair)
        finally:
            await reader.close()

    async def idle(self) -> None:
        """Now and then say what was done, and look whether logs and store are still the same."""
        for part in (self._rekeyer, self._storing, self._confirmations):
            part.check()
        await self._source.watch()
        await self._target.watch()
        await self._holding.watch()
        await self._follow()
        await self._now_and_then()

    async def close(self) -> None:
        """What is under way is stored; the store's disk is waited for."""
        await self._rekeyer.settle()
        await self._storing.settle()
        self._reporter.end()
        await self._item_marks.tell(self._generations.standing(self._pairs), now=True)
        await self._generations.close()
        await self._confirmations.settle()
        for beat in self._beats.values():
            await beat.leave()
        await self._store.close()
        await asyncio.to_thread(self._admin.close)

    # --- work -------------------------------------------------------------------------------

    async def handle(self, lists: list[Fetched]) -> None:
        """Re-key what came by the source, and beside that fold what came by the re-keyed topic.

        Returns when there is room for another micro-batch.
        """
        await self._follow()
        rekeying = asyncio.ensure_future(
            self._rekeyer.handle(
                [each for each in lists if each.tp.topic == self._config.topic],
                self._send,
                self._given,
            )
        )
        try:
            await self._fold([each for each in lists if each.tp.topic == self._config.item_topic])
            await rekeying
        finally:
            await ended(rekeying)
        await self._now_and_then()

    async def _now_and_then(self) -> None:
        """What is told beside the work; pairs speak of what is in its rows."""
        await self._item_marks.tell(self._generations.standing(self._pairs))
        self._look_for_holes()
        await self._place.look_now_and_then(self._sent.all_ended())
        for beat in self._beats.values():
            await beat.now_and_then()
        self._reporter.look()

    def _look_for_holes(self) -> None:
        """Raises NotHeldError some time after re-keying stopped at a hole: what is in the re-keyed
        log is folded meanwhile."""
        now_s = self._servers.clock_s()
        if self._rekeyer.stands_at_a_hole:
            self._hole_s = now_s if self._hole_s is None else self._hole_s
            if now_s - self._hole_s >= HOLE_S:
                self._rekeyer.check_hole()

    async def _fold(self, lists: list[Fetched]) -> None:
        """The log is looked at once for all: they were fetched before."""
        if not lists:
            return
        if any(self._folded.goes_back(fetched) for fetched in lists):
            await self._target.check()
        same_log = asyncio.ensure_future(self._target.check())
        noted: list[asyncio.Task[None]] = []
        try:
            async for batch in self._batches(lists):
                run, note = join_runs(batch.runs), asyncio.create_task(self._note(batch, same_log))
                noted.append(note)
                done = partial(dict[TP, Reach], batch.ends)
                await self._storing.add(self._folder, self._aside, run, batch.dead, note, done)
            await asyncio.gather(same_log, *noted)
        finally:
            await ended(same_log, *noted)

    async def _note(self, batch: Batch, same_log: asyncio.Future[None]) -> None:
        """Before the first row is written: what it may hold by then, were the log lost."""
        await asyncio.shield(same_log)
        for partition, covers in batch.notes.items():
            self._pairs[partition].ahead |= covers
        touched = {int(run.partition[0]) for run in batch.runs if len(run)}
        await asyncio.gather(*(self._tables.save(p, self._pairs[p]) for p in touched))

    async def _batches(self, lists: Iterable[Fetched]) -> AsyncIterator[Batch]:
        """Admitted lists, grouped up to `batch_actions`."""
        batch = Batch()
        for fetched in lists:
            records = self._folded.unseen(fetched)
            if not records:
                continue
            messages, dead = decode_rekeyed_records(
                records, self._config.partitions, self._target.topic_id
            )
            table = self._read[fetched.tp.partition]
            for message in messages:
                check_epochs(message.batch, self._source.epoch, message.where)
            accepted = [await self._admit(fetched.tp.partition, message) for message in messages]
            self._dropped += sum(int((~mask).sum()) for mask in accepted)
            run = run_of(fetched.tp.partition, messages, accepted).run
            self._aside.tally.of(fetched.tp.partition).actions += len(run)
            batch.runs.append(run)
            batch.dead += dead
            batch.notes[fetched.tp.partition] |= {m.offset: covers_of(m.batch) for m in messages}
            batch.ends[fetched.tp] = fetched.next_offset, table.copy()
            if batch.actions >= self._config.batch_actions:
                yield batch
                batch = Batch()
        if batch.ends:
            yield batch

    async def _admit(self, partition: int, message: RekeyedMessage) -> NDArray[np.bool_]:
        """Over a gap if all generations were given what lies in it."""
        table = self._read[partition]
        try:
            return table.admit(message.batch, message.where)
        except NotHeldError:
            for source, epoch, _ in table.gaps(message.batch):
                given = await self._generations.given(source, epoch)
                table.raise_to(source, epoch, given[partition])
            return table.admit(message.batch, message.where)

    async def _given(self, source: int) -> int:
        """As `streams.rekey.Given`, of the present log."""
        return min((await self._generations.given(source, self._source.epoch)).values())

    async def _save(self, upto: Mapping[TP, Reach]) -> None:
        """Each partition's table with the position up to which it speaks."""
        saves = []
        for tp, (next_offset, table) in upto.items():
            pair = self._pairs[tp.partition]
            pair.next_offset, pair.table = next_offset, table
            pair.ahead = {at: covers for at, covers in pair.ahead.items() if at >= next_offset}
            pair.folded = self._generations.folded(tp.partition)
            saves.append(self._tables.save(tp.partition, pair))
        await asyncio.gather(*saves)
        self._confirmations.stored({tp: next_offset for tp, (next_offset, _) in upto.items()})

    async def _follow(self) -> None:
        """Take over a newly published plan, then catch up. All that was read is stored."""
        if await self._plan.look_now_and_then():
            await self._storing.settle()
            await self._generations.change(self._plan.views, self._pairs)
            self._use_views()
            self._tell_views()
            await self._name_folded()
        if self._generations.lagging():
            await self._storing.settle()
            if await self._generations.step(self._pairs, self._folder):
                self._use_views()
                await self._name_folded()

    async def _name_folded(self) -> None:
        """A pair names a generation as soon as it has all before its position: were the log lost
        before the next message came, nobody would know."""
        for partition, pair in self._pairs.items():
            folded = self._generations.folded(partition)
            if folded - pair.folded:
                pair.folded = folded
                await self._tables.save(partition, pair)

    def _use_views(self) -> None:
        self._folder.views, self._folder.speakers = self._plan.views, self._plan.speakers
        self._folder.floors = self._generations.floors

    def _tell_views(self) -> None:
        log.info(
            "re-keying %s (epoch %d), folding %s (epoch %d) into %s",
            self._config.topic,
            self._source.epoch,
            self._config.item_topic,
            self._target.epoch,
            ", ".join(f"{v.name}@{v.generation}" for v in self._plan.views) or "no views",
        )

    def _done(self) -> str:
        return (
            f"re-keyed {self._rekeyer.actions} actions; stored so far: {self._folder.counts},"
            f" {self._dropped} re-keyed twice, {self._aside.dead_letters} dead letters"
        )
