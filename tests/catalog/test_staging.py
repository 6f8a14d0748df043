"""Plans that are staged: what they take, what they keep out, and how they end."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from catalog.apply import apply, plan_repo
from catalog.lock import LOCK_NAME, require_lock
from catalog.publish import publish, published, set_staged, staged, version_of
from catalog.staging import end, mark_filled, require_history, stage, switch
from schemas.errors import PlanError
from schemas.staged import Staged
from store.memory import MemoryRowStore
from tests.catalog.test_apply import add_window, edit
from tests.catalog.test_apply import repo as repo

VIEW = "user_activity"


def generations(repo: Path) -> dict[str, int]:
    plan = require_lock(repo / LOCK_NAME)
    return {view.name: view.generation for view in plan.views}


@pytest.fixture
def store(repo: Path) -> MemoryRowStore:
    """Holds the repo's first plan."""
    made = MemoryRowStore()
    apply(repo, made)
    return made


def test_a_change_is_staged_filled_and_switched_to(repo: Path, store: MemoryRowStore) -> None:
    before = published(store)
    add_window(repo)
    staging = stage(repo, store, [VIEW])
    assert [(view.name, view.generation) for view in staging.views] == [(VIEW, 2)]
    assert not staging.resumed
    assert published(store) == before, "readers see nothing of it"
    assert generations(repo)[VIEW] == 1
    filled = mark_filled(store, staging.staged)
    assert staged(store) == filled
    assert filled.state == "filled"
    result = switch(repo, store, filled)
    assert result.published
    assert published(store) == result.plan == staging.staged.plan
    assert generations(repo) == {VIEW: 2, "videos": 1}
    assert staged(store) == Staged(used={VIEW: 2})
    assert not apply(repo, store).changed, "the declarations are what is published"


def test_an_interrupted_one_goes_on(repo: Path, store: MemoryRowStore) -> None:
    add_window(repo)
    first = stage(repo, store, [VIEW])
    again = stage(repo, store, [VIEW])
    assert again.resumed
    assert again.staged == first.staged
    filled = mark_filled(store, again.staged)
    assert mark_filled(store, filled) == filled
    cut = publish(store, replace_plan(filled), switching=True)
    assert cut, "as if the switch had been cut off in its middle"
    assert not apply(repo, store).published, "it is already"
    resumed = stage(repo, store, [VIEW])
    assert resumed.staged.state == "filled"
    switch(repo, store, resumed.staged)
    assert not staged(store).active


def test_rows_that_hold_more_than_the_log_are_not_filled_from_the_log_alone(
    repo: Path, store: MemoryRowStore
) -> None:
    """Another feature would else cost the others their past, and nobody would be told."""
    require_history(store, [VIEW], "")
    add_window(repo)
    begun = stage(repo, store, [VIEW], history="2 files (0f)").staged
    end(store)
    assert staged(store) == Staged(used={VIEW: 2}), "given up: nobody had those rows"
    begun = stage(repo, store, [VIEW], history="2 files (0f)").staged
    require_history(store, [VIEW], "")  # `stage` itself looks at what is under way
    switch(repo, store, mark_filled(store, begun))
    assert staged(store).foreign == {VIEW: (3, "2 files (0f)")}
    with pytest.raises(PlanError) as refused:
        require_history(store, ["videos", VIEW], "")
    assert str(refused.value) == (
        "user_activity.history: needs --history, which user_activity@3 was filled from, too: "
        "2 files (0f), got none; give those files again, or `--without-history` to leave out what "
        "they hold"
    )
    require_history(store, [VIEW], "3 files (1e)")
    require_history(store, ["videos"], "")
    alone = stage(repo, store, [VIEW]).staged
    assert alone.foreign == {VIEW: (3, "2 files (0f)")}
    switch(repo, store, mark_filled(store, alone))
    require_history(store, [VIEW], "")  # of generation 4 the log has all


def test_a_generation_is_filled_from_one_history(repo: Path, store: MemoryRowStore) -> None:
    add_window(repo)
    begun = stage(repo, store, [VIEW], history="2 files (0f)").staged
    for other in ("", "2 files (1e)"):
        with pytest.raises(PlanError) as refused:
            stage(repo, store, [VIEW], history=other)
        assert str(refused.value) == (
            f"backfill of user_activity@2: needs the --history it was begun with: 2 files (0f), got"
            f" {other or 'none'}; run it with the same files as they were, or give it up with"
            " `encore backfill --cancel` and begin again"
        )
    mark_filled(store, begun)
    assert stage(repo, store, [VIEW], history="2 files (0f)").resumed
    end(store)
    stage(repo, store, [VIEW])
    with pytest.raises(PlanError, match="begun with: none, got 2 files"):
        stage(repo, store, [VIEW], history="2 files (0f)")


def replace_plan(filled: Staged):  # type: ignore[no-untyped-def]
    assert filled.plan is not None
    return filled.plan


def test_unchanged_declarations_take_a_new_generation(repo: Path, store: MemoryRowStore) -> None:
    staging = stage(repo, store, [VIEW], unchanged=True)
    assert staging.views[0].generation == 2
    assert staging.difference.services == (), "no model is retired"
    switch(repo, store, mark_filled(store, staging.staged))
    assert generations(repo)[VIEW] == 2
    assert stage(repo, store, [VIEW], unchanged=True).views[0].generation == 3
    end(store)
    add_window(repo)
    with pytest.raises(PlanError, match="declarations as they are published, got others"):
        stage(repo, store, [VIEW], unchanged=True)


def test_rule_14_nothing_else_is_published_while_a_plan_is_staged(
    repo: Path, store: MemoryRowStore
) -> None:
    add_window(repo)
    staging = stage(repo, store, [VIEW])
    lock = (repo / LOCK_NAME).read_bytes()
    edit(repo, '"likes_1d"', '"likes_one_day"')
    with pytest.raises(PlanError, match="no backfill under way, got one of user_activity@2"):
        apply(repo, store)
    with pytest.raises(PlanError, match="no backfill under way"):
        stage(repo, store, [VIEW])
    assert (repo / LOCK_NAME).read_bytes() == lock
    filled = mark_filled(store, staging.staged)
    with pytest.raises(PlanError, match="no backfill under way"):
        switch(repo, store, filled)
    assert plan_repo(repo, store).plan.view(VIEW).generation == 2, "to look at it is allowed"


def test_rule_14_what_is_staged_is_published_by_its_switch_alone(
    repo: Path, store: MemoryRowStore
) -> None:
    """The declarations are the staged ones: applied, they would be served without their rows."""
    add_window(repo)
    staging, before = stage(repo, store, [VIEW]), published(store)
    files = [(repo / LOCK_NAME).read_bytes(), require_lock(repo / LOCK_NAME)]
    now = staging.staged
    for state in ("filling", "filled"):
        with pytest.raises(PlanError, match=f"got one of user_activity@2, {state}; .*run it again"):
            apply(repo, store)
        assert published(store) == before
        assert [(repo / LOCK_NAME).read_bytes(), require_lock(repo / LOCK_NAME)] == files
        now = filled = mark_filled(store, now)
    with pytest.raises(PlanError, match="no backfill under way"):
        publish(store, replace_plan(filled))
    assert switch(repo, store, filled).published


def test_rule_14_a_number_that_was_given_up_is_not_used_again(
    repo: Path, store: MemoryRowStore
) -> None:
    add_window(repo)
    given_up = stage(repo, store, [VIEW]).staged
    assert end(store) == given_up
    assert not end(store).active
    with pytest.raises(PlanError, match="the one that this backfill staged, got none"):
        mark_filled(store, given_up)
    assert apply(repo, store).plan.view(VIEW).generation == 3
    assert stage(repo, store, [VIEW]).views[0].generation == 4


def test_rule_14_what_was_given_up_leaves_what_is_published_as_it_is(
    repo: Path, store: MemoryRowStore
) -> None:
    """A rebuild of the same declarations: a new generation would begin without any rows."""
    before = published(store)
    stage(repo, store, [VIEW], unchanged=True)
    end(store)
    assert plan_repo(repo, store).difference.empty
    assert not apply(repo, store).published
    assert published(store) == before
    add_window(repo)
    assert apply(repo, store).plan.view(VIEW).generation == 3, "2 may have rows"


def test_what_is_not_filled_is_not_switched_to(repo: Path, store: MemoryRowStore) -> None:
    add_window(repo)
    staging = stage(repo, store, [VIEW]).staged
    with pytest.raises(PlanError, match="this backfill staged"):
        switch(repo, store, staging)
    assert generations(repo)[VIEW] == 1


def test_what_cannot_be_staged(repo: Path, store: MemoryRowStore) -> None:
    for name in ("videos", "nobody"):
        with pytest.raises(PlanError, match=f"a streamed view, one of {VIEW}, got '{name}'"):
            stage(repo, store, [name])
    more = """
other = streamed_view("other", user, actions("actions"), [
    count("plays_1h", "play", HOUR, log_buckets(8, low=1, high=100)),
])
"""
    (repo / "more.py").write_text(
        f"from entities import user\nfrom catalog.declare import *\n{more}"
    )
    with pytest.raises(PlanError, match="user_activity without other"):
        stage(repo, store, [VIEW])
    assert [v.name for v in stage(repo, store, [VIEW, "other"]).views] == ["other", VIEW]
    with pytest.raises(PlanError, match="needs a published plan, got none"):
        stage(repo, MemoryRowStore(), [VIEW])


def test_of_two_at_once_one_wins(repo: Path, store: MemoryRowStore) -> None:
    version = version_of(store)
    stage(repo, store, [VIEW])
    with pytest.raises(PlanError, match="another apply or backfill at the same time"):
        set_staged(store, replace(staged(store), state="filled"), version)


# --- a lock file that lags ------------------------------------------------------------------


@pytest.fixture
def other(repo: Path, store: MemoryRowStore, tmp_path: Path) -> Path:
    """The same repo on another machine, where a view was rebuilt: here the lock file lags."""
    copy = tmp_path / "other"
    shutil.copytree(repo, copy)
    staging = stage(copy, store, [VIEW], unchanged=True)
    switch(copy, store, mark_filled(store, staging.staged))
    return copy


def test_what_was_filled_elsewhere_is_taken_over(
    repo: Path, other: Path, store: MemoryRowStore
) -> None:
    before = published(store)
    assert plan_repo(repo, store).difference.empty
    result = apply(repo, store)
    assert (result.changed, result.published) == (True, False)
    assert (repo / LOCK_NAME).read_bytes() == (other / LOCK_NAME).read_bytes()
    assert published(store) == before
    add_window(repo)
    assert apply(repo, store).plan.view(VIEW).generation == 3


def test_a_view_is_filled_over_a_lagging_lock(
    repo: Path, other: Path, store: MemoryRowStore
) -> None:
    """Again and again in containers of one image."""
    for generation in (3, 4):
        image = (repo / LOCK_NAME).read_bytes()
        staging = stage(repo, store, [VIEW], unchanged=True)
        assert [view.generation for view in staging.views] == [generation]
        result = switch(repo, store, mark_filled(store, staging.staged))
        assert published(store) == result.plan == require_lock(repo / LOCK_NAME)
        (repo / LOCK_NAME).write_bytes(image)


def test_another_declaration_over_a_lagging_lock_is_asked_for(
    repo: Path, other: Path, store: MemoryRowStore
) -> None:
    add_window(repo)
    with pytest.raises(PlanError, match="look at `encore plan --take-over`, then apply"):
        apply(repo, store)
    found = plan_repo(repo, store, take_over=True).difference
    assert (found.before, found.after) == (2, 3)
    assert [change.what for change in found.features] == ["added"]
    result = apply(repo, store, take_over=True)
    assert result.published
    assert published(store) == result.plan == require_lock(repo / LOCK_NAME)
    assert result.plan.view(VIEW).generation == 3


def test_a_lock_of_another_line_is_not_replaced(repo: Path, store: MemoryRowStore) -> None:
    """The store serves a later plan of the same declarations with other field ids."""
    held = published(store)
    assert held is not None
    view = held.view(VIEW)
    moved = replace(view, fields=tuple(reversed(view.fields)))
    views = tuple(moved if each is view else each for each in held.views)
    strange = MemoryRowStore()
    publish(strange, replace(held, version=7, parent=6, views=views))
    lock = (repo / LOCK_NAME).read_bytes()
    with pytest.raises(PlanError, match="needs a plan older than version 1, got version 7"):
        apply(repo, strange)
    assert (repo / LOCK_NAME).read_bytes() == lock
