"""Who is served and who is refused at once, so that overload costs the refused and nobody else.

A request waits for what was admitted before it; the wait is known in advance, from what each will
cost the inference thread. Two bounds hold it:

deadline  whoever would wait so long that its own work does not end in time is refused at once.
standing  a queue that was not short for `interval_s` is no burst but overload: from then on nobody
          waits longer than `target_s`. Without it a queue as long as the deadlines allow stands for
          as long as the overload does, and every reply comes at the last moment. (CoDel: Nichols,
          Jacobson, "Controlling Queue Delay", ACM Queue 2012; for servers, with two bounds: Maurer,
          "Fail at Scale", ACM Queue 2015.)

First come, first served among the admitted: since the queue is short, another order gains nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from schemas.errors import RequestError

_GAIN: Final = 0.1
_OVERLOADED: Final = 503


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """in_flight: most requests served at once. interval_s, target_s: of a standing queue; the bound
    is at least `at_least` typical requests, so that the inference thread never runs dry."""

    in_flight: int = 256
    interval_s: float = 0.3
    target_s: float = 0.02
    at_least: float = 5.0


@dataclass(slots=True)
class Refused:
    """Requests refused so far, by reason."""

    in_flight: int = 0
    deadline: int = 0
    standing: int = 0


@dataclass(slots=True)
class Admission:
    """Of one serving process, used by its event loop.

    in_flight: requests admitted and not answered. wait_s: what the inference thread still has to do
    for them. coming: requests that passed `check` and are still being read, kept by who called it:
    all of a burst are checked before the first of them is admitted.
    """

    config: AdmissionConfig = field(default_factory=AdmissionConfig)
    clock: Callable[[], float] = time.monotonic
    in_flight: int = 0
    wait_s: float = 0.0
    coming: int = 0
    refused: Refused = field(default_factory=Refused)
    _typical_s: float = 0.0
    _reading_s: float = 0.0
    _patience_s: float = math.inf
    _short_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._short_s = self.clock()

    @property
    def bound_s(self) -> float:
        """The wait that a queue may have for long. Requests whose rows are still being read are in
        the wait, too: as much as comes in while one is read."""
        config = self.config
        return max(config.target_s, config.at_least * self._typical_s) + self._reading_s

    def check(self, left_s: float = math.inf) -> None:
        """Refuse whoever comes now, if that is known before looking at its request.

        left_s: until its caller's deadline, where that is known: over, if it was kept waiting
        before it was seen. Raises RequestError (503).
        """
        self._check(self.in_flight + self.coming, self.wait_s + self.coming * self._typical_s)
        if self.wait_s > left_s:
            self.refused.deadline += 1
            raise self._too_long(left_s)
        if left_s <= 0:
            self.refused.deadline += 1
            raise _refusal("time until its deadline", "none")

    @contextmanager
    def admitted(self, cost_s: float, patience_s: float) -> Iterator[None]:
        """Serve a request inside the block.

        cost_s: what it will take the inference thread. patience_s: how long it can wait and still
        be served in full. Raises RequestError (503), and nothing was counted.
        """
        self._learn(max(patience_s, 0.0))
        self._check(self.in_flight, self.wait_s)
        if self.wait_s > max(patience_s, 0.0):
            self.refused.deadline += 1
            raise self._too_long(patience_s)
        self.in_flight += 1
        self.wait_s += cost_s
        self._typical_s += _GAIN * (cost_s - self._typical_s)
        try:
            yield
        finally:
            self.in_flight -= 1
            self.wait_s = max(0.0, self.wait_s - cost_s) if self.in_flight else 0.0
            self._note_short(self.clock())

    def took_to_read(self, seconds: float) -> None:
        """What the store took for one request."""
        self._reading_s += _GAIN * (seconds - self._reading_s)

    def _check(self, in_flight: int, wait_s: float) -> None:
        if in_flight >= self.config.in_flight:
            self.refused.in_flight += 1
            raise _refusal(f"at most {self.config.in_flight} requests at once", "one more")
        if self._stands() and wait_s > self.bound_s:
            self.refused.standing += 1
            raise self._too_long(self.bound_s, wait_s)
        if wait_s > self._patience_s:
            self.refused.deadline += 1
            raise self._too_long(self._patience_s, wait_s)

    def _learn(self, patience_s: float) -> None:
        """How long the more patient of the callers can wait: who comes next is hardly more so."""
        if patience_s >= self._patience_s or math.isinf(self._patience_s):
            self._patience_s = patience_s
        else:
            self._patience_s += _GAIN * (patience_s - self._patience_s)

    def _stands(self) -> bool:
        """The queue was not short for a while."""
        now_s = self.clock()
        self._note_short(now_s)
        return now_s - self._short_s > self.config.interval_s

    def _note_short(self, now_s: float) -> None:
        """Short is a queue of one: one that overload holds at its bound is never short."""
        if self.wait_s <= self._typical_s + self._reading_s:
            self._short_s = now_s

    def _too_long(self, bound_s: float, wait_s: float | None = None) -> RequestError:
        required = f"a wait of at most {max(bound_s, 0) * 1000:.0f} ms"
        got_s = self.wait_s if wait_s is None else wait_s
        return _refusal(required, f"{got_s * 1000:.0f} ms")


def _refusal(required: str, got: str) -> RequestError:
    do = "try again later, or add a server"
    return RequestError("request", required=required, got=got, do=do, status=_OVERLOADED)
