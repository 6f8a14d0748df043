"""Server processes through their life: models and plans come and go, drains, faults, bad starts."""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from encore.local import free_port
from predictor.card import CURRENT, WEIGHTS
from predictor.limits import Limits
from predictor.models import Call, query_of
from predictor.package import publish_package, write_package
from predictor.protocol import parse_infer
from schemas.errors import RequestError
from schemas.fingerprint import service_fingerprint
from schemas.names import PLAN_KEY
from schemas.ranklog import decode_record
from schemas.spool import read_frames
from store.redis_store import RedisRowStore
from tests.patience import patient
from tests.predictor.support import (
    CONFIGURED,
    ITEMS,
    NOW_MS,
    PLAN,
    SERVICE,
    RunningServer,
    body,
    draft,
    new_id,
    outputs_of,
    publish,
    publish_plan,
    put_world,
    server,
    settings_of,
    wait_until,
)
from tests.store.servers import own_server

OPTIONS = {"allow_now_ms": True}


def parameters(running: RunningServer) -> dict[str, Any]:
    reply = running.infer(parameters={"now_ms": NOW_MS})
    assert reply.status_code == 200, reply.text
    return dict(reply.json()["parameters"])


def logged_ids(spool: Path) -> list[str]:
    return [
        str(decode_record(payload).request_id)
        for path in sorted(spool.glob("*.spool"))
        for payload in read_frames(path.read_bytes())[0]
    ]


class Load:
    """Requests from two threads until stopped; remembers every reply."""

    def __init__(self, running: RunningServer) -> None:
        self.running = running
        self.replies: list[tuple[str, int, str]] = []  # request id, status, degraded
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(2)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        url = str(self.running.client.base_url)
        with httpx.Client(base_url=url, timeout=90) as client:
            while not self._stop.wait(0.01):  # packages are checked beside it
                request_id = new_id()
                sender = dataclasses.replace(self.running, client=client)
                try:
                    reply = sender.infer(id=request_id, parameters={"now_ms": NOW_MS})
                except httpx.TransportError:
                    return  # the server is gone
                degraded = reply.json().get("parameters", {}).get("degraded", "")
                self.replies.append((request_id, reply.status_code, degraded))


def test_models_come_and_go_without_a_failed_request(
    rows: RedisRowStore, predictor_url: str, tmp_path: Path
) -> None:
    put_world(rows)
    with server(tmp_path, predictor_url, **OPTIONS) as running:
        reply = running.infer(parameters={"now_ms": NOW_MS}, outputs=("page_ids", "fine_score"))
        assert reply.json()["parameters"]["degraded"] == "no_model"
        assert outputs_of(reply)["page_ids"].tolist() == list(ITEMS[:20])
        assert reply.json()["outputs"][1]["data"] == [None] * 21  # NaN
        with Load(running) as load:
            publish(running.packages, "two_tower")
            wait_until(lambda: parameters(running)["degraded"] == "no_fine_model")
            first = publish(running.packages, "fine", seed=1)
            wait_until(lambda: parameters(running)["fine_version"] == first.name)
            assert parameters(running)["degraded"] == ""

            bad = write_package(running.packages, draft("fine", seed=2))
            with (bad / WEIGHTS).open("r+b") as file:
                file.seek(5000)
                file.write(b"\xff\xff\xff\xff")
            publish_package(bad)
            wait_until(lambda: "refused_fine" in metadata(running))
            assert "sha256" in metadata(running)["refused_fine"]
            assert parameters(running)["fine_version"] == first.name

            (running.packages / "fine" / CURRENT).write_text("../../../etc/passwd")
            wait_until(lambda: "16 hex digits" in metadata(running)["refused_fine"])
            third = publish(running.packages, "fine", seed=3)
            wait_until(lambda: parameters(running)["fine_version"] == third.name)
            assert "refused_fine" not in metadata(running)
    assert load.replies
    assert {status for _, status, _ in load.replies} == {200}
    assert set(logged_ids(running.spool)) >= {request_id for request_id, _, _ in load.replies}


def metadata(running: RunningServer) -> dict[str, Any]:
    return dict(running.client.get("/v2/models/rank").json()["parameters"])


def test_plans_are_followed(rows: RedisRowStore, predictor_url: str, tmp_path: Path) -> None:
    put_world(rows)
    publish(tmp_path / "packages", "fine")
    with server(tmp_path, predictor_url, **OPTIONS) as running:
        before = parameters(running)
        assert before["degraded"] == "no_coarse_model"

        same = dataclasses.replace(PLAN, version=2, parent=1)
        publish_plan(rows, same)
        wait_until(lambda: parameters(running)["plan_version"] == 2)
        assert parameters(running)["fine_version"] == before["fine_version"]

        rows.put_text(PLAN_KEY, "{}")
        rows.put_text("encore:plan:version", "3")
        wait_until(lambda: "refused_plan" in metadata(running))
        assert parameters(running)["plan_version"] == 2

        slots = SERVICE.item_slots[:-1]
        views = {view.name: view for view in PLAN.views}
        fingerprint = service_fingerprint(
            views, SERVICE.user_slots, slots, SERVICE.sequences, SERVICE.crosses
        )
        service = dataclasses.replace(SERVICE, item_slots=slots, fingerprint=fingerprint)
        other = dataclasses.replace(PLAN, version=4, parent=2, services=(service,))
        publish_plan(rows, other)
        wait_until(lambda: parameters(running)["plan_version"] == 4)
        assert parameters(running)["degraded"] == "no_model"
        trained = publish(tmp_path / "packages", "fine", plan=other)
        wait_until(lambda: parameters(running)["fine_version"] == trained.name)


@pytest.mark.parametrize("spool_options", [{}, {"refuse": True}])
def test_sigterm_answers_what_is_in_flight_and_keeps_the_log(
    spool_options: dict[str, Any], rows: RedisRowStore, predictor_url: str, tmp_path: Path
) -> None:
    put_world(rows)
    options = OPTIONS | {"spool_options": spool_options}
    with server(tmp_path, predictor_url, **options) as running, Load(running) as load:
        wait_until(lambda: len(load.replies) > 50)
        running.child.signal(signal.SIGTERM)
        assert running.child.wait(60) == 0
    assert {status for _, status, _ in load.replies} == {200}
    assert set(logged_ids(running.spool)) >= {request_id for request_id, _, _ in load.replies}


@pytest.mark.kill
def test_a_stopped_store_degrades_in_time_and_comes_back(tmp_path: Path) -> None:
    with own_server(tmp_path / "store") as own:
        with RedisRowStore(patient(own.url)) as store:
            put_world(store)
        options = OPTIONS | {"store_timeout_ms": 150}
        with server(tmp_path, own.url, **options) as running:
            wait_until(lambda: parameters(running)["degraded"] == "no_model")
            own.pause()
            started = time.monotonic()
            stopped = parameters(running)
            assert time.monotonic() - started < 30  # of a minute that it had
            assert stopped["degraded"] == "no_model,store_timeout"
            assert stopped["statuses"].startswith("TIMEOUT=")
            assert "," not in stopped["statuses"]
            own.go_on()
            wait_until(lambda: parameters(running)["degraded"] == "no_model")
            own.kill()
            wait_until(lambda: parameters(running)["degraded"] == "no_model,store_error")
            assert running.ready()
            own.restart()
            wait_until(lambda: parameters(running)["degraded"] == "no_model")


@pytest.mark.kill
def test_kill_9_loses_no_acked_record(
    rows: RedisRowStore, predictor_url: str, tmp_path: Path
) -> None:
    put_world(rows)
    with server(tmp_path, predictor_url, **OPTIONS) as running, Load(running) as load:
        wait_until(lambda: len(load.replies) > 100 and logged_by(running) > 100)
        logged = logged_by(running)
        running.child.kill()
    assert len(set(logged_ids(running.spool))) >= logged


def logged_by(running: RunningServer) -> float:
    """How many records it says are on disk."""
    start = 'encore_log_records_total{outcome="logged"} '
    lines = running.client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(start)).removeprefix(start))


REFUSED = f"""{CONFIGURED}
for given in json.loads(sys.argv[1]):
    try:
        run_server(configured(given))
    except Exception as error:
        print(type(error).__name__, str(error))
"""


def test_starts_that_cannot_be(valkey: str, tmp_path: Path) -> None:
    """One after the other in a process, which each of them would have ended."""
    empty, without, whole = (f"{valkey.removesuffix('/0')}/{number}" for number in (7, 14, 15))
    for url, plan in (
        (empty, None),
        (without, dataclasses.replace(PLAN, services=())),
        (whole, PLAN),
    ):
        with RedisRowStore(patient(url)) as store:
            store._ask(("FLUSHDB",), "test")
            if plan is not None:
                publish_plan(store, plan)
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        starts = [
            settings_of(tmp_path, empty, plan_wait_s=0.2),
            settings_of(tmp_path, nobody, plan_wait_s=0.2),
            settings_of(tmp_path, without),
            settings_of(tmp_path, whole, port=port),
        ]
        ended = subprocess.run(
            [sys.executable, "-c", REFUSED, json.dumps(starts)], capture_output=True, text=True
        )
    assert ended.returncode == 0, ended.stderr
    without_plan, without_store, without_service, without_port = ended.stdout.splitlines()
    assert "needs a published plan" in without_plan
    assert without_store.startswith("StoreError ")
    assert "plan.services: needs one of no services" in without_service
    told = f"http 127.0.0.1:{port}: needs an address nobody listens on, got Address already in"
    assert told in without_port


def test_a_start_that_cannot_be_ends_the_process(
    rows: RedisRowStore, predictor_url: str, tmp_path: Path
) -> None:
    with (
        pytest.raises(AssertionError, match="needs a published plan"),
        server(tmp_path, predictor_url, plan_wait_s=0.2),
    ):
        pass


def test_a_request_sets_no_clock_unless_the_server_lets_it() -> None:
    """As replays do, behind the setting `allow_now_ms`."""

    class Settings:
        limits = Limits()
        page_size = 1
        timeout_ms = 100.0
        allow_now_ms = False

    given = parse_infer(json.dumps(body(parameters={"now_ms": NOW_MS})).encode(), Limits())
    with pytest.raises(RequestError, match=r"parameters\.now_ms: needs the server's own clock"):
        query_of(given, Settings(), Call(NOW_MS))


def test_a_torn_connection_and_noise_leave_it_serving(
    rows: RedisRowStore, predictor_url: str, tmp_path: Path
) -> None:
    put_world(rows)
    with server(tmp_path, predictor_url, **OPTIONS) as running:
        port = running.client.base_url.port
        head = b"POST /v2/models/rank/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n{"
        for raw in (b"\x16\x03\x01", b"GET / HTTP/9.9\r\n\r\n", head, b"x" * 70_000):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(raw)
        assert parameters(running)["degraded"] == "no_model"
        assert json.loads(running.client.get("/v2/health/live").text) == {"live": True}


def test_what_came_in_while_the_process_stood_still_is_answered_by_its_deadline_or_refused(
    rows: RedisRowStore, predictor_url: str, tmp_path: Path
) -> None:
    """The whole process stops, so its event loop is late for all of it at once."""
    put_world(rows)
    options = OPTIONS | {"limits": {"timeout_ms": 60_000}}
    with server(tmp_path, predictor_url, **options) as running:
        assert running.infer().status_code == 200
        asked = [json.dumps(body(parameters={"timeout": ms})).encode() for ms in (400, 60_000)]
        head = "POST /v2/models/rank/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n"
        address = ("127.0.0.1", running.client.base_url.port)
        with socket.create_connection(address) as hasty, socket.create_connection(address) as other:
            running.child.signal(signal.SIGSTOP)
            for connection, sent in zip((hasty, other), asked, strict=True):
                connection.sendall(head.format(len(sent)).encode() + sent)
            time.sleep(1.0)
            running.child.signal(signal.SIGCONT)
            hasty.settimeout(60)
            told = b""
            while not told.endswith(b"}"):
                told += hasty.recv(1 << 16)
            assert told.startswith(b"HTTP/1.1 503 ")
            assert b"time until its deadline" in told
            other.settimeout(60)
            assert other.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
