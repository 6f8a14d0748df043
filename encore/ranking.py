"""A client of the ranking service: Open Inference Protocol v2 over HTTP, many requests at once.

A replay shares its cores with the service that it calls, so connections are kept and replies are
parsed by pydantic's JSON reader.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
import pydantic_core

from schemas.errors import RequestError

RANK_PATH: Final = "/v2/models/rank/infer"
AGGREGATE_PATH: Final = "/v2/models/aggregate/infer"
_U64_BITS: Final = 64
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class RankRequest:
    """candidate_ids: no duplicates. now_ms: the request's clock, which the service must allow; None
    leaves it to the service. timeout_ms: None leaves it to the service, too."""

    request_id: uuid.UUID
    user_id: int
    candidate_ids: tuple[int, ...]
    now_ms: int | None = None
    page_size: int | None = None
    timeout_ms: int | None = None
    outputs: tuple[str, ...] = ()

    def body(self) -> dict[str, Any]:
        """The protocol's JSON."""
        given = {"now_ms": self.now_ms, "page_size": self.page_size, "timeout": self.timeout_ms}
        body: dict[str, Any] = {
            "id": str(self.request_id),
            "parameters": {name: value for name, value in given.items() if value is not None},
            "inputs": [
                _int64("user_id", [self.user_id]),
                _int64("candidate_ids", list(self.candidate_ids)),
            ],
        }
        if self.outputs:
            body["outputs"] = [{"name": name} for name in self.outputs]
        return body


@dataclass(frozen=True, slots=True)
class RankReply:
    """outputs: tensors by name, such as page_ids and page_scores (None for NaN). parameters: what
    served; `degraded` is "" when nothing was missing."""

    request_id: uuid.UUID
    outputs: Mapping[str, list[Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def page_ids(self) -> list[int]:
        """The ranked page, best first."""
        return self.outputs["page_ids"]

    @property
    def newest_ms(self) -> int:
        """The newest event in any row that the reply was made of, 0 for none."""
        return int(self.parameters.get("newest_ms", 0))

    @property
    def degraded(self) -> str:
        """What was missing, "" for nothing."""
        return str(self.parameters.get("degraded", ""))


def request_uuid(high: int, low: int) -> uuid.UUID:
    """A request id from its two 64-bit words, as actions carry them.

    >>> str(request_uuid(1, 2))
    '00000000-0000-0001-0000-000000000002'
    """
    return uuid.UUID(int=high << _U64_BITS | low)


class RankClient:
    """Keeps connections open. Use as an async context manager.

    url: `http://host:port`. concurrency: requests in flight at once; more wait here. timeout_s: of
    one request, its wait for a connection included. Nothing is sent twice.
    """

    def __init__(self, url: str, *, concurrency: int = 16, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RequestError("url", required="http://host:port", got=repr(url))
        self._url = url.rstrip("/")
        self._concurrency = concurrency
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._http: aiohttp.ClientSession | None = None

    async def rank(self, request: RankRequest) -> RankReply:
        """Rank one request. Raises RequestError with the service's reason, or when it is away."""
        data = await self._infer(RANK_PATH, request)
        return RankReply(
            uuid.UUID(data["id"]),
            {output["name"]: output["data"] for output in data["outputs"]},
            data.get("parameters", {}),
        )

    async def shapes(self, request: RankRequest) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The tensors behind a request: name → (datatype, shape). Raises as `rank`."""
        data = await self._infer(AGGREGATE_PATH, replace(request, page_size=None))
        return {each["name"]: (each["datatype"], tuple(each["shape"])) for each in data["outputs"]}

    async def _infer(self, path: str, request: RankRequest) -> dict[str, Any]:
        if self._http is None:
            raise RuntimeError("RankClient: use it as `async with RankClient(url) as client`")
        body = pydantic_core.to_json(request.body())
        headers = {"content-type": "application/json"}
        try:
            async with self._http.post(self._url + path, data=body, headers=headers) as answer:
                return _outputs(answer.status, await answer.read(), path)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RequestError(
                self._url,
                required="an answer",
                got=f"{type(error).__name__}: {error}",
                do="look at the ranking service's log",
                status=503,
            ) from error

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._concurrency), timeout=self._timeout
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()


def _outputs(status: int, answer: bytes, path: str) -> dict[str, Any]:
    """The service's reply, or its refusal as RequestError."""
    try:
        data = pydantic_core.from_json(answer)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        data = {"got": f"HTTP {status}"}
    if status != _OK or "outputs" not in data:
        raise RequestError(
            str(data.get("where", path)),
            required=str(data.get("required", "a reply")),
            got=str(data.get("got", f"HTTP {status}")),
            do=str(data.get("do", "")),
            status=status,
        )
    return data


def _int64(name: str, data: list[int]) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": "INT64", "data": data}
