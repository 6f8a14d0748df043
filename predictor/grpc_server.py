"""The ranking service over gRPC: `inference.GRPCInferenceService`, and the health protocol.

It runs in the event loop that serves HTTP, on the same service: what the two protocols answer to a
request is made by the same code. A call's deadline bounds the request as the parameter `timeout`
does. Every refusal carries its parts as a `google.rpc.ErrorInfo` in `grpc-status-details-bin`:

    400 INVALID_ARGUMENT     404 NOT_FOUND     413 RESOURCE_EXHAUSTED     500 INTERNAL
    404 UNIMPLEMENTED where it is the method that is not there
    408 DEADLINE_EXCEEDED where the message does not come
    503 RESOURCE_EXHAUSTED where the service has too much to do, else UNAVAILABLE
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import grpc.aio

from predictor import grpc_messages as messages
from predictor.grpc_accepts import AcceptingServer, new_server
from predictor.grpc_codec import (
    decode_message,
    metadata_message,
    reply_message,
    request_of,
    status_bytes,
)
from predictor.grpc_unsent import Unsent
from predictor.models import check_version, served_model
from predictor.service import Service, defect
from predictor.timeline import Timeline
from predictor.watch import Watched
from schemas.errors import EncoreError, LocalError, RequestError

log: Final = logging.getLogger(__name__)
#: A message up to so many times the limit is read, to be refused with its reason.
_REFUSABLE: Final = 4
_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
#: Where a refusal with 503 says that there is too much to do.
_BUSY: Final = ("request", "rank log")
#: What is counted in place of a model's name where the message was not looked at.
UNREAD: Final = "unread"
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Any], Awaitable[Any]]
Answer = Callable[[bytes, Context], Awaitable[bytes]]


class GrpcServer:
    """A server that listens from `start` on. Create it inside the event loop of the service."""

    def __init__(self, service: Service, host: str, port: int, *, share_port: bool = False) -> None:
        """port: 0 takes a free one. share_port: other processes may listen on it, too.

        Raises LocalError where the address is taken.
        """
        options = [
            ("grpc.so_reuseport", int(share_port)),
            ("grpc.max_receive_message_length", _REFUSABLE * service.limits.body_bytes),
            ("grpc.max_send_message_length", -1),
        ]
        self._server = new_server(options, service.ranker.admission)
        calls = _Calls(service)
        # Registered, it has a queue and an intake of its own: health checks do not wait behind
        # overload.
        self._server.add_registered_method_handlers(messages.SERVICE, calls.served())
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(messages.SERVICE, calls.inference()),
                grpc.method_handlers_generic_handler(messages.HEALTH_SERVICE, calls.health()),
                _Unknown((*calls.served(), *calls.inference())),
            )
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port: int = self._server.add_insecure_port(address)
        except RuntimeError:
            raise LocalError(
                f"grpc {address}",
                required="an address nobody listens on",
                got="one that is taken, or not of this machine",
                do="choose another grpc_port, or stop the server that has it",
            ) from None

    @property
    def narrow(self) -> bool:
        """Few calls are asked for, as `AcceptingServer.narrow`; False where they always are."""
        return isinstance(self._server, AcceptingServer) and self._server.narrow

    async def start(self) -> None:
        """Take calls."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; those in flight have `grace_s` seconds. May be called again."""
        await self._server.stop(grace_s)


class _Calls:
    """The methods, each from a message to a message."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def inference(self) -> dict[str, grpc.RpcMethodHandler]:
        """The methods of GRPCInferenceService that do not meet admission."""
        return {
            "ServerLive": self._method(messages.ServerLiveRequest, self._live),
            "ServerReady": self._method(messages.ServerReadyRequest, self._ready),
            "ModelReady": self._method(messages.ModelReadyRequest, self._model_ready),
            "ServerMetadata": self._method(messages.ServerMetadataRequest, self._metadata),
            "ModelMetadata": self._method(messages.ModelMetadataRequest, self._model_metadata),
        }

    def served(self) -> dict[str, grpc.RpcMethodHandler]:
        """The methods of GRPCInferenceService that meet admission.

        As a method that takes a stream it begins when a call's headers are there (a stream of one
        message and a message are the same on the wire): whoever is refused costs no reading.
        """
        infer = self._answer(messages.ModelInferRequest, self._infer)
        admission, resting = self._service.ranker.admission, self._service.ranker.resting
        metrics, most_ms = self._service.observer.metrics, self._service.limits.timeout_ms
        required = f"all of it in {most_ms} ms"
        slow = RequestError("body", required=required, got="a part at most", status=408)

        async def answer(_: object, context: Context) -> bytes:
            left_s = context.time_remaining()  # None where the caller set no deadline
            refusal = admission.refusal(math.inf if left_s is None else left_s)
            if refusal is not None:
                metrics.observe_refused(UNREAD, "grpc", refusal.status, refusal.where)
                resting.refused()
                await _abort(context, code_of(refusal), refusal, _known_status)

            async def end() -> None:
                metrics.observe_refused(UNREAD, "grpc", slow.status, slow.where)
                with suppress(grpc.aio.AbortError):
                    await _abort(context, code_of(slow), slow, _known_status)

            data = await Unsent(admission, most_ms / 1000, end).message(context)
            # A caller that left before its message came is told nothing.
            return b"" if data is None else await infer(data, context)

        return {"ModelInfer": grpc.stream_unary_rpc_method_handler(answer)}

    def health(self) -> dict[str, grpc.RpcMethodHandler]:
        """The methods of grpc.health.v1.Health."""
        return {"Check": self._method(messages.HealthCheckRequest, self._check)}

    def _method(self, kind: Any, handle: Handler) -> grpc.RpcMethodHandler:
        """A method that takes a message of a kind."""
        return grpc.unary_unary_rpc_method_handler(self._answer(kind, handle))

    def _answer(self, kind: Any, handle: Handler) -> Answer:
        """From a message of a kind, in bytes, to its answer's; refusals are statuses."""
        most_bytes = self._service.limits.body_bytes

        async def answer(data: bytes, context: Context) -> bytes:
            try:
                reply = await handle(decode_message(kind, data, most_bytes), context)
                return bytes(reply.SerializeToString())
            except RequestError as error:
                await _abort(context, code_of(error), error)
            except Exception:
                log.exception("grpc: %s", kind.DESCRIPTOR.full_name)
                await _abort(context, grpc.StatusCode.INTERNAL, defect())

        return answer

    async def _live(self, request: Any, context: Any) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def _ready(self, request: Any, context: Any) -> Any:
        return messages.ServerReadyResponse(ready=self._service.ready)

    async def _model_ready(self, request: Any, context: Any) -> Any:
        served_model(request.name)
        check_version(request.version, self._service.ranker.generations.current)
        return messages.ModelReadyResponse(ready=self._service.ready)

    async def _metadata(self, request: Any, context: Any) -> Any:
        return messages.ServerMetadataResponse(**self._service.metadata())

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        model = served_model(request.name)
        check_version(request.version, self._service.ranker.generations.current)
        return metadata_message(self._service.model_metadata(model))

    async def _infer(self, request: Any, context: Any) -> Any:
        model, service = served_model(request.model_name), self._service
        left_s = context.time_remaining()  # None where the caller set no deadline
        remaining_ms = None if left_s is None else left_s * 1000
        timeline = Timeline(model.name, "grpc", _traceparent(context))
        with Watched(service.observer, timeline) as watched:
            watched.begin()
            parsed = request_of(request, service.limits)
            reply = await service.infer(model, parsed, request.model_version, remaining_ms)
            return reply_message(reply)

    async def _check(self, request: Any, context: Any) -> Any:
        statuses = messages.HealthCheckResponse.ServingStatus
        if request.service not in ("", messages.SERVICE):
            required = f'"" or {messages.SERVICE}'
            got = repr(request.service)[:80]
            raise RequestError("service", required=required, got=got, status=404)
        name = "SERVING" if self._service.ready else "NOT_SERVING"
        return messages.HealthCheckResponse(status=statuses.Value(name))


class _Unknown(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Refuses every method that nobody before it has, as all else is refused."""

    def __init__(self, served: Iterable[str]) -> None:
        """served: the methods of GRPCInferenceService."""
        self._served = sorted(served)

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler:
        """Refuse a method that nobody serves, of whatever kind: nothing is read of the call."""
        error = RequestError(
            "method",
            required=f"/{messages.SERVICE}/ and {', '.join(self._served)}, or"
            f" /{messages.HEALTH_SERVICE}/Check",
            got=str(handler_call_details.method)[:100],
            status=404,
        )

        async def refuse(_: object, context: Context) -> bytes:
            await _abort(context, grpc.StatusCode.UNIMPLEMENTED, error)

        return grpc.stream_unary_rpc_method_handler(refuse)


def code_of(error: RequestError) -> grpc.StatusCode:
    """The status of a refusal."""
    if error.status == 503 and error.where in _BUSY:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return _CODES[error.status]


def _traceparent(context: Any) -> str:
    """The caller's W3C trace context, "" without one."""
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent":
            return str(value)
    return ""


#: Of errors of which many callers get the same one.
_known_status: Final = lru_cache(maxsize=1_024)(status_bytes)


async def _abort(
    context: Context,
    code: grpc.StatusCode,
    error: EncoreError,
    encode: Callable[[EncoreError, int], bytes] = status_bytes,
) -> NoReturn:
    """End a call with the one line as its message, and the parts in the trailer."""
    number: int = code.value[0]
    trailer = ((messages.STATUS_TRAILER, encode(error, number)),)
    raise await context.abort(code, str(error), trailer)  # raises by itself; says so to mypy
