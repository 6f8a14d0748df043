"""Re-keyed messages: the actions of a topic once more, each in the partition of its item.

Layout: `schemas/fbs/action.fbs`, the `ActionBatch` of `schemas.actions` with two vectors more, so
whoever reads plain batches reads these too. A `Source` is a struct of 32 bytes, a `SourceRange` one
of 24, little endian:

    Source       offset, sent_ms i64, epoch u32, partition, index i32, 4 bytes of padding
    SourceRange  first, next i64, epoch u32, partition i32

A message *covers* ranges of source offsets, at most one of a source partition: it holds every valid
action of them whose item belongs to its own partition, and may hold none. Its `sent_ms` is what all
that it covers has reached: the least of the ranges' newest, 0 where none held a valid action; late
and future are judged against the `sent_ms` of each action's source.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import flatbuffers
import numpy as np
from numpy.typing import NDArray

from schemas.actions import (
    ACTION,
    IDENTIFIER,
    MAX_TIME_MS,
    PADDING_START,
    add_structs,
    check_actions,
)
from schemas.errors import ActionError
from schemas.flat import FlatTable

MAX_REKEYED: Final = 1_000_000
MAX_RANGES: Final = 65_536

SOURCE: Final = np.dtype(
    {
        "names": ["offset", "sent_ms", "epoch", "partition", "index"],
        "formats": ["<i8", "<i8", "<u4", "<i4", "<i4"],
        "offsets": [0, 8, 16, 20, 24],
        "itemsize": 32,
    }
)
SOURCE_PADDING_START: Final = 28
SOURCE_RANGE: Final = np.dtype(
    {
        "names": ["first", "next", "epoch", "partition"],
        "formats": ["<i8", "<i8", "<u4", "<i4"],
        "offsets": [0, 8, 16, 20],
        "itemsize": 24,
    }
)

_SENT_MS: Final = struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class RekeyedBatch:
    """One message. actions: (a,) ACTION, a from 0. sources: (a,) SOURCE. covers: (r,)
    SOURCE_RANGE.
    """

    sent_ms: int
    actions: NDArray[np.void]
    sources: NDArray[np.void]
    covers: NDArray[np.void]


def encode_rekeyed(batch: RekeyedBatch) -> bytes:
    """A re-keyed batch as a FlatBuffer."""
    sizes = ACTION.itemsize + SOURCE.itemsize, SOURCE_RANGE.itemsize
    builder = flatbuffers.Builder(
        len(batch.actions) * sizes[0] + len(batch.covers) * sizes[1] + 128
    )
    covers = add_structs(builder, batch.covers, SOURCE_RANGE, SOURCE_RANGE.itemsize)
    sources = add_structs(builder, batch.sources, SOURCE, SOURCE_PADDING_START)
    actions = add_structs(builder, batch.actions, ACTION, PADDING_START)
    builder.StartObject(4)
    builder.PrependInt64Slot(0, batch.sent_ms, 0)
    builder.PrependUOffsetTRelativeSlot(1, actions, 0)
    builder.PrependUOffsetTRelativeSlot(2, sources, 0)
    builder.PrependUOffsetTRelativeSlot(3, covers, 0)
    builder.Finish(builder.EndObject(), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def decode_rekeyed(data: bytes | None, where: str = "action") -> RekeyedBatch:
    """Without a copy. Raises ActionError; the actions of what it returns are safe to fold."""
    if data is None:
        raise ActionError(where, required="a value", got="null")
    table = FlatTable.root(data, where, ActionError, IDENTIFIER)
    actions = table.vector(1, ACTION, MAX_REKEYED)
    sources = table.vector(2, SOURCE, MAX_REKEYED)
    covers = table.vector(3, SOURCE_RANGE, MAX_RANGES)
    if actions is None or sources is None or covers is None or len(covers) == 0:
        raise ActionError(
            where,
            required="a re-keyed batch, with sources and the ranges it covers",
            got="a batch without",
            do="send actions to the topic keyed by user: `encore items` re-keys them",
        )
    if len(actions) != len(sources):
        raise ActionError(
            f"{where}.sources", required=f"{len(actions)}, one an action", got=str(len(sources))
        )
    sent_ms = table.scalar(0, _SENT_MS, 0)
    if not 0 <= sent_ms < MAX_TIME_MS:
        raise ActionError(
            f"{where}.sent_ms", required=f"ms since 1970 in [0, {MAX_TIME_MS})", got=str(sent_ms)
        )
    if len(actions):
        check_actions(actions, where)
    _check_covers(covers, where)
    _check_sources(sources, covers, where)
    return RekeyedBatch(sent_ms, actions, sources, covers)


def _check_covers(covers: NDArray[np.void], where: str) -> None:
    first, after, partition = covers["first"], covers["next"], covers["partition"]
    bad = (first < 0) | (after <= first) | (partition < 0)
    if bad.any():
        place = int(np.argmax(bad))
        raise ActionError(
            f"{where}.covers[{place}]",
            required="offsets [first, next) of a partition, at least one",
            got=f"[{first[place]}, {after[place]}) of {partition[place]}",
        )
    if len(np.unique(partition)) < len(partition):
        raise ActionError(
            f"{where}.covers", required="one range a source partition", got="two of one"
        )


def _check_sources(sources: NDArray[np.void], covers: NDArray[np.void], where: str) -> None:
    """Each source lies in the range of its partition, and was sent at some time."""
    order = np.argsort(covers["partition"])
    place = np.searchsorted(covers["partition"], sources["partition"], sorter=order)  # (a,)
    cover = covers[order[np.minimum(place, len(covers) - 1)]]  # (a,)
    inside = (cover["partition"] == sources["partition"]) & (cover["epoch"] == sources["epoch"])
    inside &= (cover["first"] <= sources["offset"]) & (sources["offset"] < cover["next"])
    sent = (sources["sent_ms"] > 0) & (sources["sent_ms"] < MAX_TIME_MS)
    for name, required, good in (
        ("offset", "an offset of a range that the message covers", inside),
        ("sent_ms", f"ms since 1970 in (0, {MAX_TIME_MS})", sent),
    ):
        if not good.all():
            first = int(np.argmin(good))
            raise ActionError(
                f"{where}.sources[{first}].{name}",
                required=required,
                got=str(sources[name][first]),
            )
