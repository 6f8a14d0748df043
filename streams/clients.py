"""The one import of kafka-python: its message schemas are read by a call that Python deprecates."""

from __future__ import annotations

import socket
import time
import warnings
from contextlib import suppress
from typing import Any

from schemas.errors import StreamError

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="(read|open)_text is deprecated")
    from kafka import KafkaAdminClient, KafkaProducer
    from kafka.errors import KafkaError
    from kafka.protocol.metadata import MetadataRequest, MetadataResponse

__all__ = [
    "KafkaAdminClient",
    "KafkaError",
    "KafkaProducer",
    "MetadataRequest",
    "MetadataResponse",
    "close_producer",
    "require_broker",
]

PROBE_S = 0.1
CLOSE_S = 1.0


def close_producer(producer: Any) -> None:
    """Close it within seconds. What the broker has not confirmed by then may be in the log or not.

    Where something is left unconfirmed, its own `close` raises halfway, and its thread goes on.
    """
    try:
        producer.close(timeout=CLOSE_S)
    except KafkaError:
        producer._sender.force_close()
        producer._sender.join(CLOSE_S)
        with suppress(KafkaError):
            producer.close(timeout=CLOSE_S)


def require_broker(bootstrap: str, timeout_ms: int) -> None:
    """Return once a host of `bootstrap` (`host:port`, comma separated) accepts a connection.

    kafka-python would go on for half a minute with growing pauses, and leave sockets open when it
    gives up. Raises StreamError.
    """
    places = [place.rpartition(":") for place in bootstrap.split(",")]
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        for host, _, port in places:
            try:
                with socket.create_connection((host, int(port)), timeout=timeout_ms / 1000):
                    return
            except (OSError, ValueError) as error:
                last = error
        if time.monotonic() >= deadline:
            raise StreamError(
                f"broker {bootstrap}",
                required="an answer",
                got=str(last),
                do="check that the broker runs and the bootstrap setting names it",
            ) from last
        time.sleep(PROBE_S)
