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
from schemas.errors import ActionError, EncoreError
from schemas.ids import partitions_of
from schemas.names import HEADER_CODE, HEADER_REASON, HEADER_SOURCE

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
    """The valid actions of `records`, all of one partition, and the refused records.

    partitions: of the topic. Never raises for what a record holds.
    """
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
    run = _run(records[0].partition, kept, batches)
    return _only_own_users(run, kept, partitions, dead)


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
    run: ActionRun, records: list[ConsumerRecord], partitions: int, dead: list[DeadLetter]
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
