"""A client of the ranking service over HTTP: what `predictor.client` is over gRPC.

    with HttpRankingClient("127.0.0.1:8080") as client:
        page = client.rank(712, candidates, Asked(timeout_ms=100))

    async with AsyncHttpRankingClient("127.0.0.1:8080", connections=32) as client:
        tensors = await client.aggregate(712, candidates)

Types, refusals, deadlines and retries are those of the client over gRPC. Tensors travel as bytes,
by the protocol's binary tensor extension. HTTP/1.1 carries one call at a time on a connection: so
many calls as there are connections go on at once, others wait for one, within their time. Needs
numpy, pydantic-core, and urllib3 or aiohttp; no model code is loaded.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import numpy as np
import pydantic_core
import urllib3
from numpy.typing import NDArray

from predictor.calls import (
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
from predictor.limits import Limits
from predictor.protocol import BINARY_OUTPUT, INT64, JSON_LENGTH_HEADER
from schemas.errors import RequestError

__all__ = ["Asked", "AsyncHttpRankingClient", "HttpRankingClient", "Ids", "Reply"]

DEFAULT_CONNECTIONS: Final = 16
#: Part of a call's time that the service is told of: the rest is for the way there and back.
_TOLD: Final = 0.97
_MOST_TOLD_MS: Final = Limits().timeout_ms
_OK: Final = 200
_UNAVAILABLE: Final = 503
_READY: Final = "/v2/health/ready"


class HttpRankingClient(Client):
    """The blocking face; threads may share it. Use as a context manager."""

    def __init__(
        self, address: str, *, connections: int = DEFAULT_CONNECTIONS, retries: int = 0
    ) -> None:
        """address: `host:port`. retries: as `predictor.client.RankingClient`."""
        self._retries = retries
        self._pool = urllib3.connection_from_url(
            f"http://{address}", maxsize=connections, block=True, retries=False
        )

    def ready(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> bool:
        """Whether the service answers and serves."""
        try:
            return int(self._ask("GET", _READY, timeout_ms / 1000).status) == _OK
        except urllib3.exceptions.HTTPError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _ask(self, method: str, path: str, left_s: float, **given: Any) -> Any:
        given["timeout"] = urllib3.Timeout(total=max(left_s, 1e-3))
        given["pool_timeout"] = left_s
        return self._pool.urlopen(method, path, **given)

    def _call(self, model: str, user_id: int, candidate_ids: Ids, asked: Asked) -> Reply:
        message = message_of(model, user_id, candidate_ids, asked)
        attempts = Attempts(asked, self._retries)
        while True:
            left_s = attempts.left_s
            try:
                body, headers = message.written(left_s)
                answer = self._ask("POST", message.path, left_s, body=body, headers=headers)
                return reply_of(answer.status, answer.headers, answer.data)
            except urllib3.exceptions.TimeoutError as error:
                refused, begun = _no_answer(error), True
            except urllib3.exceptions.HTTPError as error:
                refused, begun = _no_answer(error), False
            except RequestError as error:
                refused, begun = error, error.status != _UNAVAILABLE
            time.sleep(attempts.pause_s(refused, begun=begun))


class AsyncHttpRankingClient(AsyncClient):
    """The same for asyncio. Use it in one event loop, as an async context manager."""

    def __init__(
        self, address: str, *, connections: int = DEFAULT_CONNECTIONS, retries: int = 0
    ) -> None:
        """As HttpRankingClient."""
        self._retries, self._connections = retries, connections
        self._url = f"http://{address}"
        self._http: aiohttp.ClientSession | None = None

    async def ready(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> bool:
        """Whether the service answers and serves."""
        timeout = aiohttp.ClientTimeout(total=timeout_ms / 1000)
        try:
            async with self._session().get(self._url + _READY, timeout=timeout) as answer:
                return answer.status == _OK
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:  # made where its event loop runs
            connector = aiohttp.TCPConnector(limit=self._connections)
            self._http = aiohttp.ClientSession(connector=connector)
        return self._http

    async def _call(self, model: str, user_id: int, candidate_ids: Ids, asked: Asked) -> Reply:
        message = message_of(model, user_id, candidate_ids, asked)
        attempts = Attempts(asked, self._retries)
        while True:
            left_s = attempts.left_s
            body, headers = message.written(left_s)
            timeout = aiohttp.ClientTimeout(total=max(left_s, 1e-3))
            try:
                async with self._session().post(
                    self._url + message.path, data=body, headers=headers, timeout=timeout
                ) as answer:
                    return reply_of(answer.status, answer.headers, await answer.read())
            except TimeoutError as error:
                refused, begun = _no_answer(error), True
            except aiohttp.ClientError as error:
                refused, begun = _no_answer(error), False
            except RequestError as error:
                refused, begun = error, error.status != _UNAVAILABLE
            await asyncio.sleep(attempts.pause_s(refused, begun=begun))


def _no_answer(error: Exception) -> RequestError:
    return no_answer(f"{type(error).__name__}: {error}")


# --- messages -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """A request but for its time. tail: the tensors' bytes."""

    path: str
    head: Mapping[str, Any]
    tail: bytes

    def written(self, left_s: float) -> tuple[bytes, dict[str, str]]:
        """Body and headers of an attempt that has so long."""
        told_ms = min(max(int(left_s * 1000 * _TOLD), 1), int(_MOST_TOLD_MS))
        parameters = {**self.head["parameters"], "timeout": told_ms}
        head = pydantic_core.to_json({**self.head, "parameters": parameters})
        headers = {
            JSON_LENGTH_HEADER: str(len(head)),
            "content-type": "application/octet-stream",
        }
        return head + self.tail, headers


def message_of(model: str, user_id: int, candidate_ids: Ids, asked: Asked) -> Message:
    """A request for `model`. candidate_ids: (N,)."""
    tensors = [
        (name, np.asarray(ids, "<i8"))  # (n,)
        for name, ids in (("user_id", [user_id]), ("candidate_ids", candidate_ids))
    ]
    inputs = [
        {
            "name": name,
            "datatype": INT64,
            "shape": tensor.shape,
            "parameters": {"binary_data_size": tensor.nbytes},
        }
        for name, tensor in tensors
    ]
    parameters: dict[str, Any] = {BINARY_OUTPUT: True}
    for name, value in (("page_size", asked.page_size), ("now_ms", asked.now_ms)):
        if value is not None:
            parameters[name] = value
    head: dict[str, Any] = {
        "id": str(asked.request_id or uuid.uuid4()),
        "parameters": parameters,
        "inputs": inputs,
    }
    if asked.outputs:
        head["outputs"] = [{"name": name} for name in asked.outputs]
    version = f"/versions/{asked.version}" if asked.version else ""
    tail = b"".join(tensor.tobytes() for _, tensor in tensors)
    return Message(f"/v2/models/{model}{version}/infer", head, tail)


def reply_of(status: int, headers: Mapping[str, str], body: bytes) -> Reply:
    """The service's answer, its tensors over the body's own bytes. Raises RequestError: the
    service's refusal, or what answered is no ranking service."""
    head_bytes = headers.get(JSON_LENGTH_HEADER, "")
    length = int(head_bytes) if head_bytes.isdigit() else len(body)
    try:
        data = pydantic_core.from_json(body[:length])
        if status == _OK:
            outputs = dict(_tensors(data["outputs"], body, length))
            parameters = data.get("parameters", {})
            return Reply(uuid.UUID(data["id"]), data["model_version"], outputs, parameters)
        parts = {name: str(data[name]) for name in ("where", "required", "got", "do")}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise no_answer(f"HTTP {status} that is none of the protocol's") from None
    where = parts.pop("where")
    raise RequestError(where, status=status, **parts)


def _tensors(outputs: Any, body: bytes, place: int) -> Any:
    """(name, tensor) of each output; those in bytes lie in the body from `place` on."""
    decode: Callable[..., NDArray[Any]] = np.frombuffer
    for each in outputs:
        dtype, shape = np.dtype(DTYPES[each["datatype"]]), each["shape"]
        size = each.get("parameters", {}).get("binary_data_size")
        if size is None:
            yield each["name"], np.array(each["data"], dtype).reshape(shape)
            continue
        count = size // dtype.itemsize
        yield each["name"], decode(body, dtype, count, place).reshape(shape)
        place += size
