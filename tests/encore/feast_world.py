"""A repo with every kind of view that Feast's clients meet, applied, filled and served."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore

from aggregation.fold import fold
from catalog.apply import apply
from catalog.materialize import materialize
from schemas.actions import ACTION, ActionType
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import Plan
from schemas.row import encode_rows
from schemas.rows import empty_rows
from store.base import Write
from store.redis_store import RedisRowStore
from tests.patience import patient

SECOND_MS = 1_000
YAML = """
project: online
provider: local
registry: {registry}
entity_key_serialization_version: 3
online_store:
{online_store}
"""
ADAPTER = """
  type: catalog.online_store.EncoreOnlineStore
  store_url: {url}
"""
REMOTE = """
  type: remote
  path: {url}
  connection_retries: 0
"""
VIEWS = """
from datetime import timedelta
from catalog.declare import *

user = user_entity("user", join_key="user_id")
video = item_entity("video", join_key="video_id")
city = item_entity("city", join_key="city_name", string_ids=True)
videos = batch_view("videos", video, push_source("videos_push", "sources/videos.parquet"), [
    entity_id(video, identity(100)),
    feature("flag", Bool),
    feature("small", Int32),
    feature("author_id", Int64, hashed(64)),
    feature("ratio", Float32),
    feature("duration", Float64, log_buckets(8, low=1, high=100)),
    feature("kind", String, vocab(["song", "dance"])),
    feature("tag", Array(Int64), identity(100), capacity=3),
    feature("flags", Array(Bool), capacity=3),
    feature("smalls", Array(Int32), capacity=3),
    feature("embedding", Array(Float32), capacity=4),
    feature("moments", Array(Float64), capacity=2),
])
cities = batch_view("cities", city, "sources/cities.parquet", [
    feature("size", Int64, log_buckets(8, low=1, high=100)),
])
taste = batch_view("taste", [user, city], "sources/taste.parquet", [feature("liking", Float64)])
fresh = batch_view("fresh", video, "sources/fresh.parquet", [
    feature("duration", Int64),
], ttl=timedelta(hours=1))
activity = streamed_view("activity", user, actions("actions"), [
    count("clicks_1h", "click", HOUR, log_buckets(8, low=1, high=100)),
    last_n("last_videos", "play.item", 5, shares="videos:video_id"),
])
ranking = feature_service("ranking", [activity, videos[["author_id", "tag", "kind"]]])
"""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def make_repo(path: Path, url: str) -> Path:
    """The repo with its sources: rows of an hour, a minute and no time ago."""
    path.mkdir(parents=True)
    online_store = ADAPTER.format(url=url)
    (path / "feature_store.yaml").write_text(
        YAML.format(registry=".encore/registry.db", online_store=online_store)
    )
    (path / "views.py").write_text(VIEWS)
    (path / "sources").mkdir()
    now = now_ms() // SECOND_MS * SECOND_MS
    times = [now - 3_600 * SECOND_MS, now - 60 * SECOND_MS]
    _source(
        path / "sources" / "videos.parquet",
        [*times, times[1]],
        video_id=pa.array([1, 1, 2]),
        flag=pa.array([True, False, None]),
        small=pa.array([3, 4, None], pa.int32()),
        author_id=pa.array([11, 12, None]),
        ratio=pa.array([0.25, 0.75, None], pa.float32()),
        duration=pa.array([1.5, 2.5, float("nan")]),
        kind=pa.array(["song", "dance", "opera"]),
        tag=pa.array([[1], [5, 6], []]),
        flags=pa.array([[True], [True, False], None]),
        smalls=pa.array([[1], [1, 2], []], pa.list_(pa.int32())),
        embedding=pa.array([[1.0], [0.5, 0.25], [2.0]], pa.list_(pa.float32())),
        moments=pa.array([[1.0], [0.5, 1.5], [2.0]]),
    )
    _source(
        path / "sources" / "cities.parquet",
        times,
        city_name=pa.array(["Bergen", "Oslo"]),
        size=pa.array([3, 7]),
    )
    _source(
        path / "sources" / "taste.parquet",
        times,
        user_id=pa.array([7, 7]),
        city_name=pa.array(["Bergen", "Oslo"]),
        liking=pa.array([0.5, 0.75]),
    )
    _source(
        path / "sources" / "fresh.parquet",
        [times[0] - SECOND_MS, times[1]],
        video_id=pa.array([1, 2]),
        duration=pa.array([10, 20]),
    )
    return path


def _source(path: Path, times: list[int], **columns: pa.Array) -> None:
    stamps = pa.array(times, pa.timestamp("ms", "UTC"))
    pq.write_table(pa.table({"event_timestamp": stamps, **columns}), path)


def fill(repo: Path, url: str) -> Plan:
    """Applies and publishes; rows of all views into the store. User 7 clicked twice and played."""
    with RedisRowStore(patient(url)) as store:
        plan = apply(repo, store).plan
        for view in plan.views:
            if view.kind == "batch":
                materialize(view, repo, store)
        _fold_actions(plan, store)
    return plan


def _fold_actions(plan: Plan, store: RedisRowStore) -> None:
    view = plan.view("activity")
    log = [(ActionType.CLICK, 1), (ActionType.PLAY, 1), (ActionType.CLICK, 2), (ActionType.PLAY, 2)]
    actions = np.zeros(len(log), ACTION)
    actions["user"] = 7
    actions["type"] = [kind for kind, _ in log]
    actions["item"] = [item for _, item in log]
    actions["time_ms"] = now_ms() - 60_000 + np.arange(len(log))
    rows = empty_rows(layout_of(view), np.array([7]))
    fold(view, rows, np.zeros(len(log), np.intp), actions, np.full(len(log), now_ms()))
    rows.epoch[:], rows.offset[:] = 1, len(log)
    (value,) = encode_rows(layout_of(view), rows)
    (key,) = row_keys(view.name, view.generation, [7])
    assert store.compare_and_set([Write(key, None, value)]) == [True]


@contextmanager
def client(repo: Path) -> Iterator[FeatureStore]:
    """Feast's client of a repo's directory, disconnected afterwards."""
    store = FeatureStore(repo_path=str(repo))
    yield store
    online = store._get_provider().online_store
    if hasattr(online, "disconnect"):
        online.disconnect()


def remote_repo(path: Path, registry: Path, url: str) -> Path:
    """A directory whose only content is a configuration: our registry, a server's rows."""
    path.mkdir()
    online_store = REMOTE.format(url=url)
    (path / "feature_store.yaml").write_text(
        YAML.format(registry=registry, online_store=online_store)
    )
    return path
