"""What `bench serve` makes of a run, and that both of its clients speak to the real service."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from bench.open_loop import NO_REPLY, Answer, Measured
from bench.serve import DEADLINE_MS, FULL, QUICK, Scale, Step, _judge, rate_at
from bench.serve_world import PROTOCOLS, Model, Protocol, ServeWorld, reply_of
from bench.workload import Workload
from predictor.grpc_messages import ModelInferResponse
from store.redis_store import RedisRowStore
from tests.predictor.support import ITEMS, NOW_MS, USERS, put_world, server
from tests.streams.support import patient

STEP = Step(100, 1, 1, None, 100, 0, 0, 0, 0, 1, 0, 0, 400)


def steps(*tails: tuple[float, float]) -> list[Step]:
    return [replace(STEP, rate=rate, tail_ms=tail_ms) for rate, tail_ms in tails]


def test_the_rate_at_which_the_tail_passes_the_bound() -> None:
    assert rate_at(steps((100, 2), (200, 50)), 10) == pytest.approx(150)
    assert rate_at(steps((100, 2), (200, 10), (300, 1_000)), 10) == pytest.approx(200)
    assert rate_at(steps((100, 2), (200, 9)), 10) is None
    assert rate_at(steps((100, 11)), 10) == 0
    assert rate_at(steps((100, 2), (200, math.inf)), 10) == 100


@pytest.mark.parametrize("scale", [QUICK, FULL], ids=["quick", "full"])
def test_a_form_has_samples_for_what_it_tells(scale: Scale) -> None:
    """And ends in time: ten minutes, or three quarters of one."""
    for model, rates in scale.rates.items():
        assert scale.at[model] in rates
        assert list(rates) == sorted(rates)
    least = 400 if scale.tail == 95 else 2_000
    assert least <= scale.samples <= scale.steady
    assert scale.tail == 95 or scale.steady > 5_000 + 4 * 5_000**0.5
    seconds = sum(
        max(scale.steady if rate == scale.at[model] else scale.samples, scale.seconds * rate) / rate
        for model, rates in scale.rates.items()
        for rate in rates
    )
    assert 2 * (seconds + len(scale.rates) * scale.rounds * 2 * scale.overload_s) < (
        25 if scale is QUICK else 570
    )


def answer(degraded: str, status: int = 200) -> Answer:
    reply = ModelInferResponse()
    reply.parameters["degraded"].string_param = degraded
    return Answer(status, reply.SerializeToString() if status == 200 else b"")


def test_replies_are_whole_refused_degraded_or_late() -> None:
    answers = [answer(""), answer("deadline"), answer("", 503), answer(""), answer("", NO_REPLY)]
    late_ms = DEADLINE_MS + 1
    measured = Measured(
        intended_s=np.arange(5.0),
        late_s=np.array([0, 0, 0, 0, 0.5]),
        latency_s=np.array([1, 2, 3, late_ms, np.inf]) / 1e3,
        answers=answers,
    )
    step = _judge(measured, "grpc", (2.5, 2.0, 99), cpu_s=0.005)
    assert (step.whole, step.refused, step.degraded, step.late) == (0.5, 0.2, 0.2, 2)
    assert step.unanswered == 1
    assert step.latest_ms == pytest.approx(late_ms)
    assert step.p50_ms == pytest.approx(3)
    assert step.cpu_us == pytest.approx(1_000)
    assert not step.keeps_up


def test_a_generator_that_is_late_is_not_the_services_fault() -> None:
    late_s = np.array([DEADLINE_MS / 1e3])
    measured = Measured(np.zeros(1), late_s, late_s + 0.001, [answer("")])
    step = _judge(measured, "grpc", (1.0, 1.0, 99), cpu_s=0)
    assert (step.late, step.whole) == (0, 1)
    assert step.p50_ms > DEADLINE_MS  # but latency counts from the intended time


@pytest.fixture(scope="module")
def running(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeWorld]:
    url = valkey.removesuffix("/0") + "/9"
    with RedisRowStore(patient(url)) as store:
        put_world(store)
    directory = tmp_path_factory.mktemp("server")
    with server(directory, url, allow_now_ms=True, limits={"timeout_ms": 60_000}) as started:
        http_port = started.client.base_url.port
        assert http_port is not None
        grpc_port = int(started.grpc_address.rpartition(":")[2])
        workload = cast(Workload, SimpleNamespace(now_ms=NOW_MS))
        ports: dict[Protocol, int] = {"grpc": grpc_port, "http": http_port}
        yield ServeWorld(workload, False, started.child.pid, ports)


@pytest.fixture(autouse=True)
def grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stalls costs no reply."""
    monkeypatch.setattr("bench.open_loop.GRACE_S", 120.0)


@pytest.mark.parametrize("model", ["aggregate", "rank"])
def test_both_protocols_are_answered(model: Model, running: ServeWorld) -> None:
    candidates = np.array(ITEMS)
    for protocol in PROTOCOLS:
        requests = [(USERS[0], candidates), (USERS[1], candidates)]
        prepared = running.prepare(protocol, model, requests, 60_000)
        measured = prepared.drive(np.linspace(0, 0.01, 6))
        replies = [reply_of(protocol, each) for each in measured.answers]
        assert [reply.status for reply in replies] == [200] * 6
        assert {reply.degraded for reply in replies} == {"" if model == "aggregate" else "no_model"}
        assert len({reply.bytes for reply in replies}) <= 2
    stages = running.stage_ms(model)
    assert stages["store"][0] == 12
    assert running.cpu_s() > 0
