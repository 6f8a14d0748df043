"""The repo that is shipped: its lock file is current, its declarations fit KuaiRand's tables."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from catalog.apply import ApplyResult, apply
from catalog.columns import rows_of, source_columns
from catalog.lock import LOCK_NAME, require_lock
from encore.kuairand import write_sources
from schemas.ids import OUT_OF_RANGE, to_ids
from schemas.plan import Plan, ViewPlan
from schemas.row import Rows

ROOT = Path(__file__).parent.parent.parent
REPO = ROOT / "feature_repo"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return require_lock(REPO / LOCK_NAME)


@pytest.fixture(scope="module")
def rows(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """All rows of both batch views, as they would be stored."""
    data = tmp_path_factory.mktemp("data")
    write_sources(ROOT / "examples" / "kuairand", data / "sources")
    held = {}
    for view in (plan.view("users"), plan.view("videos")):
        table = pq.read_table(data / view.source)
        held[view.name] = rows_of(view, table.select(source_columns(view, table.column_names)))
    return held


def applied(repo: Path) -> ApplyResult:
    shutil.copytree(REPO, repo, ignore=shutil.ignore_patterns(".encore", "__pycache__"))
    return apply(repo)


def test_the_lock_file_is_what_the_declarations_compile_to(tmp_path: Path, plan: Plan) -> None:
    result = applied(tmp_path / "repo")
    assert not result.changed, "run `encore apply` and commit feature_repo/plan.lock.json"
    assert result.plan == plan


def test_a_windowed_feature_more_is_one_line(tmp_path: Path, plan: Plan) -> None:
    repo = tmp_path / "repo"
    applied(repo)
    lines = (repo / "activity.py").read_text().splitlines(keepends=True)
    place = next(index for index, line in enumerate(lines) if '"clicks_1h"' in line)
    lines.insert(place + 1, '        count("clicks_30min", "click", HOUR / 2, COUNTS),\n')
    (repo / "activity.py").write_text("".join(lines))
    after = apply(repo).plan
    view, before = after.view("user_activity"), plan.view("user_activity")
    new = view.feature("clicks_30min")
    assert (new.source, new.tiles) == (before.feature("clicks_1h").source, 6)
    assert replace(view, features=before.features) == before
    slots = [slot.feature for slot in after.service("ranking").user_slots]
    assert slots[slots.index("clicks_1h") + 1] == "clicks_30min"


def test_what_the_first_light_asks_for_is_declared(plan: Plan) -> None:
    assert len(plan.view("users").features) >= 8
    assert len(plan.view("videos").features) >= 6
    activity = plan.view("user_activity")
    for name in ("impressions", "plays", "clicks", "likes", "play_ms"):
        for window, window_ms in (("1h", 3_600_000), ("1d", 86_400_000), ("7d", 604_800_000)):
            assert activity.feature(f"{name}_{window}").window_ms == window_ms
    assert activity.feature("liked_authors").capacity == 20
    service = plan.service("ranking")
    tables = {slot.name: slot.table for slot in service.item_slots}
    assert tables["videos__video_id"] == service.sequences[0].table
    assert tables["videos__author_id"] == service.sequences[1].table
    assert tables["videos__tag_1"] == service.sequences[2].table


def test_recent_plays_are_aligned_columns(plan: Plan) -> None:
    held = {slot.feature: slot for slot in plan.service("ranking").sequences}
    plays = ["last_videos", "last_authors", "last_tags", "last_play_ms", "last_play_ages"]
    assert [name for name, slot in held.items() if slot.aligned == "last_plays"] == plays
    assert len({held[name].capacity for name in plays}) == 1
    assert held["liked_authors"].aligned == ""
    crossed = {cross.name for cross in plan.service("ranking").crosses}
    assert {"tag_played", "tag_share", "tag_place", "author_played"} <= crossed


def test_videos_have_windows_of_their_own(plan: Plan) -> None:
    view = plan.view("video_activity")
    assert (view.entity, view.source) == ("item", "actions.by-item")
    for name in ("impressions", "plays", "clicks", "likes", "finishes", "long_views"):
        for window, window_ms in (("1h", 3_600_000), ("1d", 86_400_000), ("7d", 604_800_000)):
            assert view.feature(f"{name}_{window}").window_ms == window_ms
    service = plan.service("ranking")
    assert len(service.user_slots) + len(service.item_slots) >= 60
    assert sum(slot.view == view.name for slot in service.item_slots) == 18


def test_no_value_of_the_data_is_out_of_vocabulary_or_range(
    plan: Plan, rows: dict[str, Rows]
) -> None:
    service = plan.service("ranking")
    for slot in (*service.user_slots, *service.item_slots):
        view: ViewPlan = plan.view(slot.view)
        if view.kind == "streamed":
            continue
        held = rows[slot.view]
        ids = to_ids(held.values[slot.feature], ~held.present[slot.feature], slot.transform)
        assert not (ids == OUT_OF_RANGE).any(), slot.name
        assert len(np.unique(ids)) > 1, slot.name
        assert ids.max() < slot.transform.size
