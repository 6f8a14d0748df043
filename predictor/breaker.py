"""Reads of the store that no request waits for in vain: time-outs, and a circuit breaker.

    closed     requests read. `faults` failures in a row open the breaker.
    open       requests are told at once, with the status of what failed; those that were waiting
               when it opened are told then. Nobody asks the store until the pause is over.
    half open  one probe asks for what failed last: the same keys within the same time, so that a
               store that is alive but too slow does not pass. It is no request's: requests are told
               as before. One that fails doubles the pause, one that succeeds closes the breaker.

Every probe begins with new connections: the peer of an old one may have gone without a word.
A dead store costs no request more than its share of time once, and one that is back serves again
after at most `longest_pause_s` and one read.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal

from schemas.errors import StoreError, StoreTimeout
from schemas.status import Status
from schemas.stored import RowKeys
from store.base import AsyncRowStore

log: Final = logging.getLogger(__name__)

#: Part of a read's time: a loop that is late by no more than this came round in between.
_ROUND: Final = 0.5

State = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """faults: failures in a row that open it. timeout_s: longest read. patience_s: a time-out of a
    read that had less time says nothing of the store. pause_s, longest_pause_s: before a probe.

    Nor does the time-out of a read during which the store answered another, so that it waited for
    its turn, or the event loop did not come round, so that the answer may lie there unseen."""

    faults: int = 3
    timeout_s: float = 0.25
    patience_s: float = 0.02
    pause_s: float = 0.05
    longest_pause_s: float = 0.4


@dataclass(frozen=True, slots=True)
class Read:
    """rows: one a key, in order. failed: the status that every row has instead; None for none."""

    rows: Sequence[bytes | None]
    failed: Status | None = None


@dataclass(frozen=True, slots=True)
class _Fault:
    """What failed, and within which time."""

    status: Status
    keys: Sequence[RowKeys]
    limit_s: float
    why: str


@dataclass(slots=True)
class StoreReader:
    """The reads of one event loop. reconnect: closes the store's idle connections.

    state, opened: how it stands, and how often it opened, for metrics.
    """

    store: AsyncRowStore
    config: BreakerConfig = field(default_factory=BreakerConfig)
    reconnect: Callable[[], Awaitable[None]] | None = None
    state: State = "closed"
    opened: int = 0
    _fault: _Fault | None = None
    _in_a_row: int = 0
    _waiting: set[asyncio.Timeout] = field(default_factory=set)
    _probing: asyncio.Task[None] | None = None
    _answered_s: float = -math.inf

    async def read(self, keys: Sequence[RowKeys], limit_s: float) -> Read:
        """The rows, or why there are none; within limit_s. Raises nothing but cancellation."""
        if self._fault is not None:
            return Read([], self._fault.status)
        limit_s, began_s = min(limit_s, self.config.timeout_s), time.monotonic()
        try:
            async with asyncio.timeout(limit_s) as scope:
                self._waiting.add(scope)
                try:
                    rows = await self.store.read_rows(keys)
                finally:
                    self._waiting.discard(scope)
        except (TimeoutError, StoreTimeout) as error:
            if limit_s >= self.config.patience_s and self._could_answer(began_s, limit_s):
                self._failed(_Fault(Status.TIMEOUT, keys, limit_s, str(error) or "no answer"))
            return Read([], Status.TIMEOUT)
        except StoreError as error:
            self._failed(_Fault(Status.STORE_ERROR, keys, limit_s, str(error)))
            return Read([], Status.STORE_ERROR)
        self._in_a_row, self._answered_s = 0, time.monotonic()
        return Read(rows)

    async def close(self) -> None:
        """Stop probing."""
        if self._probing is not None:
            self._probing.cancel()
            with suppress(asyncio.CancelledError):
                await self._probing

    def _could_answer(self, began_s: float, limit_s: float) -> bool:
        """The store, to a read whose time is over now; and the event loop would know."""
        late_s = time.monotonic() - began_s - limit_s
        return self._answered_s < began_s and late_s <= limit_s * _ROUND

    def _failed(self, fault: _Fault) -> None:
        self._in_a_row += 1
        if self._fault is None and self._in_a_row >= self.config.faults:
            self._fault, self.state = fault, "open"
            self.opened += 1
            log.warning("store: requests go without it: %s", fault.why)
            now_s = asyncio.get_running_loop().time()
            for scope in self._waiting:
                if not scope.expired():
                    scope.reschedule(now_s)
            # On behalf of nobody: its log lines would name this request for as long as it goes on.
            nobody = contextvars.Context()
            probe = self._probe(fault)
            self._probing = asyncio.create_task(probe, name="breaker", context=nobody)

    async def _probe(self, fault: _Fault) -> None:
        """Ask for what failed until it comes."""
        pause_s = self.config.pause_s
        while True:
            await asyncio.sleep(pause_s)
            self.state = "half_open"
            try:
                async with asyncio.timeout(max(fault.limit_s, self.config.patience_s)):
                    if self.reconnect is not None:
                        await self.reconnect()
                    await self.store.read_rows(fault.keys)
            except Exception as error:  # whatever it is: without probes it would stay open for good
                if not isinstance(error, TimeoutError | StoreError):
                    log.exception("store: a probe failed")
                self.state = "open"
                pause_s = min(2 * pause_s, self.config.longest_pause_s)
            else:
                break
        self._fault, self._in_a_row, self.state = None, 0, "closed"
        log.info("store: it answers again")
