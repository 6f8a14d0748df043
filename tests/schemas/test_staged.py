from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.errors import PlanError
from schemas.plan import Plan
from schemas.staged import Staged, dump_staged, load_staged
from tests.aggregation.plans import small_view


def test_round_trip() -> None:
    view = small_view()
    staged = Staged("filled", Plan(3, 2, (view,), ()), {view.name: 2}, {view.name: 2, "gone": 7})
    assert load_staged(dump_staged(staged), "s") == staged
    assert staged.active
    named = replace(staged, history="2 files")
    assert load_staged(dump_staged(named), "s") == named
    rested = Staged(used={"v": 1}, foreign={"v": (1, "2 files")})
    assert load_staged(dump_staged(rested), "s") == rested


def test_nothing_is_staged_before_anything_was() -> None:
    assert load_staged(None, "s") == Staged()
    assert not Staged().active


@pytest.mark.parametrize(
    "text",
    [
        "[",
        "[]",
        "{}",
        '{"format": 2, "state": "none", "plan": null, "views": {}, "used": {}}',
        '{"format": 1, "state": "half", "plan": null, "views": {}, "used": {}}',
        '{"format": 1, "state": "filled", "plan": null, "views": {}, "used": {}}',
        '{"format": 1, "state": "none", "plan": null, "views": [], "used": {}}',
        '{"format": 1, "state": "none", "plan": null, "views": {}, "used": {}, "history": 1}',
        '{"format": 1, "state": "none", "plan": null, "views": {}, "used": {}, "foreign": 1}',
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"s: needs a staged plan of format 1"):
        load_staged(text, "s")


def test_a_damaged_plan_inside_is_named() -> None:
    text = dump_staged(Staged("filled", Plan(3, 2, (), ()), {}, {})).replace('"parent"', '"papa"')
    with pytest.raises(PlanError, match=r"^s\.plan"):
        load_staged(text, "s")
