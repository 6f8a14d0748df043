"""Servers, views and load of the chaos benchmark, and what is done to the servers.

The store writes its append-only file with `everysec`. Killed alone it would lose nothing: what it
wrote is in the page cache. So its disk stops to confirm first (`appendfsync no`), the processes go
on writing for a moment, the store is killed, and its file is cut as a loss of power may leave it:
anywhere behind what was written when the disk stopped. Nothing behind that was confirmed to
anybody.

All clients reach the broker through a gate (`bench.chaos_gate`), which cuts them off as a broker
does that is restarted with its log. A send that fails so may be in the log or not, and nobody sends
it again: what counts is what the log holds, which is read before it is lost and at the end.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.chaos_check import Logged, totals_view
from bench.chaos_gate import Gate
from encore.local import Server, start_broker, start_store
from schemas.actions import ACTION, ActionType, decode_batch
from schemas.errors import StreamError
from schemas.names import PLAN_KEY
from schemas.plan import Plan, ViewPlan, dump_plan, load_plan
from store.redis_store import AsyncRedisRowStore, RedisRowStore
from store.wire import StoreConfig
from streams.action_table import action_table
from streams.admin import Admin
from streams.archive import partition_dir, write_file
from streams.config import StreamConfig
from streams.ends import read_ends
from streams.log_reader import KafkaLogReader
from streams.messages import decode_records
from streams.producer import ActionProducer
from streams.replay import StreamMark, item_mark, wait_stored

T0: Final = 1_650_800_000_000
USERS: Final = 400
ITEMS: Final = 300
MESSAGE_ACTIONS: Final = 40
RECONNECT_S: Final = 0.2
#: For an answer to a question of the benchmark's own, which measures no time.
PATIENCE_MS: Final = 60_000
LOCK: Final = Path(__file__).parent.parent / "feature_repo" / "plan.lock.json"


def chaos_plan() -> Plan:
    """The demo's streamed views, and one of each side that counts all actions."""
    views = [v for v in load_plan(LOCK.read_text("utf-8")).views if v.kind == "streamed"]
    totals = [
        totals_view(f"{view.entity}_totals", view.entity, view.source, view) for view in views
    ]
    return Plan(1, 0, (*views, *totals), ())


@dataclass(slots=True)
class World:
    """A broker behind its gate, a store, and the truth about what is in the log. epoch: of the
    topic's log. logged: what the logs held that are read."""

    directory: Path
    gate: Gate
    broker: Server
    store: Server
    plan: Plan
    epoch: int = 1
    logged: list[Logged] = field(default_factory=list)
    confirmed_bytes: int = 0
    cut_bytes: int = 0

    @property
    def config(self) -> StreamConfig:
        """Of every process; quick to notice a member that died."""
        return StreamConfig(
            self.gate.address,
            self.store_url,
            self.directory,
            session_timeout_s=2.0,
            commit_interval_s=0.2,
            patience_ms=15_000,
            store_timeout_ms=1_000,
            batch_actions=400,
        )

    @property
    def store_url(self) -> str:
        """The store's address."""
        return f"redis://{self.store.address}/0"

    @property
    def views(self) -> tuple[ViewPlan, ...]:
        """Those that are published, all of them streamed: a backfill publishes others."""
        with RedisRowStore(patient(self.store_url)) as store:
            text = store.get_text(PLAN_KEY)
        assert text is not None
        return load_plan(text).views

    def publish(self) -> None:
        """The plan into the store, and onto its disk: an operator's act, not a worker's."""
        with RedisRowStore(patient(self.store_url)) as store:
            store.begin_history()
            store.put_text(PLAN_KEY, dump_plan(self.plan))
            store.confirm()

    def behind(self, ends: Mapping[int, int], timeout_s: float) -> None:
        """Return once users' and items' rows have these offsets. Raises StreamError."""

        async def wait() -> None:
            config = self.config
            async with AsyncRedisRowStore(patient(config.store_url)) as store:
                mark = StreamMark(store, config.topic, config.group, self.epoch)
                await wait_stored(mark, ends, timeout_s)
                items = item_mark(mark, config.item_group, config.partitions)
                await wait_stored(items, ends, timeout_s)

        asyncio.run(wait())

    def reached(self) -> int:
        """A number that grows whenever a worker stores something."""
        config = self.config
        with RedisRowStore(patient(config.store_url)) as store:
            marks = store.get_progress(config.topic, config.group)
        return sum(mark.epoch * 1_000_000 + mark.next_offset for mark in marks.values())

    # --- what is done to the servers ----------------------------------------------------------

    def stall_disk(self) -> None:
        """From now on the store confirms nothing; what it has written by now, it may have."""
        set_option(self.store, "appendfsync", "no")
        self.confirmed_bytes = self._file().stat().st_size

    def cut_store(self, dice: random.Random) -> None:
        """Kill the store, cut its file down to what was confirmed or a bit more, start it again."""
        self.store.child.kill()
        size = self._file().stat().st_size
        keep = dice.choice((self.confirmed_bytes, dice.randint(self.confirmed_bytes, size)))
        os.truncate(self._file(), keep)
        self.cut_bytes += size - keep
        self.store = started_store(self.directory, self.store.port)

    def _file(self) -> Path:
        """The append-only file that the store is writing."""
        files = (self.directory / "store" / "appendonlydir").glob("*.incr.aof")
        return max(files, key=lambda file: int(file.name.split(".")[-3]))

    def ends(self) -> dict[int, int]:
        """Where the topic's partitions end, whoever was told of it."""
        config = self.config
        starts = {(config.topic, partition): 0 for partition in range(config.partitions)}
        found = asyncio.run(read_ends(config.bootstrap, starts, PATIENCE_MS))
        return {partition: end for (_, partition), end in found.items() if end}

    def read_log(self) -> None:
        """Add what the present log holds to the truth, and to the archive as a sink would."""

        async def read(partition: int, end: int) -> None:
            reader, at = KafkaLogReader(self.config.bootstrap, PATIENCE_MS), 0
            while at < end:
                records = await reader.read(self.config.topic, partition, at, end)
                for record in records:
                    batch = decode_batch(record.value)
                    self.logged.append((batch.actions, batch.sent_ms))
                table = action_table(decode_records(records, self.config.partitions)[0])
                last = int(records[-1].offset)
                write_file(partition_dir(root, topic_id, partition), at, last, table)
                at = last + 1
            await reader.close()

        with Admin(self.config.bootstrap, PATIENCE_MS) as admin:
            facts = admin.ensure_topics(self.config.topics)[self.config.topic]
        root, topic_id = self.config.archive_dir / self.config.topic, facts.topic_id

        for place in self.ends().items():
            asyncio.run(read(*place))

    def lose_broker_log(self) -> None:
        """Kill the broker, which forgets all, and start it again: new logs under the old names."""
        self.broker.child.kill()
        self.broker = start_broker(self.directory, self.broker.port, self.gate.address)
        self.epoch += 1
        self.create_topics()

    def lose_rekeyed_log(self) -> None:
        """Only the re-keyed topic, deleted and made again: a new log under the old name."""
        config = self.config
        with Admin(config.bootstrap, PATIENCE_MS) as admin:
            admin.delete_topic(config.item_topic)
            admin.ensure_topics(config.topics)

    def create_topics(self) -> None:
        """Those that are missing."""
        with Admin(self.config.bootstrap, PATIENCE_MS) as admin:
            admin.ensure_topics(self.config.topics)


@contextmanager
def world(directory: Path) -> Iterator[World]:
    """Servers of their own, topics and plan in place; all gone at the end."""
    with Gate() as gate:
        broker = start_broker(directory, advertised=gate.address)
        gate.target = broker.port
        made = World(directory, gate, broker, started_store(directory), chaos_plan())
        try:
            made.publish()
            made.create_topics()
            yield made
        finally:
            made.broker.child.kill()
            made.store.child.kill()


def patient(url: str) -> StoreConfig:
    """For the benchmark's own questions."""
    return StoreConfig(url, timeout_ms=PATIENCE_MS, connect_timeout_ms=PATIENCE_MS)


def started_store(directory: Path, port: int = 0) -> Server:
    """A store that writes one file: another one made in the midst would not be cut in place."""
    server = start_store(directory, port, directory / "store")
    set_option(server, "auto-aof-rewrite-percentage", "0")
    return server


def set_option(store: Server, name: str, value: str) -> None:
    """CONFIG SET."""
    with socket.create_connection(
        ("127.0.0.1", store.port), timeout=PATIENCE_MS / 1000
    ) as connection:
        connection.sendall(f"CONFIG SET {name} {value}\r\n".encode())
        assert connection.recv(16).startswith(b"+OK")


# --- load -------------------------------------------------------------------------------------


def draw_actions(dice: np.random.Generator, count: int, now_ms: int) -> NDArray[np.void]:
    """(count,) ACTION of a few popular users and items and many others; some late, some future."""
    actions = np.zeros(count, ACTION)
    actions["user"] = (dice.pareto(1.2, count) * 20).astype(np.int64) % USERS + 1
    actions["item"] = (dice.pareto(1.2, count) * 15).astype(np.int64) % ITEMS + 1
    actions["time_ms"] = now_ms - dice.integers(0, 20_000, count)
    actions["time_ms"][dice.random(count) < 0.01] -= 3_600_000
    kinds = [kind for kind in ActionType if kind != ActionType.DELETE_USER]
    actions["type"] = dice.choice(kinds, count)
    actions["type"][dice.random(count) < 0.0005] = ActionType.DELETE_USER
    actions["value"] = dice.integers(0, 60_000, count)
    actions["author"] = actions["item"] % 40
    actions["tags"][:, 0] = actions["item"] % 7
    actions["known"] = 1 | 1 << 4
    return actions


class Load(threading.Thread):
    """Sends until told to stop, one batch at a time, over a new connection where one broke.

    logged: what the broker confirmed. unheard: sends that failed, which may be in the log.
    clock_ms: of the load, from T0 on; it never goes back, since a backfill orders lost logs by it.
    """

    def __init__(self, config: StreamConfig, seed: int, per_s: int) -> None:
        super().__init__(daemon=True)
        self._config, self._per_s = config, per_s
        self._dice = np.random.default_rng(seed)
        self._enough = threading.Event()
        self._failure: Exception | None = None
        self._sent = 0
        self.logged: list[Logged] = []
        self.unheard = 0
        self.clock_ms = T0

    def run(self) -> None:
        """Pace is by the clock: what a slow broker delays is sent behind it."""
        begun = time.monotonic(), self.clock_ms
        try:
            while not self._enough.is_set():
                try:
                    self._send(*begun)
                except StreamError:  # as another process would go on, with other actions
                    self._enough.wait(RECONNECT_S)
        except Exception as error:
            self._failure = error

    def _send(self, begun_s: float, begun_ms: int) -> None:
        config = self._config
        with ActionProducer(config.bootstrap, config.topic, config.partitions) as producer:
            while not self._enough.is_set():
                self.clock_ms = now_ms = begun_ms + int(1000 * (time.monotonic() - begun_s))
                part = draw_actions(self._dice, MESSAGE_ACTIONS, now_ms)
                self._sent += len(part)
                self.unheard += 1
                producer.send(part, now_ms)
                self.unheard -= 1
                self.logged.append((part, now_ms))
                self._enough.wait(begun_s + self._sent / self._per_s - time.monotonic())

    def leave(self) -> None:
        """Send no more, and tell of nothing."""
        self._enough.set()

    def finish(self) -> None:
        """Stop; raises what sending failed with."""
        self._enough.set()
        self.join()
        if self._failure is not None:
            raise self._failure


def continued(load: Load, config: StreamConfig, seed: int, per_s: int) -> Load:
    """Another load into a new log, which knows what the earlier one logged."""
    following = Load(replace(config), seed, per_s)
    following.logged, following.unheard = load.logged, load.unheard
    following.clock_ms = load.clock_ms + 1
    return following
