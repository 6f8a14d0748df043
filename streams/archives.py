"""What the sink keeps of each topic: how its records are read, and how a range becomes a file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from aiokafka.structs import ConsumerRecord

from schemas.errors import EncoreError, PlanError, RecordError
from schemas.names import PLAN_KEY
from schemas.plan import Plan, dump_plan, load_plan
from schemas.ranklog import RankRecord, decode_record
from store.base import AsyncRowStore
from streams.action_table import ACTION_SCHEMA, REKEYED_SCHEMA, action_table, rekeyed_table
from streams.archive import (
    list_files,
    name_log,
    next_offset,
    partition_dir,
    remove_unfinished,
    write_file,
    write_text,
)
from streams.item_messages import RekeyedMessage, decode_rekeyed_records, run_of
from streams.messages import ActionRun, DeadLetter, decode_records, join_runs, source_of
from streams.rank_tables import ServiceColumns, candidate_table, request_table

log = logging.getLogger("encore.streams")


@dataclass(frozen=True, slots=True)
class Held:
    """Decoded records of consecutive offsets of one partition.

    kind: only parts of one kind go into one file; "" for a part without content. rows: how many
    they add to the file. time_ms: the newest.
    """

    kind: str
    first: int
    last: int
    rows: int
    time_ms: int
    content: Any


class TopicArchive(Protocol):
    """The archive of one log of one topic."""

    def end(self, partition: int) -> int | None:
        """The offset after the last archived one, None where nothing is. Raises StreamError."""
        ...

    async def take(self, records: Sequence[ConsumerRecord]) -> tuple[list[Held], list[DeadLetter]]:
        """Decode records of one partition; the parts cover all their offsets, refused or not."""
        ...

    def write(self, partition: int, parts: Sequence[Held]) -> None:
        """Make parts of one kind and consecutive offsets durable. Blocking."""
        ...

    def lose(self, partition: int, first: int, last: int) -> None:
        """Say durably that these offsets, both inclusive, were gone before they came. Blocking."""
        ...


class ActionArchive:
    """Actions, one row each. Refused messages are the worker's to dead-letter.

    Each log is named by its topic before it has files: logs of earlier topics are earlier history.
    """

    def __init__(self, root: Path, log: tuple[str, str], partitions: int) -> None:
        """log: name and id of the topic."""
        self._root, (self._topic, self._topic_id), self._partitions = root, log, partitions
        remove_unfinished(root)

    def end(self, partition: int) -> int | None:
        """As `TopicArchive.end`."""
        return next_offset(list_files(partition_dir(self._root, self._topic_id, partition)))

    async def take(self, records: Sequence[ConsumerRecord]) -> tuple[list[Held], list[DeadLetter]]:
        """As `TopicArchive.take`."""
        run, refused = decode_records(records, self._partitions)
        for letter in refused:
            log.info("not archived: %s", letter.error)
        newest = int(run.sent_ms.max()) if len(run) else 0
        span = records[0].offset, records[-1].offset
        return [Held("actions", *span, len(run), newest, run)], []

    def write(self, partition: int, parts: Sequence[Held]) -> None:
        """As `TopicArchive.write`."""
        runs: list[ActionRun] = [part.content for part in parts]
        directory = self._directory(partition)
        write_file(directory, parts[0].first, parts[-1].last, action_table(join_runs(runs)))

    def lose(self, partition: int, first: int, last: int) -> None:
        """As `TopicArchive.lose`."""
        directory = self._directory(partition)
        write_file(directory, first, last, ACTION_SCHEMA.empty_table(), lost=True)

    def _directory(self, partition: int) -> Path:
        name_log(self._root, self._topic_id, self._topic, self._partitions)
        return partition_dir(self._root, self._topic_id, partition)


class RekeyedArchive:
    """Re-keyed actions as they lie in the log: some may be in it twice, the columns source_* tell.

    Refused messages are the item worker's to dead-letter.
    """

    def __init__(self, root: Path, topic_id: str, partitions: int) -> None:
        self._root, self._topic_id, self._partitions = root, topic_id, partitions
        remove_unfinished(root)

    def end(self, partition: int) -> int | None:
        """As `TopicArchive.end`."""
        return next_offset(list_files(partition_dir(self._root, self._topic_id, partition)))

    async def take(self, records: Sequence[ConsumerRecord]) -> tuple[list[Held], list[DeadLetter]]:
        """As `TopicArchive.take`."""
        messages, refused = decode_rekeyed_records(records, self._partitions, self._topic_id)
        for letter in refused:
            log.info("not archived: %s", letter.error)
        rows = sum(len(message.batch.actions) for message in messages)
        newest = max((message.batch.sent_ms for message in messages), default=0)
        span = records[0].offset, records[-1].offset
        return [Held("actions", *span, rows, newest, messages)], []

    def write(self, partition: int, parts: Sequence[Held]) -> None:
        """As `TopicArchive.write`."""
        messages: list[RekeyedMessage] = [each for part in parts for each in part.content]
        every = [np.ones(len(message.batch.actions), bool) for message in messages]
        directory = partition_dir(self._root, self._topic_id, partition)
        table = rekeyed_table(run_of(partition, messages, every))
        write_file(directory, parts[0].first, parts[-1].last, table)

    def lose(self, partition: int, first: int, last: int) -> None:
        """As `TopicArchive.lose`."""
        directory = partition_dir(self._root, self._topic_id, partition)
        write_file(directory, first, last, REKEYED_SCHEMA.empty_table(), lost=True)


class RankArchive:
    """The rank log's two tables. The file of requests completes a range."""

    def __init__(self, root: Path, topic_id: str, store: AsyncRowStore) -> None:
        self._requests, self._candidates = root / "requests", root / "candidates"
        self._plans, self._topic_id, self._store = root / "plans", topic_id, store
        self._columns: dict[str, ServiceColumns] = {}
        remove_unfinished(root)

    def end(self, partition: int) -> int | None:
        """As `TopicArchive.end`; removes candidates whose requests were never written."""
        whole = list_files(partition_dir(self._requests, self._topic_id, partition))
        spans = {(file.first, file.last) for file in whole}
        for file in list_files(partition_dir(self._candidates, self._topic_id, partition)):
            if (file.first, file.last) not in spans:
                log.warning("removing %s: its requests were not written", file.path)
                file.path.unlink()
        return next_offset(whole)

    async def take(self, records: Sequence[ConsumerRecord]) -> tuple[list[Held], list[DeadLetter]]:
        """As `TopicArchive.take`; a part holds records of one fingerprint."""
        parts: list[Held] = []
        dead: list[DeadLetter] = []
        for record in records:
            offset = int(record.offset)
            try:
                part = await self._decode(record)
            except EncoreError as error:
                dead.append(DeadLetter(record, error))
                part = Held("", offset, offset, 0, 0, None)
            parts.append(part)
        return parts, dead

    async def _decode(self, record: ConsumerRecord) -> Held:
        where, offset = source_of(record), int(record.offset)
        if record.value is None:
            raise RecordError(where, required="a rank record", got="null")
        rank = decode_record(record.value, where)
        columns = await self._columns_of(f"{rank.service_fingerprint:016x}", where)
        columns.check(rank, where)
        rows = len(rank.fine_ids) + len(rank.coarse_only_ids)
        return Held(columns.service.fingerprint, offset, offset, rows, rank.now_ms, rank)

    def write(self, partition: int, parts: Sequence[Held]) -> None:
        """As `TopicArchive.write`."""
        first, last = parts[0].first, parts[-1].last
        kept = [part for part in parts if part.content is not None]
        if kept:
            columns = self._columns[kept[0].kind]
            records: list[RankRecord] = [part.content for part in kept]
            offsets = np.array([part.first for part in kept], np.int64)
            tables = (
                candidate_table(columns, records, offsets),
                request_table(columns, records, offsets),
            )
        else:
            tables = (_no_records(), _no_records())
        for root, table in zip((self._candidates, self._requests), tables, strict=True):
            write_file(partition_dir(root, self._topic_id, partition), first, last, table)

    def lose(self, partition: int, first: int, last: int) -> None:
        """As `TopicArchive.lose`."""
        for root in (self._candidates, self._requests):
            directory = partition_dir(root, self._topic_id, partition)
            write_file(directory, first, last, _no_records(), lost=True)

    # --- plans ------------------------------------------------------------------------------

    async def _columns_of(self, fingerprint: str, where: str) -> ServiceColumns:
        """From memory, else the published plan, else the plans kept from earlier runs."""
        if fingerprint not in self._columns:
            text = await self._store.get_text(PLAN_KEY)
            if text is not None:
                self._learn(load_plan(text, PLAN_KEY))
        kept = self._plans / f"{fingerprint}.json"
        if fingerprint not in self._columns and kept.is_file():
            self._learn(load_plan(kept.read_text(), str(kept)))
        try:
            return self._columns[fingerprint]
        except KeyError:
            raise PlanError(
                f"{where}.service_fingerprint",
                required="a service of the published plan, or of one seen before",
                got=fingerprint,
                do="the record is in the dead-letter topic; publish its plan and send it again",
            ) from None

    def _learn(self, plan: Plan) -> None:
        """Keep the plan of each service that is new: its records need it as long as they exist."""
        for service in plan.services:
            if service.fingerprint not in self._columns:
                self._columns[service.fingerprint] = ServiceColumns.of(plan, service)
                write_text(self._plans / f"{service.fingerprint}.json", dump_plan(plan))


def _no_records() -> pa.Table:
    """A range of which no record could be read still has its files."""
    return pa.table({"offset": pa.array([], pa.int64())})
