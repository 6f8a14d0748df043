"""Connections that threads share to read rows: what is kept, and what is never used again."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from schemas.errors import StoreError
from schemas.row import seal
from schemas.stored import RowKeys
from store.base import Write
from store.line import RowLine
from store.redis_store import AsyncRedisRowStore, RedisRowStore
from store.reply import RowsReply
from store.wire import StoreConfig

KEYS = [RowKeys("users", 1, np.array([7], np.int64))]
PATIENT_MS = 30_000  # nothing here waits so long


@dataclass
class Talker:
    """A server that answers each question with the next of `says`, and closes after None."""

    listener: socket.socket
    says: list[bytes | None]
    answered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    connected: list[socket.socket] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.listener.getsockname()[1]}/0"

    def serve(self) -> None:
        while self.says:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connected.append(connection)
            with connection:
                while self.says and connection.recv(65_536):
                    said = self.says.pop(0)
                    connection.sendall(said or b"")
                    if self.says and self.says[0] is None:
                        self.says.pop(0)
                        break
            self.answered.release()


@contextmanager
def talker(*says: bytes | None) -> Iterator[Talker]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Talker(listener, list(says))
        thread = threading.Thread(target=made.serve)
        thread.start()
        try:
            yield made
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def value(text: bytes) -> bytes:
    return b"*1\r\n$%d\r\n%b\r\n" % (len(text), text)


def patient(url: str) -> RedisRowStore:
    return RedisRowStore(StoreConfig(url, timeout_ms=PATIENT_MS, connect_timeout_ms=PATIENT_MS))


def test_one_connection_answers_one_question_after_the_other() -> None:
    with talker(value(b"one"), value(b"two")) as server, patient(server.url) as store:
        assert [list(store.read_rows(KEYS)) for _ in range(2)] == [[b"one"], [b"two"]]
        assert len(server.connected) == 1


def test_a_connection_that_was_closed_meanwhile_is_not_asked() -> None:
    with talker(value(b"one"), None, value(b"two")) as server, patient(server.url) as store:
        assert list(store.read_rows(KEYS)) == [b"one"]
        assert server.answered.acquire(timeout=60)
        assert list(store.read_rows(KEYS)) == [b"two"]
        assert len(server.connected) == 2


def test_what_nobody_asked_for_is_no_answer() -> None:
    """It came behind an answer, after that was read: the next question goes elsewhere."""
    with talker(value(b"one"), value(b"two")) as server, patient(server.url) as store:
        assert list(store.read_rows(KEYS)) == [b"one"]
        server.connected[0].sendall(value(b"somebody else's"))
        assert store._lines._idle[0]._poll.poll(60_000)
        assert list(store.read_rows(KEYS)) == [b"two"]
        assert len(server.connected) == 2


def test_a_question_that_did_not_end_well_takes_its_connection_along() -> None:
    with talker(b"*2\r\n", None, value(b"two")) as server, patient(server.url) as store:
        with pytest.raises(StoreError, match="a list of 1 values"):
            store.read_rows(KEYS)
        assert list(store.read_rows(KEYS)) == [b"two"]
        assert len(server.connected) == 2


def test_hanging_up_leaves_no_connection_behind() -> None:
    with talker(value(b"one"), value(b"two")) as server, patient(server.url) as store:
        assert list(store.read_rows(KEYS)) == [b"one"]
        store._lines.hang_up()
        assert server.answered.acquire(timeout=60)
        assert list(store.read_rows(KEYS)) == [b"two"]
        assert len(server.connected) == 2


def test_threads_get_their_own_answers(valkey: str) -> None:
    with patient(valkey) as store:
        rows = {each: seal(b"%08d" % each, 0, (1, each), 5) for each in range(64)}
        keys = {each: RowKeys("lines", 1, np.array([each], np.int64)) for each in rows}
        writes = [Write(keys[each].names()[0], None, row) for each, row in rows.items()]
        store.compare_and_set(writes)

        def check(each: int) -> bool:
            return all(list(store.read_rows([keys[each]])) == [rows[each]] for _ in range(20))

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(check, rows))


def test_an_answer_took_until_it_was_there_and_not_until_it_was_seen() -> None:
    """By an event loop that does nothing for a while. As far as the kernel tells: Linux."""

    async def work() -> None:
        with talker(b"*1\r\n$2\r\nab\r\n") as server:
            address = server.listener.getsockname()
            _, writer = await asyncio.open_connection(*address)
            line = RowLine(SimpleNamespace(_writer=writer, _close=lambda: None))
            writer.transport.set_protocol(line)
            began_s, reply = time.monotonic(), RowsReply(1, 0)
            asking = asyncio.create_task(line.ask(b"?", reply))
            await asyncio.sleep(0)
            assert server.answered.acquire(timeout=60)
            time.sleep(0.5)  # what nobody should do here
            await asking
            assert [bytes(row or b"") for row in reply.rows()] == [b"ab"]
            assert 0 <= line.took_s <= time.monotonic() - began_s - 0.45
            line.close()

    asyncio.run(work())


def test_who_asked_to_be_told_hears_of_each_answer(valkey: str) -> None:
    async def work() -> list[float]:
        told: list[float] = []
        async with AsyncRedisRowStore(StoreConfig(valkey, timeout_ms=PATIENT_MS)) as store:
            await store.read_rows(KEYS)
            store.on_rows_read = told.append
            await store.read_rows(KEYS)
            await store.read_rows(KEYS)
        return told

    told = asyncio.run(work())
    assert len(told) == 2
    assert min(told) >= 0
