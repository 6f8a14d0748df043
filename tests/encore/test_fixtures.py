"""The shared servers answer."""

from __future__ import annotations

import socket


def test_store_answers_ping(valkey: str) -> None:
    host, port = valkey.removeprefix("redis://").removesuffix("/0").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(16) == b"+PONG\r\n"


def test_broker_accepts_connections(broker: str) -> None:
    host, port = broker.split(":")
    with socket.create_connection((host, int(port)), timeout=60):
        assert host == "127.0.0.1"
