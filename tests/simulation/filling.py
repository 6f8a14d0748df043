"""Generations that are staged and filled while the stream goes on: `encore backfill` as a process.

Filling and catching up are the real ones (`streams.backfill`); staging, marking as filled and
publishing are what `catalog.staging` does to the store, without the feature repo around it. The
archive lies on disk, as the sink leaves it; what it does not hold yet is read from the log.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from schemas.errors import PlanError, StreamError
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY, STAGED_KEY
from schemas.plan import Plan, ViewPlan, dump_plan
from schemas.row import read_fence
from schemas.staged import Staged, dump_staged
from store.base import Write, check_history
from streams import backfill
from streams.action_table import action_table
from streams.archive import name_log, partition_dir, write_file
from streams.backfill import BackfillConfig
from streams.config import StreamConfig
from streams.messages import decode_records
from streams.plans import published_plan, staged_plan
from streams.servers import Servers
from tests.simulation.broker import Broker, TopicLog
from tests.simulation.history import place_of, staged_of
from tests.simulation.loop import OWNER, VirtualLoop
from tests.simulation.member import why_ended
from tests.simulation.moves import Moves
from tests.simulation.reference import PARTITIONS, Origin, Reference
from tests.simulation.server import Server, VirtualStore

#: A backfill waits for workers as long as they need.
WAIT_S: Final = 1e9
MEMORY: Final = Path("/dev/shm")
#: Late and future, in ms, of even and of odd generations; some actions are outside of one alone.
BOUNDS: Final = ((2_501, 899), (2_500, 1_000))


class BlockingRows:
    """`store.base.RowStore` of a filling task, which runs in one step. most: rows that it writes
    before its process is killed, None for all."""

    def __init__(self, server: Server, most: int | None) -> None:
        self._server, self._most, self._history = server, most, ""

    def begin_history(self) -> str:
        self._history = self._server.rows.history
        return self._history

    def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
        check_history(self._history, self._server.rows.history)
        part = writes if self._most is None else writes[: self._most]
        landed = self._server.compare_and_set(part)
        if len(part) < len(writes):
            raise StreamError("backfill", required="to go on", got="SIGKILL")
        return landed

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return self._server.rows.read(keys)

    def close(self) -> None:
        """There is no connection."""


@dataclass
class Fillings:
    """The archive, and at most one process that fills. publish_views: what a plan holds."""

    config: StreamConfig
    loop: VirtualLoop
    server: Server
    broker: Broker
    reference: Reference
    servers: Servers
    moves: Moves
    operator: Operator | None = None
    started: int = 0
    refused: str = ""  # why the last one ended, where it says to give up
    _directory: tempfile.TemporaryDirectory[str] | None = None
    _written: dict[tuple[str, int], int] = field(default_factory=dict)

    def staged(self) -> Staged:
        """What is staged now."""
        return staged_of(self.server.rows.get_text(STAGED_KEY))

    def ended(self) -> str | None:
        """Why the process ended, if it just did."""
        if self.operator is None or not self.operator.task.done():
            return None
        name, task = self.operator.name, self.operator.task
        self.operator = None
        reason = why_ended(name, task)
        self.refused = reason if "--cancel" in reason else ""
        return f"{name}: {reason}"

    def close(self) -> None:
        """Remove the archive."""
        if self._directory is not None:
            self._directory.cleanup()

    # --- events -------------------------------------------------------------------------------

    def archive(self, pick: int) -> str | None:
        """The sink writes some more of a partition."""
        logs = [self.broker.logs[each.topic] for each in self.moves.open()]
        log = logs[pick // 7 % len(logs)]
        partition = pick % len(log.records)
        place = log.topic_id, partition
        first = self.reference.history.archived.get(place, 0)
        if first >= log.stop(partition):
            return None
        upto = first + 1 + pick // PARTITIONS % (log.stop(partition) - first)
        self.archived(log, partition, upto)
        return f"{log.topic_id}/{partition} up to {upto}"

    def archived(self, log: TopicLog, partition: int, upto: int) -> None:
        """All before that is in the archive."""
        archived = self.reference.history.archived
        archived[log.topic_id, partition] = max(upto, archived.get((log.topic_id, partition), 0))
        if self._directory is not None:
            self._write()

    def backfill(self, pick: int) -> str | None:
        """`encore backfill` of a view, or of both; or it goes on with what is staged."""
        if self.operator is not None:
            return None
        self.started += 1
        history = self.reference.history
        history.since = len(history.sources) - 1
        if self._directory is None:
            base = MEMORY if MEMORY.is_dir() else None
            self._directory = tempfile.TemporaryDirectory(prefix="simulation", dir=base)
        self._write()
        most = None if pick % 4 else pick // 4 % 12
        config = replace(self.moves.open()[-1], data_dir=Path(self._directory.name))
        history.topics = {"user": config.topic, "item": config.item_topic}
        names = ("ui", "u", "i")[pick // 48 % 3]
        self.operator = Operator(f"backfill-{self.started}", self, config, (names, most))
        return f"{self.operator.name} of {names}, at most {most} rows"

    def interrupt(self, pick: int) -> str | None:
        """It is killed. What it asked for may still be on its way."""
        if self.operator is None:
            return None
        name, self.operator = self.operator.name, None
        self.loop.kill(name)
        if pick % 2:
            self.loop.pending[:] = [op for op in self.loop.pending if op.owner != name]
        return name

    def give_up(self, pick: int) -> str | None:
        """`encore backfill --cancel`."""
        staged = self.staged()
        if not staged.active:
            return None
        self.refused = ""
        rows = self.server.rows
        version = int(rows.get_text(PLAN_VERSION_KEY) or 0)
        text = dump_staged(Staged(used=staged.used))
        assert self.server.compare_and_set_text(STAGED_KEY, PLAN_VERSION_KEY, version, text)
        return str(staged.views)

    def expire_row(self, pick: int) -> str | None:
        """A row leaves the store, after so long that its messages have left the topic."""
        writes = "store write", "store read", "thread"
        busy = any(op.label.startswith(writes) for op in self.loop.pending)
        values = self.server.rows.image()
        gone = [] if busy else sorted(key for key in values.expires_ms if self._has_left(key))
        if not gone:
            return None
        key = gone[pick % len(gone)]
        self.server.expire(key)
        self.reference.expired_row(key)
        self.server.changed()
        return key

    def _has_left(self, key: str) -> bool:
        """Whatever the row holds is not in the topic any more."""
        name, _, rest = key.partition("@")
        view = self.reference.views[name, int(rest.partition(":")[0])]
        fence = read_fence(self.server.rows.read([key])[0])
        if fence is None or fence[0] == 0:
            return False
        log = self.broker.logs[self.reference.topic_of(view, fence[0])]
        partitions = self.reference.count_of(view, fence[0])
        partition = place_of(int(rest.partition(":")[2][1:-1]), partitions)
        lost = self.reference.log_of(view.source, fence[0]) != log.topic_id
        numbered = log.topic_id in dict(self.reference.epochs.get(view.source, ()))
        here = (lost and numbered) or (not lost and fence[1] < log.first[partition])
        return here and not any(map(self._is_logged, self.reference.held.get(key, ())))

    def _is_logged(self, origin: Origin) -> bool:
        """A topic of users holds it; for as long as that, what is re-keyed again has its row."""
        log = self.broker.by_id[origin[0]]
        here = self.broker.logs[log.name] is log
        return here and origin[2] >= log.first[origin[1]]

    def _write(self) -> None:
        """What is archived, to disk."""
        assert self._directory is not None
        root = Path(self._directory.name) / "archive" / self.config.topic
        for (topic_id, partition), upto in self.reference.history.archived.items():
            first = self._written.get((topic_id, partition), 0)
            if first < upto:
                log = self.broker.by_id[topic_id]
                records, count = log.records[partition][first:upto], len(log.records)
                name_log(root, topic_id, log.name, count)
                table = action_table(decode_records(records, count)[0])
                write_file(partition_dir(root, topic_id, partition), first, upto - 1, table)
                self._written[topic_id, partition] = upto


class Operator:
    """One run of `encore backfill`. wanted: names of the views, rows until it is killed."""

    def __init__(
        self, name: str, world: Fillings, config: StreamConfig, wanted: tuple[str, int | None]
    ) -> None:
        self.name, self._world, self._config = name, world, config
        self._names, most = wanted
        server = world.server
        rows: Any = BlockingRows(server, most)
        self._servers = replace(world.servers, open_rows=lambda url: rows)
        token = OWNER.set(name)
        self.task = world.loop.create_task(self._run())
        OWNER.reset(token)

    def _store(self) -> VirtualStore:
        return VirtualStore(self._world.loop, self._world.server)

    async def _run(self) -> None:
        store = self._store()
        began = await store.begin_history()
        staged = await self._stage(store)
        assert staged.plan is not None
        views = [v for v in staged.plan.views if staged.views.get(v.name) == v.generation]
        config = BackfillConfig(self._config)
        if staged.state == "filling":
            filler = self._store()
            for view in views:
                await backfill.fill_view(config, view, filler, say_nothing, self._servers, began)
            staged = await self._replace(store, staged, replace(staged, state="filled"))
        await store.confirm()
        await backfill.wait_caught_up(self._config, views, self._store(), say_nothing, WAIT_S)
        await self._switch(self._store(), staged)

    async def _stage(self, store: VirtualStore) -> Staged:
        version = int(await store.get_text(PLAN_VERSION_KEY) or 0)
        plan, staged = await published_plan(store), await staged_plan(store)
        if staged.active:
            return staged
        views = [next_of(v, staged) if v.name in self._names else v for v in plan.views]
        chosen = {v.name: v.generation for v in views if v.name in self._names}
        new = Staged(
            "filling", Plan(plan.version + 1, plan.version, tuple(views), ()), chosen,
            staged.used | chosen,
        )  # fmt: skip
        await self._set(store, STAGED_KEY, version, dump_staged(new))
        return new

    async def _replace(self, store: VirtualStore, staged: Staged, new: Staged) -> Staged:
        version = int(await store.get_text(PLAN_VERSION_KEY) or 0)
        if await staged_plan(store) != staged:
            raise PlanError("staged plan", required="the same", got="another")
        await self._set(store, STAGED_KEY, version, dump_staged(new))
        return new

    async def _switch(self, store: VirtualStore, staged: Staged) -> None:
        version = int(await store.get_text(PLAN_VERSION_KEY) or 0)
        if await staged_plan(store) != staged or staged.plan is None:
            raise PlanError("staged plan", required="the same", got="another")
        if await published_plan(store) != staged.plan:
            await self._set(store, PLAN_KEY, version, dump_plan(staged.plan))
        await self._replace(store, staged, Staged(used=staged.used))

    @staticmethod
    async def _set(store: VirtualStore, key: str, version: int, text: str) -> None:
        if not await store.compare_and_set_text(key, PLAN_VERSION_KEY, version, text):
            raise PlanError(key, required="plans that nobody changes meanwhile", got="another")


def next_of(view: ViewPlan, staged: Staged) -> ViewPlan:
    """The view in a generation that nothing was ever stored under, with other time bounds."""
    generation = 1 + max(view.generation, staged.used.get(view.name, 0))
    skew_ms, future_ms = BOUNDS[generation % 2]
    return replace(view, generation=generation, skew_ms=skew_ms, future_ms=future_ms)


def say_nothing(*_: object) -> None:
    """Progress, which nobody reads here."""
