"""One log line for a request that was slow or degraded, with where its time went.

    rank: 131.2 ms, degraded store_timeout: parse 0.1, store 88.0, queue 0.1, … ms

At most RATE lines a second on average: an outage must not become a log of gigabytes. A line says
how many were kept back before it. A service without models is degraded by set-up: that is no news.
"""

from __future__ import annotations

import logging
from typing import Final

from predictor.timeline import Timeline
from schemas.ranklog import Degraded, degraded_text

log: Final = logging.getLogger("encore.requests")
RATE: Final = 1.0  # lines a second
BURST: Final = 10.0
_BY_SETUP: Final = Degraded.NO_MODEL | Degraded.NO_FINE_MODEL | Degraded.NO_COARSE_MODEL


class SlowLog:
    """slow_ms: requests that took longer get a line; 0 for degraded ones alone."""

    def __init__(self, slow_ms: float) -> None:
        self._slow_ms = slow_ms
        self._allowed, self._at_s = BURST, 0.0
        self._kept_back = 0

    def report(self, timeline: Timeline) -> None:
        """Write a line if the request, which just ended, deserves one."""
        total_ms = timeline.total_s * 1000
        degraded = timeline.served.degraded & ~_BY_SETUP if timeline.served else Degraded(0)
        slow = bool(self._slow_ms) and total_ms > self._slow_ms
        if not (slow or degraded) or not self._may_write(timeline.last_s):
            return
        stages = {stage: round(seconds * 1000, 2) for stage, seconds in timeline.laps}
        told = ", ".join(f"{stage} {ms}" for stage, ms in stages.items())
        why = f", degraded {degraded_text(degraded)}" if degraded else ""
        kept_back, self._kept_back = self._kept_back, 0
        more = f" ({kept_back} more such requests before)" if kept_back else ""
        fields = {"total_ms": round(total_ms, 2), "degraded": degraded_text(degraded)}
        log.warning(
            "%s: %.1f ms%s: %s ms%s",
            *(timeline.name, total_ms, why, told, more),
            extra={"fields": fields | {"stages_ms": stages, "kept_back": kept_back}},
        )

    def _may_write(self, now_s: float) -> bool:
        """A token bucket."""
        self._allowed = min(BURST, self._allowed + (now_s - self._at_s) * RATE)
        self._at_s = now_s
        if self._allowed < 1:
            self._kept_back += 1
            return False
        self._allowed -= 1
        return True
