"""Timing that is fair to all: contenders take turns, and ratios are taken turn by turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of each contender in each turn: name -> (turns,).

    seconds: on the wall. cpu_seconds: of this process, which a busy machine lengthens little.
    """

    seconds: dict[str, Seconds]
    cpu_seconds: dict[str, Seconds]

    def median(self, name: str) -> float:
        """Median seconds."""
        return float(np.median(self.seconds[name]))

    def percentile(self, name: str, percent: float) -> float | None:
        """That percentile in seconds; None with too few turns to tell (20 beyond it at least)."""
        seconds = self.seconds[name]
        enough = len(seconds) * (100 - percent) / 100 >= 20
        return float(np.percentile(seconds, percent)) if enough else None

    def ratio(self, slow: str, fast: str) -> float:
        """Median over the turns of slow ÷ fast."""
        return float(np.median(self.seconds[slow] / self.seconds[fast]))

    def cpu_ratio(self, slow: str, fast: str) -> float:
        """As `ratio`, of what both cost this process: without a server, or waiting for it."""
        return float(np.median(self.cpu_seconds[slow] / self.cpu_seconds[fast]))


def take_turns(
    contenders: Mapping[str, Callable[[int], Any]], turns: int, warm: int = 2, settle: bool = False
) -> Timings:
    """Calls every contender once a turn, the order rotating: A B C, B C A, …

    contenders: name -> call(turn); a turn's number picks its input, the same one for all. warm:
    turns that are run first and not counted. settle: each timed call follows an untimed one of the
    same contender with the next turn's input, so that nobody is charged for the processor caches
    that another one filled: in production nobody takes turns. The collector runs between turns,
    never inside one, and passes over what was alive before.
    """
    names = list(contenders)
    seconds = {name: np.zeros(turns) for name in names}
    cpu_seconds = {name: np.zeros(turns) for name in names}
    collected = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        for turn in range(-warm, turns):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                call = contenders[name]
                if settle:
                    call(turn + 1)
                start, cpu_start = time.perf_counter(), time.process_time()
                call(turn)
                cpu_took, took = time.process_time() - cpu_start, time.perf_counter() - start
                if turn >= 0:
                    seconds[name][turn], cpu_seconds[name][turn] = took, cpu_took
            if turn % 16 == 0:
                gc.collect()
    finally:
        gc.unfreeze()
        if collected:
            gc.enable()
    return Timings(seconds, cpu_seconds)


def memory_bandwidth(size_bytes: int = 64 << 20) -> float:
    """Bytes a second that one core copies in memory, best of five."""
    source = np.ones(size_bytes, np.uint8)
    target = np.empty_like(source)
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return size_bytes / best
