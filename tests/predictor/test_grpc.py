"""The gRPC server, asked by plain stubs: answers, refusals, deadlines, drains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

import predictor.grpc_messages as messages
from predictor.grpc_codec import error_parts
from tests.predictor.support import (
    ITEMS,
    NOW_MS,
    SERVICE,
    USERS,
    RunningServer,
    new_id,
)

CODES = grpc.StatusCode


@pytest.fixture(scope="module")
def channel(running: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(running.grpc_address) as opened:
        yield opened


def call(channel: grpc.Channel, method: str, request: Any, timeout_s: float | None = 60) -> Any:
    """One call; its reply's message has the name that the protocol gives it."""
    reply = getattr(messages, f"{method}Response")
    stub = channel.unary_unary(
        f"/{messages.SERVICE}/{method}",
        request_serializer=lambda each: (
            each if isinstance(each, bytes) else each.SerializeToString()
        ),
        response_deserializer=reply.FromString,
    )
    return stub(request, timeout=timeout_s)


def infer_request(
    model: str = "rank",
    user: int = USERS[0],
    candidates: Any = ITEMS[:21],
    outputs: tuple[str, ...] = (),
    **parameters: Any,
) -> Any:
    """A well-formed request with raw contents."""
    request = messages.ModelInferRequest(model_name=model)
    for name, ids in (("user_id", [user]), ("candidate_ids", candidates)):
        request.inputs.add(name=name, datatype="INT64", shape=[len(ids)])
        request.raw_input_contents.append(np.array(ids, "<i8").tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    for name, value in parameters.items():
        setattr(request.parameters[name], kinds[type(value)], value)
    return request


DTYPES = {"INT64": "<i8", "INT32": "<i4", "FP32": "<f4", "UINT8": "u1"}


def tensors_of(reply: Any) -> dict[str, np.ndarray]:
    return {
        each.name: np.frombuffer(raw, DTYPES[each.datatype]).reshape(each.shape)
        for each, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


def refused(channel: grpc.Channel, request: Any, code: Any, method: str = "ModelInfer") -> str:
    """The `where` of a refusal, whose status has all parts."""
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, request)
    return parts_of(caught.value, code)["where"]


def parts_of(error: Any, code: Any) -> dict[str, str]:
    """All parts of a refusal with that status."""
    assert error.code() is code, error.details()
    trailers = {each.key: each.value for each in error.trailing_metadata()}
    parts = error_parts(trailers[messages.STATUS_TRAILER])
    assert parts is not None
    assert set(parts) == {"error", "code", "where", "required", "got", "do"}
    assert parts["error"] == error.details()
    assert parts["error"].startswith(f"{parts['where']}: needs {parts['required']}")
    assert len(parts["error"]) < 1000
    return parts


# --- the protocol ---------------------------------------------------------------------------


def test_server_and_health(channel: grpc.Channel) -> None:
    assert call(channel, "ServerLive", messages.ServerLiveRequest()).live
    assert call(channel, "ServerReady", messages.ServerReadyRequest()).ready
    found = call(channel, "ServerMetadata", messages.ServerMetadataRequest())
    assert (found.name, found.version) == ("encore", "0.1.0")
    for version in ("", SERVICE.fingerprint):
        request = messages.ModelReadyRequest(name="aggregate", version=version)
        assert call(channel, "ModelReady", request).ready


def test_the_health_protocol(channel: grpc.Channel) -> None:
    check = channel.unary_unary(
        f"/{messages.HEALTH_SERVICE}/Check",
        request_serializer=messages.HealthCheckRequest.SerializeToString,
        response_deserializer=messages.HealthCheckResponse.FromString,
    )
    for name in ("", messages.SERVICE):
        assert check(messages.HealthCheckRequest(service=name), timeout=60).status == 1
    with pytest.raises(grpc.RpcError) as caught:
        check(messages.HealthCheckRequest(service="best"), timeout=60)
    error: Any = caught.value
    assert error.code() is CODES.NOT_FOUND


def test_metadata_is_that_of_http(channel: grpc.Channel, running: RunningServer) -> None:
    for name in ("rank", "aggregate"):
        request = messages.ModelMetadataRequest(name=name, version=SERVICE.fingerprint)
        found = call(channel, "ModelMetadata", request)
        wanted = running.client.get(f"/v2/models/{name}").json()
        assert (found.name, list(found.versions)) == (name, wanted["versions"])
        for mine, others in ((found.inputs, "inputs"), (found.outputs, "outputs")):
            told = [
                {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)}
                for each in mine
            ]
            assert told == wanted[others]
        properties = {name: str(value) for name, value in wanted["parameters"].items()}
        assert dict(found.properties) == properties


def test_rank(channel: grpc.Channel) -> None:
    request = infer_request(outputs=("page_ids", "fine_score"), now_ms=NOW_MS, page_size=4)
    request.id = new_id()
    reply = call(channel, "ModelInfer", request)
    assert (reply.model_name, reply.model_version) == ("rank", SERVICE.fingerprint)
    assert reply.id == request.id
    assert reply.parameters["degraded"].string_param == ""
    assert reply.parameters["now_ms"].int64_param == NOW_MS
    tensors = tensors_of(reply)
    assert list(tensors) == ["page_ids", "fine_score"]
    order = np.argsort(-tensors["fine_score"], kind="stable")[:4]
    assert tensors["page_ids"].tolist() == np.array(ITEMS[:21])[order].tolist()


def test_contents_in_place_of_raw_bytes(channel: grpc.Channel) -> None:
    request = infer_request("aggregate", now_ms=NOW_MS)
    wanted = tensors_of(call(channel, "ModelInfer", request))
    del request.raw_input_contents[:]
    request.inputs[0].contents.int64_contents.append(USERS[0])
    request.inputs[1].contents.int64_contents.extend(ITEMS[:21])
    found = tensors_of(call(channel, "ModelInfer", request))
    assert set(found) == set(wanted)
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, wanted[name])


def test_a_calls_deadline_is_the_requests(channel: grpc.Channel) -> None:
    """It is answered in its time, the candidates in the caller's order; not cancelled. A machine
    that stalls before a request of a millisecond is seen refuses it, so several are asked."""
    asked_until_s, reply = time.monotonic() + 30, None
    while reply is None:
        try:
            reply = call(channel, "ModelInfer", infer_request(timeout=1))
        except grpc.RpcError as error:
            assert error.code() is CODES.RESOURCE_EXHAUSTED, error.details()
            assert time.monotonic() < asked_until_s, error.details()
    assert "deadline" in reply.parameters["degraded"].string_param
    assert tensors_of(reply)["page_ids"].tolist() == list(ITEMS[:6])


# --- refusals -------------------------------------------------------------------------------


def changed(change: Callable[[Any], object]) -> Any:
    request = infer_request()
    change(request)
    return request


def shape(*axes: int) -> Any:
    def change(request: Any) -> None:
        request.inputs[1].shape[:] = axes

    return changed(change)


def renamed(field: str, value: str) -> Any:
    """The second input with another name or datatype."""
    return changed(lambda request: setattr(request.inputs[1], field, value))


def both() -> Any:
    """The second input twice over."""
    return changed(lambda request: request.inputs[1].contents.int64_contents.append(1))


def empty_parameter() -> Any:
    return changed(lambda request: request.parameters["timeout"].SetInParent())


NOTHING = messages.ModelInferRequest(model_name="rank")
CANDIDATES = "inputs.candidate_ids"
MALFORMED: list[tuple[str, Any, str]] = [
    ("no inputs", NOTHING, "inputs"),
    ("one input", changed(lambda r: (r.inputs.pop(), r.raw_input_contents.pop())), "inputs"),
    ("raw of one", changed(lambda r: r.raw_input_contents.pop()), "raw_input_contents"),
    ("no name", changed(lambda r: r.inputs[0].ClearField("name")), "inputs[0].name"),
    ("twice", renamed("name", "user_id"), "inputs[1].name"),
    ("datatype", renamed("datatype", "FP32"), f"{CANDIDATES}.datatype"),
    ("no axis", shape(), f"{CANDIDATES}.shape"),
    ("two axes", shape(3, 7), f"{CANDIDATES}.shape"),
    ("another size", shape(20), f"{CANDIDATES}.data"),
    ("negative size", shape(-21), f"{CANDIDATES}.data"),
    ("giant size", shape(2**62), f"{CANDIDATES}.data"),
    ("raw and contents", both(), f"{CANDIDATES}.data"),
    ("no contents", changed(lambda r: r.ClearField("raw_input_contents")), "inputs.user_id.data"),
    ("duplicate", infer_request(candidates=[5, 6, 5]), CANDIDATES),
    ("too many", infer_request(candidates=range(10_001)), CANDIDATES),
    ("unknown output", infer_request(outputs=("page",)), "outputs"),
    ("many outputs", infer_request(outputs=("page_ids",) * 99), "outputs"),
    ("long id", changed(lambda r: setattr(r, "id", "x" * 129)), "id"),
    ("unknown parameter", infer_request(timeout_ms=1), "parameters"),
    ("empty parameter", empty_parameter(), "parameters.timeout"),
    ("long parameter", infer_request(request_id="x" * 999), "parameters.request_id"),
    ("bool page", infer_request(page_size=True), "parameters.page_size"),
    ("zero timeout", infer_request(timeout=0), "parameters.timeout"),
    ("noise", b"\xff\xff\xff", "body"),
    ("text that is no UTF-8", b"\x0a\x02\xff\xfe", "body"),
]


@pytest.mark.parametrize(
    ("request_message", "where"),
    [each[1:] for each in MALFORMED],
    ids=[each[0] for each in MALFORMED],
)
def test_malformed_requests(request_message: Any, where: str, channel: grpc.Channel) -> None:
    assert refused(channel, request_message, CODES.INVALID_ARGUMENT) == where


def test_models_and_versions_that_are_not_there(channel: grpc.Channel) -> None:
    assert refused(channel, infer_request("best"), CODES.NOT_FOUND) == "model"
    older = changed(lambda r: setattr(r, "model_version", "0" * 16))
    assert refused(channel, older, CODES.NOT_FOUND) == "version"
    for method in ("ModelReady", "ModelMetadata"):
        kind = getattr(messages, f"{method}Request")
        assert refused(channel, kind(name="best"), CODES.NOT_FOUND, method) == "model"
        asked = kind(name="rank", version="1")
        assert refused(channel, asked, CODES.NOT_FOUND, method) == "version"


@pytest.mark.parametrize(
    "method", [f"/{messages.SERVICE}/RepositoryIndex", "/other.Service/ModelInfer", "/"]
)
@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
def test_methods_that_are_not_there(channel: grpc.Channel, method: str, kind: str) -> None:
    """tritonclient has some of them, and streams others."""
    ask = getattr(channel, kind)(method)
    with pytest.raises(grpc.RpcError) as caught:
        list(ask(iter([b"1"]), timeout=60)) if kind == "stream_stream" else ask(b"1", timeout=60)
    parts = parts_of(caught.value, CODES.UNIMPLEMENTED)
    assert (parts["where"], parts["got"]) == ("method", method)
    assert "ModelInfer" in parts["required"]


def test_a_message_that_is_too_large(channel: grpc.Channel) -> None:
    request = infer_request(candidates=range(200_000))
    assert refused(channel, request, CODES.RESOURCE_EXHAUSTED) == "body"


def test_the_service_goes_on_after_all_of_it(channel: grpc.Channel, running: RunningServer) -> None:
    reply = call(channel, "ModelInfer", infer_request(now_ms=NOW_MS))
    assert reply.parameters["degraded"].string_param == ""
    counted = 'encore_requests_total{model="rank",protocol="grpc",status="400"}'
    assert counted in running.client.get("/metrics").text
