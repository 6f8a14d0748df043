"""Who is served and who is refused at once, so that overload costs the refused and nobody else.

A request waits for what was admitted before it, and that wait is known in advance, from what each
will cost the inference thread and the event loop (which share the interpreter); before that it
waits for the event loop to see it, and that wait is measured: its own where the protocol can tell,
else the loop's lag. Two bounds hold both together:

deadline  whoever would wait so long that its own work does not end in time is refused at once.
standing  a queue that was not short for `interval_s` is no burst but overload: from then on nobody
          waits longer than `target_s`. Without it a queue as long as the deadlines allow stands for
          as long as the overload does, and every reply comes at the last moment. (CoDel: Nichols,
          Jacobson, "Controlling Queue Delay", ACM Queue 2012; for servers, with two bounds: Maurer,
          "Fail at Scale", ACM Queue 2015; with the wait before a server looks at a request: Zhou
          et al., "Overload Control for Scaling WeChat Microservices", SoCC 2018.)

First come, first served among the admitted: since the queue is short, another order gains nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import astuple, dataclass, field
from functools import lru_cache
from typing import Final

from schemas.errors import RequestError

_GAIN: Final = 0.1
#: An estimate of patience that keeps requests from being looked at is believed ever less, since
#: only those that are looked at correct it.
_FADE: Final = 1.005
#: Of the event loop's time for a request: more is something else that it did.
_MOST_LOOP_S: Final = 0.005
_OVERLOADED: Final = 503


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """in_flight: most requests served at once. interval_s, target_s: of a standing queue; the bound
    is at least `at_least` typical requests, so that the inference thread never runs dry. It holds
    until the queue is short and nobody was refused for `calm_s`: a moment without requests, as any
    stall of the machine makes one, does not end an overload."""

    in_flight: int = 256
    interval_s: float = 0.1
    calm_s: float = 0.05
    target_s: float = 0.02
    at_least: float = 5.0


@dataclass(slots=True)
class Refused:
    """Requests refused so far, by reason. loop: as standing, where the wait for the inference
    thread alone would have been short enough."""

    in_flight: int = 0
    deadline: int = 0
    standing: int = 0
    loop: int = 0

    @property
    def total(self) -> int:
        """For any reason."""
        return sum(astuple(self))


def no_lag() -> float:
    """The lag of a loop that nobody probes."""
    return 0.0


@dataclass(slots=True)
class Admission:
    """Decides which requests of one serving process are served. Used by its event loop.

    lag: by how many seconds the event loop is late now. in_flight: requests admitted and not
    answered. wait_s: what the inference thread still has to do for them. coming: requests that
    passed `refusal` and are still being read, kept by who called it: all of a burst are checked
    before the first of them is admitted. unsent: that are read for longer than those of a burst
    are, which keep nobody from being served. loop_s: of the processor, what the event loop's thread
    needs for a request that is served.
    """

    config: AdmissionConfig = field(default_factory=AdmissionConfig)
    clock: Callable[[], float] = time.monotonic
    lag: Callable[[], float] = no_lag
    in_flight: int = 0
    wait_s: float = 0.0
    coming: int = 0
    unsent: int = 0
    loop_s: float = 0.0
    refused: Refused = field(default_factory=Refused)
    _typical_s: float = 0.0
    _reading_s: float = 0.0
    _patience_s: float = math.inf
    _long_since_s: float = math.inf
    _cut_s: float = -math.inf
    _served: int = 0
    _noted: tuple[float, int, int] = (math.inf, 0, 0)

    @property
    def bound_s(self) -> float:
        """The wait that a queue may have for long. Requests whose rows are still being read are in
        the wait, too: as much as comes in while one is read."""
        config = self.config
        return max(config.target_s, config.at_least * self._typical_s) + self._reading_s

    @property
    def at_once(self) -> int:
        """How many requests keep the inference thread busy without a queue that is worth the name:
        half of what may stand for long, and as many as come in while one's rows are read."""
        config = self.config
        if not self._typical_s:
            return math.ceil(config.at_least)
        busy_s = max(config.target_s / 2, config.at_least * self._typical_s) + self._reading_s
        return min(math.ceil(busy_s / self._typical_s), config.in_flight)

    def refusal(self, left_s: float = math.inf, waited_s: float = 0.0) -> RequestError | None:
        """Refuse whoever comes now (503), if that is known before looking at its request.

        left_s: until its caller's deadline, where that is known: over, if it was kept waiting
        before it was seen. waited_s: for how long it was, where that is known. What it returns is
        not to be raised, since equal refusals are one: under overload most requests are refused,
        and to make and raise an error for each costs, too.
        """
        lag_s = self.lag()
        wait_s = self.wait_s + self.coming * self._typical_s
        refusal = self._full(self.in_flight + self.coming, wait_s, max(waited_s, lag_s))
        if refusal is not None:
            return refusal
        if wait_s + waited_s > self._patience_s:
            patience_s, self._patience_s = self._patience_s, self._patience_s * _FADE
            self.refused.deadline += 1
            return _too_long(patience_s, wait_s + waited_s)
        if left_s <= 0:
            return self.too_late()
        if self.wait_s + lag_s > left_s:
            self.refused.deadline += 1
            return _too_long(left_s, self.wait_s + lag_s)
        return None

    def too_late(self) -> RequestError:
        """The refusal, counted, of who was kept waiting until its time was over; not to be raised
        either."""
        self.refused.deadline += 1
        return _refusal("time until its deadline", "none")

    @contextmanager
    def admitted(self, cost_s: float, patience_s: float, waited_s: float = 0.0) -> Iterator[None]:
        """Serve a request inside the block.

        cost_s: what it will take the inference thread. patience_s: how long it can wait from now on
        and still be served in full. waited_s: how long it did before. Raises RequestError (503),
        and nothing was counted.
        """
        self._learn(max(patience_s, 0.0) + waited_s)
        refusal = self._full(self.in_flight, self.wait_s)
        if refusal is not None:
            raise copy(refusal)
        if self.wait_s > max(patience_s, 0.0):
            self.refused.deadline += 1
            raise copy(_too_long(patience_s, self.wait_s))
        self.in_flight += 1
        self.wait_s += cost_s
        self._typical_s += _GAIN * (cost_s - self._typical_s)
        try:
            yield
        finally:
            self.in_flight -= 1
            self._served += 1
            self.wait_s = max(0.0, self.wait_s - cost_s) if self.in_flight else 0.0
            self._look(self.clock())

    def used_by_loop(self, thread_s: float) -> None:
        """The processor's time of the event loop's thread until now; to be told often. Refusals are
        no part of what serving takes, so times with refusals teach nothing."""
        refused = self.refused.total
        before_s, served, as_before = self._noted
        self._noted = thread_s, self._served, refused
        if self._served > served and refused == as_before and thread_s > before_s:
            each_s = min((thread_s - before_s) / (self._served - served), _MOST_LOOP_S)
            self.loop_s += (_GAIN if self.loop_s else 1.0) * (each_s - self.loop_s)

    def waits_for_inference(self) -> bool:
        """Whether the inference thread is waited for, more than the event loop."""
        return self._crowded() and self._typical_s > 2 * self.loop_s  # it is a part of the typical

    def _crowded(self) -> bool:
        """There are requests enough for the event loop to be late because of them. With fewer it is
        others on the machine who make it late, and nobody gains where a request is refused."""
        return self.in_flight + self.coming >= self.config.at_least

    def took_to_read(self, seconds: float) -> None:
        """What the store took for one request: without what an answer waited for this loop, which
        would make the bound of a late loop's queue the longer the later it is."""
        self._reading_s += _GAIN * (seconds - self._reading_s)

    def _full(self, in_flight: int, wait_s: float, behind_s: float = 0.0) -> RequestError | None:
        """wait_s: for the inference thread. behind_s: for the event loop."""
        if in_flight >= self.config.in_flight:
            self.refused.in_flight += 1
            return _refusal(f"at most {self.config.in_flight} requests at once", "one more")
        all_s, bound_s = wait_s + behind_s, self.bound_s
        if self._stands() and (all_s if self._crowded() else wait_s) > bound_s:
            self._cut_s = self.clock()
            if wait_s > bound_s:
                self.refused.standing += 1
            else:
                self.refused.loop += 1
            return _too_long(bound_s, all_s)
        return None

    def _learn(self, patience_s: float) -> None:
        """How long the more patient of the callers can wait, from when they ask: who comes next is
        hardly more so."""
        if patience_s >= self._patience_s or math.isinf(self._patience_s):
            self._patience_s = patience_s
        else:
            self._patience_s += _GAIN * (patience_s - self._patience_s)

    def _stands(self) -> bool:
        """The queue was long for a while, as seen by those who came: a stall that is over when the
        first of them is looked at does not count, however long it was."""
        now_s = self.clock()
        self._look(now_s)
        return now_s - self._long_since_s > self.config.interval_s

    def _look(self, now_s: float) -> None:
        """Short is a queue of one: one that overload holds at its bound is never short. For the
        event loop it is half of the target."""
        lag_s = self.lag()
        if (
            self.wait_s <= self._typical_s + self._reading_s
            and (lag_s <= self.config.target_s / 2 or not self._crowded())
            and now_s - self._cut_s > self.config.calm_s + lag_s
        ):
            self._long_since_s = math.inf
        else:
            self._long_since_s = min(self._long_since_s, now_s)


def _too_long(bound_s: float, wait_s: float) -> RequestError:
    return _waits(round(max(bound_s, 0) * 1000), round(wait_s * 1000))


@lru_cache(maxsize=4_096)
def _waits(most_ms: int, wait_ms: int) -> RequestError:
    return _refusal(f"a wait of at most {most_ms} ms", f"{wait_ms} ms")


@lru_cache(maxsize=4_096)
def _refusal(required: str, got: str) -> RequestError:
    do = "try again later, or add a server"
    return RequestError("request", required=required, got=got, do=do, status=_OVERLOADED)
