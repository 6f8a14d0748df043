"""The floor: MGET over a bare socket, packed beforehand, parsed by hiredis, nothing decoded."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import hiredis

_READ_BYTES = 1 << 18
_WAITING = object()


class RawMget:
    """One blocking connection."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(notEnoughData=_WAITING)

    def pack(self, keys: Sequence[str]) -> bytes:
        """The request; not timed."""
        packed: Any = hiredis.pack_command
        return bytes(packed(("MGET", *keys)))

    def send(self, request: bytes) -> list[bytes | None]:
        """One round trip."""
        self._socket.sendall(request)
        while True:
            reply = self._reader.gets()
            if reply is not _WAITING:
                found: list[bytes | None] = reply
                return found
            self._reader.feed(self._socket.recv(_READ_BYTES))

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()
