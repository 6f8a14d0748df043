"""What a request's stages cost on this machine now, and what a request can still afford.

`StageCosts` learns from every request: per stage an exponentially weighted mean of seconds per unit
and of the distance from it, as TCP estimates its round trips (RFC 6298). `Budget` is one request's
own: a stage begins only if it is likely to end by the deadline.

    stage      unit             what it is
    assemble   candidates       rows to tensors
    look_up    values           rows to values for clients that read features; a lap `assemble`
    coarse     candidates       the two-tower model
    fine       fine candidates  the fine model
    reply      -                from the inference thread's end until the event loop goes on
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from predictor.timeline import Laps

Stage = Literal["assemble", "look_up", "coarse", "fine", "reply"]
Clock = Callable[[], float]

#: A stage's fixed cost, in candidates: what 10 candidates take is far more than a tenth of 100.
_FIXED_UNITS: Final = 64
_GAIN: Final = 0.1  # of a new measurement
_SURPRISE: Final = 4.0  # times the mean: more is a stall of the machine, not the stage's cost
_SPREAD: Final = 2.0  # mean distances on top of the mean: what is likely to be enough
_FORGET: Final = 0.98  # of an estimate that kept a stage from being run, and so from being measured


class StageCosts:
    """Estimates of one process. Written by the inference thread, read by the event loop, too.

    A stage that was never measured costs nothing until it is.
    """

    def __init__(self) -> None:
        self._mean: dict[Stage, float] = {}  # seconds per unit
        self._distance: dict[Stage, float] = {}

    def observe(self, stage: Stage, units: int, seconds: float) -> None:
        """A stage took so long for so many units."""
        each = seconds / (units + _FIXED_UNITS)
        mean = self._mean.get(stage)
        if mean is None:
            self._mean[stage], self._distance[stage] = each, each / 2
            return
        each = min(each, _SURPRISE * mean)
        away = abs(each - mean)
        self._mean[stage] = mean + _GAIN * (each - mean)
        self._distance[stage] += _GAIN * (away - self._distance[stage])

    def expected_s(self, stage: Stage, units: int) -> float:
        """The mean."""
        return self._mean.get(stage, 0.0) * (units + _FIXED_UNITS)

    def likely_s(self, stage: Stage, units: int) -> float:
        """What will probably be enough."""
        each = self._mean.get(stage, 0.0) + _SPREAD * self._distance.get(stage, 0.0)
        return each * (units + _FIXED_UNITS)

    def doubt(self, stage: Stage) -> None:
        """The estimate kept a stage from being run: believe it a little less, so that one stall of
        the machine does not end the stage for ever."""
        if stage in self._mean:
            self._mean[stage] *= _FORGET
            self._distance[stage] *= _FORGET


@dataclass(slots=True)
class Budget:
    """One request's time.

    deadline_s: on the clock, when the inference thread must be done with it. laps: of the work done
    for it.
    """

    costs: StageCosts
    deadline_s: float
    laps: Laps = field(default_factory=Laps)
    clock: Clock = time.monotonic

    def left_s(self) -> float:
        """Until the deadline; negative after it."""
        return self.deadline_s - self.clock()

    def affords(self, stage: Stage, units: int) -> bool:
        """Whether a stage will probably end by the deadline."""
        left_s = self.left_s()
        if left_s > self.costs.likely_s(stage, units):
            return True
        if left_s > 0:
            self.costs.doubt(stage)
        return False

    def done(self, stage: Stage, units: int) -> None:
        """The time since the last lap went into this stage."""
        self.laps.lap("assemble" if stage == "look_up" else stage)
        self.costs.observe(stage, units, self.laps.laps[-1][1])
