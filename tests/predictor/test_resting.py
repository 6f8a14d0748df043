"""When the event loop sleeps, and how often."""

from __future__ import annotations

import asyncio

from predictor.admission import Admission
from predictor.resting import REST_S, Resting


def rests(crowd: int, turns: int, refusals: int, loop_s: float = 0.001) -> list[float]:
    """Of a loop that refuses so often in each of its turns, with so many requests served, of which
    each takes it loop_s and the inference thread 2 ms."""
    found: list[float] = []

    async def refuse() -> None:
        admission = Admission()
        for _ in range(99):
            with admission.admitted(0.002 + loop_s, 1.0):
                pass
        admission.in_flight, admission.loop_s = crowd, loop_s
        resting = Resting(admission, found.append)
        for _ in range(turns):
            for _ in range(refusals):
                resting.refused()
            assert not found or len(found) < turns  # not before the turn is over
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(refuse())
    return found


def test_once_in_each_turn_that_refused_anybody() -> None:
    assert rests(crowd=5, turns=3, refusals=4) == [REST_S] * 3


def test_not_where_nobody_was_refused() -> None:
    assert rests(crowd=5, turns=3, refusals=0) == []


def test_not_where_the_inference_thread_has_hardly_anything_to_do() -> None:
    assert rests(crowd=4, turns=3, refusals=4) == []


def test_not_where_the_loop_has_more_to_do_for_a_request() -> None:
    assert rests(crowd=5, turns=3, refusals=4, loop_s=0.0021) == []
