"""One question that is asked for every micro-batch: which id has this topic now?

Asked over a blocking connection of its own, with bytes that are made once. kafka-python's client
hands every request to a thread and decodes every reply, which takes a micro-batch's own time; here
a reply that is the same as the last one is not decoded again.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass
from typing import Any, Final

from streams.clients import MetadataRequest, MetadataResponse

#: Of Metadata: the first with topic ids, which brokers have from Kafka 2.8 on.
VERSION: Final = 10
NO_ERROR: Final = 0
MAX_REPLY_BYTES: Final = 64 << 20
_FLAGS: Final = (
    "allow_auto_topic_creation",
    "include_cluster_authorized_operations",
    "include_topic_authorized_operations",
)


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What the broker says of a topic. topic_id: a UUID as text."""

    name: str
    topic_id: str
    partitions: int


class LineClosedError(ConnectionResetError):
    """The broker hung up in the middle of a reply."""


class TopicLine:
    """Connects when it is first asked. Several threads may ask: one question is under way."""

    def __init__(self, bootstrap: str, timeout_ms: int) -> None:
        self._brokers = [place.rpartition(":") for place in bootstrap.split(",")]
        self._timeout_s = timeout_ms / 1000
        self._socket: socket.socket | None = None
        self._one = threading.Lock()
        self._requests: dict[str, bytes] = {}
        self._last: dict[str, tuple[bytes, TopicFacts | None]] = {}

    def ask(self, topic: str) -> TopicFacts | None:
        """The topic's facts, None where there is no such topic.

        Raises TimeoutError where the broker does not answer in time, another OSError where it
        cannot be reached, ValueError for a reply that is none.
        """
        request = self._requests.get(topic) or self._requests.setdefault(topic, _request(topic))
        with self._one:
            reply = self._exchange(request)
            known, facts = self._last.get(topic, (b"", None))
            if reply != known:
                try:
                    facts = _facts(topic, reply)
                except ValueError:
                    self.close()
                    raise
                self._last[topic] = reply, facts
            return facts

    def close(self) -> None:
        """Release the connection; the next question makes another."""
        held, self._socket = self._socket, None
        if held is not None:
            held.close()

    def _exchange(self, request: bytes) -> bytes:
        if self._socket is not None:
            # A broker closes what was idle for long, and goes away with all its connections.
            with contextlib.suppress(ConnectionError):
                return self._over(self._socket, request)
        return self._over(self._connected(), request)

    def _over(self, line: socket.socket, request: bytes) -> bytes:
        try:
            line.sendall(request)
            size = int.from_bytes(_read(line, 4), "big")
            if size > MAX_REPLY_BYTES:
                raise ValueError(f"a reply of {size} bytes")
            return _read(line, size)
        except BaseException:
            self.close()
            raise

    def _connected(self) -> socket.socket:
        self.close()
        failed: OSError = OSError("no broker is named")
        for host, _, port in self._brokers:
            try:
                self._socket = socket.create_connection((host, int(port)), self._timeout_s)
            except OSError as error:
                failed = error
            else:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return self._socket
        raise failed


def _read(line: socket.socket, size: int) -> bytes:
    held = bytearray()
    while len(held) < size:
        part = line.recv(size - len(held))
        if not part:
            raise LineClosedError("the broker closed the connection")
        held += part
    return bytes(held)


def _request(topic: str) -> bytes:
    asked: Any = MetadataRequest(
        topics=[MetadataRequest.MetadataRequestTopic(name=topic)], **dict.fromkeys(_FLAGS, False)
    )
    asked.with_header(correlation_id=1, client_id="encore")
    return bytes(asked.encode(version=VERSION, header=True, framed=True))


def _facts(topic: str, reply: bytes) -> TopicFacts | None:
    try:
        answer: Any = MetadataResponse.decode(reply, version=VERSION, header=True)
        for found in answer.topics:
            if found.name == topic and found.error_code == NO_ERROR:
                return TopicFacts(topic, str(found.topic_id), len(found.partitions))
    except Exception as error:  # whatever a decoder makes of bytes that are none of its own
        raise ValueError(f"no reply of Metadata {VERSION}: {error!r}") from error
    return None
