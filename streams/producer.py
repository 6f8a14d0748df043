"""Send actions. kafka-python, acks=all, one request in flight, no idempotence (Tansu refuses it).

A failed send raises and is never tried again in here: after a lost reply nobody knows whether the
actions are in the log, and sending twice would make them count twice. Whoever sends ends, or
compares with the log; it never skips.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from schemas.actions import encode_batch
from schemas.errors import StreamError
from schemas.ids import partitions_of
from schemas.names import CONTENT_END, HEADER_CONTENT
from streams.clients import KafkaError, KafkaProducer, close_producer, require_broker

SEND_TIMEOUT_S: Final = 30.0
#: For a broker that accepts no connection; one that does has SEND_TIMEOUT_S to answer.
CONNECT_TIMEOUT_MS: Final = 10_000
#: Of what is made of a message that a broker took: a dead letter has more headers, an action that
#: is re-keyed takes 128 bytes where JSON needs 50.
MAX_MADE_BYTES: Final = 16 << 20
#: Actions in one message at most; 96 bytes each.
MESSAGE_ACTIONS: Final = 5_000
#: Messages of one `send` leave in one request, which `flush` does not wait for.
LINGER_MS: Final = 5


def producer_settings(bootstrap: str) -> dict[str, Any]:
    """What every producer of encore sets."""
    return {
        "bootstrap_servers": bootstrap,
        "bootstrap_timeout_ms": int(SEND_TIMEOUT_S * 1000),
        "acks": -1,
        "enable_idempotence": False,
        "max_in_flight_requests_per_connection": 1,
        "retries": 0,
        "linger_ms": 0,
        "max_request_size": 8 << 20,
        "delivery_timeout_ms": int(SEND_TIMEOUT_S * 1000),
        "request_timeout_ms": int(SEND_TIMEOUT_S * 1000) - 1_000,
        "metrics_enabled": False,
    }


class ActionProducer:
    """Batches of actions to the action topic, each message of one partition."""

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        """Raises StreamError where the broker does not answer."""
        self._topic, self._partitions = topic, partitions
        self._waiting: list[Any] = []
        require_broker(bootstrap, CONNECT_TIMEOUT_MS)
        try:
            settings = producer_settings(bootstrap) | {"linger_ms": LINGER_MS}
            self._producer: Any = KafkaProducer(**settings)
        except (KafkaError, OSError) as error:
            raise self._failed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, actions: NDArray[np.void], sent_ms: int) -> dict[int, int]:
        """Send and wait until all are in the log.

        actions: (a,) ACTION, any users; their order within a partition is kept. sent_ms: the clock
        against which late and future are judged. Returns partition → the offset after the last
        message of each partition that got one. Raises StreamError; some may be in the log then.
        """
        self.put(actions, sent_ms)
        return self.flush()

    def put(self, actions: NDArray[np.void], sent_ms: int) -> None:
        """Hand over without waiting; `flush` confirms."""
        if len(actions) == 0:
            return
        users, which = np.unique(actions["user"], return_inverse=True)
        owner = partitions_of(users, self._partitions)[which]  # (a,)
        for partition in np.unique(owner).tolist():
            part = actions[owner == partition]
            for start in range(0, len(part), MESSAGE_ACTIONS):
                message = part[start : start + MESSAGE_ACTIONS]
                self._put(partition, message, sent_ms)

    def flush(self) -> dict[int, int]:
        """Wait for what was handed over; as `send`."""
        waiting, self._waiting = self._waiting, []
        ends: dict[int, int] = {}
        try:
            self._producer.flush(SEND_TIMEOUT_S)
            confirmed = [future.get(SEND_TIMEOUT_S) for future in waiting]
        except KafkaError as error:
            raise self._failed(error) from error
        for sent in confirmed:
            ends[sent.partition] = max(sent.offset + 1, ends.get(sent.partition, 0))
        return ends

    def close(self) -> None:
        """Close the connection; what was not flushed may be lost."""
        close_producer(self._producer)

    def _put(self, partition: int, message: NDArray[np.void], sent_ms: int) -> None:
        key = b"%d" % int(message["user"][0])
        value = encode_batch(message, sent_ms)
        try:
            self._waiting.append(
                self._producer.send(self._topic, value=value, key=key, partition=partition)
            )
        except KafkaError as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> StreamError:
        return StreamError(
            f"topic {self._topic}",
            required="confirmed actions",
            got=f"{type(error).__name__}: {error}",
            do="compare with the log before sending them again: they may be in it",
        )


async def send_end(bootstrap: str, place: tuple[str, int], successor: str) -> int:
    """An end record to a partition (topic, number); its offset. successor: the topic after this.

    Raises StreamError; it may be in the log then.
    """
    return await asyncio.to_thread(_send_end, bootstrap, place, successor)


def _send_end(bootstrap: str, place: tuple[str, int], successor: str) -> int:
    topic, partition = place
    try:
        producer: Any = KafkaProducer(**producer_settings(bootstrap))
        try:
            headers = [(HEADER_CONTENT, CONTENT_END)]
            sent = producer.send(
                topic, value=successor.encode(), key=b"end", partition=partition, headers=headers
            )
            producer.flush(SEND_TIMEOUT_S)
            return int(sent.get(SEND_TIMEOUT_S).offset)
        finally:
            close_producer(producer)
    except (KafkaError, OSError) as error:
        raise StreamError(
            f"{topic}/{partition}",
            required="a confirmed end record",
            got=f"{type(error).__name__}: {error}",
            do="run this again: the first end record counts",
        ) from error
