"""From Kafka records to batches that are safe to fold, or to a dead letter each.

A record of the action topic is refused as a whole when any of this fails:

- its value decodes and each action is valid (`schemas.actions.decode_message`);
- its key is the decimal id of its first action's user: what Kafka's default partitioner was given;
- each action's user belongs to the record's partition. A row's fence is an offset of one partition,
  so an action that came by another could be counted twice or never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiokafka.structs import ConsumerRecord
from numpy.typing import NDArray

from schemas.actions import ACTION, ActionBatch, decode_message
from schemas.bulk_actions import Bulk, decode_many
from schemas.errors import ActionError, EncoreError
from schemas.ids import partitions_of
from schemas.names import (
    CONTENT_BATCH,
    HEADER_CODE,
    HEADER_CONTENT,
    HEADER_LEFT_OUT,
    HEADER_REASON,
    HEADER_SOURCE,
)

MAX_REASON_BYTES = 1_000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused record and why."""

    record: ConsumerRecord
    error: EncoreError

    def headers(self) -> dict[str, bytes]:
        """The record's own headers with reason, code and source added."""
        return record_headers(self.record) | {
            HEADER_REASON: str(self.error).encode()[:MAX_REASON_BYTES],
            HEADER_CODE: self.error.code.encode(),
            HEADER_SOURCE: source_of(self.record).encode(),
        }

    def headers_alone(self) -> dict[str, bytes]:
        """Of a letter without the record, which is too large: reason, code, source, and its size.

        Key and headers count in that: they may be what is large.
        """
        record, whole = self.record, self.headers()
        parts = (record.key, record.value, *(part for _, part in record.headers))
        size = sum(len(part or b"") for part in parts)
        kept = {name: whole[name] for name in (HEADER_REASON, HEADER_CODE, HEADER_SOURCE)}
        return kept | {HEADER_LEFT_OUT: b"%d" % size}


@dataclass(frozen=True, slots=True)
class ActionRun:
    """Valid actions; those of one partition are in offset order.

    actions: (a,) ACTION. partition (a,) i32, offset and sent_ms (a,) i64: of the message each
    action came in. index: (a,) i32, its place in that message.
    """

    actions: NDArray[np.void]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    index: NDArray[np.int32]
    sent_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.actions)

    def at(self, places: NDArray[Any]) -> ActionRun:
        """The actions at these places, or where this mask is true."""
        return ActionRun(
            self.actions[places],
            self.partition[places],
            self.offset[places],
            self.index[places],
            self.sent_ms[places],
        )


def join_runs(runs: Sequence[ActionRun]) -> ActionRun:
    """One run of all; at least one."""
    if len(runs) == 1:
        return runs[0]
    actions = np.zeros(sum(len(run) for run in runs), ACTION)  # concatenate would unalign it
    return ActionRun(
        np.concatenate([run.actions for run in runs], out=actions),
        np.concatenate([run.partition for run in runs]),
        np.concatenate([run.offset for run in runs]),
        np.concatenate([run.index for run in runs]),
        np.concatenate([run.sent_ms for run in runs]),
    )


def source_of(record: ConsumerRecord) -> str:
    """A record's place, `topic/partition/offset`."""
    return f"{record.topic}/{record.partition}/{record.offset}"


def record_headers(record: ConsumerRecord) -> dict[str, bytes]:
    """Headers by name; of a name that comes twice the last, a null value as empty."""
    return {name: value or b"" for name, value in record.headers}


def decode_records(
    records: Sequence[ConsumerRecord], partitions: int
) -> tuple[ActionRun, list[DeadLetter]]:
    """The valid actions of `records`, all of one partition in offset order, and refused records.

    partitions: of the topic. Never raises for what a record holds.
    """
    run, left = _decode_many(records)
    alone, dead = _decode_alone(left) if left else (None, [])
    if alone is not None and len(alone):
        run = join_runs([run, alone]) if len(run) else alone
        if len(run) > len(alone):
            run = run.at(np.argsort(run.offset, kind="stable"))
    return _only_own_users(run, records, partitions, dead)


def _decode_many(
    records: Sequence[ConsumerRecord],
) -> tuple[ActionRun, list[ConsumerRecord]]:
    """Messages of the layout that encoders write, all at once, and the records left to look at."""
    by_content: dict[bytes, list[int]] = {}
    for index, record in enumerate(records):
        content = CONTENT_BATCH if not record.headers else _only_content(record)
        if record.value is not None:
            by_content.setdefault(content, []).append(index)
    taken: list[ActionRun] = []
    left = np.ones(len(records), bool)
    for content, places in by_content.items():
        bulk = decode_many([records[index].value for index in places], content)
        if len(bulk.at) == 0:
            continue
        at = np.array(places)[bulk.at]  # (m,)
        users = bulk.actions["user"][bulk.starts].tolist()
        wanted = [b"%d" % user for user in users]
        keys = [records[index].key for index in at.tolist()]
        run = _run_of(records[0].partition, [records[i].offset for i in at.tolist()], bulk)
        if keys != wanted:
            right = np.array([key == want for key, want in zip(keys, wanted, strict=True)])
            run, at = run.at(np.repeat(right, bulk.sizes)), at[right]
        left[at] = False
        taken.append(run)
    rest = [records[index] for index in np.flatnonzero(left).tolist()]
    if not taken:
        return _empty_run(), rest
    run = join_runs(taken)
    return (run if len(taken) == 1 else run.at(np.argsort(run.offset, kind="stable"))), rest


def _only_content(record: ConsumerRecord) -> bytes:
    """The content header where it is the only one, else a content that nobody has."""
    headers = record.headers
    return headers[0][1] or b"" if len(headers) == 1 and headers[0][0] == HEADER_CONTENT else b""


def _run_of(partition: int, offsets: list[int], bulk: Bulk) -> ActionRun:
    total = len(bulk.actions)
    return ActionRun(
        bulk.actions,
        np.full(total, partition, np.int32),
        np.repeat(np.array(offsets, np.int64), bulk.sizes),
        (np.arange(total) - np.repeat(bulk.starts, bulk.sizes)).astype(np.int32),
        np.repeat(bulk.sent_ms, bulk.sizes),
    )


def _empty_run() -> ActionRun:
    none = np.zeros(0, np.int64)
    return ActionRun(np.zeros(0, ACTION), none.astype("i4"), none, none.astype("i4"), none)


def _decode_alone(records: Sequence[ConsumerRecord]) -> tuple[ActionRun, list[DeadLetter]]:
    """The same record by record, whatever they hold, but for the partition of their users."""
    batches: list[ActionBatch] = []
    kept: list[ConsumerRecord] = []
    dead: list[DeadLetter] = []
    for record in records:
        try:
            batch = decode_message(record.value, record_headers(record), source_of(record))
            check_key(record, int(batch.actions["user"][0]), "user")
        except EncoreError as error:
            dead.append(DeadLetter(record, error))
        else:
            batches.append(batch)
            kept.append(record)
    return _run(records[0].partition, kept, batches), dead


def check_key(record: ConsumerRecord, entity_id: int | None, entity: str) -> None:
    """Raises ActionError unless the key is what Kafka's default partitioner is given for that id.

    entity_id: the first action's, None for a message without actions, whose key is null.
    """
    wanted = None if entity_id is None else b"%d" % entity_id
    if record.key != wanted:
        raise ActionError(
            f"{source_of(record)}.key",
            required=f"the decimal id of the first action's {entity}, {entity_id}"
            if entity_id is not None
            else "null where there is no action",
            got="null" if record.key is None else repr(bytes(record.key[:40])),
        )


def _run(partition: int, records: list[ConsumerRecord], batches: list[ActionBatch]) -> ActionRun:
    sizes = np.array([len(batch.actions) for batch in batches], np.int64)  # (m,)
    total = int(sizes.sum())
    starts = np.cumsum(sizes) - sizes  # (m,)
    actions = np.zeros(total, ACTION)
    for start, batch in zip(starts.tolist(), batches, strict=True):
        actions[start : start + len(batch.actions)] = batch.actions
    return ActionRun(
        actions,
        np.full(total, partition, np.int32),
        np.repeat(np.array([record.offset for record in records], np.int64), sizes),
        (np.arange(total) - np.repeat(starts, sizes)).astype(np.int32),
        np.repeat(np.array([batch.sent_ms for batch in batches], np.int64), sizes),
    )


def _only_own_users(
    run: ActionRun, records: Sequence[ConsumerRecord], partitions: int, dead: list[DeadLetter]
) -> tuple[ActionRun, list[DeadLetter]]:
    """Take out the records with a user of another partition; normally there is none."""
    users, which = np.unique(run.actions["user"], return_inverse=True)  # (u,), (a,)
    owner = partitions_of(users, partitions)[which] if len(users) else which  # (a,)
    foreign = owner != run.partition  # (a,)
    if not foreign.any():
        return run, dead
    by_offset = {int(record.offset): record for record in records}
    refused = np.unique(run.offset[foreign])
    for offset in refused.tolist():
        first = int(np.argmax(foreign & (run.offset == offset)))
        place = f"{source_of(by_offset[offset])}.actions[{run.index[first]}].user"
        user = int(run.actions["user"][first])
        error = ActionError(
            place,
            required=f"a user of partition {run.partition[first]}",
            got=f"{user}, of partition {owner[first]}",
            do="key each message by its user and send it with Kafka's default partitioner",
        )
        dead.append(DeadLetter(by_offset[offset], error))
    dead.sort(key=lambda letter: letter.record.offset)
    return run.at(~np.isin(run.offset, refused)), dead
