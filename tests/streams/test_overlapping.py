"""Micro-batches under way at once: rows in order, ends in order, what trails behind them."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import numpy as np
import pytest
from faust.types import TP

from streams.app import GC_THRESHOLDS, SWITCH_S, tuned_interpreter
from streams.lanes import LANES, Lanes, lanes_of
from streams.pipeline import Pipeline
from streams.trailing import Trailing

HERE, THERE = TP("t", 0), TP("t", 1)
Work = Callable[[], Awaitable[None]]


class Stage:
    """Pieces of work that begin, and end when they are told to."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.broken: set[str] = set()

    def work(self, name: str) -> Work:
        self.gates[name] = asyncio.Event()

        async def run() -> None:
            self.told.append(f"{name} begins")
            await self.gates[name].wait()
            if name in self.broken:
                raise ZeroDivisionError(name)
            self.told.append(f"{name} ends")

        return run

    async def end(self, name: str) -> None:
        self.gates[name].set()
        for _ in range(6):
            await asyncio.sleep(0)


# --- lanes -----------------------------------------------------------------------------------


def test_neighbours_spread_over_all_lanes() -> None:
    counts = np.bincount(lanes_of(np.arange(-32_000, 32_000)), minlength=LANES)  # (LANES,)
    assert len(counts) == LANES
    assert 900 < counts.min() <= counts.max() < 1_100


def test_work_waits_for_what_has_the_same_lanes_and_for_nothing_else() -> None:
    async def run() -> None:
        stage, lanes = Stage(), Lanes()
        left = lanes.enter("v", range(32), stage.work("left"))
        right = lanes.enter("v", range(32, 64), stage.work("right"))
        other = lanes.enter("w", range(64), stage.work("other"))
        second = lanes.enter("v", range(32, 48), stage.work("second"))
        whole = lanes.enter("v", range(64), stage.work("whole"))
        await asyncio.sleep(0)
        assert stage.told == ["left begins", "right begins", "other begins"]
        await stage.end("right")
        assert stage.told[3:] == ["right ends", "second begins"]
        await stage.end("left")
        assert stage.told[-1] == "left ends"
        await stage.end("second")
        assert stage.told[-1] == "whole begins"
        await stage.end("whole")
        await stage.end("other")
        await asyncio.gather(left, right, other, second, whole)

    asyncio.run(run())


def test_nothing_goes_past_work_that_failed() -> None:
    """Even where it failed before the next one entered."""

    async def run() -> None:
        stage, lanes = Stage(), Lanes()
        stage.broken.add("first")
        first = lanes.enter("v", range(2), stage.work("first"))
        second = lanes.enter("v", range(1, 3), stage.work("second"))
        beside = lanes.enter("v", range(3, 4), stage.work("beside"))
        await stage.end("first")
        third = lanes.enter("v", range(2, 4), stage.work("third"))
        await stage.end("beside")
        for task in (first, second, third):
            with pytest.raises(ZeroDivisionError, match="first"):
                await task
        await beside
        assert stage.told == ["first begins", "beside begins", "beside ends"]

    asyncio.run(run())


# --- pipeline --------------------------------------------------------------------------------


def test_ends_are_told_in_order_and_no_more_are_under_way_than_there_is_room_for() -> None:
    async def run() -> None:
        stage, pipeline = Stage(), Pipeline(2)

        async def feed() -> None:
            for name in "abc":
                await pipeline.enter(stage.work(name), partial(stage.told.append, f"{name} done"))

        feeding = asyncio.create_task(feed())
        for _ in range(50):
            await asyncio.sleep(0)
        assert stage.told == ["a begins", "b begins"]
        await stage.end("b")
        assert stage.told[2:] == ["b ends"]
        await stage.end("a")
        assert stage.told[3:] == ["a ends", "a done", "b done", "c begins"]
        await stage.end("c")
        await feeding
        await pipeline.settle()
        assert stage.told[-1] == "c done"

    asyncio.run(run())


def test_one_that_fails_ends_the_others_and_all_that_comes() -> None:
    async def run() -> None:
        stage, pipeline = Stage(), Pipeline(3)
        stage.broken.add("a")
        for name in "ab":
            await pipeline.enter(stage.work(name), lambda: stage.told.append("done"))
        await stage.end("a")
        for ask in (pipeline.settle(), pipeline.enter(stage.work("c"), lambda: None)):
            with pytest.raises(ZeroDivisionError, match="a"):
                await ask
        with pytest.raises(ZeroDivisionError, match="a"):
            pipeline.check()
        assert stage.told == ["a begins", "b begins"]

    asyncio.run(run())


# --- trailing --------------------------------------------------------------------------------


def test_one_call_is_under_way_and_the_next_speaks_of_all_that_came_meanwhile() -> None:
    calls: list[dict[TP, int]] = []

    async def run() -> None:
        let = asyncio.Event()

        async def act(upto: dict[TP, int]) -> None:
            calls.append(upto)
            await let.wait()

        trailing = Trailing(act)
        await trailing.settle()
        trailing.add({HERE: 1})
        await asyncio.sleep(0)
        trailing.add({HERE: 2})
        trailing.add({HERE: 3, THERE: 1})
        await asyncio.sleep(0)
        assert calls == [{HERE: 1}]
        let.set()
        await trailing.settle()
        trailing.add({THERE: 2})
        await trailing.settle()

    asyncio.run(run())
    assert calls == [{HERE: 1}, {HERE: 3, THERE: 1}, {THERE: 2}]


def test_after_a_call_that_failed_there_is_no_other() -> None:
    calls = 0

    async def run() -> None:
        async def act(upto: dict[TP, int]) -> None:
            nonlocal calls
            calls += 1
            raise ZeroDivisionError

        trailing = Trailing(act)
        trailing.add({HERE: 1})
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await trailing.settle()
            with pytest.raises(ZeroDivisionError):
                trailing.add({HERE: 2})

    asyncio.run(run())
    assert calls == 1


def test_a_call_that_failed_may_go_unasked(caplog: pytest.LogCaptureFixture) -> None:
    """The process ends for another reason: its last line is that one, and no traceback."""

    async def run() -> None:
        async def act(upto: dict[TP, int]) -> None:
            raise ZeroDivisionError

        Trailing(act).add({HERE: 1})
        await asyncio.sleep(0.01)
        gc.collect()

    asyncio.run(run())
    assert caplog.records == []


# --- the interpreter ---------------------------------------------------------------------------


def test_the_interpreter_is_as_before_once_the_stream_has_ended() -> None:
    before = gc.get_threshold(), sys.getswitchinterval(), gc.get_freeze_count()
    with pytest.raises(ZeroDivisionError), tuned_interpreter():
        assert gc.get_threshold() == GC_THRESHOLDS
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
        assert gc.get_freeze_count() > before[2]
        raise ZeroDivisionError
    assert (gc.get_threshold(), sys.getswitchinterval()) == before[:2]
