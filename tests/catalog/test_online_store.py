"""Feast's own API through the adapter, on the real Valkey: batch and windowed views."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore
from feast.repo_operations import apply_total_with_repo_instance

from aggregation.fold import fold
from catalog.apply import apply
from catalog.lock import LOCK_NAME, require_lock, write_lock
from catalog.materialize import materialize
from catalog.repo import load_repo
from schemas.actions import ACTION, ActionType
from schemas.errors import PlanError, SettingsError
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import Plan, ViewPlan
from schemas.row import FENCE_SLICE, empty_rows, encode_rows
from store.base import Write
from store.redis_store import RedisRowStore

pytestmark = pytest.mark.filterwarnings("ignore:Stream feature views are experimental")

NOW_MS = 1_650_000_000_000
MINUTE_MS = 60_000
YAML = """
project: online
provider: local
registry: .encore/registry.db
entity_key_serialization_version: 3
online_store:
  type: catalog.online_store.EncoreOnlineStore
  store_url: {url}
  now_ms: {now_ms}
"""
VIEWS = """
from catalog.declare import *

user = user_entity("user", join_key="user_id")
video = item_entity("video", join_key="video_id")
online_videos = batch_view("online_videos", video, "sources/videos.parquet", [
    entity_id(video, identity(100)),
    feature("author_id", Int64, hashed(64)),
    feature("duration", Float64, log_buckets(8, low=1, high=100)),
    feature("kind", String, vocab(["song", "dance"])),
    feature("city", String, hashed(1000)),
    feature("tag", Array(Int64), identity(100), capacity=3),
    feature("embedding", Array(Float32), capacity=4),
])
online_activity = streamed_view("online_activity", user, actions("actions"), [
    count("clicks_1h", "click", HOUR, log_buckets(8, low=1, high=100)),
    total("play_ms_1d", "play.value", DAY, log_buckets(8, low=1, high=100)),
    last_n("last_videos", "play.item", 5, shares="online_videos:video_id"),
])
online_functions = streamed_view("online_functions", user, actions("actions"), [
    count("clicks_1h", "click", HOUR),
    total("play_ms_1d", "play.value", DAY),
    mean("mean_ms_1d", "play.value", DAY),
    std("std_ms_1d", "play.value", DAY),
    greatest("longest_ms_1d", "play.value", DAY),
    distinct("videos_1d", "*.item", DAY, capacity=8),
    decayed_sum("decayed_clicks_1d", "click", DAY, half_life=HOUR),
    last("last_video", only("play.item", "value >= 3000")),
    smoothed("play_ms_a_click", "play_ms_1d", "clicks_1h"),
])
ranking = feature_service("ranking", [
    online_activity, online_videos[["author_id", "kind"]],
])
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory, valkey: str) -> Path:
    path = tmp_path_factory.mktemp("online") / "feature_repo"
    path.mkdir()
    (path / "feature_store.yaml").write_text(YAML.format(url=valkey, now_ms=NOW_MS))
    (path / "views.py").write_text(VIEWS)
    (path / "sources").mkdir()
    pq.write_table(
        pa.table(
            {
                "video_id": [1, 2, 3],
                "event_timestamp": pa.array([NOW_MS - 1_000] * 3, pa.timestamp("ms", "UTC")),
                "author_id": [11, 12, None],
                "duration": [1.5, float("nan"), 3.0],
                "kind": ["dance", None, "opera"],
                "city": ["Bergen", None, "Oslo"],
                "tag": [[5, 6], [], None],
                "embedding": [[0.5, 0.25], [1.0] * 5, None],
            }
        ),
        path / "sources" / "videos.parquet",
    )
    apply(path)
    return path


@pytest.fixture(scope="module")
def plan(repo: Path, valkey: str) -> Plan:
    """The applied plan, after batch rows and one user's actions are in the store."""
    plan = require_lock(repo / LOCK_NAME)
    store = RedisRowStore(valkey)
    materialize(plan.view("online_videos"), repo, store)
    for view in ("online_activity", "online_functions"):
        fold_actions(plan.view(view), store)
    store.close()
    return plan


def fold_actions(view: ViewPlan, store: RedisRowStore) -> None:
    """User 7: three clicks (one of them two hours ago) and two plays."""
    log = [
        (ActionType.CLICK, 1, 120, 0),
        (ActionType.CLICK, 1, 20, 0),
        (ActionType.PLAY, 1, 19, 4_000),
        (ActionType.CLICK, 2, 10, 0),
        (ActionType.PLAY, 2, 9, 2_500),
    ]
    actions = np.zeros(len(log), ACTION)
    actions["user"] = 7
    actions["type"] = [kind for kind, *_ in log]
    actions["item"] = [item for _, item, _, _ in log]
    actions["time_ms"] = [NOW_MS - ago * MINUTE_MS for _, _, ago, _ in log]
    actions["value"] = [value for *_, value in log]
    layout = layout_of(view)
    rows = empty_rows(layout, np.array([7]))
    for each in actions:
        fold(view, rows, np.zeros(1, np.intp), each.reshape(1), each["time_ms"].reshape(1))
    rows.epoch[:], rows.offset[:] = 1, len(log)
    (value,) = encode_rows(layout, rows)
    (key,) = row_keys(view.name, view.generation, [7])
    assert store.compare_and_set([Write(key, None, value)]) == [True]


@pytest.fixture
def feast(repo: Path, plan: Plan) -> Iterator[FeatureStore]:
    store = FeatureStore(repo_path=str(repo))
    yield store
    store._get_provider().online_store.disconnect()  # type: ignore[attr-defined]


def read(feast: FeatureStore, features: Any, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return feast.get_online_features(features=features, entity_rows=rows).to_dict()


def test_batch_features_come_back_as_declared(feast: FeatureStore) -> None:
    names = ["author_id", "duration", "kind", "city", "tag", "embedding"]
    rows = [{"video_id": each} for each in (1, 2, 3, 4)]
    got = read(feast, [f"online_videos:{name}" for name in names], rows)
    assert got["video_id"] == [1, 2, 3, 4]
    assert got["author_id"] == [11, 12, None, None]
    assert got["duration"] == [1.5, None, 3.0, None]
    assert got["kind"] == ["dance", None, "id:1", None]
    assert got["tag"] == [[5, 6], None, None, None]
    assert got["embedding"] == [[0.5, 0.25], [1.0] * 4, None, None]
    bergen, absent, oslo, _ = got["city"]
    assert absent is None
    assert bergen.startswith("id:")
    assert bergen != oslo


def test_windowed_features_are_computed_at_the_moment(feast: FeatureStore) -> None:
    names = ["clicks_1h", "play_ms_1d", "last_videos"]
    got = read(feast, [f"online_activity:{name}" for name in names], [{"user_id": 7}])
    assert got["clicks_1h"] == [2]
    assert got["play_ms_1d"] == [6_500]
    assert got["last_videos"] == [[2, 1]]


def test_functions_of_windows_are_computed_at_the_moment(feast: FeatureStore) -> None:
    """Of user 7, and of one without a row."""
    expected = {
        "mean_ms_1d": [3_250.0, None],
        "std_ms_1d": [750.0, None],
        "longest_ms_1d": [4_000, None],
        "videos_1d": [2, 0],
        "decayed_clicks_1d": [2.25, 0.0],
        "last_video": [1, None],
        "play_ms_a_click": [3_250.0, None],
    }
    names = [f"online_functions:{name}" for name in expected]
    got = read(feast, names, [{"user_id": 7}, {"user_id": 404}])
    assert {name: got[name] for name in expected} == expected


def test_a_user_without_a_row_has_the_empty_state(feast: FeatureStore) -> None:
    names = ["online_activity:clicks_1h", "online_activity:last_videos"]
    got = read(feast, names, [{"user_id": 404}])
    assert got["clicks_1h"] == [0]
    assert got["last_videos"] in ([[]], [None])


def test_a_service_reads_both_sides(feast: FeatureStore) -> None:
    service = feast.get_feature_service("ranking")
    got = read(feast, service, [{"user_id": 7, "video_id": 1}, {"user_id": 404, "video_id": 9}])
    assert got["clicks_1h"] == [2, 0]
    assert got["kind"] == ["dance", None]


def test_event_times_are_given(feast: FeatureStore) -> None:
    response = feast.get_online_features(["online_videos:author_id"], [{"video_id": 1}])
    stamps = response.to_dict(include_event_timestamps=True)["author_id__ts"]
    assert stamps == [(NOW_MS - 1_000) // 1_000]


def test_a_corrupt_row_reads_as_no_row(feast: FeatureStore, plan: Plan, valkey: str) -> None:
    store = RedisRowStore(valkey)
    view = plan.view("online_activity")
    (key,) = row_keys(view.name, view.generation, [8])
    broken = b"\x01" * 64
    store.compare_and_set([Write(key, None, broken)])
    got = read(feast, ["online_activity:clicks_1h"], [{"user_id": 8}])
    assert got["clicks_1h"] == [None]
    assert len(broken[FENCE_SLICE]) == 12
    store.close()


def test_rows_are_written_through_feast_and_the_newer_stays(feast: FeatureStore) -> None:
    def write(author: int, seconds: int) -> None:
        frame = pd.DataFrame(
            {
                "video_id": [50],
                "event_timestamp": [datetime.fromtimestamp(seconds, UTC)],
                "author_id": [author],
                "duration": [2.0],
                "kind": ["song"],
                "city": [None],
                "tag": [[1, 2, 3]],
                "embedding": [[0.5]],
            }
        )
        feast.write_to_online_store("online_videos", df=frame)

    names = [f"online_videos:{name}" for name in ("author_id", "kind", "tag", "city")]
    write(1, 1_000)
    write(2, 999)
    got = read(feast, names, [{"video_id": 50}])
    assert got["author_id"] == [1]
    assert (got["kind"], got["tag"], got["city"]) == (["song"], [[1, 2, 3]], [None])
    write(3, 1_001)
    assert read(feast, names, [{"video_id": 50}])["author_id"] == [3]


def test_feasts_materialize_writes_the_same_rows(
    feast: FeatureStore, valkey: str, plan: Plan
) -> None:
    view = plan.view("online_videos")
    store = RedisRowStore(valkey)
    keys = row_keys(view.name, view.generation, [1, 2, 3])
    before = store.read(keys)
    older = empty_rows(layout_of(view), np.array([1, 2, 3]))
    older.offset[:] = 5
    replaced = [
        Write(key, old[FENCE_SLICE], new)
        for key, old, new in zip(keys, before, encode_rows(layout_of(view), older), strict=True)
        if old is not None
    ]
    assert store.compare_and_set(replaced) == [True] * 3
    assert store.read(keys) != before
    feast.materialize(
        datetime.fromtimestamp(NOW_MS / 1_000 - 60, UTC),
        datetime.fromtimestamp(NOW_MS / 1_000, UTC),
        feature_views=["online_videos"],
    )
    assert store.read(keys) == before
    store.close()


def test_a_push_to_a_windowed_view_names_its_topic(feast: FeatureStore) -> None:
    frame = pd.DataFrame(
        {
            "user_id": [7],
            "time_ms": [datetime.fromtimestamp(1, UTC)],
            "clicks_1h": [5],
            "play_ms_1d": [5],
            "last_videos": [[1]],
        }
    )
    with pytest.raises(PlanError, match="send actions to the topic 'actions'"):
        feast.write_to_online_store("online_activity", df=frame)


def feast_apply(repo: Path) -> None:
    """What the `feast apply` command does once it has loaded the repo."""
    store = FeatureStore(repo_path=str(repo))
    contents = load_repo(repo, store.project)
    apply_total_with_repo_instance(store, store.project, store.registry, contents, True)


def test_feast_apply_is_refused_where_the_lock_is_older(
    repo: Path, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    feast_apply(repo)
    lock = repo / LOCK_NAME
    older = Plan(plan.version, plan.parent, plan.views[1:], ())
    write_lock(lock, older)
    with pytest.raises(PlanError, match=r"got an older one of online_activity; run `encore apply`"):
        feast_apply(repo)
    lock.unlink()
    with pytest.raises(PlanError, match="needs a lock file, got none; run `encore apply`"):
        feast_apply(repo)
    write_lock(lock, plan)
    feast_apply(repo)


def test_a_feature_that_the_lock_does_not_know(repo: Path, plan: Plan, feast: FeatureStore) -> None:
    write_lock(repo / LOCK_NAME, Plan(1, 0, (), ()))
    try:
        with pytest.raises(PlanError, match="run `encore apply`"):
            read(feast, ["online_videos:author_id"], [{"video_id": 1}])
    finally:
        write_lock(repo / LOCK_NAME, plan)
    assert read(feast, ["online_videos:author_id"], [{"video_id": 1}])["author_id"] == [11]


def test_no_store_url(repo: Path, plan: Plan) -> None:
    store = FeatureStore(repo_path=str(repo))
    store.config.online_store.store_url = "${ENCORE_STORE_URL}"
    with pytest.raises(SettingsError, match="set ENCORE_STORE_URL"):
        read(store, ["online_videos:author_id"], [{"video_id": 1}])
