"""The client of the ranking service against servers that misbehave. (See test_end_to_end for the
service itself.)"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from encore.ranking import RankClient, RankReply, RankRequest, request_uuid
from schemas.errors import RequestError

REQUEST = RankRequest(request_uuid(1, 2), user_id=7, candidate_ids=(5, 6), now_ms=3)
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def http(body: bytes, status: str = "200 OK", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode() + body


def reply(request: dict[str, object]) -> bytes:
    outputs = [{"name": "page_ids", "data": [6, 5]}]
    answer = {"id": request["id"], "outputs": outputs, "parameters": {"degraded": "no_model"}}
    return json.dumps(answer).encode()


async def read_request(reader: asyncio.StreamReader) -> dict[str, object]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(int(line.split(":")[1]) for line in head.splitlines() if "content-length" in line)
    data: dict[str, object] = json.loads(await reader.readexactly(length))
    return data


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def ask(handler: Handler, count: int = 1, timeout_s: float = 60.0) -> list[RankReply]:
    async def run() -> list[RankReply]:
        async with serving(handler) as url, RankClient(url, timeout_s=timeout_s) as client:
            return [await client.rank(REQUEST) for _ in range(count)]

    return asyncio.run(run())


def test_a_kept_connection_serves_many() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            request = await read_request(reader)
            assert request["parameters"] == {"now_ms": 3}
            writer.write(http(reply(request)))

    replies = ask(handler, count=5)
    assert connections == 1
    assert replies[0].page_ids == [6, 5]
    assert (replies[0].degraded, replies[0].request_id) == ("no_model", REQUEST.request_id)


@pytest.mark.parametrize("told", [True, False])
def test_a_connection_that_the_server_closes_is_not_used_again(told: bool) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        writer.write(http(reply(request), "200 OK", *(["connection: close"] if told else [])))
        await writer.drain()

    async def run() -> int:
        async with serving(handler) as url, RankClient(url) as client:
            for _ in range(3):
                await client.rank(REQUEST)
                await asyncio.sleep(0.01)  # the end of the connection arrives
        return 3

    assert asyncio.run(run()) == 3


def test_concurrency_is_bounded() -> None:
    now = most = 0
    all_there = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        while True:
            request = await read_request(reader)
            now += 1
            most = max(most, now)
            if now == 3:
                all_there.set()
            await all_there.wait()
            await asyncio.sleep(0.002)
            now -= 1
            writer.write(http(reply(request)))

    async def run() -> None:
        async with serving(handler) as url, RankClient(url, concurrency=3) as client:
            await asyncio.gather(*(client.rank(REQUEST) for _ in range(30)))

    asyncio.run(run())
    assert most == 3


def test_a_refusal_keeps_its_parts() -> None:
    parts = {"where": "inputs.user_id", "required": "[1]", "got": "[2]", "do": "send one"}

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(http(json.dumps(parts).encode(), "400 Bad Request"))

    with pytest.raises(
        RequestError, match=r"inputs\.user_id: needs \[1\], got \[2\]; send one"
    ) as e:
        ask(handler)
    assert e.value.status == 400


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}",
        b"x" * 200_000,
    ],
)
def test_what_is_no_answer_is_an_error(answer: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    with pytest.raises(RequestError, match="needs an answer") as error:
        ask(handler)
    assert error.value.status == 503


@pytest.mark.parametrize(
    ("status", "body"), [("200 OK", b"[]"), ("200 OK", b"{}"), ("502 Bad", b"<html>")]
)
def test_an_answer_of_another_program_is_an_error(status: str, body: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(http(body, status))

    with pytest.raises(RequestError, match=f"got HTTP {status[:3]}"):
        ask(handler)


def test_silence_ends_after_the_timeout() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    with pytest.raises(RequestError, match="TimeoutError"):
        ask(handler, timeout_s=0.05)


def test_a_service_that_is_away_is_an_error() -> None:
    async def run() -> None:
        async with RankClient("http://127.0.0.1:9") as client:
            await client.rank(RankRequest(uuid.uuid4(), 1, (1,)))

    with pytest.raises(RequestError, match="needs an answer, got ClientConnectorError"):
        asyncio.run(run())


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://h", "http://"])
def test_urls(url: str) -> None:
    with pytest.raises(RequestError, match="http://host:port"):
        RankClient(url)
