"""The archive's table of actions: one row an action, in (offset, index) order."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from schemas.actions import (
    ACTION_TYPES,
    KNOWN_AUTHOR,
    KNOWN_MUSIC,
    KNOWN_POSITION,
    KNOWN_REQUEST,
    KNOWN_TAGS_SHIFT,
)
from streams.arrow import list_column, uuid_column
from streams.item_messages import RekeyedRun
from streams.messages import ActionRun

_NAMES: Final = pa.array(["", *ACTION_TYPES])  # by number: the types are 1, 2, …

ACTION_SCHEMA: Final = pa.schema(
    [
        ("offset", pa.int64()),
        ("index", pa.int32()),
        ("sent_ms", pa.int64()),
        ("user", pa.int64()),
        ("item", pa.int64()),
        ("time_ms", pa.int64()),
        ("action", pa.dictionary(pa.int8(), pa.string())),
        ("value", pa.int64()),
        ("request_id", pa.string()),
        ("author", pa.int64()),
        ("music", pa.int64()),
        ("tags", pa.list_(pa.int64())),
        ("scene", pa.uint16()),
        ("position", pa.int16()),
    ]
)


#: Of a re-keyed topic: where each action came from.
REKEYED_SCHEMA: Final = pa.schema(
    [
        *ACTION_SCHEMA,
        ("source_epoch", pa.int64()),
        ("source_partition", pa.int32()),
        ("source_offset", pa.int64()),
        ("source_index", pa.int32()),
    ]
)


def action_table(run: ActionRun) -> pa.Table:
    """A run of one partition as a table of ACTION_SCHEMA; what the edge did not know is null."""
    actions = run.actions
    known = actions["known"]  # (a,)

    def unless(name: str, bit: int) -> pa.Array:
        return pa.array(np.ascontiguousarray(actions[name]), mask=known & bit == 0)

    columns = {
        "offset": pa.array(run.offset),
        "index": pa.array(run.index),
        "sent_ms": pa.array(run.sent_ms),
        **{
            name: pa.array(np.ascontiguousarray(actions[name]))
            for name in ("user", "item", "time_ms", "value", "scene")
        },
        "action": pa.DictionaryArray.from_arrays(pa.array(actions["type"].astype(np.int8)), _NAMES),
        "request_id": uuid_column(
            actions["request_hi"], actions["request_lo"], known & KNOWN_REQUEST > 0
        ),
        "author": unless("author", KNOWN_AUTHOR),
        "music": unless("music", KNOWN_MUSIC),
        "tags": list_column(actions["tags"], known >> KNOWN_TAGS_SHIFT),
        "position": unless("position", KNOWN_POSITION),
    }
    return pa.table({name: columns[name] for name in ACTION_SCHEMA.names}, ACTION_SCHEMA)


def rekeyed_table(rekeyed: RekeyedRun) -> pa.Table:
    """The same for a re-keyed partition, as a table of REKEYED_SCHEMA; sent_ms is the source's."""
    table = action_table(rekeyed.run)
    for name in ("epoch", "partition", "offset", "index"):
        column = pa.array(np.ascontiguousarray(rekeyed.sources[name]))
        table = table.append_column(f"source_{name}", column)
    return table.cast(REKEYED_SCHEMA)
