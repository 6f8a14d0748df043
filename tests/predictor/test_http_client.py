"""The client over HTTP says what the one over gRPC says, against the same real server."""

from __future__ import annotations

import asyncio
import http.server
import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from encore.local import free_port
from predictor.calls import PLAIN, Asked, Ids, Reply
from predictor.client import RankingClient
from predictor.http_client import AsyncHttpRankingClient, HttpRankingClient, message_of, reply_of
from predictor.protocol import JSON_LENGTH_HEADER
from schemas.errors import RequestError
from tests.predictor.support import ITEMS, NOW_MS, SERVICE, USERS, RunningServer

CLOCK = Asked(timeout_ms=30_000, now_ms=NOW_MS)


class Blocking:
    """The asynchronous face, called as the blocking one."""

    def __init__(self, address: str, **given: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncHttpRankingClient(address, **given)

    def rank(self, user_id: int, candidate_ids: Ids, asked: Asked = PLAIN) -> Reply:
        return self._runner.run(self._client.rank(user_id, candidate_ids, asked))

    def aggregate(self, user_id: int, candidate_ids: Ids, asked: Asked = PLAIN) -> Reply:
        return self._runner.run(self._client.aggregate(user_id, candidate_ids, asked))

    def ready(self, timeout_ms: float) -> bool:
        return self._runner.run(self._client.ready(timeout_ms))

    def __enter__(self) -> Blocking:
        self._runner.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


Opens = Callable[..., Any]
FACES = pytest.mark.parametrize("face", [HttpRankingClient, Blocking])


def address(running: RunningServer) -> str:
    return running.client.base_url.netloc.decode()


@FACES
def test_replies_are_those_of_grpc(face: Opens, running: RunningServer) -> None:
    asked = replace(CLOCK, page_size=4, request_id=uuid.uuid4())
    with face(address(running)) as client, RankingClient(running.grpc_address) as other:
        assert client.ready(60_000)
        for named in (
            asked,
            replace(asked, outputs=("coarse_score",), version=SERVICE.fingerprint),
        ):
            mine, theirs = (each.rank(USERS[0], ITEMS[:21], named) for each in (client, other))
            assert_same(mine, theirs)
            assert mine.request_id == asked.request_id
        mine, theirs = (
            each.aggregate(USERS[0], np.array(ITEMS), asked) for each in (client, other)
        )
        assert_same(mine, theirs)
        assert mine.outputs["item_slots"].dtype == np.int32


def assert_same(one: Reply, other: Reply) -> None:
    assert one.version == other.version
    assert one.parameters == other.parameters
    assert list(one.outputs) == list(other.outputs)
    for name, tensor in one.outputs.items():
        assert tensor.dtype == other.outputs[name].dtype
        np.testing.assert_array_equal(tensor, other.outputs[name])


@FACES
def test_refusals_are_those_of_grpc(face: Opens, running: RunningServer) -> None:
    wrong: list[tuple[Ids, Asked]] = [
        ([5, 6, 5], CLOCK),
        ([], CLOCK),
        (ITEMS[:9], replace(CLOCK, version="0" * 16)),
    ]
    with face(address(running)) as client, RankingClient(running.grpc_address) as other:
        for candidates, asked in wrong:
            refused = []
            for each in (client, other):
                with pytest.raises(RequestError) as caught:
                    each.rank(USERS[0], candidates, asked)
                refused.append((caught.value.status, caught.value.parts()))
            assert refused[0] == refused[1]
            assert refused[0][0] in (400, 404)


def test_calls_go_on_at_once(running: RunningServer) -> None:
    async def ask() -> list[Reply]:
        async with AsyncHttpRankingClient(address(running), connections=4) as client:
            return await asyncio.gather(*(client.rank(USERS[0], ITEMS, CLOCK) for _ in range(12)))

    replies = asyncio.run(ask())
    assert len({reply.request_id for reply in replies}) == 12
    assert len({tuple(reply.page_ids) for reply in replies}) == 1


def test_the_time_that_is_left_is_told() -> None:
    message = message_of("rank", 1, [2, 3], Asked(timeout_ms=1))
    body, headers = message.written(0.5)
    told = json.loads(body[: int(headers[JSON_LENGTH_HEADER])])
    assert told["parameters"]["timeout"] == 485
    assert body[int(headers[JSON_LENGTH_HEADER]) :] == np.array([1, 2, 3], "<i8").tobytes()
    for left_s, told_ms in ((60.0, 10_000), (0.0, 1)):
        body, headers = message.written(left_s)
        head = json.loads(body[: int(headers[JSON_LENGTH_HEADER])])
        assert head["parameters"]["timeout"] == told_ms


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"hello"), (200, b"{}"), (502, b"<html>"), (503, b'{"error": "full"}'), (200, b"[1]")],
)
def test_what_is_no_ranking_service_is_told(status: int, body: bytes) -> None:
    with pytest.raises(RequestError, match=f"got HTTP {status} that is none of the protocol's"):
        reply_of(status, {}, body)


def test_a_service_that_knows_no_binary_tensors_is_understood() -> None:
    reply = {
        "id": str(uuid.UUID(int=7)),
        "model_version": "v",
        "outputs": [
            {"name": "page_scores", "datatype": "FP32", "shape": [2], "data": [None, 0.5]},
        ],
    }
    found = reply_of(200, {}, json.dumps(reply).encode())
    assert (found.request_id.int, found.parameters) == (7, {})
    np.testing.assert_array_equal(found.page_scores, np.array([np.nan, 0.5], np.float32))


# --- a service that is away -----------------------------------------------------------------


@FACES
def test_nobody_there_is_no_answer(face: Opens) -> None:
    with face(f"127.0.0.1:{free_port()}") as client:
        with pytest.raises(RequestError, match="service: needs an answer in time, got") as caught:
            client.rank(1, [2], Asked(timeout_ms=30_000))
        assert caught.value.status == 503
        assert not client.ready(30_000)


@contextmanager
def refusing(
    times: int, status: int = 503, pause_s: float = 0.0
) -> Iterator[tuple[str, list[str]]]:
    """A server that refuses so many calls, then answers; and the ids of the calls that it got."""
    got: list[str] = []
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            head = json.loads(body[: int(self.headers[JSON_LENGTH_HEADER])])
            got.append(head["id"])
            over.wait(pause_s)
            parts = dict.fromkeys(("error", "where", "required", "got", "do"), "not now")
            refuse = len(got) <= times
            answer = parts if refuse else {"id": head["id"], "model_version": "", "outputs": []}
            written = json.dumps(answer).encode()
            self.send_response(status if refuse else 200)
            self.send_header("content-length", str(len(written)))
            self.end_headers()
            self.wfile.write(written)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A caller that did not wait."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", got
        finally:
            over.set()
            server.shutdown()
            thread.join()


@FACES
def test_what_was_not_begun_is_asked_again_only_where_told(face: Opens) -> None:
    with refusing(2) as (there, got):
        with face(there, retries=3) as client:
            reply = client.rank(1, [2], Asked(timeout_ms=60_000))
        assert got == [str(reply.request_id)] * 3
    for status, retries in ((503, 0), (400, 3)):
        with refusing(9, status) as (there, got), face(there, retries=retries) as client:
            with pytest.raises(RequestError, match="not now") as caught:
                client.rank(1, [2], Asked(timeout_ms=60_000))
            assert (caught.value.status, len(got)) == (status, 1)


@FACES
def test_attempts_end_with_the_deadline(face: Opens) -> None:
    with refusing(1 << 30) as (there, got), face(there, retries=1 << 30) as client:
        with pytest.raises(RequestError):
            client.rank(1, [2], Asked(timeout_ms=300))
        assert len(got) < 30, "the pause doubles"


@FACES
def test_one_that_does_not_answer_is_left_at_the_deadline(face: Opens) -> None:
    with refusing(1, pause_s=300) as (there, got), face(there, retries=3) as client:
        began_s = time.monotonic()
        with pytest.raises(RequestError, match="needs an answer in time") as caught:
            client.rank(1, [2], Asked(timeout_ms=200))
        assert time.monotonic() - began_s < 60
        assert caught.value.status == 503
        assert len(got) <= 1  # none, where the machine stalled before it was asked


def test_the_client_loads_no_model_code() -> None:
    code = (
        "import sys, predictor.http_client; print(*(x in sys.modules for x in"
        " ('torch', 'feast', 'grpc', 'fastapi', 'redis')))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False"] * 5
