"""From an action's intended send to its row answering a read with it, under a steady load.

Messages leave at Poisson times; each ends with one action of a user nobody has seen before. One
event loop sends them and polls the store for those users' rows, as a request would read them, so a
sample is at most one poll too long. Latency counts from the time at which the message was due.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from aiokafka import AIOKafkaProducer
from numpy.typing import NDArray

from bench.rewriting import Rewriting
from bench.stream_log import MESSAGE_BYTES, PARTITIONS, Actions
from schemas.actions import ACTION, encode_batch
from schemas.ids import partitions_of
from schemas.names import row_keys
from schemas.plan import ViewPlan
from store.redis_store import AsyncRedisRowStore

PAUSE_S: Final = 0.001
#: What an edge gathers in a few milliseconds at these rates; the last is the probe.
MESSAGE_ACTIONS: Final = 100
#: Rows looked for in one read.
AT_ONCE: Final = 100
PATIENCE_S: Final = 20.0
#: Left out of the figures: what the first second finds cold.
WARM_S: Final = 1.0
FIRST_USER: Final = 1 << 50


@dataclass(frozen=True, slots=True)
class Freshness:
    """latency_ms: (n,) of each probe. offered_per_s: actions offered; late_ms: p99 of how late
    the sender was, which is part of each latency. rewriting: who rewrote the rows' file
    meanwhile, and took_s how long, each time.
    """

    latency_ms: NDArray[np.float64]
    offered_per_s: float
    late_ms: float
    rewriting: Rewriting = "never"
    took_s: Sequence[float] = ()

    @property
    def unseen(self) -> int:
        """Probes whose row never came: their latency is infinite."""
        return int(np.isinf(self.latency_ms).sum())

    def percentiles_ms(self, *percents: float) -> list[float]:
        """Of the latency; of one that never ends an infinite one."""
        return [float(np.percentile(self.latency_ms, p, method="higher")) for p in percents]


@dataclass(frozen=True, slots=True)
class Probe:
    """A message that is ready, and the key of its last action's row."""

    partition: int
    key: bytes
    value: bytes
    row: str
    actions: int


def probes(view: ViewPlan, actions: Actions, count: int) -> list[Probe]:
    """Messages of MESSAGE_ACTIONS, the log's actions and a probe each."""
    size = MESSAGE_ACTIONS - 1
    candidates = FIRST_USER + np.arange(count * PARTITIONS * 2)
    owner = partitions_of(candidates, PARTITIONS)
    fresh = {p: iter(candidates[owner == p].tolist()) for p in range(PARTITIONS)}
    by_partition = partitions_of(actions["user"], PARTITIONS)
    parts = [actions[by_partition == p] for p in range(PARTITIONS)]
    made: list[Probe] = []
    for index in range(count):
        partition, turn = index % PARTITIONS, index // PARTITIONS
        source = parts[partition]
        at = np.arange(turn * size, (turn + 1) * size) % len(source)
        message = np.zeros(size + 1, ACTION)
        message[:-1] = source[at]
        message[-1] = source[at[-1]]
        message["user"][-1] = user = next(fresh[partition])
        message["time_ms"] = message["time_ms"][-1]
        (row,) = row_keys(view.name, view.generation, [user])
        key = b"%d" % int(message["user"][0])
        value = encode_batch(message, int(message["time_ms"][-1]))
        made.append(Probe(partition, key, value, row, len(message)))
    return made


async def measure(
    bootstrap: str, topic: str, store_url: str, made: list[Probe], actions_per_s: float
) -> Freshness:
    """Send the probes at that rate and wait for all rows.

    A worker is on its way: its first row, of a probe that is not counted, tells that it reads.
    """
    first, made = made[:1], made[1:]
    gap_s = first[0].actions / actions_per_s
    draws = np.random.default_rng(0).exponential(gap_s, len(made))  # (n,) s
    producer: Any = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", linger_ms=0, max_batch_size=MESSAGE_BYTES
    )
    await producer.start()
    try:
        async with AsyncRedisRowStore(store_url) as store:
            await _Flight(producer, topic, store, first).run(np.array([time.monotonic()]))
            due = np.cumsum(draws) + time.monotonic() + 0.2  # (n,) s
            sent_late, seen = await _Flight(producer, topic, store, made).run(due)
    finally:
        await producer.stop()
    counted = due >= due[0] + WARM_S
    latency_ms = (seen - due)[counted] * 1000
    late_ms = float(np.percentile(sent_late[counted], 99)) * 1000
    return Freshness(latency_ms, len(made) * made[0].actions / float(due[-1] - due[0]), late_ms)


class _Flight:
    """Probes on their way. All in one event loop: a second thread would wait for the first."""

    def __init__(
        self, producer: Any, topic: str, store: AsyncRedisRowStore, made: list[Probe]
    ) -> None:
        self._producer, self._topic, self._store, self._made = producer, topic, store, made
        self._late, self._seen = np.zeros(len(made)), np.full(len(made), np.inf)
        self._waiting: dict[str, int] = {}

    async def run(
        self, due: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How late each was sent and when its row was seen: (n,) s each."""
        sending = asyncio.ensure_future(self._send(due))
        try:
            while not (sending.done() and not self._waiting):
                await self._look()
                if time.monotonic() > due[-1] + PATIENCE_S:
                    break
                await asyncio.sleep(PAUSE_S)
        finally:
            sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        return self._late, self._seen

    async def _send(self, due: NDArray[np.float64]) -> None:
        for at, (probe, due_s) in enumerate(zip(self._made, due.tolist(), strict=True)):
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            self._waiting[probe.row] = at
            self._late[at] = time.monotonic() - due_s
            await self._producer.send(
                self._topic, probe.value, probe.key, partition=probe.partition
            )

    async def _look(self) -> None:
        keys = list(self._waiting)[:AT_ONCE]
        found = await self._store.read(keys)
        now_s = time.monotonic()
        for key, row in zip(keys, found, strict=True):
            if row is not None:
                self._seen[self._waiting.pop(key)] = now_s
