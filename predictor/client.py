"""A client of the ranking service over gRPC: typed, with a blocking face and one for asyncio.

    with RankingClient("127.0.0.1:8090") as client:
        page = client.rank(712, candidates, timeout_ms=100)
        page.page_ids, page.degraded

    async with AsyncRankingClient("127.0.0.1:8090", connections=4) as client:
        tensors = await client.aggregate(712, candidates)

A call has `timeout_ms` for everything; the service is told, and answers within it with what it has
(`degraded` says what was missing). Nothing is asked twice unless `retries` says so, and then only
what the service refused to begin (overloaded, away), on the same deadline and under the same
request id. Needs numpy, grpcio and protobuf; no model code is loaded.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from predictor import grpc_messages as messages
from predictor.grpc_codec import error_parts
from schemas.errors import RequestError

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
Ids = Sequence[int] | I64
DEFAULT_TIMEOUT_MS: Final = 500.0
_INFER: Final = f"/{messages.SERVICE}/ModelInfer"
_READY: Final = f"/{messages.SERVICE}/ServerReady"
_DTYPES: Final = {"INT64": "<i8", "INT32": "<i4", "FP32": "<f4", "UINT8": "u1"}
_STATUSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.INTERNAL: 500,
}
_AWAY: Final = 503
_NOT_BEGUN: Final = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,  # reset by a server with too many calls to look at them
)
_FIRST_PAUSE_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call may say beside user and candidates.

    page_size, now_ms: the service's own unless given. request_id: made here unless given; send it
    with the actions that follow. outputs: the model's default ones unless named. version: the
    fingerprint of the feature service that the caller's own model was made for, "" for any.
    """

    timeout_ms: float = DEFAULT_TIMEOUT_MS
    page_size: int | None = None
    now_ms: int | None = None
    request_id: uuid.UUID | None = None
    outputs: Sequence[str] = ()
    version: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """outputs: tensors by name. parameters: what served, its clock, counts of statuses. version: of
    the model."""

    request_id: uuid.UUID
    version: str
    outputs: Mapping[str, NDArray[Any]]
    parameters: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def degraded(self) -> tuple[str, ...]:
        """What was missing; empty for a whole answer."""
        return tuple(filter(None, str(self.parameters.get("degraded", "")).split(",")))

    @property
    def page_ids(self) -> I64:
        """(K,) the ranked page, best first. Raises KeyError where it was not asked for."""
        return self.outputs["page_ids"]

    @property
    def page_scores(self) -> F32:
        """(K,) of the page, NaN where nothing was scored. Raises KeyError as `page_ids`."""
        return self.outputs["page_scores"]


class RankingClient:
    """The blocking face; threads may share it. Use as a context manager."""

    def __init__(self, address: str, *, connections: int = 1, retries: int = 0) -> None:
        """address: `host:port`. connections: calls take turns over so many; several serving
        processes behind one port are reached by several. retries: see the module."""
        self._retries = retries
        self._channels = [grpc.insecure_channel(address, _options()) for _ in range(connections)]
        self._stubs = itertools.cycle([_infer_stub(channel) for channel in self._channels])

    def rank(self, user_id: int, candidate_ids: Ids, asked: Asked = Asked()) -> Reply:
        """A page of the candidates. Raises RequestError: its parts are the service's; status 503
        where there was no answer in time."""
        return self._call("rank", user_id, candidate_ids, asked)

    def aggregate(self, user_id: int, candidate_ids: Ids, asked: Asked = Asked()) -> Reply:
        """The tensors that a model would read. Raises as `rank`."""
        return self._call("aggregate", user_id, candidate_ids, asked)

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
        call = _Call(request_of(model, user_id, candidate_ids, asked), asked, self._retries)
        while True:
            try:
                return reply_of(next(self._stubs)(call.request, timeout=call.left_s))
            except grpc.RpcError as error:
                time.sleep(call.pause_s(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncRankingClient:
    """The same for asyncio. Create and use it in one event loop, as an async context manager."""

    def __init__(self, address: str, *, connections: int = 1, retries: int = 0) -> None:
        """As RankingClient."""
        self._retries = retries
        opened = [grpc.aio.insecure_channel(address, _options()) for _ in range(connections)]
        self._channels = opened
        self._stubs = itertools.cycle([_infer_stub(channel) for channel in opened])

    async def rank(self, user_id: int, candidate_ids: Ids, asked: Asked = Asked()) -> Reply:
        """As RankingClient."""
        return await self._call("rank", user_id, candidate_ids, asked)

    async def aggregate(self, user_id: int, candidate_ids: Ids, asked: Asked = Asked()) -> Reply:
        """As RankingClient."""
        return await self._call("aggregate", user_id, candidate_ids, asked)

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
        call = _Call(request_of(model, user_id, candidate_ids, asked), asked, self._retries)
        while True:
            try:
                return reply_of(await next(self._stubs)(call.request, timeout=call.left_s))
            except grpc.RpcError as error:
                await asyncio.sleep(call.pause_s(error))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


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
        each.name: np.frombuffer(raw, _DTYPES[each.datatype]).reshape(each.shape)
        for each, raw in zip(message.outputs, message.raw_output_contents, strict=True)
    }
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in message.parameters.items()
    }
    return Reply(uuid.UUID(message.id), message.model_version, outputs, parameters)


class _Call:
    """One call on its deadline, over all its attempts."""

    def __init__(self, request: Any, asked: Asked, retries: int) -> None:
        self.request = request
        self._ends_s = time.monotonic() + asked.timeout_ms / 1000
        self._retries = retries
        self._pause_s = _FIRST_PAUSE_S

    @property
    def left_s(self) -> float:
        return max(self._ends_s - time.monotonic(), 0.0)

    def pause_s(self, error: Any) -> float:
        """How long to wait before the next attempt. Raises RequestError where there is none."""
        pause_s = self._pause_s * random.uniform(0.5, 1.5)
        if not self._retries or error.code() not in _NOT_BEGUN or pause_s >= self.left_s:
            raise refusal(error) from None
        self._retries -= 1
        self._pause_s *= 2
        return pause_s


def refusal(error: Any) -> RequestError:
    """A failed call as the service's own refusal, or as no answer."""
    trailers: Iterable[Any] = error.trailing_metadata() or ()
    details = [value for key, value in trailers if key == messages.STATUS_TRAILER]
    parts = error_parts(details[0]) if details else None
    status = _STATUSES.get(error.code(), _AWAY)
    if parts is None:
        return RequestError(
            "service",
            required="an answer in time",
            got=f"{error.code().name}: {error.details()}"[:200],
            do="look at the ranking service",
            status=status,
        )
    return RequestError(
        parts["where"],
        required=parts["required"],
        got=parts["got"],
        do=parts["do"],
        status=status,
    )


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
