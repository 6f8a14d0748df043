"""Where a generation that is filled begins: its floors, and what of the source log lies below them.

Whoever fills chooses the floors, before any row is written: the positions at which the stream
stands. They are recorded once, so a filling that is run again fills up to the same places.

A user view's floor in a partition is an offset of the log that is archived, and all below it is
history. An item view's floor is an offset of the re-keyed log, and the source table that was saved
with that position says which offsets of the source log lie below it: so items are filled from the
same archive as users, and what was re-keyed twice does not matter.

Symbols: P partitions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from schemas.errors import StreamError
from schemas.names import generation_group
from schemas.plan import ViewPlan
from store.base import AsyncRowStore
from streams.admin import TopicFacts
from streams.config import StreamConfig
from streams.ends import Partition
from streams.generations import record_floors
from streams.log_reader import LogReader, is_held
from streams.servers import TopicAdmin
from streams.source import Source
from streams.source_table import Pair, PairStore, SourceTable

PAUSE_MS: Final = 100
_AGAIN: Final = "give it up with `encore backfill --cancel`, and begin again"


#: {(topic, partition): where to look} → the offset after the last record of each.
ReadEnds = Callable[[Mapping[Partition, int]], Awaitable[Mapping[Partition, int]]]


@dataclass(frozen=True, slots=True)
class Log:
    """The present log of a topic. epoch: the store's number of it."""

    topic: str
    topic_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Origin:
    """fences: {partition of the view's topic: (epoch, offset before the floor)}. bounds: {the same:
    {partition of the source log: the first offset that is not below the floor}}."""

    fences: dict[int, tuple[int, int]]
    bounds: dict[int, dict[int, int]]


async def log_of(
    store: AsyncRowStore, admin: TopicAdmin, facts: TopicFacts, patience_ms: int
) -> Log:
    """The log that is there now. Raises StoreError, StreamError."""
    source = await Source.open(admin, facts, store, patience_ms)
    return Log(source.topic, source.topic_id, source.epoch)


async def user_origin(
    store: AsyncRowStore,
    config: StreamConfig,
    view: ViewPlan,
    source: Log,
    beyond: Mapping[int, int] | None = None,
) -> Origin:
    """Floors at the marks of the worker's group; in some partitions `beyond` (`beyond_holes`).
    Raises StoreError, StreamError."""
    marks = await store.get_progress(config.topic, config.group)
    stands = {p: marks[p].next_offset for p in marks if _here(marks[p], source)}
    stands |= beyond or {}
    wanted = {p: (source.epoch, stands.get(p, 0)) for p in range(config.partitions)}
    floors = await _record(store, (config.topic, config.group), view, wanted, source)
    return Origin(_fences(floors), {p: {p: at} for p, (_, at) in floors.items()})


async def beyond_holes(
    store: AsyncRowStore,
    config: StreamConfig,
    source: Log,
    reader: LogReader,
    read_ends: ReadEnds,
) -> dict[int, int]:
    """Partitions whose log does not hold what the worker reads next → where they end now.

    Only the archive has what lies in between, so a generation is filled up to there, and a worker
    that folds no other goes on from there. Raises StoreError, StreamError.
    """
    marks = await store.get_progress(config.topic, config.group)
    stands = {(config.topic, p): m.next_offset for p, m in marks.items() if _here(m, source)}
    ends, found = await read_ends(stands), dict[int, int]()
    for (topic, partition), at in stands.items():
        end = ends[topic, partition]
        if at < end and not await is_held(reader, topic, partition, at):
            found[partition] = end
    return found


async def item_origin(
    store: AsyncRowStore,
    config: StreamConfig,
    view: ViewPlan,
    logs: tuple[Log, Log],
    beyond: Mapping[int, Mapping[int, int]] | None = None,
) -> Origin:
    """Floors at the saved pairs of the item worker. logs: source, re-keyed. The pair of each floor
    is kept for the generation: catching up goes on from it. beyond: of source partitions with a
    hole, up to where all lies below a floor (`streams.item_holes`). Raises StoreError, StreamError.
    """
    source, target = logs
    topic, group = config.item_topic, config.item_group
    own = generation_group(group, view.name, view.generation)
    ours = PairStore(store, topic, own, config.patience_ms)
    theirs = PairStore(store, topic, group, config.patience_ms)
    pairs: dict[int, Pair] = {}
    for partition in range(config.partitions):
        pair = await ours.load(partition)
        if pair.version == 0:
            held = await _not_ahead(theirs, config, partition, target)
            pair = _start(held, source, target)
            for log_partition, at in (beyond or {}).get(partition, {}).items():
                pair.table.raise_to(log_partition, source.epoch, at)
            await ours.save(partition, pair)
        _check_begun(view, pair, source)
        pairs[partition] = pair
    wanted = {p: (pair.epoch, pair.next_offset) for p, pair in pairs.items()}
    floors = await _record(store, (topic, group), view, wanted, target)
    bounds = {
        p: {
            log_partition: at
            for log_partition, (epoch, at) in pair.table.reached.items()
            if epoch == source.epoch
        }
        for p, pair in pairs.items()
    }
    return Origin(_fences(floors), bounds)


async def wait_for_lost_log(
    store: AsyncRowStore, config: StreamConfig, logs: tuple[Log, Log], read_ends: ReadEnds
) -> None:
    """Return once the item worker has folded all that was re-keyed of a lost log of the source.

    logs: source, re-keyed. A lost log is history as a whole, so what of it lies behind a floor of
    the re-keyed topic would count twice. Nothing is asked where the present log is the first.
    Raises StreamError where the item worker does not get there within `patience_ms`.
    """
    source, target = logs
    pairs = PairStore(store, config.item_topic, config.item_group, config.patience_ms)
    starts: dict[Partition, int] = {}
    for partition in range(config.partitions):
        pair = await pairs.load(partition)
        starts[config.item_topic, partition] = pair.standing(target.epoch)
    ends = await read_ends(starts) if source.epoch > 1 else {}
    waited_ms = 0
    for (topic, partition), end in ends.items():
        while (at := (await pairs.load(partition)).standing(target.epoch)) < end:
            if waited_ms >= config.patience_ms:
                raise StreamError(
                    f"{topic}/{partition}",
                    required=f"all folded up to {end}: the broker lost a log of {source.topic}, "
                    "and what was re-keyed of it would count twice",
                    got=f"{at}, {waited_ms} ms later",
                    do="see that `encore items` runs, then run this again",
                )
            await asyncio.sleep(PAUSE_MS / 1000)
            waited_ms += PAUSE_MS


async def _not_ahead(pairs: PairStore, config: StreamConfig, partition: int, target: Log) -> Pair:
    """The pair, once no rows may be ahead of it: what a lost log of the re-keyed topic had beyond
    is in its table then (`streams.refolding`), and does not come to the new generation otherwise.

    Raises StreamError where the item worker does not get there within `patience_ms`.
    """
    waited_ms = 0
    while (pair := await pairs.load(partition)).ahead and pair.epoch != target.epoch:
        if waited_ms >= config.patience_ms:
            raise StreamError(
                f"{config.item_topic}/{partition}",
                required="an item worker that went on after the broker lost a log of this topic",
                got=f"none, {waited_ms} ms later",
                do="see that `encore items` runs, then run this again",
            )
        await asyncio.sleep(PAUSE_MS / 1000)
        waited_ms += PAUSE_MS
    return pair


def _here(mark: object, log: Log) -> bool:
    return getattr(mark, "epoch", 0) == log.epoch


def _start(pair: Pair, source: Log, target: Log) -> Pair:
    """A pair of the generation's own: where the re-keyed log is another, its beginning."""
    table, at = SourceTable(dict(pair.table.reached)), pair.standing(target.epoch)
    return Pair(target.epoch, at, table, 0, source_epoch=source.epoch)


def _check_begun(view: ViewPlan, pair: Pair, source: Log) -> None:
    """Raises StreamError where an earlier log of the source was there when the filling began: now
    that log is history as a whole, and what was re-keyed of it behind the pair would count twice.
    """
    if pair.source_epoch != source.epoch:
        raise StreamError(
            f"filling of {view.name}@{view.generation}",
            required=f"the log of {source.topic} that it began with (epoch {pair.source_epoch})",
            got=f"epoch {source.epoch}: the broker lost that log",
            do=_AGAIN,
        )


def _fences(floors: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    return {p: (epoch, offset - 1) for p, (epoch, offset) in floors.items()}


async def _record(
    store: AsyncRowStore,
    reader: tuple[str, str],
    view: ViewPlan,
    wanted: dict[int, tuple[int, int]],
    log: Log,
) -> dict[int, tuple[int, int]]:
    """The recorded floors. Raises StreamError where they are of a log that is gone."""
    floors = await record_floors(store, *reader, view, wanted)
    gone = sorted(p for p, (epoch, _) in floors.items() if epoch != log.epoch)
    if gone:
        raise StreamError(
            f"floors of {view.name}@{view.generation}",
            required=f"offsets of the present log of {log.topic} (epoch {log.epoch})",
            got=f"epoch {floors[gone[0]][0]} in partition {gone[0]}: the broker lost that log",
            do=_AGAIN,
        )
    return floors
