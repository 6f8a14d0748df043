"""What is no request, comes too slowly or is too long, over real connections."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import Request

from predictor.connection import MOST_HEAD_BYTES
from predictor.front import Front
from predictor.http import _body
from predictor.limits import Limits
from schemas.errors import RequestError
from tests.predictor.test_front import CHUNKS, INFER, Inside, connected, reply, request

HEAD = f"POST {INFER} HTTP/1.1\r\nhost: x\r\n".encode()
SHAPE = {"error", "code", "where", "required", "got", "do"}

NO_HTTP = {
    "noise": (b"garbage\r\n\r\n", 400, "head"),
    "another version": (b"GET /v2 HTTP/9.9\r\n\r\n", 400, "head"),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "head"),
    "tls": (bytes.fromhex("16030100a5010000a10303"), 400, "head"),
    "an unknown method": (b"FOO /v2 HTTP/1.1\r\nhost: x\r\n\r\n", 400, "head"),
    "bytes in the path": (b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", 400, "head"),
    "a length that is none": (HEAD + b"content-length: abc\r\n\r\n", 400, "head"),
    "a length below 0": (HEAD + b"content-length: -1\r\n\r\n", 400, "head"),
    "two lengths": (HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", 400, "head"),
    "no chunk": (HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}", 400, "body"),
    "a tunnel": (b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n", 405, "route"),
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http_is_refused_in_the_shape_of_every_error(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent, status, where = NO_HTTP[name]

    async def talk(_: Inside, reader: Any, writer: Any) -> None:
        writer.write(sent)
        told, headers, body = await reply(reader)
        error = json.loads(body)
        assert (told, headers["content-type"]) == (status, "application/json")
        assert (headers["connection"], set(error)) == ("close", SHAPE)
        assert error["where"] == where
        writer.write(b"more")
        assert await reader.read() == b""

    inside = connected(talk, in_flight=1)
    counted = f'encore_requests_total{{model="unread",protocol="http",status="{status}"}} 1.0'
    assert counted in inside.metrics.text().decode()
    assert not caplog.records, "whoever sends noise must not fill a disk"


def test_a_request_is_answered_before_the_noise_behind_it() -> None:
    async def talk(inside: Inside, reader: Any, writer: Any) -> None:
        inside.go_on.clear()
        writer.write(request(body=b"abc") + b"garbage\r\n\r\n")
        await inside.began.wait()
        inside.go_on.set()
        status, headers, body = await reply(reader)
        assert (status, body) == (200, f"POST {INFER} 3".encode())
        assert headers["connection"] == "close"
        assert await reader.read() == b""

    connected(talk, in_flight=1)


OFFERS = [
    ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAEAAEAAAAIAAAAB"),
    ("connection: keep-alive, Upgrade", "upgrade: websocket", "sec-websocket-key: aaaa"),
]


@pytest.mark.parametrize("offer", OFFERS, ids=["h2c", "websocket"])
@pytest.mark.parametrize("cut", [None, 30, -2])
def test_an_offer_of_another_protocol_is_declined(offer: tuple[str, ...], cut: int | None) -> None:
    """The body is there, and the connection stays."""
    asked = request(INFER, b"abc", "POST", *offer)
    chunked = request(INFER, b"", "POST", *offer, "transfer-encoding: chunked")

    async def talk(inside: Inside, reader: Any, writer: Any) -> None:
        for _ in range(2):
            writer.write(asked[:cut])
            if cut is not None:
                await asyncio.sleep(0.02)
                writer.write(asked[cut:])
            assert (await reply(reader))[::2] == (200, f"POST {INFER} 3".encode())
        writer.write(chunked + b"".join(CHUNKS) + asked)
        assert (await reply(reader))[2] == f"POST {INFER} 5".encode()
        assert (await reply(reader))[2] == f"POST {INFER} 3".encode()
        inside.fill()
        writer.write(asked)
        assert (await reply(reader))[0] == 503
        assert inside.admission.coming == 0

    connected(talk, in_flight=9)


def test_a_head_that_does_not_end_is_refused() -> None:
    async def talk(_: Inside, reader: Any, writer: Any) -> None:
        writer.write(HEAD)
        for number in range(3 * MOST_HEAD_BYTES // 8_192):
            writer.write(b"x-%d: %s\r\n" % (number, b"a" * 8_192))
            await asyncio.sleep(0)
        status, _headers, body = await reply(reader)
        assert (status, json.loads(body)["where"]) == (431, "head")
        assert await reader.read() == b""

    connected(talk, in_flight=1)


@pytest.mark.parametrize("sent", [HEAD, HEAD[:3]])
def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes) -> None:
    async def talk(inside: Inside, reader: Any, writer: Any) -> None:
        writer.write(request(body=b"x"))
        assert (await reply(reader))[0] == 200
        inside.hurry()
        writer.write(sent)
        status, _headers, body = await reply(reader)
        assert (status, json.loads(body)["where"]) == (408, "head")
        assert await reader.read() == b""

    connected(talk, in_flight=1)


def test_a_head_has_less_time_than_a_connection_between_two_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("predictor.connection.MOST_HEAD_S", 0.05)

    async def talk(inside: Inside, reader: Any, writer: Any) -> None:
        inside.fronts[0].timeout_keep_alive = 3_600
        for _ in range(2):
            writer.write(request(body=b"x"))
            assert (await reply(reader))[0] == 200
            await asyncio.sleep(0.1)
        writer.write(HEAD)
        status, _headers, body = await reply(reader)
        assert (status, json.loads(body)["required"]) == (408, "all in 0.05 s")

    connected(talk, in_flight=1)


def test_who_asks_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Front.__init__

    def hasty(self: Front, *given: Any) -> None:
        begin(self, *given)
        self.timeout_keep_alive = 0

    monkeypatch.setattr(Front, "__init__", hasty)

    async def talk(_: Inside, reader: Any, writer: Any) -> None:
        assert await reader.read() == b""

    connected(talk)


def test_a_head_in_pieces_is_read() -> None:
    async def talk(inside: Inside, reader: Any, writer: Any) -> None:
        asked = request(body=b"abc")
        for at in range(0, len(asked) - 3, 7):
            writer.write(asked[at : min(at + 7, len(asked) - 3)])
            await asyncio.sleep(0.002)
        while not inside.admission.in_flight:
            await asyncio.sleep(0.01)
        assert inside.fronts[0].timeout_keep_alive_task is None  # while the body is to come
        writer.write(asked[-3:])
        assert (await reply(reader))[::2] == (200, f"POST {INFER} 3".encode())

    connected(talk, in_flight=1)


def test_a_defect_is_told_as_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Front, "_is_next", broken)

    async def talk(_: Inside, reader: Any, writer: Any) -> None:
        writer.write(request(body=b"abc"))
        status, _headers, body = await reply(reader)
        assert (status, json.loads(body)["code"]) == (500, "encore")

    connected(talk, in_flight=1)
    assert caplog.records[0].exc_info is not None
    caplog.clear()


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def received() -> dict[str, Any]:
        sent.append(b"{")
        if len(sent) > 2:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": sent[-1], "more_body": True}

    sent: list[bytes] = []
    asked = Request({"type": "http", "method": "POST", "headers": []}, received)
    with pytest.raises(RequestError, match="all of it in 1 ms, got 2 bytes") as caught:
        asyncio.run(_body(asked, Limits(timeout_ms=1)))
    assert caught.value.status == 408
