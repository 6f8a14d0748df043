"""What a client of the ranking service asks and gets, whichever protocol carries it."""

from __future__ import annotations

import random
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from schemas.errors import RequestError

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
Ids = Sequence[int] | I64
DEFAULT_TIMEOUT_MS: Final = 500.0
#: Of a call without an answer.
AWAY: Final = 503
DTYPES: Final = {"INT64": "<i8", "INT32": "<i4", "FP32": "<f4", "UINT8": "u1"}
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


#: A call that says nothing beside.
PLAIN: Final = Asked()


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


class Client(ABC):
    """The blocking face of a client, whichever protocol it speaks. Threads may share it. Use as a
    context manager."""

    def rank(self, user_id: int, candidate_ids: Ids, asked: Asked = PLAIN) -> Reply:
        """A page of the candidates. Raises RequestError: its parts are the service's; status 503
        where there was no answer in time."""
        return self._call("rank", user_id, candidate_ids, asked)

    def aggregate(self, user_id: int, candidate_ids: Ids, asked: Asked = PLAIN) -> Reply:
        """The tensors that a model would read. Raises as `rank`."""
        return self._call("aggregate", user_id, candidate_ids, asked)

    @abstractmethod
    def ready(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> bool:
        """Whether the service answers and serves."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    def _call(self, model: str, user_id: int, candidate_ids: Ids, asked: Asked) -> Reply: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(ABC):
    """The same for asyncio. Create and use it in one event loop, as an async context manager."""

    async def rank(self, user_id: int, candidate_ids: Ids, asked: Asked = PLAIN) -> Reply:
        """As `Client.rank`."""
        return await self._call("rank", user_id, candidate_ids, asked)

    async def aggregate(self, user_id: int, candidate_ids: Ids, asked: Asked = PLAIN) -> Reply:
        """As `Client.aggregate`."""
        return await self._call("aggregate", user_id, candidate_ids, asked)

    @abstractmethod
    async def ready(self, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> bool:
        """Whether the service answers and serves."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    async def _call(self, model: str, user_id: int, candidate_ids: Ids, asked: Asked) -> Reply: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Attempts:
    """One call on its deadline, over all its attempts."""

    def __init__(self, asked: Asked, retries: int) -> None:
        self._ends_s = time.monotonic() + asked.timeout_ms / 1000
        self._retries = retries
        self._pause_s = _FIRST_PAUSE_S

    @property
    def left_s(self) -> float:
        """Until the call's deadline, 0 behind it."""
        return max(self._ends_s - time.monotonic(), 0.0)

    def pause_s(self, refused: RequestError, *, begun: bool) -> float:
        """How long to wait before the next attempt. Raises `refused` where there is none.

        begun: the service may have worked on it; such a call is not asked again.
        """
        pause_s = self._pause_s * random.uniform(0.5, 1.5)
        if not self._retries or begun or pause_s >= self.left_s:
            raise refused from None
        self._retries -= 1
        self._pause_s *= 2
        return pause_s


def no_answer(got: str, status: int = AWAY) -> RequestError:
    """A call that the service said nothing to."""
    return RequestError(
        "service",
        required="an answer in time",
        got=got[:200],
        do="look at the ranking service",
        status=status,
    )
