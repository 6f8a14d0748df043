"""The row store over a Redis or Valkey server: a blocking and an async client.

redis-py gives the connections and their pools; commands are packed by hiredis and written as one
buffer, and replies read off the connection, so that a pipeline of thousands of writes costs no
object a command. Three of its defaults are wrong for serving and are set here: no socket timeout,
three retries with back-off of seconds, and a CLIENT SETINFO handshake on each connection.

A connection whose call did not end well is closed before it goes back to its pool. So no later
call can read a reply meant for another: the fault of redis-py's issues 2624 and 2665.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self, cast

from redis.asyncio.connection import Connection as AsyncConnection
from redis.asyncio.connection import ConnectionPool as AsyncConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from schemas.errors import EncoreError
from schemas.names import epoch_key, progress_key
from schemas.stored import RowKeys, StoredRows
from store import wire
from store.base import (
    Progress,
    ServerFacts,
    Write,
    check_facts,
    check_progress,
    check_writes,
    no_history,
)
from store.line import BlockingLines, RowLine
from store.reply import RowsReply, pack_mget, values_of
from store.wire import Command, History, Reply, StoreConfig

_FAULTS: Final = (RedisError, OSError, TimeoutError)


class RedisRowStore:
    """`store.base.RowStore` over a server. Threads may share it, forked children must not."""

    def __init__(self, config: StoreConfig | str) -> None:
        self._config = StoreConfig(config) if isinstance(config, str) else config
        self._slots = threading.BoundedSemaphore(self._config.connections)
        self._history: History | None = None
        self._room_bytes = 0  # what the last reply of rows took
        try:
            self._pool: ConnectionPool = ConnectionPool.from_url(
                self._config.url,
                socket_timeout=self._config.timeout_ms / 1000,
                socket_connect_timeout=self._config.connect_timeout_ms / 1000,
                retry=Retry(NoBackoff(), 0),
                redis_connect_func=self._greet,
                decode_responses=False,
                driver_info=None,
            )
        except ValueError as error:
            raise wire.bad_url(self._config, error) from None
        self._lines = BlockingLines(cast(Any, self._pool).make_connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """As `RowStore.read`: one MGET."""
        return wire.values(self._ask(("MGET", *keys), "read")) if keys else []

    def read_rows(self, keys: Sequence[RowKeys]) -> StoredRows:
        """As `RowStore.read_rows`: one MGET, on a connection that is for nothing else."""
        wanted = values_of(keys)
        if not wanted:
            return StoredRows.of([])
        try:
            self._take_slot()
            try:
                reply = RowsReply(wanted, self._room_bytes)
                self._lines.ask(pack_mget(keys), reply)
            finally:
                self._slots.release()
            self._room_bytes = reply.filled + 1
            return reply.rows()
        except _FAULTS as error:
            raise _store_error(self._config, "read_rows", error) from error

    def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
        """As `RowStore.compare_and_set`: pipelined scripts."""
        check_writes(writes)
        results: list[bool] = []
        for part in wire.pipelines(wire.write_calls(writes)):
            replies = self._run_script(
                wire.COMPARE_AND_SET, [wire.write_command(call) for call in part], "compare_and_set"
            )
            results += wire.landed(part, replies, self._config.place)
        return results

    def get_text(self, key: str) -> str | None:
        """As `RowStore.get_text`."""
        return wire.text(self._ask(("GET", key), f"get_text[{key}]"))

    def put_text(self, key: str, text: str) -> None:
        """As `RowStore.put_text`."""
        self._ask(("SET", key, text), f"put_text[{key}]")

    def compare_and_set_text(
        self, key: str, version_key: str, expected_version: int, text: str
    ) -> bool:
        """As `RowStore.compare_and_set_text`."""
        words = (expected_version, expected_version + 1, text)
        return self._eval(wire.COMPARE_AND_SET_TEXT, (key, version_key), words) == 1

    def put_progress(
        self, topic: str, group: str, progress: Mapping[int, tuple[int, int, int]]
    ) -> None:
        """As `RowStore.put_progress`."""
        check_progress(progress)
        words = wire.progress_words(progress)
        if words:
            self._eval(wire.PUT_PROGRESS, (progress_key(topic, group),), words)

    def get_progress(self, topic: str, group: str) -> dict[int, Progress]:
        """As `RowStore.get_progress`."""
        key = progress_key(topic, group)
        return wire.parse_progress(self._ask(("HGETALL", key), f"get_progress[{key}]"), key)

    def epoch_of(self, topic: str, topic_id: str) -> int:
        """As `RowStore.epoch_of`."""
        return self._eval(wire.EPOCH_OF, (epoch_key(topic),), (topic_id,))

    def begin_history(self) -> str:
        """As `RowStore.begin_history`."""
        replies = self._round_trip(wire.begin_commands(), "history")
        self._history = wire.parse_history(replies[1:], self._config.place)
        self._lines.hang_up()
        self._pool.disconnect()  # those that come are checked
        return str(self._history)

    def check_history(self) -> None:
        """As `RowStore.check_history`."""
        if self._history is not None:
            replies = self._round_trip(wire.history_commands(), "history")
            wire.check_same(replies, self._config, self._history)

    def confirm(self) -> None:
        """As `RowStore.confirm`."""
        if self._history is None:
            raise no_history(self._config.place)
        commands = wire.confirm_commands(self._config, self._history)
        replies = self._round_trip(commands, "confirm")
        wire.check_confirmed(replies, self._config, self._history)

    def facts(self) -> ServerFacts:
        """As `RowStore.facts`."""
        return wire.parse_facts(self._ask(("INFO",), "facts"))

    def check_policy(self) -> None:
        """As `RowStore.check_policy`."""
        check_facts(self.facts(), self._config.place)

    def ping(self) -> None:
        """As `RowStore.ping`."""
        self._ask(("PING",), "ping")

    def close(self) -> None:
        """As `RowStore.close`."""
        self._lines.hang_up()
        self._pool.disconnect()

    def _greet(self, connection: Any) -> None:
        """What a new connection begins with: it must reach the history that was fixed."""
        connection.on_connect()
        if self._history is not None:
            connection.send_packed_command([wire.pack(wire.history_commands())])
            try:
                wire.check_same([_read(connection) for _ in range(2)], self._config, self._history)
            except EncoreError:
                connection.disconnect()
                raise

    def _ask(self, command: Command, operation: str) -> Reply:
        (reply,) = self._round_trip((command,), operation)
        return wire.one(reply, f"{self._config.place} {operation}")

    def _eval(self, script: str, keys: Sequence[str], arguments: Sequence[wire.Word]) -> int:
        operation = f"script[{keys[0]}]"
        commands = (wire.eval_command(script, keys, arguments),)
        (reply,) = self._run_script(script, commands, operation)
        where = f"{self._config.place} {operation}"
        return wire.integer(wire.one(reply, where), where)

    def _run_script(
        self, script: str, commands: Sequence[Command], operation: str
    ) -> Sequence[Reply]:
        """Replies of EVALSHA commands; loads the script where the server forgot it."""
        replies = self._round_trip(commands, operation)
        missing = wire.missing_scripts(replies)
        if missing:
            again = [commands[index] for index in missing]
            _, *retried = self._round_trip((("SCRIPT", "LOAD", script), *again), operation)
            for index, reply in zip(missing, retried, strict=True):
                replies[index] = reply
        return replies

    def _round_trip(self, commands: Sequence[Command], operation: str) -> list[Reply]:
        """Sends all commands, then reads a reply for each; server errors are replies."""
        with self._errors(operation), self._connection() as connection:
            connection.send_packed_command(wire.buffers(commands))
            return [_read(connection) for _ in commands]

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        """One for one call; closed where the call did not end well."""
        self._take_slot()
        try:
            connection: Any = self._pool.get_connection()
            try:
                yield connection
            except BaseException:
                connection.disconnect()
                raise
            finally:
                self._pool.release(connection)
        finally:
            self._slots.release()

    def _take_slot(self) -> None:
        """One of the connections that may be in use at once. Raises TimeoutError."""
        if not self._slots.acquire(timeout=self._config.timeout_ms / 1000):
            raise TimeoutError("all connections are in use")

    @contextmanager
    def _errors(self, operation: str) -> Iterator[None]:
        try:
            yield
        except _FAULTS as error:
            raise _store_error(self._config, operation, error) from error


class AsyncRedisRowStore:
    """`store.base.AsyncRowStore` over a server, for one event loop.

    The time bound covers a whole call. It is asyncio's own `timeout`, not the connection's: that
    one goes through `wait_for`, which in Python 3.11 can swallow a cancellation.

    on_rows_read: called with the seconds that the server took for each answer of `read_rows`.
    """

    def __init__(self, config: StoreConfig | str) -> None:
        self.on_rows_read: Callable[[float], None] | None = None
        self._config = StoreConfig(config) if isinstance(config, str) else config
        self._slots = asyncio.Semaphore(self._config.connections)
        self._history: History | None = None
        self._room_bytes = 0  # what the last reply of rows took
        self._lines: list[RowLine] = []  # for `read_rows`, those that are not in use
        self._hung_up = 0  # how often all of them were closed
        try:
            self._pool: AsyncConnectionPool = AsyncConnectionPool.from_url(
                self._config.url,
                socket_connect_timeout=self._config.connect_timeout_ms / 1000,
                retry=AsyncRetry(NoBackoff(), 0),
                redis_connect_func=self._greet,
                decode_responses=False,
                driver_info=None,
            )
        except ValueError as error:
            raise wire.bad_url(self._config, error) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """As `RowStore.read`: one MGET."""
        return wire.values(await self._ask(("MGET", *keys), "read")) if keys else []

    async def read_rows(self, keys: Sequence[RowKeys]) -> StoredRows:
        """As `RowStore.read_rows`: one MGET, on a connection that is for nothing else."""
        wanted = values_of(keys)
        if not wanted:
            return StoredRows.of([])
        try:
            async with asyncio.timeout(self._config.timeout_ms / 1000), self._slots:
                hung_up, line = self._hung_up, await self._line()
                try:
                    reply = RowsReply(wanted, self._room_bytes)
                    await line.ask(pack_mget(keys), reply)
                except BaseException:
                    line.close()
                    raise
                if self.on_rows_read is not None:
                    self.on_rows_read(line.took_s)
                if hung_up == self._hung_up:
                    self._lines.append(line)
                else:
                    line.close()
            self._room_bytes = reply.filled + 1
            return reply.rows()
        except _FAULTS as error:
            raise _store_error(self._config, "read_rows", error) from error

    async def _line(self) -> RowLine:
        """One that is open; the one that was used last."""
        while self._lines:
            line = self._lines.pop()
            if line.open:
                return line
        return await RowLine.opened(cast(Any, self._pool).make_connection())

    def _hang_up(self) -> None:
        """Those in use are closed when their call ends."""
        self._hung_up += 1
        while self._lines:
            self._lines.pop().close()

    async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
        """As `RowStore.compare_and_set`: pipelined scripts."""
        check_writes(writes)
        results: list[bool] = []
        for part in wire.pipelines(wire.write_calls(writes)):
            replies = await self._run_script(
                wire.COMPARE_AND_SET, [wire.write_command(call) for call in part], "compare_and_set"
            )
            results += wire.landed(part, replies, self._config.place)
        return results

    async def get_text(self, key: str) -> str | None:
        """As `RowStore.get_text`."""
        return wire.text(await self._ask(("GET", key), f"get_text[{key}]"))

    async def put_text(self, key: str, text: str) -> None:
        """As `RowStore.put_text`."""
        await self._ask(("SET", key, text), f"put_text[{key}]")

    async def compare_and_set_text(
        self, key: str, version_key: str, expected_version: int, text: str
    ) -> bool:
        """As `RowStore.compare_and_set_text`."""
        words = (expected_version, expected_version + 1, text)
        return await self._eval(wire.COMPARE_AND_SET_TEXT, (key, version_key), words) == 1

    async def put_progress(
        self, topic: str, group: str, progress: Mapping[int, tuple[int, int, int]]
    ) -> None:
        """As `RowStore.put_progress`."""
        check_progress(progress)
        words = wire.progress_words(progress)
        if words:
            await self._eval(wire.PUT_PROGRESS, (progress_key(topic, group),), words)

    async def get_progress(self, topic: str, group: str) -> dict[int, Progress]:
        """As `RowStore.get_progress`."""
        key = progress_key(topic, group)
        reply = await self._ask(("HGETALL", key), f"get_progress[{key}]")
        return wire.parse_progress(reply, key)

    async def epoch_of(self, topic: str, topic_id: str) -> int:
        """As `RowStore.epoch_of`."""
        return await self._eval(wire.EPOCH_OF, (epoch_key(topic),), (topic_id,))

    async def begin_history(self) -> str:
        """As `RowStore.begin_history`."""
        replies = await self._round_trip(wire.begin_commands(), "history")
        self._history = wire.parse_history(replies[1:], self._config.place)
        self._hang_up()
        await self._pool.disconnect()  # those that come are checked
        return str(self._history)

    async def check_history(self) -> None:
        """As `RowStore.check_history`."""
        if self._history is not None:
            replies = await self._round_trip(wire.history_commands(), "history")
            wire.check_same(replies, self._config, self._history)

    async def confirm(self) -> None:
        """As `RowStore.confirm`."""
        if self._history is None:
            raise no_history(self._config.place)
        commands = wire.confirm_commands(self._config, self._history)
        replies = await self._round_trip(commands, "confirm")
        wire.check_confirmed(replies, self._config, self._history)

    async def facts(self) -> ServerFacts:
        """As `RowStore.facts`."""
        return wire.parse_facts(await self._ask(("INFO",), "facts"))

    async def check_policy(self) -> None:
        """As `RowStore.check_policy`."""
        check_facts(await self.facts(), self._config.place)

    async def ping(self) -> None:
        """As `RowStore.ping`."""
        await self._ask(("PING",), "ping")

    async def close(self) -> None:
        """As `RowStore.close`."""
        self._hang_up()
        await self._pool.disconnect()

    async def reconnect(self) -> None:
        """Close the connections that nobody uses: the next calls open new ones."""
        self._hang_up()
        await self._pool.disconnect(inuse_connections=False)

    async def _greet(self, connection: Any) -> None:
        """What a new connection begins with: it must reach the history that was fixed."""
        await connection.on_connect()
        if self._history is not None:
            await connection.send_packed_command(wire.pack(wire.history_commands()))
            replies = [await _read_async(connection) for _ in range(2)]
            try:
                wire.check_same(replies, self._config, self._history)
            except EncoreError:
                await connection.disconnect(nowait=True)
                raise

    async def _ask(self, command: Command, operation: str) -> Reply:
        (reply,) = await self._round_trip((command,), operation)
        return wire.one(reply, f"{self._config.place} {operation}")

    async def _eval(self, script: str, keys: Sequence[str], arguments: Sequence[wire.Word]) -> int:
        operation = f"script[{keys[0]}]"
        commands = (wire.eval_command(script, keys, arguments),)
        (reply,) = await self._run_script(script, commands, operation)
        where = f"{self._config.place} {operation}"
        return wire.integer(wire.one(reply, where), where)

    async def _run_script(
        self, script: str, commands: Sequence[Command], operation: str
    ) -> Sequence[Reply]:
        """Replies of EVALSHA commands; loads the script where the server forgot it."""
        replies = await self._round_trip(commands, operation)
        missing = wire.missing_scripts(replies)
        if missing:
            again = [commands[index] for index in missing]
            _, *retried = await self._round_trip((("SCRIPT", "LOAD", script), *again), operation)
            for index, reply in zip(missing, retried, strict=True):
                replies[index] = reply
        return replies

    async def _round_trip(self, commands: Sequence[Command], operation: str) -> list[Reply]:
        """Sends all commands, then reads a reply for each; server errors are replies."""
        try:
            async with asyncio.timeout(self._config.timeout_ms / 1000), self._slots:
                connection = await cast(Any, self._pool).get_connection()
                try:
                    for buffer in wire.buffers(commands):
                        # As the socket takes it: what it cannot take yet is not copied about.
                        await connection.send_packed_command(buffer)
                    return await _read_many(connection, len(commands))
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                finally:
                    await self._pool.release(connection)
        except _FAULTS as error:
            raise _store_error(self._config, operation, error) from error


def _store_error(config: StoreConfig, operation: str, error: BaseException) -> EncoreError:
    return wire.as_store_error(error, f"{config.place} {operation}", config.timeout_ms)


def _read(connection: Any) -> Reply:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


async def _read_async(connection: AsyncConnection) -> Reply:
    try:
        return cast(Reply, await connection.read_response())
    except ResponseError as error:
        return error


async def _read_many(connection: AsyncConnection, count: int) -> list[Reply]:
    """As many replies, in order; server errors are replies.

    Straight from the connection's parser: a timeout and three calls for each reply of thousands
    take longer than the server does. The caller bounds the whole and closes on any error.
    """
    read = cast(Any, connection)._parser.read_response
    return [await read() for _ in range(count)]
