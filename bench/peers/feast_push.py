"""A consumer that counts each user's actions in the running hour and pushes them to Feast.

    python -m bench.peers.feast_push <<< '{"bootstrap": …, "topic": …, "store": …, "total": …}'

Feast computes no windows: whoever pushes counts. Messages come by aiokafka's `getmany`, the fastest
consumer in Python; for each fetch of up to `batch` of them the counts so far of all its users are
read with one `get_online_features`, since they have to outlive the process, and pushed with one
`FeatureStore.push` of one data frame, as its documentation says to; then the offsets are committed.
With `memory` the counts stay in a dictionary instead, and are gone with the process. Neither way
notices another writer or a repeated message. The online store is the same server as ours, in a
database of its own.

Prints `{}` once it has imported everything, and waits for its settings, a line of standard input.
Then prints a JSON line with the clock and its CPU seconds once `skip` messages are pushed, and
another once all are; a third carries what Feast's `get_online_features` then says: [user, hour,
count].
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from aiokafka import AIOKafkaConsumer
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource
from feast.data_source import PushMode
from feast.types import Int64
from feast.value_type import ValueType

from bench.peers.feast_redis import feast_on_redis

HOUR_MS: Final = 3_600_000
DATABASE: Final = 2

#: User → the hour it was last seen in, and how often in that hour.
Counts = dict[int, tuple[int | None, int]]
Row = tuple[int, int | None, int]
UNPACK: Final = struct.Struct("<q8xq").unpack_from  # user, time_ms


def main(settings: dict[str, Any]) -> int:
    """Returns once all messages are pushed and read back."""
    store = _store(settings)
    users = asyncio.run(_consume(settings, store))
    _say(counts=_read(store, users))
    return 0


async def _consume(settings: dict[str, Any], store: FeatureStore) -> list[int]:
    """Returns the users that were counted."""
    consumer = AIOKafkaConsumer(
        settings["topic"],
        bootstrap_servers=settings["bootstrap"],
        group_id=settings["group"],
        session_timeout_ms=round(settings["session_s"] * 1000),
        heartbeat_interval_ms=round(settings["session_s"] * 1000 / 3),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    counts: Counts = {}
    everybody: set[int] = set()
    seen, started = 0, False
    try:
        while seen < settings["total"]:
            lists = await consumer.getmany(timeout_ms=100, max_records=settings["batch"])
            values = [record.value for records in lists.values() for record in records]
            if values:
                actions = [UNPACK(value, settings["body_at"]) for value in values]
                users = list({user for user, _ in actions})
                everybody.update(users)
                if not settings["memory"]:
                    counts = {user: (hour, n or 0) for user, hour, n in _read(store, users)}
                store.push("user_actions", _count(actions, counts), to=PushMode.ONLINE)
                await consumer.commit()
            seen += len(values)
            if seen >= settings["skip"] and not started:
                started = True
                _say(seen=seen)
        _say()
    finally:
        await consumer.stop()
    return sorted(everybody)


def _count(actions: list[tuple[int, int]], counts: Counts) -> pd.DataFrame:
    """Counts the actions, (user, time) each; one row for each user among them."""
    touched: dict[int, int] = {}
    for user, time_ms in actions:
        hour = time_ms // HOUR_MS
        held, count = counts.get(user, (None, 0))
        counts[user] = hour, count + 1 if held == hour else 1
        touched[user] = time_ms
    hours, totals = zip(*(counts[user] for user in touched), strict=True)
    frame = pd.DataFrame({"user_id": list(touched), "hour": hours, "actions": totals})
    newest = np.array(list(touched.values()))
    frame["event_timestamp"] = pd.to_datetime(newest, unit="ms", utc=True)
    return frame


def _store(settings: dict[str, Any]) -> FeatureStore:
    """Empty: its project is the consumer's group, which is new."""
    directory = Path(settings["directory"])
    store = feast_on_redis(settings["group"], settings["store"], DATABASE, directory)
    empty = directory / "push.parquet"
    fields = {"user_id": pa.int64(), "hour": pa.int64(), "actions": pa.int64()}
    schema = pa.schema({**fields, "event_timestamp": pa.timestamp("us", "UTC")})
    pq.write_table(schema.empty_table(), empty)
    batch = FileSource(name="history", path=str(empty), timestamp_field="event_timestamp")
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="user_counts",
        entities=[user],
        ttl=timedelta(days=0),
        schema=[Field(name="hour", dtype=Int64), Field(name="actions", dtype=Int64)],
        source=PushSource(name="user_actions", batch_source=batch),
        online=True,
    )
    store.apply([user, view])
    return store


def _read(store: FeatureStore, users: list[int]) -> list[Row]:
    """What Feast has of these users: (user, hour, count) each, None where nothing is."""
    read = store.get_online_features(
        features=["user_counts:hour", "user_counts:actions"],
        entity_rows=[{"user_id": user} for user in users],
    ).to_dict()
    return list(zip(read["user_id"], read["hour"], read["actions"], strict=True))


def _say(**more: Any) -> None:
    times = os.times()
    line = {"at_s": time.monotonic(), "cpu_s": times.user + times.system, **more}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    print("{}", flush=True)  # all is imported
    sys.exit(main(json.loads(sys.stdin.readline())))
