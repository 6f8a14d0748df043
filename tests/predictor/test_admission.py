"""Who is refused: by count, by the own deadline, by a queue that stands; in simulated time."""

from __future__ import annotations

import heapq
import math
import random
from contextlib import ExitStack
from copy import copy

import pytest

from predictor.admission import Admission, AdmissionConfig
from schemas.errors import RequestError

COST_S = 0.01


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def admission(**changes: float) -> tuple[Admission, Clock]:
    clock = Clock()
    given = {"in_flight": 256, "interval_s": 0.3, "target_s": 0.02, "at_least": 3.0} | changes
    return Admission(AdmissionConfig(**given), clock), clock  # type: ignore[arg-type]


def check(door: Admission, left_s: float = math.inf, waited_s: float = 0.0) -> None:
    """Raises who is refused."""
    refusal = door.refusal(left_s, waited_s)
    if refusal is not None:
        raise copy(refusal)


def test_a_count_that_is_reached_refuses_the_next() -> None:
    door, _ = admission(in_flight=2)
    with door.admitted(COST_S, 9.0), door.admitted(COST_S, 9.0):
        assert (door.in_flight, door.wait_s) == (2, 2 * COST_S)
        with pytest.raises(RequestError, match="at most 2 requests at once") as refused:
            check(door)
        assert refused.value.status == 503
    assert (door.in_flight, door.wait_s, door.refused.in_flight) == (0, 0.0, 1)


def test_who_would_wait_past_its_deadline_is_refused_at_once() -> None:
    door, _ = admission()
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(door.admitted(COST_S, 9.0))
        with pytest.raises(RequestError, match="a wait of at most 40 ms, got 50 ms") as refused:
            stack.enter_context(door.admitted(COST_S, 0.04))
        assert refused.value.status == 503
        assert door.in_flight == 5
        stack.enter_context(door.admitted(COST_S, 0.06))
    assert door.refused.deadline == 1


def test_a_wait_that_nobody_has_patience_for_is_refused_before_anything_is_known() -> None:
    door, _ = admission()
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(door.admitted(COST_S, 0.045))
        with pytest.raises(RequestError, match="a wait of at most 45 ms, got 50 ms"):
            check(door)
        stack.enter_context(door.admitted(COST_S, 0.3))  # a more patient one
        check(door)
        for _ in range(60):  # and when there was none for a while
            with pytest.raises(RequestError):
                stack.enter_context(door.admitted(COST_S, 0.045))
        with pytest.raises(RequestError, match="got 60 ms"):
            check(door)
    check(door)


def test_who_was_kept_waiting_past_its_deadline_before_it_was_seen_is_refused() -> None:
    door, _ = admission()
    check(door, 0.001)
    with pytest.raises(RequestError, match="needs time until its deadline, got none"):
        check(door, 0.0)
    with door.admitted(COST_S, 9.0):
        with pytest.raises(RequestError, match="a wait of at most 5 ms, got 10 ms"):
            check(door, 0.005)
        check(door, 0.011)
    assert door.refused.deadline == 2


def test_who_is_still_being_read_counts_for_those_behind_it() -> None:
    door, _ = admission(in_flight=2)
    check(door)
    door.coming = 2
    with pytest.raises(RequestError, match="at most 2 requests at once"):
        check(door)
    with door.admitted(COST_S, 9.0):  # not against itself
        door.coming = 0
        check(door)


def test_a_failed_request_gives_its_place_back() -> None:
    door, _ = admission()
    with pytest.raises(ZeroDivisionError), door.admitted(COST_S, 9.0):
        raise ZeroDivisionError
    assert (door.in_flight, door.wait_s) == (0, 0.0)


def test_a_burst_is_served_and_a_queue_that_stands_is_not() -> None:
    door, clock = admission()
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(door.admitted(COST_S, 9.0))  # at once: a burst
        clock.now_s += 0.31
        with pytest.raises(RequestError, match="got 100 ms"):
            check(door)
        assert door.refused.standing == 1
    check(door)  # short again


def simulate(load: float, seconds: float = 20.0, timeout_s: float = 0.2) -> dict[str, float]:
    """One server, Poisson arrivals at `load` times what it can serve, costs that vary by half."""
    door, clock = admission(at_least=5.0)
    draw, start_s = random.Random(7), clock.now_s
    free_s, arrival_s = start_s, start_s
    ends: list[tuple[float, int, ExitStack]] = []
    waits, counts = [], {"good": 0, "late": 0, "refused": 0, "count": 0}
    while arrival_s < start_s + seconds:
        arrival_s += draw.expovariate(load / COST_S)
        while ends and ends[0][0] <= arrival_s:
            clock.now_s, _, held = heapq.heappop(ends)
            held.close()
        clock.now_s = arrival_s
        counts["count"] += 1
        held = ExitStack()
        try:
            held.enter_context(door.admitted(COST_S, 0.8 * (timeout_s - 1.5 * COST_S)))
        except RequestError:
            counts["refused"] += 1
            continue
        begin_s = max(free_s, arrival_s)
        free_s = begin_s + COST_S * draw.uniform(0.5, 1.5)
        waits.append(free_s - arrival_s)
        counts["good" if waits[-1] <= timeout_s else "late"] += 1
        heapq.heappush(ends, (free_s, counts["count"], held))
    waits.sort()
    return {
        "goodput": counts["good"] / (seconds / COST_S),
        "late": counts["late"],
        "refused": counts["refused"] / counts["count"],
        "p95_s": waits[len(waits) * 95 // 100],
    }


def test_overload_keeps_the_goodput_and_the_queue_short() -> None:
    busy, over = simulate(0.8), simulate(5.0)
    assert busy["refused"] < 0.02
    assert busy["late"] == over["late"] == 0
    assert over["goodput"] > 0.97
    assert over["p95_s"] < 0.1  # half of the deadline: the queue does not stand at its bound
    assert over["refused"] == pytest.approx(0.8, abs=0.02)


def test_a_loop_that_is_late_long_enough_is_overload() -> None:
    door, clock = admission()
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(door.admitted(0.0, 0.5))
        door.lag = lambda: 0.015
        check(door)
        clock.now_s += 0.31
        with pytest.raises(RequestError, match="a wait of at most 20 ms, got 21 ms"):
            check(door, waited_s=0.021)
        assert (door.refused.loop, door.refused.standing) == (1, 0)
        check(door, waited_s=0.019)
        door.lag = lambda: 0.03
        with pytest.raises(RequestError, match="got 30 ms"):
            check(door)
        door.lag = lambda: 0.005  # it comes round in time again
        with pytest.raises(RequestError, match="got 25 ms"):
            check(door, waited_s=0.025)  # but somebody was refused a moment ago
        clock.now_s += 0.1
        check(door, waited_s=0.025)
        assert door.refused.loop == 3


def test_a_loop_that_others_make_late_is_no_overload() -> None:
    """Of a machine that has other things to do: there is hardly a request to refuse."""
    door, clock = admission()
    door.lag = lambda: 0.045
    with door.admitted(COST_S, 5.0), door.admitted(COST_S, 5.0):
        for _ in range(100):
            clock.now_s += 0.1
            check(door, waited_s=0.06)


def test_a_stall_is_no_overload() -> None:
    door, clock = admission()
    check(door)
    clock.now_s += 0.1
    door.lag = lambda: 0.1
    check(door)
    check(door, waited_s=0.14)
    door.lag = lambda: 0.0
    check(door)
    clock.now_s += 5  # without requests
    door.lag = lambda: 4.0
    check(door)


def test_who_could_not_be_answered_in_time_by_a_late_loop_is_refused() -> None:
    door, _ = admission()
    door.lag = lambda: 0.05
    check(door, left_s=0.06)
    with pytest.raises(RequestError, match="a wait of at most 40 ms, got 50 ms"):
        check(door, left_s=0.04)
    with door.admitted(COST_S, 0.2):
        with pytest.raises(RequestError, match="a wait of at most 55 ms, got 60 ms"):
            check(door, left_s=0.055)
        with pytest.raises(RequestError, match="a wait of at most 200 ms, got 260 ms"):
            check(door, waited_s=0.25)  # nobody was as patient lately
    assert door.refused.deadline == 3


def test_patience_counts_from_when_a_request_was_sent() -> None:
    """A machine that keeps all requests waiting makes nobody less patient."""
    door, _ = admission()
    for _ in range(50):
        check(door, waited_s=0.1)
        with door.admitted(COST_S, 0.05, waited_s=0.1):
            pass
    check(door, waited_s=0.14)
    with pytest.raises(RequestError, match="a wait of at most 150 ms, got 160 ms"):
        check(door, waited_s=0.16)


def test_an_estimate_that_keeps_everybody_out_fades() -> None:
    door, _ = admission()
    with door.admitted(COST_S, 0.03):  # a caller in a hurry, before patient ones
        pass
    refused = 0
    while True:
        try:
            check(door, waited_s=0.1)
            break
        except RequestError:
            refused += 1
    assert 100 < refused < 400
    with door.admitted(COST_S, 0.4, waited_s=0.1):
        check(door, waited_s=0.45)


def test_what_the_loop_needs_for_a_request_is_learned_between_refusals() -> None:
    door, _ = admission(in_flight=2)

    def served(times: int) -> None:
        for _ in range(times):
            with door.admitted(COST_S, 9.0):
                pass

    door.used_by_loop(1.0)
    served(3)
    door.used_by_loop(1.003)
    assert door.loop_s == pytest.approx(0.001)
    door.used_by_loop(1.5)  # without requests
    assert door.loop_s == pytest.approx(0.001)
    served(1)
    door.used_by_loop(3.5)  # whatever that was, a request it was not
    assert door.loop_s == pytest.approx(0.001 + 0.1 * 0.004)
    with door.admitted(COST_S, 9.0), door.admitted(COST_S, 9.0), pytest.raises(RequestError):
        check(door)
    door.used_by_loop(3.503)
    assert door.loop_s == pytest.approx(0.0014)
    served(2)
    door.used_by_loop(3.505)
    assert door.loop_s == pytest.approx(0.0014 - 0.1 * 0.0004)


def test_reading_rows_is_no_queue() -> None:
    """Requests whose rows are on the way count, but only beyond what reading takes."""
    door, clock = admission()
    for _ in range(100):
        door.took_to_read(0.1)
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(door.admitted(COST_S, 9.0))
        clock.now_s += 0.4
        check(door)


def test_so_many_at_once_keep_the_inference_thread_busy() -> None:
    door, _ = admission()
    assert door.at_once == 3  # nothing is known yet: `at_least`
    for _ in range(200):
        with door.admitted(0.001, 9.0):
            pass
    assert door.at_once in (10, 11)  # half of the 20 ms that may stand
    for _ in range(200):
        door.took_to_read(0.0495)
    assert door.at_once in (59, 60, 61)  # most of them wait for their rows
    for _ in range(200):
        door.took_to_read(9.0)
    assert door.at_once == 256
