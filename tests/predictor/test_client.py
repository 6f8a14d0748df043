"""The client's two faces against a real server: answers, refusals, deadlines, retries."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

import predictor.grpc_messages as messages
from encore.local import free_port
from predictor.client import Asked, AsyncRankingClient, RankingClient, Reply
from schemas.errors import RequestError
from tests.predictor.support import ITEMS, NOW_MS, SERVICE, USERS, RunningServer, outputs_of

CLOCK = Asked(timeout_ms=30_000, now_ms=NOW_MS)


@pytest.fixture
def client(running: RunningServer) -> Iterator[RankingClient]:
    with RankingClient(running.grpc_address) as opened:
        yield opened


def test_a_page_is_that_of_http(client: RankingClient, running: RunningServer) -> None:
    request_id = uuid.uuid4()
    page = client.rank(
        USERS[0], ITEMS[:21], Asked(30_000, page_size=4, now_ms=NOW_MS, request_id=request_id)
    )
    wanted = outputs_of(running.infer(parameters={"page_size": 4, "now_ms": NOW_MS}))
    assert page.request_id == request_id
    assert page.version == SERVICE.fingerprint
    assert page.degraded == ()
    np.testing.assert_array_equal(page.page_ids, wanted["page_ids"])
    np.testing.assert_array_equal(page.page_scores, wanted["page_scores"])


def test_tensors_are_those_of_http(client: RankingClient, running: RunningServer) -> None:
    tensors = client.aggregate(USERS[0], np.array(ITEMS[:21]), CLOCK)
    wanted = outputs_of(running.infer("aggregate", parameters={"now_ms": NOW_MS}))
    assert set(tensors.outputs) == set(wanted)
    for name, tensor in tensors.outputs.items():
        np.testing.assert_array_equal(tensor, wanted[name])
    with pytest.raises(KeyError):
        _ = tensors.page_ids


def test_named_outputs(client: RankingClient) -> None:
    asked = Asked(30_000, outputs=("coarse_score",), version=SERVICE.fingerprint)
    assert list(client.rank(USERS[0], ITEMS[:9], asked).outputs) == ["coarse_score"]


def test_both_faces_say_the_same(client: RankingClient, running: RunningServer) -> None:
    same = replace(CLOCK, request_id=uuid.uuid4())

    async def ask() -> tuple[list[Reply], bool, RequestError]:
        async with AsyncRankingClient(running.grpc_address, connections=3) as face:
            replies = [face.rank(user, ITEMS[:9], same) for user in USERS]
            replies.append(face.aggregate(USERS[0], ITEMS[:9], CLOCK))
            with pytest.raises(RequestError) as refused:
                await face.rank(USERS[0], [], CLOCK)
            return await asyncio.gather(*replies), await face.ready(60_000), refused.value

    *pages, tensors = (found := asyncio.run(ask()))[0]
    for user, page in zip(USERS, pages, strict=True):
        mine = client.rank(user, ITEMS[:9], same)
        assert mine.page_ids.tolist() == page.page_ids.tolist()
        assert mine.parameters == page.parameters
        assert page.parameters["request_id"] == str(page.request_id) == str(same.request_id)
    mine = client.aggregate(USERS[0], ITEMS[:9], CLOCK)
    assert mine.outputs["item_slots"].tolist() == tensors.outputs["item_slots"].tolist()
    assert found[1]
    assert client.ready(60_000)
    with pytest.raises(RequestError) as refused:
        client.rank(USERS[0], [], CLOCK)
    assert str(refused.value) == str(found[2])


def test_a_refusal_is_the_services(client: RankingClient, running: RunningServer) -> None:
    wanted = running.infer(candidates=[5, 6, 5]).json()
    with pytest.raises(RequestError) as caught:
        client.rank(USERS[0], [5, 6, 5], CLOCK)
    assert {"error": str(caught.value), **caught.value.parts()} == wanted
    assert caught.value.status == 400
    with pytest.raises(RequestError, match="version: needs") as caught:
        client.rank(USERS[0], ITEMS[:9], Asked(30_000, version="0" * 16))
    assert caught.value.status == 404


def test_the_deadline_is_passed_on(client: RankingClient) -> None:
    """The service answers in time with what it has, or the client says that nothing came."""
    started = time.monotonic()
    try:
        page = client.rank(USERS[0], ITEMS, Asked(timeout_ms=4))
        assert page.degraded
    except RequestError as error:
        assert error.status == 503
    assert time.monotonic() - started < 30


# --- a service that is away -----------------------------------------------------------------


def test_nobody_there_is_no_answer() -> None:
    with RankingClient(f"127.0.0.1:{free_port()}") as client:
        with pytest.raises(RequestError, match="service: needs an answer in time, got") as caught:
            client.rank(1, [2], Asked(timeout_ms=30_000))
        assert caught.value.status == 503
        assert not client.ready(200)


def test_the_asynchronous_face_says_so_too() -> None:
    async def ask() -> bool:
        async with AsyncRankingClient(f"127.0.0.1:{free_port()}") as client:
            return await client.ready(200)

    assert not asyncio.run(ask())


@contextmanager
def refusing(times: int, code: grpc.StatusCode) -> Iterator[tuple[str, list[str]]]:
    """A server that refuses so many calls, then answers; and the ids of the calls that it got."""
    got: list[str] = []

    def infer(request: Any, context: grpc.ServicerContext) -> Any:
        got.append(request.id)
        if len(got) <= times:
            context.abort(code, "not now")
        return messages.ModelInferResponse(id=request.id)

    handler = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=messages.ModelInferRequest.FromString,
        response_serializer=messages.ModelInferResponse.SerializeToString,
    )
    server = grpc.server(futures.ThreadPoolExecutor(1))
    handlers = grpc.method_handlers_generic_handler(messages.SERVICE, {"ModelInfer": handler})
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", got
    finally:
        server.stop(None).wait()


def test_nothing_is_asked_twice_unless_told() -> None:
    with (
        refusing(1, grpc.StatusCode.UNAVAILABLE) as (address, got),
        RankingClient(address) as client,
    ):
        with pytest.raises(RequestError, match="UNAVAILABLE: not now"):
            client.rank(1, [2], Asked(timeout_ms=60_000))
        assert len(got) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED])
def test_what_was_not_begun_is_asked_again_on_the_same_deadline(code: grpc.StatusCode) -> None:
    with (
        refusing(2, code) as (address, got),
        RankingClient(address, retries=3) as client,
    ):
        reply = client.rank(1, [2], Asked(timeout_ms=60_000))
        assert got == [str(reply.request_id)] * 3


def test_attempts_end_with_the_deadline() -> None:
    with (
        refusing(1 << 30, grpc.StatusCode.UNAVAILABLE) as (address, got),
        RankingClient(address, retries=1 << 30) as client,
    ):
        with pytest.raises(RequestError, match="service: needs an answer in time"):
            client.rank(1, [2], Asked(timeout_ms=300))
        assert len(got) < 30, "the pause doubles"


def test_what_is_wrong_is_not_asked_again() -> None:
    with (
        refusing(9, grpc.StatusCode.INVALID_ARGUMENT) as (address, got),
        RankingClient(address, retries=3) as client,
    ):
        with pytest.raises(RequestError):
            client.rank(1, [2], Asked(timeout_ms=60_000))
        assert len(got) == 1


def test_the_client_loads_no_model_code() -> None:
    code = "import sys, predictor.client; print('torch' in sys.modules, 'feast' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False"]
