"""Calls that are refused before their message is read, and those that are not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

import predictor.grpc_messages as messages
from predictor.client import Asked, AsyncRankingClient
from predictor.generation import Generations
from predictor.grpc_accepts import UNSEEN
from predictor.grpc_codec import error_parts
from predictor.grpc_intake import IntakeConfig
from predictor.grpc_server import GrpcServer
from predictor.limits import Limits
from predictor.metrics import Metrics
from predictor.rank import RankConfig, Ranker
from schemas.errors import RequestError
from tests.predictor.support import PLAN, DictStore

Talk = Callable[[grpc.aio.Channel, Any], Awaitable[None]]
#: Calls that the library was asked for already, when the event loop stopped; and one by one.
ASKED_FOR = IntakeConfig().wide + 2
NOISE = b"\xff\xff\xff"  # no message: whoever looks at it refuses it as such


def called(
    talk: Talk,
    address: list[str] | None = None,
    limits: Limits = Limits(),  # noqa: B008
) -> str:
    """Talk to a server whose service is full; its metrics. address: gets the server's."""

    async def work() -> str:
        ranker = Ranker(DictStore({}), Generations(PLAN, "ranking"), None, RankConfig())
        ranker.admission.in_flight = ranker.config.in_flight
        metrics = Metrics()
        observer = SimpleNamespace(metrics=metrics, tracer=None, slow_log=None)
        service: Any = SimpleNamespace(ranker=ranker, observer=observer, limits=limits, ready=True)
        server = GrpcServer(service, "127.0.0.1", 0)
        await server.start()
        if address is not None:
            address.append(f"127.0.0.1:{server.port}")
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                await talk(channel, ranker.admission)
        finally:
            await server.stop(0)
            ranker.close()
        return metrics.text().decode()

    return asyncio.run(work())


async def refusal(channel: grpc.aio.Channel, message: bytes) -> tuple[Any, dict[str, str]]:
    """The status of a call, and the parts in its trailer."""
    infer: Any = channel.unary_unary(f"/{messages.SERVICE}/ModelInfer")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await infer(message, timeout=60)
    trailers: Any = dict(caught.value.trailing_metadata())
    return caught.value.code(), error_parts(trailers[messages.STATUS_TRAILER]) or {}


def begun(channel: grpc.aio.Channel, count: int) -> list[Any]:
    """Calls whose message never comes."""

    async def nothing() -> Any:
        await asyncio.Event().wait()
        yield b""

    open_stream: Any = channel.stream_unary(f"/{messages.SERVICE}/ModelInfer")
    return [open_stream(nothing()) for _ in range(count)]


@pytest.mark.parametrize("size", [3, 500_000])
def test_a_full_service_refuses_before_the_message_is_read(size: int) -> None:
    async def talk(channel: grpc.aio.Channel, admission: Any) -> None:
        for _ in range(3):  # the channel is not harmed by what nobody read
            code, parts = await refusal(channel, NOISE * (size // 3))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert parts["required"] == "at most 256 requests at once"
        admission.in_flight = 0
        code, parts = await refusal(channel, NOISE)
        assert (code, parts["where"]) == (grpc.StatusCode.INVALID_ARGUMENT, "body")

    counted = 'encore_requests_total{model="unread",protocol="grpc",status="503"} 3.0'
    assert counted in called(talk)


def test_calls_without_a_message_keep_nobody_from_being_served() -> None:
    """And are ended in the end."""

    async def talk(channel: grpc.aio.Channel, admission: Any) -> None:
        admission.in_flight = 0
        calls = begun(channel, Limits().in_flight + 20)
        while admission.coming or not admission.unsent:
            await asyncio.sleep(0.01)
        code, parts = await refusal(channel, NOISE)
        assert (code, parts["where"]) == (grpc.StatusCode.INVALID_ARGUMENT, "body")
        codes = [await call.code() for call in calls]
        slow = grpc.StatusCode.DEADLINE_EXCEEDED
        assert Counter(codes)[slow] > ASKED_FOR / 2, "the others came too many at once"
        trailers: Any = dict(await calls[codes.index(slow)].trailing_metadata())
        parts = error_parts(trailers[messages.STATUS_TRAILER]) or {}
        assert (parts["where"], parts["required"]) == ("body", "all of it in 1500 ms")
        while admission.unsent or admission.coming:
            await asyncio.sleep(0.01)

    counted = 'encore_requests_total{model="unread",protocol="grpc",status="408"}'
    assert counted in called(talk, limits=Limits(timeout_ms=1_500))


def test_a_caller_that_leaves_before_its_message_came_is_forgotten() -> None:
    async def talk(channel: grpc.aio.Channel, admission: Any) -> None:
        admission.in_flight = 0
        calls = begun(channel, 20)
        while admission.unsent < len(calls):
            await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        while admission.unsent or admission.coming:
            await asyncio.sleep(0.01)

    assert 'status="408"' not in called(talk)


def test_a_full_service_answers_who_looks_after_it() -> None:
    async def talk(channel: grpc.aio.Channel, admission: Any) -> None:
        check: Any = channel.unary_unary(f"/{messages.HEALTH_SERVICE}/Check")
        told = messages.HealthCheckResponse.FromString(await check(b"", timeout=60))
        assert told.status == 1
        live: Any = channel.unary_unary(f"/{messages.SERVICE}/ServerLive")
        assert messages.ServerLiveResponse.FromString(await live(b"", timeout=60)).live

    called(talk)


def test_calls_behind_a_long_queue_of_unseen_ones_are_reset() -> None:
    """While the event loop does nothing at all, so that it can only be the library: 8 wait in any
    case, some more by chance, none beyond 16."""

    async def talk(_: grpc.aio.Channel, admission: Any) -> None:
        with grpc.insecure_channel(address[0]) as channel:
            infer: Any = channel.unary_unary(f"/{messages.SERVICE}/ModelInfer")
            calls = [infer.future(NOISE, timeout=90) for _ in range(400)]
            deadline_s = time.monotonic() + 60
            while sum(each.done() for each in calls) < 400 - UNSEEN[1] - ASKED_FOR:
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            reset = {each.code() for each in calls if each.done()}
            assert reset == {grpc.StatusCode.CANCELLED}
            while not all(each.done() for each in calls):
                await asyncio.sleep(0.01)
            found = Counter(each.code() for each in calls)
            assert set(found) == {grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert UNSEEN[0] <= found[grpc.StatusCode.RESOURCE_EXHAUSTED] <= UNSEEN[1] + ASKED_FOR

    address: list[str] = []
    called(talk, address)


def test_a_client_takes_a_reset_for_a_refusal_and_may_ask_again() -> None:
    """Both kinds of refusals are requests' errors with the same advice."""
    found: list[RequestError] = []

    async def ask() -> None:
        async with AsyncRankingClient(address[0]) as client:
            asked = [client.rank(1, [2], Asked(timeout_ms=90_000)) for _ in range(400)]
            for each in asyncio.as_completed(asked):
                with pytest.raises(RequestError) as caught:
                    await each
                found.append(caught.value)

    async def talk(_: grpc.aio.Channel, admission: Any) -> None:
        asking = threading.Thread(target=asyncio.run, args=(ask(),))
        asking.start()
        deadline_s = time.monotonic() + 60
        while len(found) < 150:  # the event loop of the service does nothing at all
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        assert {each.got for each in found} == {"one that reset it among many others"}
        await asyncio.to_thread(asking.join)
        assert len(found) == 400
        assert {each.required for each in found} >= {"at most 256 requests at once"}
        told = {(each.where, each.status, each.do) for each in found}
        assert told == {("request", 503, "try again later, or add a server")}

    address: list[str] = []
    called(talk, address)
