"""One conformance suite over every way to ask: the same answers, and the same refusals.

JSON and binary tensors over HTTP, gRPC, and NVIDIA's `tritonclient` as it is, over both.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

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

DTYPES = {"INT64": "<i8", "INT32": "<i4", "FP32": "<f4", "UINT8": "u1"}
CLOCK = {"now_ms": NOW_MS}
JSON_LENGTH = "inference-header-content-length"


@dataclass(frozen=True)
class Ask:
    """A request, right or wrong. inputs: name → (datatype, shape, elements)."""

    model: str = "rank"
    version: str = ""
    id: str | None = None
    inputs: Mapping[str, tuple[str, list[int], list[int]]] = field(
        default_factory=lambda: inputs_of(USERS[0], ITEMS[:21])
    )
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(CLOCK))


@dataclass
class Told:
    """An answer: tensors and parameters, or the parts of a refusal."""

    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] | None = None
    named: tuple[str, str, str] = ("", "", "")  # model, version, request id


def inputs_of(user: int, candidates: Any) -> dict[str, tuple[str, list[int], list[int]]]:
    ids = list(candidates)
    return {"user_id": ("INT64", [1], [user]), "candidate_ids": ("INT64", [len(ids)], ids)}


Asker = Callable[[RunningServer, Ask], Told]


# --- the ways to ask ------------------------------------------------------------------------


def by_http(running: RunningServer, ask: Ask, *, binary: bool) -> Told:
    """Written by hand, after the specification."""
    tail, inputs = b"", []
    for name, (datatype, shape, elements) in ask.inputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if binary:
            raw = np.array(elements, "<i8").tobytes()
            tail, entry["parameters"] = tail + raw, {"binary_data_size": len(raw)}
        else:
            entry["data"] = elements
        inputs.append(entry)
    parameters = dict(ask.parameters) | ({"binary_data_output": True} if binary else {})
    body: dict[str, Any] = {"inputs": inputs, "parameters": parameters}
    body |= {"outputs": [{"name": name} for name in ask.outputs]} if ask.outputs else {}
    body |= {} if ask.id is None else {"id": ask.id}
    head = json.dumps(body).encode()
    version = f"/versions/{ask.version}" if ask.version else ""
    reply = running.client.post(
        f"/v2/models/{ask.model}{version}/infer",
        content=head + tail,
        headers={JSON_LENGTH: str(len(head))} if binary else {},
    )
    if reply.status_code != 200:
        return Told(error=reply.json() | {"status": str(reply.status_code)})
    head_bytes = int(reply.headers.get(JSON_LENGTH, len(reply.content)))
    assert (reply.headers["content-type"] == "application/octet-stream") is binary
    data, rest = json.loads(reply.content[:head_bytes]), reply.content[head_bytes:]
    tensors = {}
    for output in data["outputs"]:
        dtype, shape = DTYPES[output["datatype"]], output["shape"]
        if binary:
            size = output["parameters"]["binary_data_size"]
            taken, rest = rest[:size], rest[size:]
            tensors[output["name"]] = np.frombuffer(taken, dtype).reshape(shape)
        else:
            tensors[output["name"]] = np.array(output["data"], dtype).reshape(shape)
    assert not rest
    named = (data["model_name"], data["model_version"], data["id"])
    return Told(tensors, data["parameters"], named=named)


def by_json(running: RunningServer, ask: Ask) -> Told:
    return by_http(running, ask, binary=False)


def by_binary(running: RunningServer, ask: Ask) -> Told:
    return by_http(running, ask, binary=True)


_CHOICES = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}


def grpc_request(ask: Ask) -> Any:
    request = messages.ModelInferRequest(model_name=ask.model, model_version=ask.version)
    request.id = ask.id or ""
    for name, (datatype, shape, elements) in ask.inputs.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(np.array(elements, "<i8").tobytes())
    for name in ask.outputs:
        request.outputs.add(name=name)
    for name, value in ask.parameters.items():
        setattr(request.parameters[name], _CHOICES[type(value)], value)
    return request


def by_grpc(running: RunningServer, ask: Ask) -> Told:
    """By a stub over our own messages."""
    with grpc.insecure_channel(running.grpc_address) as channel:
        stub = channel.unary_unary(
            f"/{messages.SERVICE}/ModelInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelInferResponse.FromString,
        )
        try:
            reply = stub(grpc_request(ask))
        except grpc.RpcError as caught:
            return Told(error=grpc_error(caught))
    tensors = {
        each.name: np.frombuffer(raw, DTYPES[each.datatype]).reshape(each.shape)
        for each, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }
    return Told(
        tensors, parameters_of(reply), named=(reply.model_name, reply.model_version, reply.id)
    )


def grpc_error(caught: Any) -> dict[str, str]:
    trailers = {each.key: each.value for each in caught.trailing_metadata()}
    parts = error_parts(trailers[messages.STATUS_TRAILER])
    assert parts is not None
    assert parts["error"] == caught.details()
    return parts | {"status": caught.code().name}


def parameters_of(reply: Any) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in reply.parameters.items()
    }


def triton_inputs(module: Any, ask: Ask) -> list[Any]:
    inputs = []
    for name, (datatype, shape, elements) in ask.inputs.items():
        tensor = module.InferInput(name, shape, datatype)
        tensor.set_data_from_numpy(np.array(elements, np.int64))
        inputs.append(tensor)
    return inputs


def triton_asks(ask: Ask) -> dict[str, Any]:
    """Its arguments; it has one of its own for the parameter `timeout`, an integer."""
    parameters = dict(ask.parameters)
    timeout = {"timeout": int(parameters.pop("timeout"))} if "timeout" in parameters else {}
    named = {"model_version": ask.version, "request_id": ask.id or ""}
    return named | {"parameters": parameters} | timeout


def by_triton_http(running: RunningServer, ask: Ask) -> Told:
    address = running.client.base_url.netloc.decode()
    outputs = [triton_http.InferRequestedOutput(name) for name in ask.outputs] or None
    with triton_http.InferenceServerClient(address) as client:
        inputs = triton_inputs(triton_http, ask)
        try:
            result = client.infer(ask.model, inputs, outputs=outputs, **triton_asks(ask))
        except InferenceServerException as caught:
            return Told(error={"error": str(caught.message())})
    data = result.get_response()
    tensors = {each["name"]: result.as_numpy(each["name"]) for each in data["outputs"]}
    named = (data["model_name"], data["model_version"], data["id"])
    return Told(tensors, data["parameters"], named=named)


def by_triton_grpc(running: RunningServer, ask: Ask) -> Told:
    outputs = [triton_grpc.InferRequestedOutput(name) for name in ask.outputs] or None
    with triton_grpc.InferenceServerClient(running.grpc_address) as client:
        inputs = triton_inputs(triton_grpc, ask)
        try:
            result = client.infer(ask.model, inputs, outputs=outputs, **triton_asks(ask))
        except InferenceServerException as caught:
            return Told(error={"error": str(caught.message())})
    reply = result.get_response()
    tensors = {each.name: result.as_numpy(each.name) for each in reply.outputs}
    return Told(
        tensors, parameters_of(reply), named=(reply.model_name, reply.model_version, reply.id)
    )


ASKERS: dict[str, Asker] = {
    "json": by_json,
    "binary": by_binary,
    "grpc": by_grpc,
    "triton-http": by_triton_http,
    "triton-grpc": by_triton_grpc,
}
OTHERS = [name for name in ASKERS if name != "json"]


# --- answers --------------------------------------------------------------------------------

ANSWERED = {
    "a page": Ask(),
    "of this version": Ask(version=SERVICE.fingerprint),
    "named outputs": Ask(outputs=("coarse_score", "page_ids", "item_status")),
    "parameters": Ask(parameters=CLOCK | {"page_size": 3, "timeout": 4000.5}),
    "one candidate": Ask(inputs=inputs_of(USERS[1], [1000])),
    "unknown ids": Ask(inputs=inputs_of(-5, [1000, -1, 2**63 - 1]), outputs=("user_status",)),
    "tensors": Ask(model="aggregate"),
    "one tensor": Ask(model="aggregate", outputs=("item_slots",)),
    "ten thousand": Ask(inputs=inputs_of(USERS[2], range(10_000)), outputs=("page_scores",)),
}


@pytest.mark.parametrize("way", OTHERS)
@pytest.mark.parametrize("name", ANSWERED)
def test_the_answer_is_the_same(name: str, way: str, running: RunningServer) -> None:
    ask = ANSWERED[name]
    ask = Ask(ask.model, ask.version, new_id(), ask.inputs, ask.outputs, ask.parameters)
    wanted, found = by_json(running, ask), ASKERS[way](running, ask)
    assert wanted.error is None
    assert found.error is None
    assert found.named == wanted.named == (ask.model, SERVICE.fingerprint, ask.id)
    assert found.parameters == wanted.parameters
    assert found.parameters["request_id"] == ask.id
    assert list(found.tensors) == list(wanted.tensors)
    for output, tensor in found.tensors.items():
        assert tensor.dtype == wanted.tensors[output].dtype
        np.testing.assert_array_equal(tensor, wanted.tensors[output])


@pytest.mark.parametrize("way", ASKERS)
def test_a_request_without_an_id_gets_one(way: str, running: RunningServer) -> None:
    first, second = (ASKERS[way](running, Ask()).named[2] for _ in range(2))
    assert len(first) == len(second) == 36
    assert first != second


@pytest.mark.parametrize("way", ASKERS)
@pytest.mark.parametrize(
    "given",
    ["1C1F6A10-3C3B-4F8E-9B43-6F7C0A2B9D11", "1", "request-7", "a b\n\u2028", "f" * 31, "x" * 128],
)
def test_an_id_comes_back_as_it_came(given: str, way: str, running: RunningServer) -> None:
    """The protocol's ids are any text; the log's key is a UUID, and the reply says which."""
    first, second = (ASKERS[way](running, Ask(id=given)) for _ in range(2))
    assert first.error is None
    assert first.named[2] == second.named[2] == given
    keys = [uuid.UUID(told.parameters["request_id"]) for told in (first, second)]
    if len(given) == 36:
        assert keys == [uuid.UUID(given)] * 2
    else:
        assert keys[0] != keys[1], "one id may name two requests, and two records have two keys"


@pytest.mark.parametrize("way", ASKERS)
def test_an_id_and_a_key_beside_it(way: str, running: RunningServer) -> None:
    key = new_id()
    for given in ("request-7", key.upper()):
        told = ASKERS[way](running, Ask(id=given, parameters={"request_id": key}))
        assert told.error is None
        assert (told.named[2], told.parameters["request_id"]) == (given, key)


# --- refusals -------------------------------------------------------------------------------


def changed(name: str, **changes: Any) -> dict[str, tuple[str, list[int], list[int]]]:
    """The inputs, one of them with another datatype, shape or elements."""
    inputs = inputs_of(USERS[0], ITEMS[:21])
    datatype, shape, elements = inputs[name]
    inputs[name] = (
        changes.get("datatype", datatype),
        changes.get("shape", shape),
        changes.get("elements", elements),
    )
    return inputs


REFUSED = {
    "no such model": Ask(model="best"),
    "another version": Ask(version="0" * 16),
    "no inputs": Ask(inputs={}),
    "one input": Ask(inputs={"user_id": ("INT64", [1], [7])}),
    "another input": Ask(inputs=inputs_of(7, [1]) | {"x": ("INT64", [1], [7])}),
    "datatype": Ask(inputs=changed("candidate_ids", datatype="FP64")),
    "two axes": Ask(inputs=changed("candidate_ids", shape=[3, 7])),
    "no axis": Ask(inputs=changed("user_id", shape=[])),
    "no candidates": Ask(inputs=inputs_of(7, [])),
    "a candidate twice": Ask(inputs=inputs_of(7, [1, 2, 1])),
    "too many": Ask(inputs=inputs_of(7, range(10_001))),
    "two users": Ask(inputs=changed("user_id", shape=[2], elements=[1, 2])),
    "an output that is not there": Ask(outputs=("page",)),
    "a parameter that is not there": Ask(parameters={"timeout_ms": 1}),
    "id": Ask(id="x" * 129),
    "a key that is no UUID": Ask(id="request-7", parameters={"request_id": "request-7"}),
    "two ids": Ask(id=new_id(), parameters={"request_id": new_id()}),
    "timeout": Ask(parameters={"timeout": 1e9}),
    "page size": Ask(parameters={"page_size": 0}),
    "clock": Ask(parameters={"now_ms": "now"}),
}
STATUSES = {"400": "INVALID_ARGUMENT", "404": "NOT_FOUND"}


@pytest.mark.parametrize("name", REFUSED)
def test_the_refusal_is_the_same(name: str, running: RunningServer) -> None:
    ask = REFUSED[name]
    wanted = by_json(running, ask).error
    assert wanted is not None
    status = wanted.pop("status")
    assert set(wanted) == {"error", "code", "where", "required", "got", "do"}
    assert by_binary(running, ask).error == wanted | {"status": status}
    assert by_grpc(running, ask).error == wanted | {"status": STATUSES[status]}


@pytest.mark.parametrize("way", ["triton-http", "triton-grpc"])
@pytest.mark.parametrize("name", ["no such model", "another version", "too many", "id"])
def test_another_client_gets_the_line(name: str, way: str, running: RunningServer) -> None:
    wanted, found = by_json(running, REFUSED[name]).error, ASKERS[way](running, REFUSED[name]).error
    assert wanted is not None
    assert found == {"error": wanted["error"]}


def test_a_body_that_is_too_large_is_refused_alike(running: RunningServer) -> None:
    ask = Ask(inputs=inputs_of(7, range(200_000)))
    for way in (by_json, by_binary, by_grpc):
        error = way(running, ask).error
        assert error is not None
        assert (error["where"], error["required"]) == ("body", "at most 1048576 bytes")
        assert error["status"] in ("413", "RESOURCE_EXHAUSTED")


# --- the rest of another client's day -------------------------------------------------------


def test_triton_over_http(running: RunningServer) -> None:
    with triton_http.InferenceServerClient(running.client.base_url.netloc.decode()) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("rank")
        assert client.is_model_ready("rank", SERVICE.fingerprint)
        assert not client.is_model_ready("best")
        assert client.get_server_metadata()["name"] == "encore"
        metadata = client.get_model_metadata("aggregate")
        assert metadata == running.client.get("/v2/models/aggregate").json()


def test_triton_over_grpc(running: RunningServer) -> None:
    with triton_grpc.InferenceServerClient(running.grpc_address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("rank")
        assert client.get_server_metadata().name == "encore"
        metadata = client.get_model_metadata("aggregate", SERVICE.fingerprint, as_json=True)
        wanted = running.client.get("/v2/models/aggregate").json()
        assert [each["name"] for each in metadata["outputs"]] == [
            each["name"] for each in wanted["outputs"]
        ]


def triton_asked(module: Any, address: str, region: str = "", **output: Any) -> str:
    """The line that a request of another extension gets. region: of shared memory, of an input."""
    tensors = triton_inputs(module, Ask())
    if region:
        tensors[1].set_shared_memory(region, 168)
    named = module.InferRequestedOutput("page_ids", **output)
    if not region and not output:
        named.set_shared_memory("region", 48)
    with (
        module.InferenceServerClient(address) as client,
        pytest.raises(InferenceServerException) as caught,
    ):
        client.infer("rank", tensors, outputs=[named])
    return str(caught.value.message())


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_what_asks_for_another_extension_is_refused(module: Any, running: RunningServer) -> None:
    """A reply that passes over it leaves a region unwritten, or scores where classes were meant."""
    http = running.client.base_url.netloc.decode()
    address = http if module is triton_http else running.grpc_address
    needs = "needs a tensor in the message itself, got 'shared_memory_"
    line = triton_asked(module, address)
    assert line.startswith(f"outputs[0].parameters: {needs}")
    line = triton_asked(module, address, region="region")
    assert line.startswith(f"inputs.candidate_ids.parameters: {needs}")
    line = triton_asked(module, address, class_count=3)
    assert line.startswith("outputs[0].parameters: needs a tensor in the message itself, got 'clas")


def test_a_clients_deadline_ends_a_request_in_time(running: RunningServer) -> None:
    """`client_timeout` is the call's deadline: far enough it changes nothing."""
    with triton_grpc.InferenceServerClient(running.grpc_address) as client:
        result = client.infer("rank", triton_inputs(triton_grpc, Ask()), client_timeout=60.0)
    assert len(result.as_numpy("page_ids")) == 6
