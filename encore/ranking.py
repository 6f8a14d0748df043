"""A client of the ranking service: Open Inference Protocol v2 over HTTP, many requests at once.

A replay shares its cores with the service that it calls, so the client speaks HTTP/1.1 itself, on
kept connections: 0.05 ms of processor time a request, where general clients take 1.5 ms.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import pydantic_core

from schemas.errors import RequestError

RANK_PATH: Final = "/v2/models/rank/infer"
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
    one request, its wait for a connection not included. Nothing is sent twice.
    """

    def __init__(self, url: str, *, concurrency: int = 16, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise RequestError("url", required="http://host:port", got=repr(url))
        self._url = url
        self._host, self._port = parts.hostname, parts.port or 80
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(concurrency)
        self._idle: list[_Connection] = []

    async def rank(self, request: RankRequest) -> RankReply:
        """Rank one request. Raises RequestError with the service's reason, or when it is away."""
        body = pydantic_core.to_json(request.body())
        async with self._slots:
            try:
                async with asyncio.timeout(self._timeout_s):
                    status, answer = await self._post(body)
            except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
                raise RequestError(
                    self._url,
                    required="an answer",
                    got=f"{type(error).__name__}: {error}",
                    do="look at the ranking service's log",
                    status=503,
                ) from error
        return _reply(status, answer)

    async def _post(self, body: bytes) -> tuple[int, bytes]:
        connection = self._kept() or await _Connection.open(self._host, self._port)
        try:
            status, answer = await connection.post(RANK_PATH, body)
        except BaseException:
            connection.close()  # half an answer may be on its way: never for another request
            raise
        if connection.usable:
            self._idle.append(connection)
        else:
            connection.close()
        return status, answer

    def _kept(self) -> _Connection | None:
        """A kept connection that the service has not closed meanwhile."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._idle:
            await self._idle.pop().closed()


class _Connection:
    """One HTTP/1.1 connection to a server that gives each body its length."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: bytes
    ) -> None:
        self._reader, self._writer, self._host = reader, writer, host
        self._kept = True

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        reader, writer = await asyncio.open_connection(host, port)
        return cls(reader, writer, f"{host}:{port}".encode())

    @property
    def usable(self) -> bool:
        return self._kept and not self._reader.at_eof() and not self._writer.is_closing()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer. Raises OSError, EOFError, ValueError for no such thing."""
        self._writer.write(
            b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (path.encode(), self._host, len(body), body)
        )
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError as error:
            raise ValueError(f"not HTTP: {error}") from None
        first, *lines = head.lower().split(b"\r\n")
        fields = dict(line.split(b": ", 1) for line in lines if b": " in line)
        if not first.startswith(b"http/1.") or b"content-length" not in fields:
            raise ValueError(f"an answer that is not HTTP with a length: {head[:80]!r}")
        self._kept = fields.get(b"connection") != b"close"
        answer = await self._reader.readexactly(int(fields[b"content-length"]))
        return int(first.split(b" ", 2)[1]), answer

    def close(self) -> None:
        self._writer.close()

    async def closed(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


def _reply(status: int, answer: bytes) -> RankReply:
    """The service's reply, or its refusal as RequestError."""
    try:
        data = pydantic_core.from_json(answer)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        data = {"got": f"HTTP {status}"}
    if status != _OK or "outputs" not in data:
        raise RequestError(
            str(data.get("where", RANK_PATH)),
            required=str(data.get("required", "a reply")),
            got=str(data.get("got", f"HTTP {status}")),
            do=str(data.get("do", "")),
            status=status,
        )
    return RankReply(
        uuid.UUID(data["id"]),
        {output["name"]: output["data"] for output in data["outputs"]},
        data.get("parameters", {}),
    )


def _int64(name: str, data: list[int]) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": "INT64", "data": data}
