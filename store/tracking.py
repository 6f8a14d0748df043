"""Rows that somebody keeps a copy of: a connection that is told of every change.

`CLIENT TRACKING ON BCAST PREFIX …` over RESP3: the server names each key below the prefixes that
was set, deleted, expired or flushed, in order with the replies of this connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self

from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from schemas.errors import StoreError
from schemas.stored import RowKeys, StoredRows
from store import wire
from store.changes import Changes
from store.redis_store import RedisRowStore
from store.wire import Command, Reply, StoreConfig

_FAULTS: Final = (RedisError, OSError, TimeoutError)
SCAN_COUNT: Final = 4_096  # keys the server looks at in one SCAN


class TrackedStore:
    """`store.changes.ChangingRows` over a server."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._changes = Changes()
        self._connection: Any = None
        self._rows = RedisRowStore(config)
        self._pool: Any = ConnectionPool.from_url(
            config.url,
            protocol=3,
            socket_timeout=config.timeout_ms / 1000,
            socket_connect_timeout=config.connect_timeout_ms / 1000,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
            driver_info=None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def another(self) -> TrackedStore:
        """As `ChangingRows.another`."""
        return TrackedStore(self._config)

    def connect(self) -> None:
        """As `ChangingRows.connect`."""
        self.close()
        self._changes = Changes()
        with self._errors("connect"):
            connection = self._pool.make_connection()
            connection.connect()
            connection._parser.set_invalidation_push_handler(self._told)
            self._connection = connection

    def track(self, prefixes: Sequence[str]) -> None:
        """As `ChangingRows.track`."""
        words = [word for prefix in prefixes for word in ("PREFIX", prefix)]
        self._ask(("CLIENT", "TRACKING", "ON", "BCAST", *words), "track")

    def changes(self, wait_s: float) -> Changes:
        """As `ChangingRows.changes`."""
        with self._errors("changes"):
            connection = self._open()
            if not self._changes and connection.can_read(timeout=max(wait_s, 1e-4)):
                connection._parser.read_response(push_request=True)
            while connection.can_read(timeout=0):
                connection._parser.read_response(push_request=True)
        taken, self._changes = self._changes, Changes()
        return taken

    def read_rows(self, keys: Sequence[RowKeys]) -> StoredRows:
        """As `ChangingRows.read_rows`: on a connection of its own, where the buffer is the reply's.

        In which order the two connections answer is all the same: a change that this reading does
        not show comes later than it, and so does its being told.
        """
        return self._rows.read_rows(keys)

    def scan(self, prefix: str) -> Iterator[list[bytes]]:
        """As `ChangingRows.scan`."""
        pattern = "".join("\\" + each if each in "*?[]\\^-" else each for each in prefix) + "*"
        cursor: Any = b"0"
        while True:
            command: Command = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
            reply: Any = self._ask(command, "scan")
            cursor, keys = reply
            yield keys
            if cursor == b"0":
                return

    def get_text(self, key: str) -> str | None:
        """As `ChangingRows.get_text`."""
        return wire.text(self._ask(("GET", key), f"get_text[{key}]"))

    def ping(self) -> None:
        """As `ChangingRows.ping`."""
        self._ask(("PING",), "ping")

    def close(self) -> None:
        """As `ChangingRows.close`."""
        self._rows.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    # --- the connection -----------------------------------------------------------------------

    def _told(self, push: Any) -> None:
        """[b"invalidate", keys], None for all of them."""
        if push[1] is None:
            self._changes.everything = True
        else:
            self._changes.keys.update(push[1])

    def _open(self) -> Any:
        if self._connection is None:
            raise StoreError(
                f"{self._config.place} tracking",
                required="a connection",
                got="none",
                do="connect again, and verify what was kept",
            )
        return self._connection

    def _ask(self, command: Command, operation: str) -> Reply:
        (reply,) = self._round_trip((command,), operation)
        return wire.one(reply, f"{self._config.place} {operation}")

    def _round_trip(self, commands: Sequence[Command], operation: str) -> list[Reply]:
        with self._errors(operation):
            connection = self._open()
            connection.send_packed_command([wire.pack(commands)])
            return [self._reply(connection) for _ in commands]

    def _reply(self, connection: Any) -> Reply:
        try:
            reply: Reply = connection._parser.read_response()
        except ResponseError as error:
            return error
        return reply

    @contextmanager
    def _errors(self, operation: str) -> Iterator[None]:
        try:
            yield
        except _FAULTS as error:
            self.close()
            where = f"{self._config.place} {operation}"
            raise wire.as_store_error(error, where, self._config.timeout_ms) from error
