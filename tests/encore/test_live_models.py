"""What a change of the plan means for live models: told, and refused where slots go away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from catalog.difference import Difference, ServiceChange
from encore.evolution import as_data, guard, told
from predictor.card import CARD, CURRENT
from predictor.live import LiveModel, live_models
from schemas.errors import PackageError, PlanError
from tests.predictor.support import PLAN, publish

BEFORE = PLAN.service("ranking").fingerprint
REMOVED = ServiceChange("changed", "ranking", BEFORE, "f" * 16, removed=("users__fans",))
ADDED = ServiceChange("changed", "ranking", BEFORE, "e" * 16, added=("users__age",))
LIVE = LiveModel("fine", "0" * 16, "ranking", BEFORE)


def of(service: ServiceChange) -> Difference:
    return Difference(1, 2, services=(service,))


def test_live_models_are_what_the_pointers_name(tmp_path: Path) -> None:
    assert live_models(tmp_path / "none") == ()
    publish(tmp_path, "fine", seed=1)
    fine = publish(tmp_path, "fine", seed=2)
    tower = publish(tmp_path, "two_tower", seed=1)
    assert {(each.kind, each.version) for each in live_models(tmp_path)} == {
        ("fine", fine.name),
        ("two_tower", tower.name),
    }
    assert {(each.service, each.fingerprint) for each in live_models(tmp_path)} == {
        ("ranking", BEFORE)
    }


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = publish(tmp_path, "fine", seed=1)
    (path / CARD).write_text("{}")
    with pytest.raises(PackageError, match=r"model\.json.*needs a card of format 1"):
        live_models(tmp_path)
    (path / CARD).unlink()
    with pytest.raises(PackageError, match="needs a readable file, got No such file"):
        live_models(tmp_path)
    (tmp_path / "fine" / CURRENT).write_text("../elsewhere")
    with pytest.raises(PackageError, match="fine/CURRENT: needs 16 hex digits"):
        live_models(tmp_path)


def test_rule_9_a_slot_that_a_live_model_uses_is_not_removed() -> None:
    review = guard([LIVE], retire=False)
    with pytest.raises(PlanError) as refused:
        review(of(REMOVED))
    assert str(refused.value) == (
        "service ranking: needs the slots that a live model uses, got users__fans removed, used by"
        " fine 0000000000000000; keep them, or retire the models with `encore apply"
        " --retire-models`"
    )
    whole = ServiceChange("removed", "ranking", BEFORE, "", removed=("users__fans",))
    with pytest.raises(PlanError, match="used by fine"):
        review(of(whole))


def test_what_changes_in_place_retires_no_model() -> None:
    kept = ServiceChange("changed", "ranking", BEFORE, BEFORE, in_place=("required views",))
    guard([LIVE], retire=False)(of(kept))
    assert not any("retires" in line for line in told(of(kept), [LIVE]))
    assert as_data(of(kept), [LIVE])["services"][0]["retires"] == []


def test_rule_9_what_no_live_model_uses_may_go() -> None:
    guard([LIVE], retire=True)(of(REMOVED))
    guard([LIVE], retire=False)(of(ADDED))
    guard([replace(LIVE, fingerprint="a" * 16)], retire=False)(of(REMOVED))
    guard([replace(LIVE, service="other")], retire=False)(of(REMOVED))
    guard([], retire=False)(of(REMOVED))


def test_what_is_retired_is_told() -> None:
    assert told(of(ADDED), [LIVE])[-1] == (
        "  ! service ranking retires fine 0000000000000000: train them again"
    )
    assert "retires" not in "".join(told(of(ADDED), []))
    data = as_data(of(ADDED), [LIVE])
    assert data["services"][0]["retires"] == [
        {"kind": "fine", "version": "0" * 16, "service": "ranking", "fingerprint": BEFORE}
    ]
