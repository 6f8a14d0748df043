"""Ends a process whose offsets stand still while there is something to read, or that never begins.

Some standstills raise nothing: a fetch that never comes back, a handler that waits for what does
not happen, code that holds the event loop. The consumer group does not notice, since heartbeats go
on. So a thread of its own looks at the positions. When they have not moved for `stand_still_ms` it
asks the broker where the partitions end (`streams.ends`); if that is further, the process is told
to end, and a few seconds later ended. Started again, it goes on from what is stored.

Until partitions were given there are no positions. A consumer group that is never formed raises
nothing either: a broker accepts the connection and leaves the question unanswered, or has no
coordinator, and aiokafka asks for ever. So what a beginning waits for has `stand_still_ms` as well,
step by step; a group's members have half of that to come together (Kafka's rebalance time-out,
60 s of the 120 s).

What is no standstill: to be given no partition, where there are more members than partitions;
nothing to read; a broker that does not say where partitions end, which the
consumer waits for; a store that is away, which its callers give up on by themselves after
`patience_ms`, of which `stand_still_ms` is more than twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from faust.types import TP

from schemas.errors import StreamError
from streams.config import StreamConfig
from streams.ends import read_ends

log = logging.getLogger("encore.streams")

#: A process that was told to end has this long to do so, or as long as it may stand still.
GRACE_S: Final = 15.0
EXIT_STUCK: Final = 1

Positions = Mapping[TP, int]


class Waits(Enum):
    """What a beginning waits for, one after the other."""

    SERVERS = "answers of store and broker"
    GROUP = "an assignment of partitions, be it of none,"
    NOTHING = ""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the watchdog's thread is shown of a process.

    group: its consumer group. positions: what each partition is read up to. waits_for: how far it
    has begun. membership: how far it is with the group, for people.
    """

    group: str
    positions: Callable[[], Positions]
    waits_for: Callable[[], Waits]
    membership: Callable[[], str]


@dataclass(slots=True)
class Beginning:
    """The judgement of a process that has not begun, without a clock of its own."""

    sight: Sight
    limit_ms: int
    _last: Waits | None = None
    _since_s: float = 0.0

    def look(self, now_s: float) -> StreamError | None:
        """As `Standstill.look`."""
        waits_for = self.sight.waits_for()
        if waits_for is not self._last:
            self._last, self._since_s = waits_for, now_s
        waited_s = now_s - self._since_s
        if waits_for is Waits.NOTHING or waited_s * 1000 < self.limit_ms:
            return None
        return StreamError(
            f"group {self.sight.group}",
            required=f"{waits_for.value} within {self.limit_ms / 1000:g} s",
            got=f"none: {self.sight.membership()}",
            do="restart this process; where that does not help, see whether the broker answers"
            " (`encore stream status`), and restart it if its groups do not form",
        )


@dataclass(slots=True)
class Standstill:
    """The judgement, without a clock or a broker of its own.

    positions: what each partition is read up to. ends: where they end; may raise StreamError.
    """

    positions: Callable[[], Positions]
    ends: Callable[[Positions], Positions]
    stand_still_ms: int
    _last: dict[TP, int] = field(default_factory=dict)
    _since_s: float = 0.0

    def look(self, now_s: float) -> StreamError | None:
        """What is wrong at this moment, None for nothing. now_s: a clock that never goes back."""
        here = dict(self.positions())
        if here != self._last or not here:
            self._last, self._since_s = here, now_s
            return None
        stood_s = now_s - self._since_s
        if stood_s * 1000 < self.stand_still_ms:
            return None
        self._since_s = now_s  # looked into: again after as long
        try:
            ends = self.ends(here)
        except StreamError as error:
            log.warning("positions stand still, and the ends are not known: %s", error)
            return None
        behind = {tp: ends[tp] - at for tp, at in here.items() if ends.get(tp, at) > at}
        if not behind or dict(self.positions()) != here:
            return None
        tp, lag = max(behind.items(), key=lambda each: each[1])
        return StreamError(
            f"{tp.topic}/{tp.partition}",
            required="positions that move while there is something to read",
            got=f"{here[tp]} for {stood_s:.0f} s, {lag} messages before the end",
            do="restart this process: it goes on from what is stored; its log may say what it did",
        )


class Watchdog:
    """A thread that looks, as long as it is entered as a context manager."""

    def __init__(
        self,
        config: StreamConfig,
        sight: Sight,
        fail: Callable[[StreamError], None],
        clock_s: Callable[[], float],
    ) -> None:
        """sight, fail: called in the thread; fail asks the process to end."""
        self._beginning = Beginning(sight, config.stand_still_ms)
        self._standstill = Standstill(sight.positions, self._ends, config.stand_still_ms)
        self._bootstrap, self._clock_s, self._fail = config.bootstrap, clock_s, fail
        self._every_s = config.stand_still_ms / 4000
        self._grace_s = min(GRACE_S, config.stand_still_ms / 1000)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        # Time in which this thread did not run either counts as one look: a machine that was
        # suspended, or has no time for anybody, says nothing of this process.
        seen_s, last_s = 0.0, self._clock_s()
        while not self._stop.wait(self._every_s):
            now_s = self._clock_s()
            seen_s += min(now_s - last_s, 2 * self._every_s)
            last_s = now_s
            error = self._beginning.look(seen_s) or self._standstill.look(seen_s)
            if error is not None:
                log.error("standing still: %s", error)
                self._fail(error)
                if not self._stop.wait(self._grace_s):
                    log.error("ended by the watchdog: it did not end by itself")
                    os._exit(EXIT_STUCK)
                return

    def _ends(self, positions: Positions) -> Positions:
        starts = {(tp.topic, tp.partition): at for tp, at in positions.items()}
        ends = asyncio.run(read_ends(self._bootstrap, starts))
        return {TP(*place): end for place, end in ends.items()}
