"""The stream worker: actions from their topic into the rows of every streamed user view.

For each micro-batch: decode and check whole messages; refused ones to the dead-letter topic; fold
and compare-and-set (`streams.folding`); actions outside a view's time bounds to the late topic;
then the progress mark, and once the store's disk has it, the commit (`streams.durability`). Dead
letters and late actions are confirmed before the messages they came from count as stored, so a
crash repeats them and never loses one; their `encore-source` header tells repetitions.

Two micro-batches are under way at once, each row's actions in the order of the log; marks and
commits trail behind (`streams.storing`). Whatever asks where the stream stands, a rebalance or a
new plan, waits until nothing is under way.

Reading starts at the progress mark, which the store keeps beside the rows: a store that went back
takes its mark with it, and the worker reads again from there. A topic id that changed under the
worker (the broker lost its log) ends the process before anything of the new log is written.

A plan that is published meanwhile is taken over between two micro-batches: from there on the worker
folds the new plan's views, and a new generation fills from there (`streams.generations`). One that
was filled up to its floors is caught up between micro-batches (`streams.catching_up`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from faust.types import TP

from schemas.errors import NotHeldError
from streams.app import Fetched, Sender, StreamApp, run_apps
from streams.catching_up import CatchUp
from streams.config import StreamConfig
from streams.durability import open_confirmations, tell_of_a_wipe
from streams.folding import Folder
from streams.following import PlanFollower
from streams.generations import Generations
from streams.heartbeat import Heartbeat
from streams.holding import Holding
from streams.messages import ActionRun, DeadLetter, decode_records, join_runs
from streams.moving import Place, find_place, users_done
from streams.overlap import ended
from streams.positions import Positions
from streams.reporting import Reporter
from streams.servers import REAL_SERVERS, Servers
from streams.side_outputs import SideOutputs
from streams.source import Source
from streams.storing import Storing
from streams.transport import Marks

log = logging.getLogger("encore.streams")


#: Decoded lists, what was refused of them, and the next offset of each partition.
Batch = tuple[list[ActionRun], list[DeadLetter], dict[TP, int]]


def run_worker(config: StreamConfig) -> int:
    """Run a worker until SIGTERM or SIGINT. Blocking. Returns the exit code, 0 after a drain.

    config: of the first topic; where the actions moved on to another, that is read.
    """

    async def next_app() -> StreamApp:
        here = await find_place(config, REAL_SERVERS, users_done)
        return StreamApp(here, here.members(here.group), (here.topic,), Worker(here))

    return run_apps(next_app, config.core)


class Worker:
    """A `streams.app.Handler` that folds."""

    def __init__(self, config: StreamConfig, servers: Servers = REAL_SERVERS) -> None:
        self._config, self._servers = config, servers
        self._reporter = Reporter(self._done, self._servers.clock_s)
        self._storing = Storing(self._mark)

    # --- life -------------------------------------------------------------------------------

    async def open(self, send: Sender, marks: Marks) -> None:
        """Connect, create missing topics, load the plan, learn the epoch."""
        self._aside, self._marks = SideOutputs(self._config.topic, send), marks
        self._store = self._servers.open_store(self._config)
        await self._store.begin_history()
        await self._store.check_policy()
        await self._open_log()
        # Also confirms the log's number: a store that forgot it would give it to another log.
        self._confirmations = await open_confirmations(self._store, marks, self._config)
        await self._open_folding()
        self._tell_views()

    async def _open_log(self) -> None:
        """The topic, as the broker has it now."""
        config, clock_s = self._config, self._servers.clock_s
        self._admin = await self._servers.admin(config)
        self._place = Place(self._store, self._admin, config, users_done, clock_s)
        await self._place.check()
        facts = (await asyncio.to_thread(self._admin.ensure_topics, config.topics))[config.topic]
        self._source = await Source.open(
            self._admin, facts, self._store, config.patience_ms, clock_s
        )
        await self._place.check_log(self._source.topic_id)

    async def _open_folding(self) -> None:
        """What reading and folding need, the plan among it."""
        config, store, clock_s = self._config, self._store, self._servers.clock_s
        epoch, place = self._source.epoch, (config.topic, config.group)
        self._positions = Positions(store, *place, epoch)
        self._holding = Holding(store, clock_s, self._positions.check)
        self._generations = Generations(store, *place, epoch, config.patience_ms)
        self._beat = Heartbeat(store, place, self._aside.tally, self._servers)
        self._catch_up = CatchUp(config, self._servers, self._source, self._generations)
        self._plan = PlanFollower(store, "user", config.topic, clock_s=clock_s)
        await self._plan.open()
        self._folder = Folder(
            store,
            self._plan.views,
            epoch,
            self._aside.send_late,
            config.patience_ms,
            retention_ms=config.retention_ms,
        )

    async def start_at(self, tps: frozenset[TP]) -> dict[TP, int]:
        """The store's progress marks; the beginning where this log has none.

        The plan is looked at first: whoever had a partition before may have followed a newer one.
        """
        await self._storing.settle()
        self._folder.hot.clear()
        if await self._plan.look():
            await self._place.check()
            self._tell_views()
        partitions = [tp.partition for tp in tps]
        self._beat.begin(partitions)
        marks = await self._positions.marks()
        tell_of_a_wipe(tps, await self._positions.known(), self._marks)
        starts = await self._generations.starts(self._plan.views, marks)
        await self._generations.begin(self._plan.views, partitions, starts)
        self._use_views()
        places = self._positions.begin(tps, starts, marks)
        beyond = {
            tp: starts[tp.partition]
            for tp in tps
            if starts.get(tp.partition) != marks.get(tp.partition)
        }
        if beyond:
            await self._positions.store(beyond, self._config.patience_ms)
        return places

    async def idle(self) -> None:
        """Now and then say what was done, and look whether log, store and plan are the same."""
        self._storing.check()
        self._confirmations.check()
        await self._source.watch()
        await self._holding.watch()
        await self._follow()
        await self._place.look_now_and_then(self._positions.all_ended())
        await self._beat.now_and_then()
        self._reporter.look()

    async def close(self) -> None:
        """What is under way is stored; the store's disk is waited for."""
        await self._storing.settle()
        self._reporter.end()
        await self._catch_up.close()
        await self._confirmations.settle()
        await self._beat.leave()
        await self._store.close()
        await asyncio.to_thread(self._admin.close)

    # --- work -------------------------------------------------------------------------------

    async def handle(self, lists: list[Fetched]) -> None:
        """Micro-batches of whole lists; returns when there is room for another.

        The log is looked at once for all: they were fetched before.
        """
        if any(self._positions.goes_back(fetched) for fetched in lists):
            await self._source.check()
        await self._follow()
        same_log = asyncio.ensure_future(self._source.check())
        try:
            for runs, dead, upto in self._batches(lists):
                run, done = join_runs(runs), partial(self._stored, runs, upto)
                await self._storing.add(self._folder, self._aside, run, dead, same_log, done)
            await same_log
        except NotHeldError:
            await self._storing.settle()  # what lies before the hole
            raise
        finally:
            await ended(same_log)
        await self._place.look_now_and_then(self._positions.all_ended())
        await self._beat.now_and_then()
        self._reporter.look()

    def _batches(self, lists: list[Fetched]) -> Iterator[Batch]:
        """Decoded lists, grouped up to `batch_actions`, with the next offset of each partition.

        Raises NotHeldError at a hole in the log; what came before that is in the last one.
        """
        runs: list[ActionRun] = []
        dead: list[DeadLetter] = []
        upto: dict[TP, int] = {}
        for fetched, hole in self._pieces(lists):
            if hole and upto:
                yield runs, dead, upto
            records = self._positions.unseen(fetched)
            if not records:
                continue
            run, refused = decode_records(records, self._config.partitions)
            runs.append(run)
            dead += refused
            upto[fetched.tp] = self._positions.upto(fetched.tp)
            if sum(len(each) for each in runs) >= self._config.batch_actions:
                yield runs, dead, upto
                runs, dead, upto = [], [], {}
        if upto:
            yield runs, dead, upto

    def _pieces(self, lists: list[Fetched]) -> Iterator[tuple[Fetched, bool]]:
        """Lists, and whether one has a hole: then what lies before that in it comes by itself."""
        for fetched in lists:
            hole = self._positions.hole(fetched)
            if hole is not None:
                before = tuple(each for each in fetched.records if each.offset < hole[0])
                if before:
                    yield replace(fetched, records=before), False
            yield fetched, hole is not None

    def _stored(self, runs: list[ActionRun], upto: dict[TP, int]) -> dict[TP, int]:
        """A micro-batch and all before it are in their rows."""
        for run in runs:
            if len(run):
                partition, newest = int(run.partition[0]), int(run.sent_ms.max())
                self._positions.saw(partition, newest)
                self._aside.tally.of(partition).actions += len(run)
        return upto

    async def _mark(self, upto: Mapping[TP, int]) -> None:
        """What is stored is marked: of each generation first, then of the group."""
        await self._generations.store(self._positions.with_watermarks(upto))
        await self._positions.store(upto, self._config.patience_ms)
        self._confirmations.stored(upto)

    async def _follow(self) -> None:
        """Take over a newly published plan, then catch up. All that was read is stored then."""
        if await self._plan.look_now_and_then():
            await self._storing.settle()
            await self._place.check()
            await self._generations.change(self._plan.views, self._positions.standing())
            self._use_views()
            self._tell_views()
        if self._generations.lagging():
            await self._storing.settle()
            if await self._catch_up.step(self._positions.standing(), self._folder):
                self._use_views()

    def _use_views(self) -> None:
        self._folder.views, self._folder.speakers = self._plan.views, self._plan.speakers
        self._folder.floors = self._generations.floors

    def _tell_views(self) -> None:
        log.info(
            "folding %s (epoch %d) into %s",
            self._config.topic,
            self._source.epoch,
            ", ".join(f"{view.name}@{view.generation}" for view in self._plan.views),
        )

    def _done(self) -> str:
        return f"stored so far: {self._folder.counts}, {self._aside.dead_letters} dead letters"
