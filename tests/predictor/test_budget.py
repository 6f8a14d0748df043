"""What stages cost, and what a request can still afford."""

from __future__ import annotations

import pytest

from predictor.budget import Budget, StageCosts
from predictor.timeline import Laps


def costs_of(*seconds: float, units: int = 136) -> StageCosts:
    """136 candidates count as 200: 64 are the fixed cost."""
    costs = StageCosts()
    for each in seconds:
        costs.observe("fine", units, each)
    return costs


def test_what_was_never_measured_costs_nothing() -> None:
    costs = StageCosts()
    assert costs.expected_s("fine", 1000) == costs.likely_s("fine", 1000) == 0
    costs.doubt("fine")
    assert Budget(costs, 1.0, clock=lambda: 0.9).affords("fine", 1000)


def test_costs_grow_with_candidates_from_a_fixed_part() -> None:
    costs = costs_of(*[0.2] * 100)
    assert costs.expected_s("fine", 136) == pytest.approx(0.2)
    assert costs.expected_s("fine", 336) == pytest.approx(0.4)
    assert costs.expected_s("fine", 0) == pytest.approx(0.064)
    assert costs.likely_s("fine", 136) == pytest.approx(0.2, rel=0.01)
    assert costs.expected_s("coarse", 136) == 0


def test_what_is_likely_follows_the_spread() -> None:
    costs = costs_of(*[0.1, 0.3] * 200)
    assert costs.expected_s("fine", 136) == pytest.approx(0.2, rel=0.1)
    assert 0.3 < costs.likely_s("fine", 136) < 0.5


def test_one_stall_of_the_machine_changes_little() -> None:
    costs = costs_of(*[0.01] * 50, 5.0)
    assert costs.expected_s("fine", 136) == pytest.approx(0.013, rel=0.01)
    costs = costs_of(*[0.01] * 50, *[0.1] * 50)
    assert costs.expected_s("fine", 136) == pytest.approx(0.1, rel=0.1)  # no stall: it is so now


def test_a_stage_begins_only_if_it_will_probably_end() -> None:
    now = [10.0]
    costs = costs_of(*[0.2] * 100)
    budget = Budget(costs, 10.5, clock=lambda: now[0])
    assert budget.affords("fine", 136)
    now[0] = 10.2
    assert budget.left_s() == pytest.approx(0.3)
    assert budget.affords("fine", 136)
    assert not budget.affords("fine", 336)
    now[0] = 10.5
    assert not budget.affords("coarse", 1)  # it is over


def test_a_stage_that_is_never_begun_is_tried_again_some_day() -> None:
    costs = costs_of(*[0.2] * 100)
    refused = 0
    while not Budget(costs, 0.1, clock=lambda: 0.0).affords("fine", 136):
        refused += 1
        assert refused < 100
    assert refused > 10


def test_laps_are_what_is_measured() -> None:
    costs = StageCosts()
    budget = Budget(costs, 1.0, Laps(), clock=lambda: 0.0)
    budget.done("coarse", 36)
    budget.done("look_up", 36)
    (coarse, seconds), (looked_up, _) = budget.laps.laps
    assert (coarse, looked_up) == ("coarse", "assemble")
    assert costs.expected_s("coarse", 36) == pytest.approx(seconds)
