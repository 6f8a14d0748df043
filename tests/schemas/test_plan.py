"""The plan as data: what is refused when it is read or asked for what it does not have."""

from __future__ import annotations

import json

import pytest

from schemas.errors import PlanError
from schemas.plan import PLAN_FORMAT, Plan, dump_plan, load_plan
from tests.aggregation.plans import demo_plan


def test_a_plan_reads_back_to_the_same() -> None:
    assert load_plan(dump_plan(demo_plan())) == demo_plan()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "plan.lock.json: needs a plan of format"),
        ('{"version": "x"}', r"plan\.lock\.json\.\w+: needs a plan of format"),
        (
            json.dumps(json.loads(dump_plan(Plan(1, 0, (), ()))) | {"format": PLAN_FORMAT + 1}),
            rf"plan\.lock\.json\.format: needs {PLAN_FORMAT}, got {PLAN_FORMAT + 1}; run `encore",
        ),
    ],
)
def test_what_is_no_plan_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        load_plan(text)


def test_an_unknown_view_or_service_is_told_the_known_ones() -> None:
    plan = demo_plan()
    with pytest.raises(PlanError, match=r"plan\.views: needs one of .*videos.*, got 'songs'"):
        plan.view("songs")
    with pytest.raises(PlanError, match=r"plan\.services: needs one of ranking, got 'radio'"):
        plan.service("radio")
    with pytest.raises(PlanError, match="needs one of no views"):
        Plan(1, 0, (), ()).view("songs")
    with pytest.raises(PlanError, match="needs one of no services"):
        Plan(1, 0, (), ()).service("ranking")
