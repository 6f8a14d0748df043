"""Bodies with binary tensors, byte by byte; what is no such body; and a taken gRPC port."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

import predictor.grpc_messages as messages
from predictor.admission import Admission, AdmissionConfig
from predictor.grpc_codec import error_parts
from predictor.grpc_server import GrpcServer
from predictor.http import create_app
from predictor.limits import Limits
from predictor.metrics import Metrics
from predictor.protocol import InferReply, InferRequest, encode_reply, parse_infer
from predictor.rank import Ranker
from predictor.resting import Resting
from predictor.service import Service
from predictor.watch import Observer
from schemas.errors import LocalError, RequestError
from tests.predictor.support import RunningServer
from tests.predictor.support import body as json_body


def bare_service() -> Service:
    """As far as a server looks at it before anybody asks."""
    service = Service.__new__(Service)
    service.limits = Limits()
    service.ranker = Ranker.__new__(Ranker)
    service.ranker.admission = Admission(AdmissionConfig())
    service.ranker.resting = Resting(service.ranker.admission)
    service.observer = Observer(Metrics())
    return service


def packed(
    tensors: dict[str, list[int]], sizes: dict[str, Any] | None = None, **more: Any
) -> tuple[bytes, str]:
    """A body and its header. sizes: told in place of the true ones."""
    inputs, tail = [], b""
    for name, elements in tensors.items():
        raw = np.array(elements, "<i8").tobytes()
        told = (sizes or {}).get(name, len(raw))
        parameters = {"binary_data_size": told}
        shape = [len(elements)]
        inputs.append({"name": name, "datatype": "INT64", "shape": shape, "parameters": parameters})
        tail += raw
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + tail, str(len(head))


@pytest.mark.parametrize("pad", range(8))
def test_tensors_are_read_wherever_they_lie(pad: int) -> None:
    tensors = {"user_id": [7], "candidate_ids": [-1, 0, 2**63 - 1, -(2**63)]}
    parameters = {"binary_data_output": True, "page_size": 3}
    body, length = packed(tensors, parameters=parameters, id="x" * (1 + pad))
    request = parse_infer(body, Limits(), length)
    assert all(held.flags.aligned for held in request.inputs.values())
    assert {name: held.tolist() for name, held in request.inputs.items()} == tensors
    assert request.parameters == {"page_size": 3}
    assert request.wants_binary("page_ids")


def test_each_output_may_say_how_it_comes() -> None:
    outputs = [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}]
    parameters = {"binary_data_output": True}
    body = json.dumps(json_body(outputs=[]) | {"outputs": outputs, "parameters": parameters})
    request = parse_infer(body.encode(), Limits())
    assert [request.wants_binary(name) for name in "ab"] == [False, True]


def test_a_reply_has_what_was_asked_for_behind_its_json() -> None:
    arrays: list[tuple[str, NDArray[Any]]] = [
        ("a", np.array([[1, 2]], np.int32)),
        ("b", np.array([np.nan, 0.5], np.float32)),
        ("c", np.array([3], np.uint8)),
    ]
    request = InferRequest(None, {}, {}, None, {"b": True, "c": True})
    body, head_bytes = encode_reply(InferReply("rank", "f", "i", {}, arrays), request)
    assert head_bytes is not None
    told = json.loads(body[:head_bytes])["outputs"]
    assert told[0]["data"] == [1, 2]
    assert [each["parameters"]["binary_data_size"] for each in told[1:]] == [8, 1]
    assert body[head_bytes:] == arrays[1][1].tobytes() + b"\x03"


IDS = {"user_id": [7], "candidate_ids": [1, 2]}
WRONG: list[tuple[str, tuple[bytes, str], str]] = [
    ("no number", (packed(IDS)[0], "12x"), "inference-header-content-length"),
    ("negative", (packed(IDS)[0], "-1"), "inference-header-content-length"),
    ("beyond the body", (packed(IDS)[0], "99999"), "inference-header-content-length"),
    ("half the JSON", (packed(IDS)[0], "20"), "body"),
    ("bytes too many", (packed(IDS)[0] + b"x", packed(IDS)[1]), "body"),
    ("bytes missing", (packed(IDS)[0][:-1], packed(IDS)[1]), ""),
    ("size no number", packed(IDS, {"user_id": "8"}), ""),
    ("size of less", packed(IDS, {"user_id": 7}), "inputs.user_id.data"),
    ("size beyond", packed(IDS, {"candidate_ids": 1 << 40}), ""),
    ("parameters", packed(IDS, parameters={f"p{i}": i for i in range(33)}), "parameters"),
    ("flag", packed(IDS, parameters={"binary_data_output": 1}), "parameters.binary_data_output"),
    (
        "flag of an output",
        packed(IDS, outputs=[{"name": "a", "parameters": {"binary_data": "yes"}}]),
        "outputs[0].parameters.binary_data",
    ),
]


@pytest.mark.parametrize(
    ("sent", "where"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG]
)
def test_what_is_no_such_body(sent: tuple[bytes, str], where: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_infer(sent[0], Limits(), sent[1])
    assert refused.value.status == 400
    assert refused.value.where == where or (not where and "binary_data_size" in str(refused.value))


def test_data_and_bytes_are_one_too_many() -> None:
    body, length = packed(IDS)
    head = json.loads(body[: int(length)])
    head["inputs"][0]["data"] = [7]
    text = json.dumps(head).encode()
    with pytest.raises(RequestError, match=r"inputs\.user_id\.data: needs data or binary_data_siz"):
        parse_infer(text + body[int(length) :], Limits(), str(len(text)))


def test_a_compressed_body_is_refused(running: RunningServer) -> None:
    reply = running.client.post(
        "/v2/models/rank/infer", content=b"\x1f\x8b", headers={"content-encoding": "gzip"}
    )
    assert reply.status_code == 415
    assert reply.json()["where"] == "content-encoding"


def test_a_taken_grpc_port_is_refused_unless_it_is_shared() -> None:
    service = bare_service()

    async def listen() -> None:
        first = GrpcServer(service, "127.0.0.1", 0)
        with pytest.raises(LocalError, match=r"grpc 127\.0\.0\.1:\d+: needs an address nobody"):
            GrpcServer(service, "127.0.0.1", first.port)
        shared = GrpcServer(service, "127.0.0.1", 0, share_port=True)
        other = GrpcServer(service, "127.0.0.1", shared.port, share_port=True)
        assert other.port == shared.port
        for each in (first, shared, other):
            await each.stop(0)

    asyncio.run(listen())


def test_a_defect_is_told_alike() -> None:
    """A service that has no version to tell: nobody foresaw that."""
    service = bare_service()

    async def ask() -> tuple[httpx.Response, Any]:
        transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            reply = await client.get("/v2")
        server = GrpcServer(service, "127.0.0.1", 0)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            with pytest.raises(grpc.RpcError) as caught:
                await channel.unary_unary(f"/{messages.SERVICE}/ServerMetadata")(b"", timeout=60)
        await server.stop(0)
        return reply, caught.value

    reply, error = asyncio.run(ask())
    assert reply.status_code == 500
    assert error.code() is grpc.StatusCode.INTERNAL
    [status] = [value for key, value in error.trailing_metadata() if key.endswith("-bin")]
    assert error_parts(status) == reply.json()
