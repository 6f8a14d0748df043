"""The ranking service over HTTP: Open Inference Protocol v2, and what Feast's clients use.

    GET  /v2, /v2/health/live, /v2/health/ready      the server
    GET  /v2/models/{name}[/ready]                   `rank` and `aggregate`: what they take and give
    POST /v2/models/{name}/infer                     serve one request: JSON, or binary tensors
         /v2/models/{name}/versions/{version}…       the same, of that version or not at all
    POST /get-online-features                        read features, as Feast's server does
    POST /push, /write-to-online-store               write batch rows, as Feast's server does
    GET  /health                                     as /v2/health/ready
    GET  /metrics                                    Prometheus
    GET  /openapi.json, /docs                        all of this for other programs, for people
    HEAD                                             what GET answers, without its body

Every error of every route is `{"error", "code", "where", "required", "got", "do"}`: the protocol's
`error` (one line for people) and its parts. 400 the request is wrong, 404 no such route or model,
405 wrong method, 408 a body that does not come, 413 body too large, 415 a compressed body, 503
overloaded or stopping, 500 a defect of the service. What is no HTTP: `predictor.connection`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import pydantic_core
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from predictor.features import parse_features, read_features
from predictor.limits import Limits
from predictor.models import check_version, served_model
from predictor.openapi import document
from predictor.openapi_page import page
from predictor.protocol import JSON_LENGTH_HEADER, encode_error, encode_reply, parse_infer
from predictor.push import Pushed, parse_push, parse_write, write_pushed
from predictor.service import Service, defect
from predictor.timeline import Timeline
from predictor.watch import CLIENT_LEFT, Watched
from schemas.errors import EncoreError, RequestError
from schemas.plan import Plan

log: Final = logging.getLogger(__name__)
_MODEL: Final = "/v2/models/{name}"
JSON_TYPE: Final = "application/json"
BINARY_TYPE: Final = "application/octet-stream"
#: Where the state of a request's scope says for how many seconds it lay in the connection's buffer.
WAITED: Final = "waited_s"


def create_app(service: Service) -> FastAPI:
    """The application over a running service."""
    told: dict[str, Callable[..., Awaitable[Response]]] = {
        "/v2": server_metadata,
        "/v2/health/live": live,
        "/v2/health/ready": ready,
        "/health": ready,
        "/metrics": metrics,
        "/openapi.json": openapi,
        "/docs": docs,
    }
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False
    app.state.service = service
    for path in (_MODEL, f"{_MODEL}/versions/{{version}}"):
        told |= {path: model_metadata, f"{path}/ready": model_ready}
        # Called for each request, and needs nothing of what FastAPI does around a handler.
        app.router.add_route(f"{path}/infer", infer, methods=["POST"])
    app.post("/get-online-features")(online_features)
    app.post("/push")(push)
    app.post("/write-to-online-store")(write_to_online_store)
    for path, handler in told.items():
        app.add_api_route(path, handler, methods=["GET", "HEAD"])
    app.exception_handler(EncoreError)(_on_encore_error)
    app.exception_handler(HTTPException)(_on_http_error)
    app.exception_handler(Exception)(_on_defect)
    return app


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _json(data: object, status: int = 200) -> Response:
    return Response(pydantic_core.to_json(data), status, media_type=JSON_TYPE)


# --- routes ---------------------------------------------------------------------------------


async def server_metadata(request: Request) -> Response:
    """Name, version and protocol extensions of the server."""
    return _json(_service(request).metadata())


async def live(request: Request) -> Response:
    """The process answers."""
    return _json({"live": True})


async def ready(request: Request) -> Response:
    """A plan is served and the server is not draining; 503 otherwise."""
    is_ready = _service(request).ready
    return _json({"ready": is_ready}, 200 if is_ready else 503)


async def model_metadata(request: Request, name: str, version: str = "") -> Response:
    """Inputs and outputs of a model, and what it is served with."""
    service, model = _service(request), served_model(name)
    check_version(version, service.ranker.generations.current)
    return _json(service.model_metadata(model))


async def model_ready(request: Request, name: str, version: str = "") -> Response:
    """Readiness of a model: it serves, possibly degraded, whenever the server is ready."""
    service, model = _service(request), served_model(name)
    check_version(version, service.ranker.generations.current)
    return _json({"name": model.name, "ready": service.ready}, 200 if service.ready else 503)


async def infer(request: Request) -> Response:
    """Serve one request."""
    name, version = request.path_params["name"], request.path_params.get("version", "")
    model = served_model(name)
    json_length = request.headers.get(JSON_LENGTH_HEADER)

    async def answer(service: Service, body: bytes) -> Response:
        parsed = parse_infer(body, service.limits, json_length)
        reply = await service.infer(model, parsed, version)
        written, head_bytes = encode_reply(reply, parsed)
        if head_bytes is None:
            return Response(written, media_type=JSON_TYPE)
        return Response(written, 200, {JSON_LENGTH_HEADER: str(head_bytes)}, BINARY_TYPE)

    return await _counted(request, name, answer)


async def online_features(request: Request) -> Response:
    """Features of entities, by references or a service's name."""

    async def answer(service: Service, body: bytes) -> Response:
        plan = service.ranker.generations.current.plan
        query = parse_features(body, plan, service.limits)
        now_ms = time.time_ns() // 1_000_000
        found = await read_features(service.ranker, query, now_ms, service.timeout_ms)
        return Response(found, media_type=JSON_TYPE)

    return await _counted(request, "get-online-features", answer)


async def push(request: Request) -> Response:
    """Batch rows by the name of a push source or of a view."""
    return await _counted(request, "push", partial(_write, parse_push))


async def write_to_online_store(request: Request) -> Response:
    """Batch rows by the name of a view."""
    return await _counted(request, "write-to-online-store", partial(_write, parse_write))


async def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return _json(document(_service(request).version))


async def docs(request: Request) -> Response:
    """The same for people."""
    return Response(page(_service(request).version), media_type="text/html")


async def metrics(request: Request) -> Response:
    """The service's counts; of one of several processes only where that one alone is asked."""
    service, address = _service(request), request.scope.get("server")
    if service.shares_ports and address is not None and address[1] is not None:
        raise RequestError(
            "metrics",
            required="the port that has those of all serving processes",
            got="one that any of them answers on",
            do="ask on metrics_port",
            status=404,
        )
    return Response(service.observer.metrics.text(), media_type="text/plain; version=0.0.4")


async def _counted(
    request: Request, name: str, answer: Callable[[Service, bytes], Awaitable[Response]]
) -> Response:
    """The answer to a body, counted under a name."""
    service = _service(request)
    timeline = Timeline(name, "http", request.headers.get("traceparent", ""))
    timeline.waited_s = request.scope.get("state", {}).get(WAITED, 0.0)
    with Watched(service.observer, timeline) as watched:
        body = await _body(request, service.limits)
        watched.begin()
        return await answer(service, body)


async def _write(
    parse: Callable[[bytes, Plan, Limits], list[Pushed]], service: Service, body: bytes
) -> Response:
    plan = service.ranker.generations.current.plan
    await write_pushed(service.store, parse(body, plan, service.limits), service.timeout_ms)
    return Response(b"null", media_type=JSON_TYPE)


async def _body(request: Request, limits: Limits) -> bytes:
    """The body, refused as soon as it is known to be compressed, too large or too slow."""
    most = limits.body_bytes
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        required = "a body that is not compressed"
        raise RequestError("content-encoding", required=required, got=encoding[:80], status=415)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise _too_large(most, f"{declared} bytes")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.timeout_ms / 1000):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise _too_large(most, "more")
                parts.append(part)
    except TimeoutError:
        required, got = f"all of it in {limits.timeout_ms} ms", f"{size} bytes"
        raise RequestError("body", required=required, got=got, status=408) from None
    except ClientDisconnect:  # nobody hears this; it is counted as what it is, and no defect
        got = f"{size} bytes, and the caller left"
        raise RequestError("body", required="all of it", got=got, status=CLIENT_LEFT) from None
    return b"".join(parts)


def _too_large(most: int, got: str) -> RequestError:
    do = "send fewer candidates"
    return RequestError("body", required=f"at most {most} bytes", got=got, do=do, status=413)


# --- errors ---------------------------------------------------------------------------------


def _error(error: EncoreError, status: int) -> Response:
    headers = {"retry-after": "1"} if status == 503 else {}
    if status in (408, 413, 415):
        headers["connection"] = "close"  # the rest of the body is not read
    return Response(encode_error(error), status, headers, JSON_TYPE)


async def _on_encore_error(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestError):
        return _error(error, error.status)
    log.error("%s: %s", request.url.path, error)
    return _error(defect(), 500)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    required = {404: "a known route", 405: "another method"}.get(error.status_code, "a request")
    got = f"{request.method} {request.url.path}"[:200]
    refused = RequestError("route", required=required, got=got, do="see docs/http.md")
    response = _error(refused, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _on_defect(request: Request, error: Exception) -> Response:
    return _error(defect(), 500)  # the server logs the traceback
