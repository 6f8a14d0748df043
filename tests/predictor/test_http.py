"""A real server over a real store: the protocol, its errors, and what malformed requests get."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest

from aggregation.program import ServiceProgram
from predictor.cascade import inputs_of
from predictor.generation import Generations
from predictor.package import load_package
from schemas.ranklog import decode_record
from schemas.spool import read_frames
from schemas.status import Status
from store.redis_store import RedisRowStore
from tests.patience import patient
from tests.predictor.support import (
    ITEMS,
    NOW_MS,
    PLAN,
    SERVICE,
    USERS,
    RunningServer,
    body,
    new_id,
    outputs_of,
    put_raw,
    wait_until,
    world,
)

INFER = "/v2/models/rank/infer"
CLOCK = {"now_ms": NOW_MS}
USER_VIEWS = tuple(view.name for view in SERVICE.views(PLAN, "user"))
ITEM_VIEWS = tuple(view.name for view in SERVICE.views(PLAN, "item"))


def assert_error(reply: httpx.Response, status: int, *, where: str = "") -> dict[str, Any]:
    """The one shape of every error."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()
    assert set(error) == {"error", "code", "where", "required", "got", "do"}
    assert all(isinstance(part, str) for part in error.values())
    assert error["error"].startswith(f"{error['where']}: needs {error['required']}")
    assert len(reply.content) < 2000
    if where:
        assert error["where"] == where
    return dict(error)


# --- the protocol ---------------------------------------------------------------------------


def test_server_and_health(running: RunningServer) -> None:
    get = running.client.get
    assert get("/v2").json() == {
        "name": "encore",
        "version": "0.1.0",
        "extensions": ["binary_tensor_data"],
    }
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    for name in ("rank", "aggregate"):
        assert get(f"/v2/models/{name}/ready").json() == {"name": name, "ready": True}


def test_metadata(running: RunningServer) -> None:
    data = running.client.get("/v2/models/rank").json()
    assert {each["name"] for each in data["inputs"]} == {"user_id", "candidate_ids"}
    assert {"name": "page_ids", "datatype": "INT64", "shape": [-1]} in data["outputs"]
    assert data["parameters"]["fingerprint"] == SERVICE.fingerprint
    assert data["parameters"]["item_views"] == ",".join(ITEM_VIEWS)
    aggregate = running.client.get("/v2/models/aggregate").json()
    width = len(SERVICE.slots("item"))
    item_slots = {"name": "item_slots", "datatype": "INT32", "shape": [-1, width]}
    assert item_slots in aggregate["outputs"]


def test_rank(running: RunningServer) -> None:
    outputs = ("page_ids", "page_scores", "coarse_score", "fine_score", "item_status")
    request_id = new_id()
    reply = running.infer(id=request_id, outputs=outputs, parameters=CLOCK)
    data, tensors = reply.json(), outputs_of(reply)
    assert data["model_name"] == "rank"
    assert data["id"] == request_id
    assert data["parameters"]["degraded"] == ""
    assert data["parameters"]["plan_version"] == PLAN.version
    assert len(data["parameters"]["fine_version"]) == 16
    assert data["parameters"]["statuses"] == f"PRESENT={len(USER_VIEWS) + len(ITEM_VIEWS) * 21}"
    assert tuple(tensors) == outputs
    assert (tensors["item_status"] == Status.PRESENT).all()
    order = np.argsort(-tensors["fine_score"], kind="stable")[:6]
    assert tensors["page_ids"].tolist() == np.array(ITEMS[:21])[order].tolist()
    np.testing.assert_array_equal(tensors["page_scores"], tensors["fine_score"][order])


def test_rank_equals_the_library(running: RunningServer) -> None:
    tensors = outputs_of(running.infer(outputs=("coarse_score",), parameters=CLOCK))
    program, rows = ServiceProgram(PLAN, "ranking"), world()
    raw = [rows.get(key) for key in program.keys(USERS[0], ITEMS[:21])]
    assembled = program.assemble(raw, USERS[0], ITEMS[:21], NOW_MS)
    generation = Generations(PLAN, "ranking").current
    path = next(path for path in (running.packages / "two_tower").iterdir() if path.is_dir())
    model = load_package(path, generation.expected("two_tower"))
    wanted = model.logits(inputs_of(assembled.tensors, model.network.spec.inputs))
    np.testing.assert_array_equal(tensors["coarse_score"], wanted)


def test_aggregate_equals_the_library(running: RunningServer) -> None:
    tensors = outputs_of(running.infer("aggregate", parameters=CLOCK))
    program, rows = ServiceProgram(PLAN, "ranking"), world()
    raw = [rows.get(key) for key in program.keys(USERS[0], ITEMS[:21])]
    wanted = program.assemble(raw, USERS[0], ITEMS[:21], NOW_MS).tensors
    np.testing.assert_array_equal(tensors["user_slots"], wanted.user_slots)
    np.testing.assert_array_equal(tensors["item_slots"], wanted.item_slots)
    for name, sequence in wanted.sequences.items():
        np.testing.assert_array_equal(tensors[f"sequence.{name}"], sequence)
        np.testing.assert_array_equal(tensors[f"length.{name}"], wanted.lengths[name])
    assert tensors["user_status"].shape == (len(USER_VIEWS),)
    assert tensors["item_status"].shape == (21, len(ITEM_VIEWS))


def test_page_size_and_request_id(running: RunningServer) -> None:
    request_id = new_id()
    parameters = {"page_size": 3, "request_id": request_id, "timeout": 4000.5}
    reply = running.infer(parameters=parameters)
    assert reply.json()["id"] == request_id
    assert len(outputs_of(reply)["page_ids"]) == 3
    assert len(outputs_of(running.infer(candidates=[1000]))["page_ids"]) == 1
    assert running.infer().json()["id"] != running.infer().json()["id"]


def test_every_request_is_logged(running: RunningServer) -> None:
    request_id = new_id()
    reply = running.infer(id=request_id, parameters=CLOCK)
    wait_until(lambda: any(str(r.request_id) == request_id for r in records(running)))
    [record] = [r for r in records(running) if str(r.request_id) == request_id]
    assert record.user_id == USERS[0]
    assert record.now_ms == NOW_MS
    page = record.fine_ids[np.argsort(record.positions, kind="stable")][-6:]
    assert page.tolist() == outputs_of(reply)["page_ids"].tolist()


def test_a_callers_id_that_is_no_key_is_logged(running: RunningServer) -> None:
    given = f"home {new_id()} \u2713"
    reply = running.infer(id=given, parameters=CLOCK).json()
    assert reply["id"] == given
    wait_until(lambda: any(r.caller_id == given for r in records(running)))
    [record] = [r for r in records(running) if r.caller_id == given]
    assert str(record.request_id) == reply["parameters"]["request_id"]


def records(running: RunningServer) -> list[Any]:
    return [
        decode_record(payload)
        for path in sorted(running.spool.glob("*.spool"))
        for payload in read_frames(path.read_bytes())[0]
    ]


def test_unknown_user_and_candidate_are_valid(running: RunningServer) -> None:
    outputs = ("page_ids", "user_status", "item_status")
    reply = running.infer(user=-5, candidates=[1000, -1, 2**63 - 1], outputs=outputs)
    tensors = outputs_of(reply)
    assert (tensors["user_status"] == Status.NOT_FOUND).all()
    assert (tensors["item_status"][0] == Status.PRESENT).all()
    assert (tensors["item_status"][1:] == Status.NOT_FOUND).all()
    assert sorted(tensors["page_ids"]) == [-1, 1000, 2**63 - 1]


def test_a_corrupt_row_is_said(running: RunningServer, running_url: str) -> None:
    key = ServiceProgram(PLAN, "ranking").item_keys([ITEMS[39]])[0]
    with RedisRowStore(patient(running_url)) as store:
        put_raw(store, key, b"noise")
        try:
            reply = running.infer(candidates=ITEMS[38:], outputs=("item_status",))
        finally:
            put_raw(store, key, world()[key])  # other tests ask this server, too
    assert reply.json()["parameters"]["degraded"] == "corrupt_rows"
    assert outputs_of(reply)["item_status"][:, 0].tolist() == [0, Status.CORRUPT]


def test_metrics(running: RunningServer) -> None:
    running.infer()
    text = running.client.get("/metrics").text
    assert 'encore_requests_total{model="rank",protocol="http",status="200"}' in text
    assert "encore_log_records_total" in text


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/", 404),
        ("GET", "/redoc", 404),
        ("GET", "/v2/models/best", 404),
        ("GET", "/v2/models/best/ready", 404),
        ("POST", "/v2/models/best/infer", 404),
        ("POST", f"/v2/models/{'x' * 5000}/infer", 404),
        ("POST", "/v2/models/%00/infer", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2/health/live", 405),
        ("POST", "/v2", 405),
    ],
)
def test_routes_that_are_not_there(
    method: str, path: str, status: int, running: RunningServer
) -> None:
    assert_error(running.client.request(method, path, json=body()), status)


@pytest.mark.parametrize(
    "path",
    ["/v2/health/live", "/v2/health/ready", "/health", "/v2/models/rank", "/metrics", "/docs"],
)
def test_head_is_get_without_the_body(path: str, running: RunningServer) -> None:
    """On one connection: a body behind a HEAD's reply would be read as the next one."""
    head, get = running.client.head(path), running.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert get.status_code == 200
    assert len(get.content) > 1
    assert head.headers["content-type"] == get.headers["content-type"]
    assert running.client.head(INFER).status_code == 405
    if path != "/metrics":
        assert int(head.headers["content-length"]) == len(get.content)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in body().items() if name != key}


def tensor(name: str = "candidate_ids", **changes: Any) -> dict[str, Any]:
    """A request whose tensor `name` is changed; None removes a key."""
    request = body()
    for entry in request["inputs"]:
        if entry["name"] == name:
            entry |= changes
            for key in [key for key, value in changes.items() if value is None]:
                del entry[key]
    return request


CANDIDATES = "inputs.candidate_ids"
MALFORMED: list[tuple[str, Any, str]] = [
    ("empty object", {}, "inputs"),
    ("list", [], "body"),
    ("number", 7, "body"),
    ("null", None, "body"),
    ("unknown key", body(input=[]), "body"),
    ("inputs missing", without("inputs"), "inputs"),
    ("inputs an object", {"inputs": {}}, "inputs"),
    ("no inputs", {"inputs": []}, "inputs"),
    ("input a string", {"inputs": ["user_id"]}, "inputs[0]"),
    ("one input", {"inputs": body()["inputs"][:1]}, "inputs"),
    ("input twice", {"inputs": body()["inputs"] * 2}, "inputs[2].name"),
    ("many inputs", {"inputs": body()["inputs"] * 100}, "inputs"),
    ("unknown input", {"inputs": [*body()["inputs"], {**body()["inputs"][0], "name": "x"}]}, ""),
    ("no name", tensor(name="user_id", datatype=None), "inputs.user_id.datatype"),
    ("long name", {"inputs": [{"name": "x" * 9999}]}, "inputs[0].name"),
    ("wrong datatype", tensor(datatype="FP32"), f"{CANDIDATES}.datatype"),
    ("unknown datatype", tensor(datatype=["INT64"]), f"{CANDIDATES}.datatype"),
    ("no shape", tensor(shape=None), f"{CANDIDATES}.shape"),
    ("two axes", tensor(shape=[3, 7]), f"{CANDIDATES}.shape"),
    ("no axis", tensor(shape=[]), f"{CANDIDATES}.shape"),
    ("shape of another size", tensor(shape=[20]), f"{CANDIDATES}.data"),
    ("negative shape", tensor(shape=[-21]), f"{CANDIDATES}.data"),
    ("float shape", tensor(shape=[21.0]), f"{CANDIDATES}.shape"),
    ("bool shape", tensor(shape=[True], data=[1]), f"{CANDIDATES}.shape"),
    ("shape a number", tensor(shape=21), f"{CANDIDATES}.shape"),
    ("no data", tensor(data=None), f"{CANDIDATES}.data"),
    ("data a string", tensor(data="1,2"), f"{CANDIDATES}.data"),
    ("nested data", tensor(shape=[1], data=[[1]]), f"{CANDIDATES}.data"),
    ("bool id", tensor(shape=[2], data=[1, True]), f"{CANDIDATES}.data"),
    ("float id", tensor(shape=[2], data=[1, 2.0]), f"{CANDIDATES}.data"),
    ("string id", tensor(shape=[2], data=[1, "2"]), f"{CANDIDATES}.data"),
    ("null id", tensor(shape=[2], data=[1, None]), f"{CANDIDATES}.data"),
    ("id of 65 bits", tensor(shape=[2], data=[1, 2**63]), f"{CANDIDATES}.data"),
    ("giant id", tensor(shape=[1], data=[10**300]), f"{CANDIDATES}.data"),
    ("no candidates", tensor(shape=[0], data=[]), CANDIDATES),
    ("duplicate", tensor(shape=[3], data=[5, 6, 5]), CANDIDATES),
    ("two users", tensor("user_id", shape=[2], data=[1, 2]), "inputs.user_id.shape"),
    ("no user", tensor("user_id", shape=[0], data=[]), "inputs.user_id.shape"),
    ("user 2**63", tensor("user_id", data=[2**63]), "inputs.user_id.data"),
    ("outputs a string", body(outputs=[]) | {"outputs": "page_ids"}, "outputs"),
    ("unknown output", body(outputs=["page"]), "outputs"),
    ("many outputs", body(outputs=["page_ids"] * 999), "outputs"),
    ("id a number", body(id=7), "id"),
    ("long id", body(id="x" * 129), "id"),
    ("empty id", body(id=""), "id"),
    ("parameters a list", body() | {"parameters": []}, "parameters"),
    ("nested parameter", body(parameters={"timeout": {}}), "parameters.timeout"),
    ("unknown parameter", body(parameters={"timeout_ms": 1}), "parameters"),
    ("two ids", body(id=new_id(), parameters={"request_id": new_id()}), "parameters.request_id"),
    ("id parameter a number", body(parameters={"request_id": 7}), "parameters.request_id"),
    ("zero timeout", body(parameters={"timeout": 0}), "parameters.timeout"),
    ("negative timeout", body(parameters={"timeout": -1}), "parameters.timeout"),
    ("long timeout", body(parameters={"timeout": 1e9}), "parameters.timeout"),
    ("bool timeout", body(parameters={"timeout": True}), "parameters.timeout"),
    ("negative page", body(parameters={"page_size": -1}), "parameters.page_size"),
    ("giant page", body(parameters={"page_size": 10**6}), "parameters.page_size"),
    ("float page", body(parameters={"page_size": 2.0}), "parameters.page_size"),
    ("bool page", body(parameters={"page_size": True}), "parameters.page_size"),
    ("negative clock", body(parameters={"now_ms": -1}), "parameters.now_ms"),
    ("far clock", body(parameters={"now_ms": 2**60}), "parameters.now_ms"),
    ("string clock", body(parameters={"now_ms": "now"}), "parameters.now_ms"),
]


@pytest.mark.parametrize(
    ("request_body", "where"), [each[1:] for each in MALFORMED], ids=[each[0] for each in MALFORMED]
)
def test_malformed_requests(request_body: Any, where: str, running: RunningServer) -> None:
    for model in ("rank", "aggregate"):
        reply = running.client.post(f"/v2/models/{model}/infer", json=request_body)
        assert_error(reply, 400, where=where)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"inputs": NaN}',
        json.dumps(tensor(shape=[2], data=[1, float("nan")])).encode(),
        json.dumps(tensor(shape=[1], data=[float("inf")])).encode(),
        b"[" * 100_000,
        b'{"a":' * 50_000,
        json.dumps(body()).encode()[:-3],
        json.dumps(body()).encode() + b"x",
    ],
)
def test_bodies_that_are_no_json(raw: bytes, running: RunningServer) -> None:
    assert_error(running.client.post(INFER, content=raw), 400, where="body")


def test_too_many_candidates(running: RunningServer) -> None:
    many = assert_error(running.infer(candidates=range(10_001)), 400, where=CANDIDATES)
    assert many["got"] == "10001"
    million = json.dumps(body(candidates=list(range(1_000_000)))).encode()
    assert_error(running.client.post(INFER, content=million), 413, where="body")

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(million), 65536):
            yield million[start : start + 65536]

    with suppress(httpx.WriteError):  # no length declared: the connection may end while it sends
        assert_error(running.client.post(INFER, content=chunks()), 413, where="body")
    assert len(outputs_of(running.infer(candidates=range(10_000)))["page_ids"]) == 6


def test_a_caller_that_leaves_within_its_body_is_no_defect(running: RunningServer) -> None:
    def counted(status: str) -> float:
        text = running.client.get("/metrics").text
        wanted = f'encore_requests_total{{model="rank",protocol="http",status="{status}"}} '
        lines = [line for line in text.splitlines() if line.startswith(wanted)]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    left, defects = counted("499"), counted("500")
    address = running.client.base_url
    with socket.create_connection((address.host, address.port or 80), 30) as caller:
        caller.sendall(f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{{".encode())
    wait_until(lambda: counted("499") > left)
    assert counted("500") == defects


def test_the_service_goes_on_after_all_of_it(running: RunningServer) -> None:
    reply = running.infer(parameters=CLOCK)
    assert reply.json()["parameters"]["degraded"] == ""
