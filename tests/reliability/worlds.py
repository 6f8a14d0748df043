"""What these tests set up: a stack on its topics, messages to send, and what servers remember."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from redis import Redis

from encore.local import Server
from streams.admin import ensure_topics
from streams.clients import KafkaAdminClient
from tests.streams.support import T0, Stack, make_stack, some_actions

#: Actions of a message, and when it was sent.
Sent = tuple[NDArray[np.void], int]


def stack_in(broker: str, store: Server, directory: Path, **settings: Any) -> Stack:
    """A stack whose rows are in a store of the test's own, with its topics. settings: of it."""
    stack = make_stack(broker, f"redis://{store.address}/0", directory / "data", **settings)
    ensure_topics(broker, stack.config.topics)
    return stack


def messages(count: int, first: int = 0) -> list[Sent]:
    """So many of fifty actions each. first: how many were made before."""
    return [(some_actions(50, 20, seed), T0 + 20_000) for seed in range(first, first + count)]


def times_ms(sent: Sequence[Sent]) -> list[int]:
    """Of all their actions, ascending."""
    found: list[int] = np.sort(np.concatenate([part["time_ms"] for part, _ in sent])).tolist()
    return found


def committed(stack: Stack, group: str) -> dict[Any, int]:
    """(topic, partition) → the position that the group committed."""
    admin: Any = KafkaAdminClient(bootstrap_servers=stack.config.bootstrap)
    try:
        found = admin.list_group_offsets(group)[group]
    finally:
        admin.close()
    return {(tp.topic, tp.partition): each.offset for tp, each in found.items()}


def dump_keys(server: Server) -> dict[bytes, Any]:
    """Everything the store holds, in its own serialisation."""
    with Redis(port=server.port) as client:
        keys = list(client.scan_iter(count=10_000))
        return dict(zip(keys, [client.dump(key) for key in keys], strict=True))


def restore_keys(server: Server, keys: dict[bytes, Any]) -> None:
    """Back to that moment, in one transaction."""
    with Redis(port=server.port) as client, client.pipeline() as transaction:
        transaction.flushall()
        for key, value in keys.items():
            transaction.restore(key, 0, value)
        transaction.execute()
