"""How far every stream is: by group, topic and partition.

Ends are high watermarks of a fetch (`streams.ends`), positions the store's marks, owner and counts
what a process tells of itself (`streams.heartbeat`). A mark of another log than the present one
counts as none: the worker will begin that log at its first record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from schemas.errors import StreamError
from schemas.names import dead_letter_topic, late_topic, root_topic, worker_key
from schemas.spool import SEGMENT_SUFFIX
from store.base import AsyncRowStore, Progress
from streams.admin import Admin, TopicFacts
from streams.config import StreamConfig
from streams.ends import Partition, read_ends
from streams.gaps import Lack, known_gaps
from streams.heartbeat import FRESH_MS, Counts, parse_beat
from streams.losses import Accepted, accepted_losses
from streams.moving import Ended, config_of, items_done, read_succession, users_done
from streams.rekey import rekey_group
from streams.ship import shipped_to, worker_directories
from streams.source_table import PairStore

POLL_S: Final = 0.2
PATIENCE_MS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Line:
    """One partition of a topic, for one group.

    does: rows, re-keying, item rows or archive. stored: the first offset that is not stored yet.
    end: the offset after the last record. epoch: the store's number of the topic's present log.
    watermark_ms: event time that is stored, 0 where nothing is. owner, rate (actions a second, of
    the archive rows) and counts: empty or zero where no process told lately.
    """

    does: str
    group: str
    topic: str
    partition: int
    stored: int
    end: int
    epoch: int
    watermark_ms: int
    owner: str = ""
    rate: float = 0.0
    counts: Counts = field(default_factory=Counts)

    @property
    def lag(self) -> int:
        """Messages that are not stored yet."""
        return max(0, self.end - self.stored)


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """lines: of the topics that exist. aside: messages in each dead-letter and late topic.
    unshipped_bytes: of the rank log in this machine's spool that are not in Kafka yet. lacks: what
    generations that are folded now lack for good. accepted: what they and this machine's archive
    are without, by --accept-loss."""

    lines: tuple[Line, ...]
    aside: dict[str, int]
    unshipped_bytes: int
    lacks: tuple[Lack, ...] = ()
    accepted: tuple[Accepted, ...] = ()

    @property
    def lag(self) -> int:
        """Messages that some group has not stored yet, all together."""
        return sum(line.lag for line in self.lines)


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer whose positions are known."""

    does: str
    name: str
    topic: TopicFacts
    epoch: int
    marks: Mapping[int, Progress]


async def read_status(config: StreamConfig, store: AsyncRowStore, now_ms: int) -> StreamStatus:
    """Everything, in three round trips to the broker and a few to the store.

    now_ms: what told before `now_ms - FRESH_MS` is taken for gone. Raises StreamError, StoreError.
    """
    read = await _read_now(config, store)
    facts, groups, last = dict[str, TopicFacts](), list[Group](), dict[Partition, int]()
    for each, stops in read:
        found = await asyncio.to_thread(_facts, each)
        groups += await _groups(each, store, found, with_ranks=each is read[-1][0])
        last |= {(each.topic, partition): at for partition, at in stops.items()}
        facts |= found
    starts: dict[Partition, int] = {}
    for group in groups:
        for partition in range(group.topic.partitions):
            place, at = (group.topic.name, partition), _stored(group, partition)
            starts[place] = max(starts.get(place, 0), at)
    aside = [name for name in _aside(config) if name in facts]
    ends = await read_ends(config.bootstrap, starts | {(name, 0): 0 for name in aside})
    ends |= {place: min(at, ends[place]) for place, at in last.items() if place in ends}
    lines = [
        await _line(store, group, partition, ends, now_ms)
        for group in groups
        for partition in range(group.topic.partitions)
    ]
    counts = {name: ends[name, 0] for name in aside}
    lacks = [lack for each, _ in read for lack in await known_gaps(store, each)]
    spools = (config.spool, *worker_directories(config.spool))
    accepted = await accepted_losses(store, _archives(config))
    unshipped = sum(map(unshipped_bytes, spools))
    return StreamStatus(tuple(lines), counts, unshipped, tuple(lacks), accepted)


async def wait_settled(
    config: StreamConfig, store: AsyncRowStore, now_ms: int, timeout_s: float
) -> StreamStatus:
    """The status once nothing lags and the spool is empty; other processes go on meanwhile.

    Raises StreamError where something lags after timeout_s.
    """
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while True:
        status = await read_status(config, store, now_ms)
        if not status.lag and not status.unshipped_bytes:
            return status
        if asyncio.get_running_loop().time() >= deadline_s:
            behind = [
                f"{line.does} of {line.topic}/{line.partition} {line.lag}"
                for line in status.lines
                if line.lag
            ]
            raise StreamError(
                "stream.status",
                required=f"nothing that lags within {timeout_s:g} s",
                got=", ".join([*behind, f"{status.unshipped_bytes} bytes in the spool"]),
                do="look whether each process runs: `encore stream status`",
            )
        await asyncio.sleep(POLL_S)


def unshipped_bytes(spool: Path) -> int:
    """The bytes of a spool directory's segments that lie behind the shipper's position."""
    position = shipped_to(spool)
    sizes = {
        int(path.stem): path.stat().st_size
        for path in spool.glob(f"*{SEGMENT_SUFFIX}")
        if path.stem.isdigit()
    }
    behind = [size for number, size in sizes.items() if number > position.sequence]
    return sum(behind) + max(0, sizes.get(position.sequence, 0) - position.byte)


def _facts(config: StreamConfig) -> dict[str, TopicFacts]:
    with Admin(config.bootstrap) as admin:
        found = [admin.describe(name) for name in config.topics]
    return {facts.name: facts for facts in found if facts is not None and facts.partitions}


def _archives(config: StreamConfig) -> list[tuple[str, Path]]:
    names = [root_topic(name) for name in (config.topic, config.item_topic)]
    found = [(name, config.archive_dir / name) for name in names]
    return [*found, (config.rank_topic, config.archive_dir / config.rank_topic / "requests")]


def _aside(config: StreamConfig) -> list[str]:
    topics = (config.topic, config.item_topic)
    names = [name(topic) for topic in topics for name in (dead_letter_topic, late_topic)]
    return [*names, dead_letter_topic(config.rank_topic)]


async def _read_now(
    config: StreamConfig, store: AsyncRowStore
) -> list[tuple[StreamConfig, Mapping[int, int]]]:
    """The topics that somebody still reads, oldest first, and where those end that have ended."""
    found = await read_succession(store, config)
    read: list[tuple[StreamConfig, Mapping[int, int]]] = []
    for number, life in enumerate(found.open, 1):
        here = config_of(config, found, number)
        if life.end is None or not life.ended:
            read.append((here, {}))
            continue
        ended = Ended(here, life.end, lost=False)
        marks = await store.get_progress(here.topic, here.archive_group)
        archived = all(
            p in marks and marks[p].next_offset >= at for p, at in life.end.offsets.items()
        )
        if not (archived and await users_done(store, ended) and await items_done(store, ended)):
            read.append((here, life.end.offsets))
    return read


async def _groups(
    config: StreamConfig,
    store: AsyncRowStore,
    facts: Mapping[str, TopicFacts],
    with_ranks: bool = True,
) -> list[Group]:
    epochs = {
        name: await store.epoch_of(root_topic(name), each.topic_id) for name, each in facts.items()
    }
    wanted = [("rows", config.topic, config.group)]
    if config.item_topic in epochs:
        rekeying = rekey_group(config.item_group, epochs[config.item_topic])
        wanted += [("re-keying", config.topic, rekeying)]
        wanted += [("item rows", config.item_topic, config.item_group)]
    topics = (config.topic, config.item_topic, *((config.rank_topic,) if with_ranks else ()))
    wanted += [("archive", topic, config.archive_group) for topic in topics]
    groups = []
    for does, topic, name in wanted:
        if topic in facts:
            if does == "item rows":
                marks = await _pairs(store, facts[topic], name)
            else:
                marks = await store.get_progress(topic, name)
            groups.append(Group(does, name, facts[topic], epochs[topic], marks))
    return groups


async def _pairs(store: AsyncRowStore, facts: TopicFacts, group: str) -> dict[int, Progress]:
    pairs = PairStore(store, facts.name, group, PATIENCE_MS)
    loaded = {partition: await pairs.load(partition) for partition in range(facts.partitions)}
    return {
        p: Progress(pair.epoch, pair.next_offset, pair.table.watermark_ms)
        for p, pair in loaded.items()
    }


def _stored(group: Group, partition: int) -> int:
    mark = group.marks.get(partition)
    return mark.next_offset if mark is not None and mark.epoch == group.epoch else 0


async def _line(
    store: AsyncRowStore,
    group: Group,
    partition: int,
    ends: Mapping[Partition, int],
    now_ms: int,
) -> Line:
    name, mark = group.topic.name, group.marks.get(partition)
    current = mark is not None and mark.epoch == group.epoch
    beat = parse_beat(await store.get_text(worker_key(name, group.name, partition)))
    # Told in the future: by a process that ended before the clock was set back, or another clock.
    fresh = beat is not None and abs(now_ms - beat.at_ms) < FRESH_MS
    return Line(
        group.does,
        group.name,
        name,
        partition,
        _stored(group, partition),
        ends[name, partition],
        group.epoch,
        mark.watermark_ms if mark is not None and current else 0,
        beat.owner if beat is not None and fresh else "",
        beat.rate if beat is not None and fresh else 0.0,
        beat.counts if beat is not None else Counts(),
    )
