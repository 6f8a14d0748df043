"""A client of the ranking service: Open Inference Protocol v2 over HTTP, many requests at once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import httpx

from schemas.errors import RequestError

RANK_PATH: Final = "/v2/models/rank/infer"
_U64_BITS: Final = 64


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

    concurrency: requests in flight at once; more wait here. Nothing is sent twice.
    """

    def __init__(self, url: str, *, concurrency: int = 16, timeout_s: float = 30.0) -> None:
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._slots = asyncio.Semaphore(concurrency)
        self._http = httpx.AsyncClient(
            base_url=url, limits=limits, timeout=timeout_s, trust_env=False
        )

    async def rank(self, request: RankRequest) -> RankReply:
        """Rank one request. Raises RequestError with the service's reason, or when it is away."""
        async with self._slots:
            try:
                response = await self._http.post(RANK_PATH, json=request.body())
            except httpx.HTTPError as error:
                raise RequestError(
                    str(self._http.base_url),
                    required="an answer",
                    got=f"{type(error).__name__}: {error}",
                    do="look at the ranking service's log",
                    status=503,
                ) from error
        data = _object(response)
        if response.status_code != httpx.codes.OK:
            raise RequestError(
                str(data.get("where", RANK_PATH)),
                required=str(data.get("required", "a reply")),
                got=str(data.get("got", f"HTTP {response.status_code}")),
                do=str(data.get("do", "")),
                status=response.status_code,
            )
        return RankReply(
            uuid.UUID(data["id"]),
            {output["name"]: output["data"] for output in data["outputs"]},
            data.get("parameters", {}),
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(kind, error, trace)


def _int64(name: str, data: list[int]) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": "INT64", "data": data}


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        data = response.json()
    except ValueError:
        data = None
    return data if isinstance(data, dict) else {"got": f"HTTP {response.status_code}"}
