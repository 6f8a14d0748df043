"""The history of a topic: which files hold it, and what the archive lacks read from the log.

    <data_dir>/archive/<topic>/topic_id=…/      every log there was; the present one up to its end,
                                                and in `_topic` which topic's it is, in
                                                `_partitions` of how many
    <data_dir>/backfill/<name>/log/partition=…  what only the log holds yet, while a backfill runs

An earlier log of the topic is history as a whole. Of the present one each partition is needed up to
some offset: what the archive does not hold of it is read from the log itself, so nobody waits for
the sink, and a topic that was never archived can be filled from as long as it holds its messages.

Earlier logs come in the order in which the stream reads them, on which deletions depend: topic
after topic, though apps write to the next one while the last is still read, and of each topic log
after log.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from schemas.errors import NotHeldError, StreamError
from schemas.names import topic_number
from streams.action_table import action_table
from streams.archive import (
    OffsetFile,
    list_files,
    next_offset,
    partition_dir,
    partitions_of_log,
    topic_of_log,
    write_file,
)
from streams.history import WHOLE, HistoryFile
from streams.log_reader import LogReader, first_held
from streams.losses import Loss
from streams.messages import ActionRun, decode_records, join_runs
from streams.origins import Log

FILE_ACTIONS: Final = 200_000


@dataclass(slots=True)
class Collected:
    """files: {partition of the source log: what may hold actions of its users}. missing:
    {partition: offsets before the archive began that neither it nor the log holds}. read: messages
    that only the log held. lost: what else nobody holds; accepted."""

    files: dict[int, list[HistoryFile]] = field(default_factory=dict)
    missing: dict[int, int] = field(default_factory=dict)
    read: int = 0
    lost: set[Loss] = field(default_factory=set)

    @property
    def messages_missing(self) -> int:
        """How many messages of the partitions' logs nobody holds."""
        return sum(self.missing.values()) + sum(loss.messages for loss in self.lost)


@dataclass(frozen=True, slots=True)
class Rest:
    """How what the archive lacks is read. aside: a directory for it; emptied first. accept_loss: go
    on without what neither archive nor log holds, and count it."""

    reader: LogReader
    aside: Path
    accept_loss: bool = False

    def kept(
        self, log: Log, partition: int, files: Sequence[OffsetFile], found: Collected
    ) -> list[OffsetFile]:
        """The files that hold what they are named by. What others say is lost goes into `found`.
        Raises StreamError unless that is accepted."""
        for file in files:
            if file.lost:
                loss = Loss(log.topic, log.topic_id, partition, file.first, file.last + 1)
                self.lose(loss, found, "which the archive should hold", "a file that says: lost")
        return [file for file in files if not file.lost]

    def lose(self, loss: Loss, found: Collected, lacks: str, got: str) -> None:
        """Go on without. Raises StreamError unless that is accepted."""
        if not self.accept_loss:
            raise StreamError(
                f"history of {loss.topic}/{loss.partition}",
                required=f"{loss}, {lacks}",
                got=got,
                do="bring the archive of the machine whose `encore sink` has them, or go on"
                " without: `encore backfill` or `encore rebuild` again, with --accept-loss",
            )
        found.lost.add(loss)


@dataclass(frozen=True, slots=True)
class Before:
    """A topic that has ended, whose log is still there. ends: of its partitions."""

    log: Log
    ends: Mapping[int, int]


async def collect(
    root: Path,
    log: Log,
    needed: Mapping[int, int],
    rest: Rest,
    ended: Sequence[Before] = (),
) -> Collected:
    """The history of `log.topic` up to the offsets `needed` of its present log.

    root: the topic's archive. needed: one offset for each partition. ended: the topics before,
    where the broker still has them. Raises StreamError for an archive with holes, or a part behind
    its end that the log does not hold.
    """
    shutil.rmtree(rest.aside, ignore_errors=True)
    found = Collected()
    moved = topic_number(log.topic) > 1 or _otherwise_parted(root, log, len(needed))
    every = await _all_earlier(root, log, rest, found, ended) if moved else []
    reading = _Reading(rest, rest.aside, log, len(needed), found)
    for partition, before in sorted(needed.items()):
        own = [] if moved else _wholes(log, _earlier(root, log, partition), rest, found)
        present = await _present(root, reading, partition, before)
        found.files[partition] = [*every, *own, *present]
    return found


def _otherwise_parted(root: Path, log: Log, partitions: int) -> bool:
    """Whether any partition of an earlier log may hold actions of any user: it had another count of
    them, or nobody said which. A store that was wiped does not know of moves to other topics, and a
    broker set up anew may have been given another count."""
    logs = {path.name.partition("=")[2] for path in root.glob("topic_id=*")} - {log.topic_id}
    return any(partitions_of_log(root, each) != partitions for each in logs)


async def _all_earlier(
    root: Path, log: Log, rest: Rest, found: Collected, ended: Sequence[Before]
) -> list[HistoryFile]:
    """All of all other logs, in the order in which the stream reads them."""
    ends = {each.log.topic_id: each for each in ended}
    held = {path.name.partition("=")[2]: path for path in root.glob("topic_id=*")}
    files: list[HistoryFile] = []
    order = {each: _order(root, log, each, ends) for each in {*held, *ends} - {log.topic_id}}
    for topic_id in sorted(order, key=lambda each: order[each]):
        directories = sorted(held[topic_id].glob("partition=*")) if topic_id in held else []
        files += _wholes(log, directories, rest, found)
        if topic_id in ends:
            files += await _ended(root, ends[topic_id], rest, found)
    return files


def _order(
    root: Path, log: Log, topic_id: str, ends: Mapping[str, Before]
) -> tuple[int, bool, int, str]:
    """Sorts logs as they are read. One that nobody named is of an archive that is older than the
    names, or was brought without: before all others, as it began. The log with a topic's end is
    that topic's last. Where `log` is of the first topic, later ones are from before the store was
    wiped: all as they began."""
    if topic_id in ends:
        return topic_number(ends[topic_id].log.topic), True, 0, topic_id
    begun = map(_begun_ms, (root / f"topic_id={topic_id}").glob("partition=*"))
    first_ms = min((at for at in begun if at), default=0)  # those without a message tell nothing
    topic = None if topic_number(log.topic) == 1 else topic_of_log(root, topic_id)
    return 0 if topic is None else topic_number(topic), False, first_ms, topic_id


def _wholes(
    log: Log, directories: Sequence[Path], rest: Rest, found: Collected
) -> list[HistoryFile]:
    """The files of other logs' partitions."""
    return [
        _whole(file)
        for directory in directories
        for file in rest.kept(*_place(log, directory), list_files(directory), found)
    ]


async def _ended(root: Path, topic: Before, rest: Rest, found: Collected) -> list[HistoryFile]:
    """What the archive does not hold of a topic that has ended, up to its ends."""
    reading = _Reading(rest, rest.aside / topic.log.topic, topic.log, len(topic.ends), found)
    files: list[HistoryFile] = []
    for partition, end in sorted(topic.ends.items()):
        held = list_files(partition_dir(root, topic.log.topic_id, partition))
        tail = await reading.tail(partition, next_offset(held) or 0, end)
        files += [replace(file, log_partition=WHOLE) for file in tail]
    return files


def _place(log: Log, directory: Path) -> tuple[Log, int]:
    """The log and partition that a directory of the archive is of. log: of the same topic."""
    topic_id, partition = (each.partition("=")[2] for each in directory.parts[-2:])
    return replace(log, topic_id=topic_id), int(partition)


def _earlier(root: Path, log: Log, partition: int) -> list[Path]:
    """That partition's directories of other logs, oldest first."""
    logs = [path.name.partition("=")[2] for path in sorted(root.glob("topic_id=*"))]
    held = [partition_dir(root, each, partition) for each in logs if each != log.topic_id]
    return sorted((path for path in held if list_files(path)), key=_begun_ms)


def _begun_ms(directory: Path) -> int:
    """When the first message of an archived partition was sent, ms; 0 where it holds none."""
    for file in list_files(directory):
        sent = pq.read_table(file.path, columns=["sent_ms"]).column(0)
        if len(sent):
            return int(sent[0].as_py())
    return 0


@dataclass(frozen=True, slots=True)
class _Reading:
    """Of one topic. of: its partition count."""

    rest: Rest
    aside: Path
    log: Log
    of: int
    found: Collected

    async def tail(self, partition: int, end: int, before: int) -> list[HistoryFile]:
        """Offsets [end, before), which lie behind the archive's end. Raises StreamError where the
        log does not hold some of them, unless the loss is accepted."""

        def lose(first: int, after: int) -> None:
            got = f"a log that begins at {after}" if after < before else "a log without them"
            loss = Loss(self.log.topic, self.log.topic_id, partition, first, after)
            self.rest.lose(loss, self.found, "which the archive ends before", got)

        return await self.files(partition, end, before, lose)

    async def files(
        self, partition: int, first: int, before: int, lose: Callable[[int, int], None]
    ) -> list[HistoryFile]:
        """Offsets [first, before) of a partition, from the log into files of their own. lose: told
        of each span [first, next) that the log does not hold."""
        files: list[HistoryFile] = []
        at = first
        while at < before:
            held, at = await self._held(partition, at, before)
            files += held
            if at < before:
                topic = self.log.topic
                after = await first_held(self.rest.reader, topic, partition, before, at)
                lose(at, after)
                at = after
        return files

    async def _held(self, partition: int, first: int, before: int) -> tuple[list[HistoryFile], int]:
        """Files of what the log holds from `first` on, and the offset up to which it does."""
        files: list[HistoryFile] = []
        runs: list[ActionRun] = []
        at = begun = first
        ends = False
        while at < before and not ends:
            try:
                records = await self.rest.reader.read(self.log.topic, partition, at, before)
            except NotHeldError:
                ends = True
            else:
                runs.append(decode_records(records, self.of)[0])
                self.found.read += len(records)
                at = int(records[-1].offset) + 1
            ends = ends or at == before
            if runs and (ends or sum(len(run) for run in runs) >= FILE_ACTIONS):
                run = join_runs(runs)
                target = self.aside / f"partition={partition}"
                path = write_file(target, begun, at - 1, action_table(run))
                files.append(HistoryFile(str(path), len(run), partition))
                runs, begun = [], at
        return files, at


async def _present(root: Path, reading: _Reading, partition: int, before: int) -> list[HistoryFile]:
    """The files of the present log's [0, before), gaps read from the log."""
    held = list_files(partition_dir(root, reading.log.topic_id, partition))
    end = next_offset(held) or 0
    found, begins = reading.found, min(held[0].first, before) if held else 0

    def miss(first: int, after: int) -> None:  # before the archive began, no longer in the log
        found.missing[partition] = found.missing.get(partition, 0) + after - first

    head = await reading.files(partition, 0, begins, miss)
    below = [replace(f, last=min(f.last, before - 1)) for f in held if f.first < before]
    kept = reading.rest.kept(reading.log, partition, below, found)
    files = [_of_log(file, partition) for file in kept]
    return [*head, *files, *await reading.tail(partition, end, before)]


def _whole(file: OffsetFile) -> HistoryFile:
    return HistoryFile(str(file.path), pq.read_metadata(file.path).num_rows, WHOLE)


def _of_log(file: OffsetFile, partition: int) -> HistoryFile:
    return HistoryFile(str(file.path), pq.read_metadata(file.path).num_rows, partition)
