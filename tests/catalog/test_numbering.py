"""The numbered rules of catalog/numbering.py, one test each, and their sum as a property."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.declare import (
    DAY,
    HOUR,
    MINUTE,
    Float64,
    Int64,
    String,
    count,
    feature,
    hashed,
    identity,
    last_n,
    vocab,
)
from catalog.drafts import FieldDraft, ViewDraft
from catalog.numbering import number
from catalog.publish import extends
from schemas.layout import layout_of
from schemas.plan import Plan, ViewPlan
from tests.catalog.declarations import USER_FIELDS, WINDOWS, Repo

FIRST = Repo().compiled()


def ids(view: ViewPlan) -> dict[str, int]:
    return {field.name: field.id for field in view.fields}


def test_nothing_changed_is_the_parent_itself() -> None:
    assert Repo().compiled(FIRST) is FIRST


def test_rule_1_ids_are_append_only_and_a_dropped_field_stays() -> None:
    more = replace(Repo(), user_fields=[feature("age", Int64, identity(9)), *USER_FIELDS]).compiled(
        FIRST
    )
    before, after = FIRST.view("users"), more.view("users")
    assert after.generation == before.generation
    assert after.fields[: len(before.fields)] == before.fields
    assert ids(after) == {"degree": 0, "fans": 1, "score": 2, "age": 3}
    fewer = Repo().compiled(more).view("users")
    assert fewer.fields == after.fields
    assert "age" not in {each.name for each in fewer.features}
    other = replace(Repo(), user_fields=[feature("zone", Int64, identity(9)), *USER_FIELDS])
    assert ids(other.compiled(replace(more, views=(fewer,))).view("users"))["zone"] == 4


def test_rule_2_later_fields_form_a_group() -> None:
    more = replace(Repo(), user_fields=[*USER_FIELDS, feature("age", Int64, identity(9))])
    groups = {field.name: field.group for field in more.compiled(FIRST).view("users").fields}
    assert groups == {"degree": 0, "fans": 0, "score": 0, "age": 1}


@pytest.mark.parametrize(
    "changed",
    [
        replace(Repo(), windows=[*WINDOWS, count("likes_1h", "like", HOUR, hashed(8))]),
        replace(Repo(), windows=[*WINDOWS, count("clicks_2h", "click", 2 * DAY, hashed(8))]),
        replace(Repo(), windows=[*WINDOWS, last_n("more", "play.item", 9, hashed(8))]),
        replace(Repo(), windows=WINDOWS[:-1]),
    ],
    ids=["a ring", "a ring of another hop", "a longer sequence", "a sequence less"],
)
def test_rule_3_state_makes_a_generation(changed: Repo) -> None:
    after = changed.compiled(FIRST).view("user_activity")
    assert after.generation == 2
    before = ids(FIRST.view("user_activity"))
    kept = {
        field.name
        for field in after.fields
        if (field.name, field.dtype, field.capacity)
        in {(old.name, old.dtype, old.capacity) for old in FIRST.view("user_activity").fields}
    }
    assert {name: ids(after)[name] for name in kept} == {name: before[name] for name in kept}
    fresh = {ids(after)[name] for name in ids(after) if name not in kept}
    assert all(each > max(before.values()) for each in fresh)


@pytest.mark.parametrize(
    "changed",
    [
        replace(Repo(), windows=[*WINDOWS, count("clicks_30min", "click", 30 * MINUTE, hashed(8))]),
        replace(Repo(), windows=[*WINDOWS, last_n("two", "play.item", 2, hashed(8))]),
        replace(Repo(), activity_ttl=timedelta(days=30)),
    ],
    ids=["a window of a ring", "a shorter sequence", "a TTL"],
)
def test_rule_3_what_is_finalised_changes_in_place(changed: Repo) -> None:
    after = changed.compiled(FIRST)
    assert after.version == FIRST.version + 1
    before = FIRST.view("user_activity")
    assert after.view("user_activity").generation == before.generation
    assert after.view("user_activity").fields == before.fields


@pytest.mark.parametrize(
    ("position", "changed", "generation"),
    [
        (0, feature("degree", String, vocab(["low", "full", "new"])), 2),
        (1, feature("fans", Float64, identity(8)), 2),
        (1, feature("fans", Int64, identity(8)), 1),
    ],
    ids=["another vocabulary of stored ids", "another dtype", "another transform on read"],
)
def test_rule_4_stored_meaning_makes_a_generation(
    position: int, changed: object, generation: int
) -> None:
    fields: list[object] = list(USER_FIELDS)
    fields[position] = changed
    after = replace(Repo(), user_fields=fields).compiled(FIRST)  # type: ignore[arg-type]
    assert after.view("users").generation == generation


def test_rule_5_a_generation_starts_compact() -> None:
    more = replace(Repo(), user_fields=[*USER_FIELDS, feature("age", Int64, identity(9))])
    dropped = Repo().compiled(more.compiled(FIRST))
    fields = [feature("degree", String, vocab(["full"])), *USER_FIELDS[1:]]
    after = replace(Repo(), user_fields=fields).compiled(dropped).view("users")
    assert after.generation == 2
    assert ids(after) == {"degree": 0, "fans": 1, "score": 2}
    assert {field.group for field in after.fields} == {0}


def test_one_window_more_is_one_line_and_a_plan_a_reader_expects() -> None:
    more = count("clicks_30min", "click", 30 * MINUTE, hashed(8))
    after = replace(Repo(), windows=[*WINDOWS, more]).compiled(FIRST)
    before_view, after_view = FIRST.view("user_activity"), after.view("user_activity")
    new = [each for each in after_view.features if each not in before_view.features]
    assert [each.name for each in new] == ["clicks_30min"]
    assert replace(after_view, features=before_view.features) == before_view
    assert (after.version, after.parent) == (FIRST.version + 1, FIRST.version)
    new_slots = set(after.service("ranking").user_slots) - set(FIRST.service("ranking").user_slots)
    assert [slot.feature for slot in new_slots] == ["clicks_30min"]


def test_flatc_finds_each_plan_of_a_generation_conforming(tmp_path: Path) -> None:
    fields = list(USER_FIELDS)
    plans: list[Plan] = [FIRST]
    for name in ("zone", "age", "level"):
        fields.insert(1, feature(name, Int64, identity(9)))
        plans.append(replace(Repo(), user_fields=list(fields)).compiled(plans[-1]))
    flatc = Path(sys.executable).parent / "flatc"
    for old, new in pairwise(plans):
        for name, plan in (("old.fbs", old), ("new.fbs", new)):
            (tmp_path / name).write_text(layout_of(plan.view("users")).fbs)
        run = subprocess.run(
            [flatc, "--conform", tmp_path / "old.fbs", tmp_path / "new.fbs"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr


FIELDS = st.lists(
    st.builds(
        FieldDraft,
        st.sampled_from("abcdef"),
        st.sampled_from(["i64", "f64"]),
        st.sampled_from([0, 0, 0, 4]),
    ),
    min_size=1,
    unique_by=lambda field: field.name,
)


@given(st.lists(st.tuples(FIELDS, st.booleans()), min_size=1, max_size=8))
def test_every_line_of_plans_can_be_read_by_its_next(
    line: list[tuple[list[FieldDraft], bool]],
) -> None:
    """Whatever follows whatever: ids ascend, fields are found, each plan extends its last."""
    plan: ViewPlan | None = None
    for fields, streamed in line:
        draft = ViewDraft("v", "user", "user_id", "source", 0, streamed, tuple(fields), (), (), {})
        after = number(draft, plan)
        numbers = [field.id for field in after.fields]
        assert numbers == sorted(set(numbers))
        held = {(field.name, field.dtype, field.capacity) for field in after.fields}
        assert {(field.name, field.dtype, field.capacity) for field in fields} <= held
        assert plan is None or extends(after, plan)
        assert number(draft, after) == after
        layout_of(after)
        plan = after
