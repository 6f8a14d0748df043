"""What is refused before anything is parsed, by a real connection; the rest goes in."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from predictor.front import Front, Replies
from predictor.generation import Generations
from predictor.http import WAITED
from predictor.metrics import Metrics
from predictor.rank import RankConfig, Ranker
from schemas.errors import RequestError
from tests.predictor.support import PLAN, DictStore

INFER = "/v2/models/rank/infer"


class Inside:
    """An application that tells each request's path and body, and may be held."""

    def __init__(self, in_flight: int) -> None:
        ranker = Ranker(DictStore({}), Generations(PLAN, "ranking"), None, RankConfig())
        self.metrics = Metrics()
        service = SimpleNamespace(ranker=ranker, observer=SimpleNamespace(metrics=self.metrics))
        self.state = SimpleNamespace(service=service)
        self.admission = ranker.admission
        self.admission.in_flight = ranker.config.in_flight - in_flight
        self.began, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()
        self.fronts: list[Front] = []
        self.waited_s: float | None = None

    def fill(self) -> None:
        """From now on it is full."""
        self.admission.in_flight = self.admission.config.in_flight

    def hurry(self) -> None:
        """From now on nobody who asks nothing is waited for."""
        for front in self.fronts:
            front._unset_keepalive_if_required()
            front.timeout_keep_alive = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        self.waited_s = scope["state"].get(WAITED)
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.began.set()
        await self.go_on.wait()
        told = b"%s %s %d" % (scope["method"].encode(), scope["path"].encode(), len(body))
        headers = [(b"content-length", b"%d" % len(told))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": told})


Talk = Callable[[Inside, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def connected(talk: Talk, in_flight: int = 0) -> Inside:
    """Talk over a connection to a service that takes so many more requests."""

    async def work() -> Inside:
        inside = Inside(in_flight)
        config = uvicorn.Config(inside, http=Front, lifespan="off", log_config=None)
        config.load()
        state = uvicorn.server.ServerState()
        loop = asyncio.get_running_loop()

        def front() -> Front:
            inside.fronts.append(Front(config, state, {}, loop))
            return inside.fronts[-1]

        server = await loop.create_server(front, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            async with asyncio.timeout(60):
                await talk(inside, reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()
            server.close()
            await server.wait_closed()
        return inside

    return asyncio.run(work())


def request(path: str = INFER, body: bytes = b"", method: str = "POST", *headers: str) -> bytes:
    """With the body's length, where the headers do not say otherwise."""
    lines = [f"{method} {path} HTTP/1.1", "host: x", *headers]
    if not any(line.startswith("transfer-encoding") for line in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers, body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head[0].split()[1]), headers, body


CHUNKS = (b"5\r\nhello\r\n", b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (INFER, "rank"),
        ("/v2/models/aggregate/infer", "aggregate"),
        ("/get-online-features", "get-online-features"),
    ],
)
def test_a_full_service_refuses_in_the_shape_of_every_error(path: str, name: str) -> None:
    async def talk(_: Inside, reader: Any, writer: Any) -> None:
        writer.write(request(path, b"{}"))
        status, headers, body = await reply(reader)
        assert (status, headers["retry-after"]) == (503, "1")
        assert headers["content-type"] == "application/json"
        error = json.loads(body)
        assert set(error) == {"error", "code", "where", "required", "got", "do"}
        assert error["required"] == "at most 256 requests at once"

    inside = connected(talk)
    counted = f'encore_requests_total{{model="{name}",protocol="http",status="503"}} 1.0'
    assert counted in inside.metrics.text().decode()
    assert not inside.began.is_set()


def test_a_refused_connection_takes_the_next_request() -> None:
    """Also behind bodies that come late, are large or chunked."""
    large = request(body=b"x" * 3_000_000)
    chunked = request(INFER, b"", "POST", "transfer-encoding: chunked")

    async def talk(inside: Inside, reader: Any, writer: Any) -> None:
        for head, tail in ((large[:100], large[100:]), (chunked, b"".join(CHUNKS))):
            writer.write(head)
            assert (await reply(reader))[0] == 503  # before its body came
            writer.write(tail)
            await writer.drain()
        inside.admission.in_flight = 0
        writer.write(request(body=b"abc"))
        assert (await reply(reader))[::2] == (200, f"POST {INFER} 3".encode())
        assert inside.admission.coming == 0

    connected(talk)


def test_a_body_that_comes_in_pieces_is_dropped_to_its_end() -> None:
    """The next request may follow in the same piece."""
    asked = request(body=b"x" * 100)

    async def talk(inside: Inside, reader: Any, writer: Any) -> None:
        for pieces in ((asked[:-60], asked[-60:-20], asked[-20:] + asked[:-1], asked[-1:]),) * 2:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.02)  # most often the pieces are read one by one
            assert [(await reply(reader))[0] for _ in range(2)] == [503, 503]
        writer.write(asked[:-1])
        assert (await reply(reader))[0] == 503
        assert inside.fronts[0].timeout_keep_alive_task is None  # while a body is to come
        inside.admission.in_flight = 0
        writer.write(asked[-1:] + request(body=b"abc"))
        assert (await reply(reader))[::2] == (200, f"POST {INFER} 3".encode())

    connected(talk)


def test_a_connection_is_closed_when_its_last_request_is_long_ago() -> None:
    """And not when its first is, though one timer serves for all."""
    now_s, timers = [1_000.0], list[float]()

    class Loop:
        """A clock that stands, and timers that are rung by hand."""

        def time(self) -> float:
            return now_s[0]

        def call_later(self, seconds: float, _: Callable[[], None]) -> Any:
            timers.append(seconds)
            return SimpleNamespace(cancel=lambda: None)

    async def talk(inside: Inside, reader: Any, writer: Any) -> None:
        writer.write(request(body=b"x"))
        assert (await reply(reader))[0] == 503
        (front,) = inside.fronts
        keep_s, front.timeout_keep_alive_task = front.timeout_keep_alive, None
        front.loop = Loop()  # type: ignore[assignment]
        for _ in range(3):
            writer.write(request(body=b"x"))
            assert (await reply(reader))[0] == 503
            now_s[0] += 2
        assert timers == [keep_s]
        front.timeout_keep_alive_handler()
        assert timers == [keep_s, keep_s - 2]
        now_s[0] += keep_s - 2
        front.timeout_keep_alive_handler()
        assert await reader.read() == b""

    connected(talk)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def talk(_: Inside, reader: Any, writer: Any) -> None:
        writer.write(request(body=b"ab") + request("/v2", method="GET") + request(body=b"cd"))
        assert (await reply(reader))[0] == 503
        assert (await reply(reader))[2] == b"GET /v2 0"
        # Behind one that is being served it is the handler's to refuse.
        assert (await reply(reader))[2] == f"POST {INFER} 2".encode()

    connected(talk)


def test_what_is_being_served_is_answered_first() -> None:
    async def talk(inside: Inside, reader: Any, writer: Any) -> None:
        inside.go_on.clear()
        writer.write(request(body=b"first"))
        await inside.began.wait()
        inside.fill()
        writer.write(request(body=b"next"))
        while not inside.fronts[0].pipeline:
            await asyncio.sleep(0.01)
        inside.go_on.set()
        assert (await reply(reader))[2] == f"POST {INFER} 5".encode()
        assert (await reply(reader))[2] == f"POST {INFER} 4".encode()
        writer.write(request(body=b"last"))
        assert (await reply(reader))[0] == 503

    connected(talk, in_flight=1)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_connection_that_is_to_close_does_so_behind_the_body(version: str) -> None:
    asked = request(INFER, b"x" * 99, "POST", "connection: close")
    asked = asked.replace(b"HTTP/1.1", f"HTTP/{version}".encode())

    async def talk(_: Inside, reader: Any, writer: Any) -> None:
        writer.write(asked[:-1])
        status, headers, _body = await reply(reader)
        assert (status, headers["connection"]) == (503, "close")
        writer.write(asked[-1:])
        assert await reader.read() == b""

    connected(talk)


def test_a_refused_connection_that_asks_nothing_more_is_closed() -> None:
    async def talk(inside: Inside, reader: Any, writer: Any) -> None:
        writer.write(request(body=b"x"))
        assert (await reply(reader))[0] == 503
        inside.hurry()
        writer.write(request(body=b"x"))
        assert (await reply(reader))[0] == 503
        assert await reader.read() == b""

    connected(talk)


@pytest.mark.parametrize(
    ("path", "method", "in_flight"),
    [
        (INFER, "POST", 1),
        (INFER, "GET", 0),
        (INFER, "OPTIONS", 0),
        ("/v2/models/other/infer", "POST", 0),
        ("/v2/health/live", "GET", 0),
        ("/metrics", "GET", 0),
        ("/push", "POST", 0),
    ],
)
def test_everything_else_goes_in(path: str, method: str, in_flight: int) -> None:
    async def talk(_: Inside, reader: Any, writer: Any) -> None:
        writer.write(request(path, method=method))
        assert (await reply(reader))[2] == f"{method} {path} 0".encode()

    connected(talk, in_flight)


def test_a_body_that_waits_to_be_asked_for_is_asked_for() -> None:
    """Refused before, it might never come, and the next request would be taken for it."""

    async def talk(_: Inside, reader: Any, writer: Any) -> None:
        asked = request(INFER, b"abc", "POST", "expect: 100-continue")
        writer.write(asked[:-3])
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(asked[-3:])
        assert (await reply(reader))[2] == f"POST {INFER} 3".encode()

    connected(talk)


def test_a_request_is_known_to_have_waited_for_the_loop() -> None:
    async def talk(inside: Inside, reader: Any, writer: Any) -> None:
        for pause_s in (0.0, 0.3):
            writer.write(request(body=b"abc"))
            time.sleep(pause_s)  # what nobody should do here
            assert (await reply(reader))[0] == 200
            assert inside.waited_s is not None
            assert inside.waited_s >= pause_s * 0.9
        with inside.admission.admitted(0.001, 0.2):  # the most patient caller
            pass
        writer.write(request(body=b"abc"))
        time.sleep(0.3)
        status, _, body = await reply(reader)
        assert status == 503
        assert json.loads(body)["required"] == "a wait of at most 200 ms"

    assert connected(talk, in_flight=2).admission.refused.deadline == 1


def test_equal_refusals_are_made_once_as_long_as_the_date_is_the_same() -> None:
    replies, error = Replies(), RequestError("request", required="room", got="none", status=503)
    first, later = ([(b"date", date)] for date in (b"noon", b"a second later"))
    made = replies.of(error, first, stays=True)
    assert replies.of(error, first, stays=True) is made
    ends = replies.of(error, first, stays=False)
    assert (b"connection: close\r\n" in ends, b"connection: close" in made) == (True, False)
    assert b"date: noon\r\n" in made
    assert b"date: a second later\r\n" in replies.of(error, later, stays=True)
    head, _, body = made.partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head
    assert json.loads(body)["error"] == str(error)
