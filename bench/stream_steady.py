"""What an action costs at the same load, as users become more.

Messages leave at Poisson times, STEADY_PER_S actions a second in all, so micro-batches are as small
as freshness makes them and nearly every action is a row of its own, whether its user is one of ten
thousand or of a million. What is left to differ is what the store and the worker hold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from aiokafka import AIOKafkaProducer
from numpy.typing import NDArray

from bench.stream_fresh import MESSAGE_ACTIONS
from bench.stream_log import MESSAGE_BYTES, PARTITIONS, Actions, Message
from bench.stream_rates import Cluster
from schemas.actions import encode_batch
from schemas.errors import LocalError
from schemas.ids import partitions_of

STEADY_PER_S: Final = 20_000
#: Before a figure is taken: what the worker finds cold, rows that it keeps among it.
WARM_S: Final = 4.0
TAKEN_S: Final = 6.0
#: What left the sender must be stored this much later; a worker that is behind merges more.
PATIENCE_S: Final = 30.0
POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Steady:
    """One spell of load. cpu_us: CPU time an action of worker, store and broker, once warm. rows:
    written an action, of the whole spell.
    """

    cpu_us: Mapping[str, float]
    rows: float

    @property
    def ours_us(self) -> float:
        """Of the worker and the store, an action."""
        return self.cpu_us["worker"] + self.cpu_us["store"]

    @property
    def row_us(self) -> float:
        """The same a row written: a worker that is behind merges actions of few users."""
        return self.ours_us / self.rows


def steady(
    running: Cluster, topic: str, users: NDArray[np.int64], actions: Actions, start_ms: int
) -> Steady:
    """A worker on `topic` under STEADY_PER_S actions a second of these users, drawn uniformly.

    users: (n,). actions: where columns beside user and time come from. start_ms: event time.
    Raises LocalError where the worker does not keep up.
    """
    with running.worker(topic):
        made = load_messages(users, actions, start_ms)  # while it joins its group
        cpu_us = asyncio.run(_load(running, topic, made))
    return Steady(cpu_us, running.rows_written() / (len(made) * MESSAGE_ACTIONS))


def load_messages(users: NDArray[np.int64], actions: Actions, start_ms: int) -> list[Message]:
    """A spell's messages in the order in which they leave, MESSAGE_ACTIONS of a partition each."""
    count = round(STEADY_PER_S * (WARM_S + TAKEN_S) / MESSAGE_ACTIONS)
    owner = partitions_of(users, PARTITIONS)  # (n,)
    parts = [users[owner == partition] for partition in range(PARTITIONS)]
    draws = np.random.default_rng(start_ms)
    made = []
    for number in range(count):
        at = np.arange(number * MESSAGE_ACTIONS, (number + 1) * MESSAGE_ACTIONS) % len(actions)
        body, partition = actions[at], number % PARTITIONS
        body["user"] = draws.choice(parts[partition], MESSAGE_ACTIONS)
        body["time_ms"] = sent_ms = start_ms + number * 1000 * MESSAGE_ACTIONS // STEADY_PER_S
        key = b"%d" % int(body["user"][0])
        made.append(Message(partition, key, encode_batch(body, sent_ms)))
    return made


async def _load(running: Cluster, topic: str, made: Sequence[Message]) -> dict[str, float]:
    """Send the messages when they are due. CPU time an action from WARM_S on, µs."""
    producer: Any = AIOKafkaProducer(
        bootstrap_servers=running.broker.address,
        acks="all",
        linger_ms=0,
        max_batch_size=MESSAGE_BYTES,
    )

    async def send(message: Message) -> None:
        await producer.send(topic, message.value, message.key, partition=message.partition)

    before = sum(running.stored(topic).values())
    gaps_s = np.random.default_rng(0).exponential(MESSAGE_ACTIONS / STEADY_PER_S, len(made))
    await producer.start()
    try:
        await send(made[0])
        await _stored(running, topic, before + 1)  # the worker reads
        due_s = np.cumsum(gaps_s) + time.monotonic()  # (n,)
        warm = int(np.searchsorted(due_s, due_s[0] + WARM_S))
        for at in range(1, len(made)):
            wait_s = float(due_s[at]) - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if at == warm:
                cpu_s = running.cpu_s()
            await send(made[at])
        await _stored(running, topic, before + len(made))
        spent = {name: value - cpu_s[name] for name, value in running.cpu_s().items()}
    finally:
        await producer.stop()
    timed = (len(made) - warm) * MESSAGE_ACTIONS
    return {name: value / timed * 1e6 for name, value in spent.items()}


async def _stored(running: Cluster, topic: str, messages: int) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while (stored := sum(running.stored(topic).values())) < messages:
        if time.monotonic() > deadline_s:
            got = f"{messages - stored} messages behind after {PATIENCE_S} s"
            raise LocalError(f"bench.{topic}", required="a worker that keeps up", got=got)
        await asyncio.sleep(POLL_S)
