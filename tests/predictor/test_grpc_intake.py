"""How many calls the gRPC library is asked for: bursts that are all seen, overload that is not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc._cython import cygrpc

import predictor.grpc_messages as messages
from predictor.admission import Admission
from predictor.client import Asked, AsyncRankingClient
from predictor.grpc_accepts import (
    NEEDED,
    UNSEEN,
    UNSEEN_ONE_BY_ONE,
    AcceptingServer,
    Accepts,
    missing,
    new_server,
)
from predictor.grpc_codec import error_parts
from predictor.grpc_intake import Intake, IntakeConfig
from schemas.errors import RequestError
from tests.predictor.support import ITEMS, USERS, RunningServer

CODES = grpc.StatusCode
CONFIG = IntakeConfig()
INFER = f"/{messages.SERVICE}/ModelInfer"


# --- how many, in simulated time -------------------------------------------------------------


class Process:
    """An intake with its admission, whose time passes from look to look."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.admission = Admission(clock=lambda: self.now_s)
        self.intake = Intake(self.admission)

    def look(self, asked: int, refused: int = 0, times: int = 1) -> int:
        """asked: that did not come. Returns how many are asked for next."""
        for _ in range(times):
            self.now_s += CONFIG.every_s
            self.admission.refused.standing += refused
            self.intake.look(asked)
        return self.intake.wanted(0)


def test_many_are_asked_for_whatever_is_served() -> None:
    process = Process()
    assert process.intake.wanted(0) == process.intake.wanted(200) == CONFIG.wide
    assert process.look(asked=0, times=50) == CONFIG.wide  # all of a burst came, nobody was refused
    assert process.intake.rests and not process.intake.narrow


def test_the_first_refusal_makes_it_narrow() -> None:
    process = Process()
    few = process.admission.at_once
    assert few < CONFIG.trial
    assert process.look(asked=90, refused=1) == few
    assert process.intake.narrow and not process.intake.rests


def test_calls_are_asked_for_by_halves_of_what_is_served_at_once() -> None:
    process = Process()
    for _ in range(9):
        with process.admission.admitted(0.001, 1.0):
            pass
    few = process.admission.at_once
    process.look(asked=90, refused=1)
    wanted = [process.intake.wanted(unanswered) for unanswered in range(few + 9)]
    half = few // 2
    assert wanted == [*range(few, few - half - 1, -1)] + [0] * (few + 9 - half - 1)


def test_wide_again_where_the_calls_of_a_trial_do_not_come() -> None:
    process = Process()
    process.look(asked=90, refused=1)
    since_s = process.now_s
    while process.look(asked=0) < CONFIG.trial:
        assert process.intake.narrow
    assert process.now_s - since_s == pytest.approx(CONFIG.again_s, abs=2 * CONFIG.every_s)
    assert process.look(asked=1) == 2 * CONFIG.trial
    assert process.look(asked=1) == CONFIG.wide
    assert process.intake.rests


@pytest.mark.parametrize("refused", [0, 1])
def test_trials_that_fail_come_ever_later(refused: int) -> None:
    """All calls of the trial came, or one was refused."""
    process = Process()
    at_s: list[float] = []
    process.look(asked=90, refused=1)
    while len(at_s) < 7:
        if process.look(asked=0) == CONFIG.trial:
            at_s.append(process.now_s)
            assert process.look(asked=refused, refused=refused) < CONFIG.trial
    pauses_s = [b - a for a, b in pairwise(at_s)]
    wanted_s = [0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    assert pauses_s == pytest.approx(wanted_s, abs=3 * CONFIG.every_s)
    process.look(asked=1, times=120)  # the next trial is none that fails
    assert process.intake.rests
    process.look(asked=1, refused=1)  # begins with the first pause again
    assert CONFIG.trial in [process.look(asked=0) for _ in range(12)]


# --- a server ----------------------------------------------------------------------------------


Talk = Callable[[Any, str], Awaitable[None]]


def served(talk: Talk, admission: Admission | None = None, library: Any = None) -> None:
    """Talk to a server whose method answers with what it got, and is stopped behind it."""

    async def answer(_: object, context: Any) -> bytes:
        return bytes(await context.read())

    async def work() -> None:
        more = {} if library is None else {"library": library}
        server = new_server([("grpc.so_reuseport", 0)], admission or Admission(), **more)
        handler = grpc.stream_unary_rpc_method_handler(answer)
        server.add_registered_method_handlers(messages.SERVICE, {"ModelInfer": handler})
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            await talk(server, f"127.0.0.1:{port}")
        finally:
            await server.stop(60)
            await server.stop(0)  # may be called again
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work())


async def echo(address: str, times: int = 1, timeout_s: float = 60) -> Counter[Any]:
    """The codes of calls that are made at once."""
    async with grpc.aio.insecure_channel(address) as channel:
        infer: Any = channel.unary_unary(INFER)

        async def one(message: bytes) -> grpc.StatusCode:
            try:
                assert await infer(message, timeout=timeout_s) == message
            except grpc.aio.AioRpcError as error:
                return error.code()
            return CODES.OK

        return Counter(await asyncio.gather(*(one(b"%d" % each) for each in range(times))))


@pytest.mark.parametrize("burst", [64, 128])
def test_a_burst_that_comes_while_the_loop_does_nothing_is_seen(burst: int) -> None:
    async def talk(_: Any, address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            infer: Any = channel.unary_unary(INFER)
            calls = [infer.future(b"x", timeout=90) for _ in range(burst)]
            time.sleep(0.3)  # whoever is to be reset is by now
            while not all(each.done() for each in calls):
                await asyncio.sleep(0.01)
            assert {each.code() for each in calls} == {CODES.OK}

    served(talk)


def test_in_an_overload_few_are_asked_for() -> None:
    """Somebody is refused again and again: of 400 that come while the loop does nothing soon no
    more get through than are asked for or wait."""
    admission = Admission()
    most = admission.at_once + UNSEEN[1]

    async def talk(server: Any, address: str) -> None:
        assert not server.narrow
        seen, deadline_s = 400, time.monotonic() + 60
        with grpc.insecure_channel(address) as channel:
            infer: Any = channel.unary_unary(INFER)
            while seen > most:
                assert time.monotonic() < deadline_s
                admission.refused.standing += 1
                calls = [infer.future(b"x", timeout=90) for _ in range(400)]
                while sum(each.done() for each in calls) < 400 - CONFIG.wide - UNSEEN[1]:
                    time.sleep(0.01)
                while not all(each.done() for each in calls):
                    await asyncio.sleep(0.01)
                found = Counter(each.code() for each in calls)
                assert set(found) == {CODES.OK, CODES.CANCELLED}
                seen = found[CODES.OK]
            admission.refused.standing += 1
            while not server.narrow:  # a call is taken, and looked after
                assert time.monotonic() < deadline_s
                await asyncio.to_thread(infer, b"x", timeout=90)
        assert seen >= UNSEEN[0]

    served(talk, admission)


def test_callers_that_leave_are_forgotten() -> None:
    async def talk(server: Any, address: str) -> None:
        (accepts,) = server._accepts
        with grpc.insecure_channel(address) as channel:
            infer: Any = channel.unary_unary(INFER)
            expired = [infer.future(b"x", timeout=0.001) for _ in range(64)]
            cancelled = [infer.future(b"x", timeout=90) for _ in range(64)]
            time.sleep(0.1)
            for each in cancelled:
                each.cancel()
            while not all(each.done() for each in (*expired, *cancelled)):
                await asyncio.sleep(0.01)
        deadline_s = time.monotonic() + 60
        while await echo(address, 64) != {CODES.OK: 64}:  # those who left still have to be taken
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.05)
        while accepts._unanswered or len(accepts._asked) != CONFIG.wide:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.01)

    served(talk)


@pytest.mark.parametrize("calls", [0, 1, 300])
def test_a_server_stops_without_a_word(calls: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it has asked for. (No task is left: see `served`.)"""

    async def talk(_: Any, address: str) -> None:
        if calls:
            assert (await echo(address, calls))[CODES.OK] >= min(calls, CONFIG.wide)

    with caplog.at_level(logging.INFO):
        served(talk)
    assert not caplog.records


# --- the library -------------------------------------------------------------------------------


def test_the_library_has_what_is_needed() -> None:
    """Where this fails, grpcio has changed: see docs/decisions/0015-grpc-intake.md."""
    assert missing() == []


def test_what_a_library_lacks_is_told() -> None:
    assert missing(SimpleNamespace()) == list(NEEDED)
    changed = SimpleNamespace(_handle_rpc=lambda rpc: rpc, _schedule_rpc_coro=3)
    assert {"_handle_rpc", "_schedule_rpc_coro"} <= set(missing(changed))


class LargerServer:
    """As of a release whose servers are made of one thing more."""

    def __init__(self, *arguments: Any, further: bool) -> None: ...

    def _make_request_call_future(self, method_bytes: bytes) -> None: ...

    def _request_registered_call(self, method: bytes) -> None: ...


LARGER = SimpleNamespace(**vars(cygrpc) | {"AioServer": LargerServer})


@pytest.mark.parametrize(
    ("library", "lacks"),
    [(SimpleNamespace(), "AioServer,"), (LARGER, "AioServer of six arguments (")],
    ids=["names", "arguments"],
)
def test_a_library_that_lacks_it_is_asked_one_by_one(
    library: Any, lacks: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(server: Any, address: str) -> None:
        assert not isinstance(server, AcceptingServer)
        assert await echo(address, UNSEEN_ONE_BY_ONE[0]) == {CODES.OK: UNSEEN_ONE_BY_ONE[0]}

    served(talk, library=library)
    (record,) = caplog.records
    assert f"lacks {lacks}" in record.getMessage()


def test_a_call_that_cannot_be_asked_for_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async def refuse(method: bytes) -> None:
            raise OSError(method.decode())

        running = [True, False]
        core = SimpleNamespace(_request_registered_call=refuse, is_running=lambda: running.pop(0))
        config = IntakeConfig(wide=1)
        Accepts(core, INFER, None, Intake(Admission(), config)).start()
        while len(asyncio.all_tasks()) > 1 or running:
            await asyncio.sleep(0.01)

    asyncio.run(work())
    assert [each.getMessage() for each in caplog.records] == [f"grpc: {INFER} was not asked for"]


# --- the service -------------------------------------------------------------------------------


async def again_until(good: Callable[[Any], bool], burst: Callable[[], Awaitable[Any]]) -> Any:
    """Bursts at a service that is idle in between. A machine that stalls may make one an overload,
    from which the service takes a second to return; those at an idle one are all alike."""
    deadline_s = time.monotonic() + 60
    while not good(found := await burst()):
        assert time.monotonic() < deadline_s, found
        await asyncio.sleep(1.2)
    return found


@pytest.mark.parametrize("burst", [64, 128])
def test_a_burst_at_an_idle_service_is_answered(running: RunningServer, burst: int) -> None:
    """Each call is served, or refused with its parts; none is reset."""
    request = messages.ModelInferRequest(model_name="rank")
    for name, ids in (("user_id", USERS[:1]), ("candidate_ids", ITEMS[:21])):
        tensor = request.inputs.add(name=name, datatype="INT64", shape=[len(ids)])
        tensor.contents.int64_contents.extend(ids)
    message = request.SerializeToString()

    async def one(infer: Any) -> str:
        try:
            reply = messages.ModelInferResponse.FromString(await infer(message, timeout=60))
            return str(reply.model_name)
        except grpc.aio.AioRpcError as error:
            if error.code() is CODES.CANCELLED:
                return "reset"
            assert error.code() is CODES.RESOURCE_EXHAUSTED
            trailers: Any = dict(error.trailing_metadata())
            parts = error_parts(trailers[messages.STATUS_TRAILER]) or {}
            return parts["where"]

    async def work() -> Counter[str]:
        async with grpc.aio.insecure_channel(running.grpc_address) as channel:
            infer = channel.unary_unary(INFER)

            async def at_once() -> Counter[str]:
                return Counter(await asyncio.gather(*(one(infer) for _ in range(burst))))

            found = await again_until(lambda found: found["reset"] == 0, at_once)
            return Counter(found)

    found = asyncio.run(work())
    assert set(found) <= {"rank", "request"} and found["rank"] > 0


def test_the_typed_client_sees_no_reset(running: RunningServer) -> None:
    async def work() -> list[Any]:
        async with AsyncRankingClient(running.grpc_address) as client:

            async def at_once() -> list[Any]:
                asked = Asked(timeout_ms=60_000)
                calls = [client.rank(USERS[0], ITEMS[:21], asked) for _ in range(96)]
                return await asyncio.gather(*calls, return_exceptions=True)

            found = await again_until(lambda found: "reset" not in str(found), at_once)
            return list(found)

    failed = [each for each in asyncio.run(work()) if isinstance(each, BaseException)]
    assert len(failed) < 96 and all(isinstance(each, RequestError) for each in failed)
