"""From records of a re-keyed topic to batches that are safe to admit, or to a dead letter each.

A record is refused as a whole when its value is not a re-keyed batch (`schemas.rekeyed`), its key
is not the decimal id of its first action's item (null where it has no action), or an item does not
belong to its partition. Nothing is lost unseen by that: what a refused message of our own covered
is a gap to the next one, which ends the process.

A record names the log that it was made for. One that a process sends late, into the log that
replaced it, is a stray: neither a message nor refused. That log is made anew from the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from aiokafka.structs import ConsumerRecord
from numpy.typing import NDArray

from schemas.actions import ACTION
from schemas.errors import ActionError, EncoreError
from schemas.ids import partitions_of
from schemas.names import HEADER_LOG
from schemas.rekeyed import SOURCE, RekeyedBatch, decode_rekeyed
from streams.messages import ActionRun, DeadLetter, check_key, record_headers, source_of


@dataclass(frozen=True, slots=True)
class RekeyedMessage:
    """A batch and its record's place."""

    where: str
    offset: int
    batch: RekeyedBatch


@dataclass(frozen=True, slots=True)
class RekeyedRun:
    """Actions of one re-keyed partition. run: in the re-keyed log, but sent_ms is the source's.
    sources: (a,) SOURCE."""

    run: ActionRun
    sources: NDArray[np.void]


def decode_rekeyed_records(
    records: Sequence[ConsumerRecord], partitions: int, topic_id: str
) -> tuple[list[RekeyedMessage], list[DeadLetter]]:
    """The valid messages of `records`, in their order, and the refused records.

    partitions, topic_id: of the topic. Never raises for what a record holds.
    """
    messages: list[RekeyedMessage] = []
    dead: list[DeadLetter] = []
    for record in records:
        where = source_of(record)
        if record_headers(record).get(HEADER_LOG, topic_id.encode()) != topic_id.encode():
            continue
        try:
            batch = decode_rekeyed(record.value, where)
            check_key(record, int(batch.actions["item"][0]) if len(batch.actions) else None, "item")
            _check_items(batch, int(record.partition), partitions, where)
        except EncoreError as error:
            dead.append(DeadLetter(record, error))
        else:
            messages.append(RekeyedMessage(where, int(record.offset), batch))
    return messages, dead


def run_of(
    partition: int, messages: Sequence[RekeyedMessage], accepted: Sequence[NDArray[np.bool_]]
) -> RekeyedRun:
    """The accepted actions of messages of one partition; accepted: (a,) bool for each message."""
    kept = [np.flatnonzero(mask) for mask in accepted]
    sizes = [len(at) for at in kept]
    total = sum(sizes)
    actions, sources = np.zeros(total, ACTION), np.zeros(total, SOURCE)
    start = 0
    for message, at in zip(messages, kept, strict=True):
        actions[start : start + len(at)] = message.batch.actions[at]
        sources[start : start + len(at)] = message.batch.sources[at]
        start += len(at)
    offsets = np.repeat(np.array([message.offset for message in messages], np.int64), sizes)
    index = np.concatenate([*kept, np.zeros(0, np.intp)]).astype(np.int32)
    run = ActionRun(
        actions,
        np.full(total, partition, np.int32),
        offsets,
        index,
        sources["sent_ms"].copy(),
    )
    return RekeyedRun(run, sources)


def _check_items(batch: RekeyedBatch, partition: int, partitions: int, where: str) -> None:
    items, first = np.unique(batch.actions["item"], return_index=True)
    if len(items) == 0:
        return
    owner = partitions_of(items, partitions)
    foreign = np.flatnonzero(owner != partition)
    if len(foreign):
        place = int(foreign[0])
        raise ActionError(
            f"{where}.actions[{first[place]}].item",
            required=f"an item of partition {partition}",
            got=f"{items[place]}, of partition {owner[place]}",
            do="send actions to the topic keyed by user: `encore items` re-keys them",
        )
