"""Backfill: rows of new generations from history, up to exact offsets, while the stream goes on.

A generation that is to be filled lies in a staged plan (`schemas.staged`). Filling chooses its
floors, collects the history below them, folds it on local cores or a Dask cluster, and writes each
row once (`streams.filling`). Then the generation is marked filled, workers take it up from its
floors (`streams.catching_up`), and once it has all that the published one has it may be published.

Everything may be run again after any crash, and goes on: floors are recorded once, rows are written
from absent under the fence that the floors give.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from schemas.errors import StreamError
from schemas.names import generation_group, root_topic
from schemas.plan import ViewPlan
from store.base import AsyncRowStore, check_history
from streams.collecting import Before, Collected, Rest, collect
from streams.config import StreamConfig
from streams.filling import FillCounts, FillTask
from streams.folding import physical_ttl_ms
from streams.foreign import ForeignCounts, first_logged_ms, take_foreign
from streams.gaps import recorded_gaps
from streams.generations import recorded_floors
from streams.history import HistoryFile
from streams.item_holes import ItemHoles
from streams.losses import Loss, record_losses
from streams.moving import check_settled, read_succession
from streams.origins import (
    Log,
    Origin,
    beyond_holes,
    item_origin,
    log_of,
    user_origin,
    wait_for_lost_log,
)
from streams.pools import run_tasks
from streams.servers import REAL_SERVERS, Servers
from streams.source_table import PairStore

LOOK_S: Final = 0.1
#: Less than this is done before other processes have started.
FEW_ACTIONS: Final = 500_000

#: Told of each stage what is done, of how much, and a few words.
Note = Callable[[str, int, int, str], None]


@dataclass(frozen=True, slots=True)
class BackfillConfig:
    """stream: of the workers. cores: local processes. memory_bytes: of all of them, for rows. dask:
    address of a scheduler, "" for local cores. foreign: files of actions that are not of our log.
    before_ms: foreign actions from here on are left out; None: from the first logged action on.
    accept_loss: fill without what neither archive nor log holds.
    """

    stream: StreamConfig
    cores: int = 1
    memory_bytes: int = 2 << 30
    dask: str = ""
    foreign: tuple[Path, ...] = ()
    before_ms: int | None = None
    accept_loss: bool = False


@dataclass(slots=True)
class FillReport:
    """What filling one view did. seconds: of folding and writing. missing: messages that nobody
    holds any more, `lost` among them, whose loss was accepted. read: messages that only the log
    held."""

    view: str
    generation: int
    actions: int
    seconds: float
    missing: int
    read: int
    counts: FillCounts = field(default_factory=FillCounts)
    foreign: ForeignCounts = field(default_factory=ForeignCounts)
    lost: tuple[Loss, ...] = ()


async def fill_view(
    config: BackfillConfig,
    view: ViewPlan,
    store: AsyncRowStore,
    note: Note,
    servers: Servers = REAL_SERVERS,
    store_history: str = "",
) -> FillReport:
    """Fill a staged generation up to its floors, durably.

    store_history: the one in which it was staged; "" for the present one. Nothing is written in
    another: a wipe forgets which numbers were given. Raises StreamError, StoreError, HistoryError.
    """
    stream = config.stream
    aside = stream.data_dir / "backfill" / f"{view.name}@{view.generation}"
    began = await store.begin_history()
    check_history(store_history, began, f"store of {view.name}@{view.generation}")
    origin, found = await _history(config, view, store, servers, aside / "log")
    await record_losses(store, view, found.lost)
    history = list(dict.fromkeys(file for files in found.files.values() for file in files))
    foreign, taken = await _foreign(config, view, history, aside / "foreign")
    tasks = [
        replace(task, store_history=began)
        for task in tasks_of(config, view, origin, found.files, foreign)
    ]
    rows = sum(file.rows for file in history) + taken.taken
    began_s = time.monotonic()
    told = partial(note, f"fill {view.name}")
    counts = await _run(config, tasks, servers, lambda share: told(int(share * rows), rows, ""))
    if stream.fsynced:
        await store.confirm()  # a later history may lack rows
    seconds = time.monotonic() - began_s
    await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)
    told(rows, rows, f"{counts.rows + counts.there:,} rows")
    return FillReport(
        view=view.name,
        generation=view.generation,
        actions=rows,
        seconds=seconds,
        missing=found.messages_missing,
        read=found.read,
        counts=counts,
        foreign=taken,
        lost=tuple(sorted(found.lost)),
    )


async def _run(
    config: BackfillConfig,
    tasks: Sequence[FillTask],
    servers: Servers,
    note: Callable[[float], None],
) -> FillCounts:
    """Fold in as many processes as it is worth. note: hears what share is done.

    Cancelled, it ends them: a thread knows nothing of that by itself.
    """
    total = sum(task.actions for task in tasks)  # a file is read by each task it has actions of
    cancelled = threading.Event()

    def told(done: int) -> None:
        if cancelled.is_set():
            raise CancelledError
        note(min(done, total) / max(1, total))

    try:
        return await asyncio.to_thread(
            run_tasks,
            tasks,
            config.stream.store_url,
            config.cores if total >= FEW_ACTIONS else 1,
            config.dask,
            told,
            servers.open_rows,
        )
    finally:
        cancelled.set()


async def _history(
    config: BackfillConfig, view: ViewPlan, store: AsyncRowStore, servers: Servers, aside: Path
) -> tuple[Origin, Collected]:
    """Where the generation begins, and the files that hold what lies before."""
    stream = config.stream
    wanted = root_topic(stream.topic), root_topic(stream.item_topic)
    if view.source not in wanted:
        raise StreamError(
            f"{view.name}.source",
            required=f"{wanted[0]} or {wanted[1]}, which workers read",
            got=view.source,
        )
    source, target = await _logs(servers, stream, store)
    before = await _before(servers, stream, store)
    read_ends = partial(servers.read_ends, stream.bootstrap)
    reader = servers.open_reader(stream)
    try:
        if view.entity == "user":
            beyond = await beyond_holes(store, stream, source, reader, read_ends)
            origin = await user_origin(store, stream, view, source, beyond)
        else:
            await wait_for_lost_log(store, stream, (source, target), read_ends)
            holes = ItemHoles(store, stream, source, target, reader, read_ends)
            beyond_items = await holes.beyond()
            origin = await item_origin(store, stream, view, (source, target), beyond_items)
        needed = {
            p: max((ends.get(p, 0) for ends in origin.bounds.values()), default=0)
            for p in range(stream.partitions)
        }
        root = stream.archive_dir / root_topic(stream.topic)
        found = await collect(root, source, needed, Rest(reader, aside, config.accept_loss), before)
    finally:
        await reader.close()
    now, _ = await _logs(servers, stream, store)
    if now != source:
        raise StreamError(
            f"topic {stream.topic}",
            required=f"the id {source.topic_id} it had when its history was begun",
            got=f"{now.topic_id}: the broker lost its log meanwhile, and this read of the new one",
            do="give it up with `encore backfill --cancel`, and begin again",
        )
    return origin, found


async def _foreign(
    config: BackfillConfig, view: ViewPlan, history: Sequence[HistoryFile], aside: Path
) -> tuple[list[HistoryFile], ForeignCounts]:
    """What is taken of the files that are not of our log; it lies in `aside`."""
    before_ms = config.before_ms
    if config.foreign and before_ms is None:
        before_ms = await asyncio.to_thread(first_logged_ms, history, view)
    return await asyncio.to_thread(take_foreign, config.foreign, before_ms, aside)


async def _logs(servers: Servers, stream: StreamConfig, store: AsyncRowStore) -> tuple[Log, Log]:
    """The source and the re-keyed log that are there now."""
    admin = await servers.admin(stream)
    try:
        await check_settled(store, admin, stream)
        facts = await asyncio.to_thread(admin.ensure_topics, stream.topics)
        source = await log_of(store, admin, facts[stream.topic], stream.patience_ms)
        return source, await log_of(store, admin, facts[stream.item_topic], stream.patience_ms)
    finally:
        await asyncio.to_thread(admin.close)


async def _before(servers: Servers, stream: StreamConfig, store: AsyncRowStore) -> list[Before]:
    """The topics that the actions were in before, as long as the broker has their logs."""
    admin = await servers.admin(stream)
    try:
        succession = await read_succession(store, stream)
        found: list[Before] = []
        for life in succession.topics[: stream.number - 1]:
            facts = await asyncio.to_thread(admin.describe, life.name)
            if life.end is None or facts is None or facts.topic_id != life.end.topic_id:
                continue
            epoch = await store.epoch_of(root_topic(life.name), facts.topic_id)
            found.append(Before(Log(life.name, facts.topic_id, epoch), life.end.offsets))
        return found
    finally:
        await asyncio.to_thread(admin.close)


def tasks_of(
    config: BackfillConfig,
    view: ViewPlan,
    origin: Origin,
    files: Mapping[int, Sequence[HistoryFile]],
    foreign: Sequence[HistoryFile],
) -> list[FillTask]:
    """A user's actions lie in one partition: a task a partition, more where cores are more. An
    item's lie in all of them: as many tasks as cores, each reading everything."""
    partitions = tuple(range(config.stream.partitions))
    every = list(dict.fromkeys(file for part in files.values() for file in part))
    shares: list[tuple[tuple[int, ...], Sequence[HistoryFile]]] = [(partitions, every)]
    ways = config.cores
    if view.entity == "user":
        shares, ways = [((p,), files[p]) for p in partitions], -(-config.cores // len(partitions))
    return [
        FillTask(
            view=view,
            files=(*foreign, *own),
            partitions=share,
            of=len(partitions),
            bounds=origin.bounds,
            fences=origin.fences,
            way=way,
            ways=ways,
            memory_bytes=config.memory_bytes // max(1, config.cores),
            patience_ms=config.stream.patience_ms,
            expire_ms=physical_ttl_ms(view, config.stream.retention_ms),
        )
        for share, own in shares
        for way in range(ways)
    ]


# --- catching up ----------------------------------------------------------------------------


async def wait_caught_up(
    config: StreamConfig,
    views: Sequence[ViewPlan],
    store: AsyncRowStore,
    note: Note,
    timeout_s: float,
) -> None:
    """Return once each generation has all that the stream has, in every partition.

    Raises StreamError once nothing has moved for `timeout_s`: no worker takes them up then; and for
    one that lacks what no log holds any more.
    """
    for view in views:
        moved_s, best = time.monotonic(), -1
        while True:
            lacks = await lacking(config, view, store)
            left = sum(max(0, end - at) for at, end in lacks.values())
            ready = sum(at >= end for at, end in lacks.values())
            await _require_whole(config, view, store)
            note(f"catch up {view.name}", ready, len(lacks), f"{left:,} messages to go")
            if ready == len(lacks):
                break
            reached = sum(at for at, _ in lacks.values())
            if reached > best:
                moved_s, best = time.monotonic(), reached
            if time.monotonic() - moved_s > timeout_s:
                raise StreamError(
                    f"{view.name}@{view.generation}",
                    required="workers that catch it up",
                    got=f"{left} messages to go, and none for {timeout_s:g} s",
                    do="see that `encore stream` and `encore items` run, then run this again",
                )
            await asyncio.sleep(LOOK_S)


async def _require_whole(config: StreamConfig, view: ViewPlan, store: AsyncRowStore) -> None:
    """A gap is recorded before the position behind it: it is to be looked for afterwards."""
    readers = {"user": (config.topic, config.group), "item": (config.item_topic, config.item_group)}
    gaps = await recorded_gaps(store, readers[view.entity], view)
    if gaps:
        partition, each = min(gaps.items())
        raise StreamError(
            f"{view.name}@{view.generation}",
            required="a log that holds what it has to catch up",
            got=f"none with {each[0]} of partition {partition}",
            do="give it up with `encore backfill --cancel`, and begin again",
        )


async def lacking(
    config: StreamConfig, view: ViewPlan, store: AsyncRowStore
) -> dict[int, tuple[int, int]]:
    """Partition → (up to where the generation is folded, up to where the stream is).

    The stream's positions are read first: a generation that has arrived is never behind them.
    """
    if view.entity == "item":
        return await _lacking_items(config, view, store)
    group = await store.get_progress(config.topic, config.group)
    name = generation_group(config.group, view.name, view.generation)
    own = await store.get_progress(config.topic, name)
    floors = await recorded_floors(store, config.topic, config.group, view)
    found: dict[int, tuple[int, int]] = {}
    for partition, (epoch, floor) in floors.items():
        end, at = group.get(partition), own.get(partition)
        reached = at.next_offset if at is not None and at.epoch == epoch else floor
        stands = (end.epoch, end.next_offset) if end is not None else (0, 0)
        found[partition] = reached, _end(view, stands, epoch)
    return found


async def _lacking_items(
    config: StreamConfig, view: ViewPlan, store: AsyncRowStore
) -> dict[int, tuple[int, int]]:
    topic, group, patience_ms = config.item_topic, config.item_group, config.patience_ms
    name = generation_group(group, view.name, view.generation)
    found: dict[int, tuple[int, int]] = {}
    for partition in range(config.partitions):
        pair = await PairStore(store, topic, group, patience_ms).load(partition)
        own = await PairStore(store, topic, name, patience_ms).load(partition)
        end = _end(view, (pair.epoch, pair.next_offset), own.epoch)
        # A pair names what is caught up; where there is none yet, nothing was folded at all.
        named = view.key in pair.folded or pair.version == 0
        found[partition] = (end if named else min(own.next_offset, end - 1)), end
    return found


def _end(view: ViewPlan, stands: tuple[int, int], epoch: int) -> int:
    """Where the stream stands in the log of the floors, whose number is `epoch`."""
    if stands[0] > epoch:
        raise StreamError(
            f"{view.name}@{view.generation}",
            required=f"the log of its floors (epoch {epoch})",
            got=f"epoch {stands[0]}: the broker lost that log before the generation had caught up",
            do="give it up with `encore backfill --cancel`, and begin again",
        )
    return stands[1] if stands[0] == epoch else 0
