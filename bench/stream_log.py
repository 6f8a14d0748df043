"""What the stream benchmark reads: topics of real actions, batched and one a message.

Topics are filled before anything is timed, with whole record batches built in C; no producer runs
beside a measurement of throughput. Every topic has PARTITIONS partitions, keyed by user.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from aiokafka import AIOKafkaProducer
from numpy.typing import NDArray

from bench.samples import KUAIRAND
from encore.kuairand import load_timeline
from schemas.actions import ACTION, encode_batch
from schemas.ids import partitions_of

PARTITIONS: Final = 4
#: Actions that a producer gathers before it sends one message to each partition.
GATHERED: Final = 2_000
#: The log runs this many times as fast, or the actions gathered for a message would span an hour
#: and most of them be late: it is a sample of a service that sends a batch in a second.
HASTE: Final = 60
MESSAGE_BYTES: Final = 1 << 20

Actions = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Message:
    """One record of a topic."""

    partition: int
    key: bytes
    value: bytes


def kuairand_actions(count: int) -> Actions:
    """(count,) ACTION of the KuaiRand log by event time, HASTE times as fast, again and again."""
    log = load_timeline(KUAIRAND, 0.0, 0.0).actions
    begin = int(log["time_ms"][0])
    log["time_ms"] = begin + (log["time_ms"] - begin) // HASTE
    pass_ms = int(log["time_ms"][-1]) + 1 - begin
    passes = -(-count // len(log))
    actions = np.zeros(passes * len(log), ACTION)
    for number in range(passes):
        part = actions[number * len(log) : (number + 1) * len(log)]
        part[:] = log
        part["time_ms"] += number * pass_ms
    return actions[:count]


def distinct_users(actions: Actions) -> Actions:
    """The same actions, each by a user of its own."""
    made = actions.copy()
    made["user"] = np.random.default_rng(0).permutation(len(made)) + (1 << 40)
    return made


def batched(actions: Actions) -> Iterator[Message]:
    """GATHERED actions at a time, one message to each partition; sent at the newest's time."""
    for start in range(0, len(actions), GATHERED):
        part = actions[start : start + GATHERED]
        owner = partitions_of(part["user"], PARTITIONS)  # (a,)
        sent_ms = int(part["time_ms"].max())
        for partition in np.unique(owner).tolist():
            own = part[owner == partition]
            yield Message(partition, b"%d" % int(own["user"][0]), encode_batch(own, sent_ms))


def singles(actions: Actions) -> Iterator[Message]:
    """A message for each action, sent at its event time: the bytes of `encode_batch`."""
    front = np.frombuffer(encode_batch(actions[:1], 1 << 40), np.uint8)[: -ACTION.itemsize]
    sent_at = front.tobytes().index((1 << 40).to_bytes(8, "little"))
    out = np.zeros((len(actions), len(front) + ACTION.itemsize), np.uint8)  # (a, bytes)
    out[:, : len(front)] = front
    times = np.ascontiguousarray(actions["time_ms"], "<i8")
    out[:, sent_at : sent_at + 8] = times.view(np.uint8).reshape(-1, 8)
    out[:, len(front) :] = np.ascontiguousarray(actions).view(np.uint8).reshape(len(actions), -1)
    values, size = out.tobytes(), out.shape[1]
    owner = partitions_of(actions["user"], PARTITIONS).tolist()
    for at, (partition, user) in enumerate(zip(owner, actions["user"].tolist(), strict=True)):
        yield Message(partition, b"%d" % user, values[at * size : (at + 1) * size])


async def fill(bootstrap: str, topic: str, messages: Iterator[Message]) -> dict[int, int]:
    """Writes the messages, in order within a partition. Returns each partition's end."""
    producer: Any = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", max_batch_size=MESSAGE_BYTES, linger_ms=0
    )
    await producer.start()
    open_batches: dict[int, Any] = {}
    ends = dict.fromkeys(range(PARTITIONS), 0)

    async def send(partition: int) -> None:
        await producer.send_batch(open_batches.pop(partition), topic, partition=partition)

    try:
        for message in messages:
            partition = message.partition
            ends[partition] += 1
            while True:
                batch = open_batches.setdefault(partition, producer.create_batch())
                if batch.append(key=message.key, value=message.value, timestamp=None) is not None:
                    break
                await send(partition)
        for partition in tuple(open_batches):
            await send(partition)
        await producer.flush()
    finally:
        await producer.stop()
    return {partition: end for partition, end in ends.items() if end}
