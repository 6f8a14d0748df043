"""A client of the ranking service over gRPC: typed, with a blocking face and one for asyncio.

    with RankingClient("127.0.0.1:8090") as client:
        page = client.rank(712, candidates, Asked(timeout_ms=100))
        page.page_ids, page.degraded

    async with AsyncRankingClient("127.0.0.1:8090", connections=4) as client:
        tensors = await client.aggregate(712, candidates)

A call has `timeout_ms` for everything; the service is told, and answers within it with what it has
(`degraded` says what was missing). Nothing is asked twice unless `retries` says so, and then only
what the service refused to begin (overloaded, away), on the same deadline and under the same
request id. Needs numpy, grpcio and protobuf; no model code is loaded. Over HTTP:
`predictor.http_client`, the same types.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Iterable
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np

from predictor import grpc_messages as messages
from predictor.calls import (
    AWAY,
    DEFAULT_TIMEOUT_MS,
    DTYPES,
    Asked,
    AsyncClient,
    Attempts,
    Client,
    Ids,
    Reply,
    no_answer,
)
from predictor.grpc_codec import error_parts
from schemas.errors import RequestError

__all__ = ["Asked", "AsyncRankingClient", "Ids", "RankingClient", "Reply"]

_INFER: Final = f"/{messages.SERVICE}/ModelInfer"
_READY: Final = f"/{messages.SERVICE}/ServerReady"
_STATUSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.INTERNAL: 500,
}
_NOT_BEGUN: Final = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,  # reset by a server with too many calls to look at them
)


class RankingClient(Client):
    """The blocking face; threads may share it. Use as a context manager."""

    def __init__(self, address: str, *, connections: int = 1, retries: int = 0) -> None:
        """address: `host:port`. connections: calls take turns over so many; several serving
        processes behind one port are reached by several. retries: see the module."""
        self._retries = retries
        self._channels = [grpc.insecure_channel(address, _options()) for _ in range(connections)]
        self._stubs = itertools.cycle([_infer_stub(channel) for channel in self._channels])

    def ready(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> bool:
        """Whether the service answers and serves."""
        try:
            stub = _ready_stub(self._channels[0])
            return bool(stub(messages.ServerReadyRequest(), timeout=timeout_ms / 1000).ready)
        except grpc.RpcError:
            return False

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            channel.close()

    def _call(self, model: str, user_id: int, candidate_ids: Ids, asked: Asked) -> Reply:
        request = request_of(model, user_id, candidate_ids, asked)
        attempts = Attempts(asked, self._retries)
        while True:
            try:
                return reply_of(next(self._stubs)(request, timeout=attempts.left_s))
            except grpc.RpcError as error:
                time.sleep(attempts.pause_s(refusal(error), begun=_begun(error)))


class AsyncRankingClient(AsyncClient):
    """The same for asyncio. Create and use it in one event loop, as an async context manager."""

    def __init__(self, address: str, *, connections: int = 1, retries: int = 0) -> None:
        """As RankingClient."""
        self._retries = retries
        opened = [grpc.aio.insecure_channel(address, _options()) for _ in range(connections)]
        self._channels = opened
        self._stubs = itertools.cycle([_infer_stub(channel) for channel in opened])

    async def ready(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> bool:
        """Whether the service answers and serves."""
        try:
            stub = _ready_stub(self._channels[0])
            reply = await stub(messages.ServerReadyRequest(), timeout=timeout_ms / 1000)
            return bool(reply.ready)
        except grpc.RpcError:
            return False

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()

    async def _call(self, model: str, user_id: int, candidate_ids: Ids, asked: Asked) -> Reply:
        request = request_of(model, user_id, candidate_ids, asked)
        attempts = Attempts(asked, self._retries)
        while True:
            try:
                return reply_of(await next(self._stubs)(request, timeout=attempts.left_s))
            except grpc.RpcError as error:
                await asyncio.sleep(attempts.pause_s(refusal(error), begun=_begun(error)))


# --- messages -------------------------------------------------------------------------------


def request_of(model: str, user_id: int, candidate_ids: Ids, asked: Asked) -> Any:
    """A ModelInferRequest. candidate_ids: (N,)."""
    request = messages.ModelInferRequest(
        model_name=model, model_version=asked.version, id=str(asked.request_id or uuid.uuid4())
    )
    for name, ids in (("user_id", [user_id]), ("candidate_ids", candidate_ids)):
        tensor = np.asarray(ids, "<i8")  # (n,)
        request.inputs.add(name=name, datatype="INT64", shape=tensor.shape)
        request.raw_input_contents.append(tensor.tobytes())
    for name, value in (("page_size", asked.page_size), ("now_ms", asked.now_ms)):
        if value is not None:
            request.parameters[name].int64_param = value
    for output in asked.outputs:
        request.outputs.add(name=output)
    return request


def reply_of(message: Any) -> Reply:
    """A ModelInferResponse, its tensors over the message's own bytes."""
    outputs = {
        each.name: np.frombuffer(raw, DTYPES[each.datatype]).reshape(each.shape)
        for each, raw in zip(message.outputs, message.raw_output_contents, strict=True)
    }
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in message.parameters.items()
    }
    return Reply(uuid.UUID(message.id), message.model_version, outputs, parameters)


def refusal(error: Any) -> RequestError:
    """A failed call as the service's own refusal, as one that the library made for it while it had
    no time for refusals, or as no answer."""
    trailers: Iterable[Any] = error.trailing_metadata() or ()
    details = [value for key, value in trailers if key == messages.STATUS_TRAILER]
    parts = error_parts(details[0]) if details else None
    status = _STATUSES.get(error.code(), AWAY)
    if parts is None and error.code() is grpc.StatusCode.CANCELLED:
        return RequestError(
            "request",
            required="a service that has time to look at it",
            got="one that reset it among many others",
            do="try again later, or add a server",
            status=AWAY,
        )
    if parts is None:
        return no_answer(f"{error.code().name}: {error.details()}", status)
    return RequestError(
        parts["where"],
        required=parts["required"],
        got=parts["got"],
        do=parts["do"],
        status=status,
    )


def _begun(error: Any) -> bool:
    return error.code() not in _NOT_BEGUN


# --- channels -------------------------------------------------------------------------------


def _options() -> list[tuple[str, int]]:
    # Without a pool of its own, channels to one address would share one connection.
    return [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


def _infer_stub(channel: Any) -> Any:
    return channel.unary_unary(
        _INFER,
        request_serializer=messages.ModelInferRequest.SerializeToString,
        response_deserializer=messages.ModelInferResponse.FromString,
    )


def _ready_stub(channel: Any) -> Any:
    return channel.unary_unary(
        _READY,
        request_serializer=messages.ServerReadyRequest.SerializeToString,
        response_deserializer=messages.ServerReadyResponse.FromString,
    )
