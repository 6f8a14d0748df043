"""A repo small enough to read: one view of each kind, and a service over them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from feast import FeatureView, Field

from catalog.compiler import Definitions, compile_plan
from catalog.declare import (
    DAY,
    HOUR,
    Array,
    Float64,
    Int64,
    Sequenced,
    StreamedFeatureView,
    String,
    Windowed,
    actions,
    batch_view,
    boundaries,
    count,
    entity_id,
    feature,
    feature_service,
    hashed,
    identity,
    item_entity,
    last_n,
    log_buckets,
    streamed_view,
    total,
    user_entity,
    vocab,
)
from schemas.plan import Plan, dump_plan, load_plan

user = user_entity("user", join_key="user_id")
video = item_entity("video", join_key="video_id")

USER_FIELDS = [
    feature("degree", String, vocab(["low", "full"])),
    feature("fans", Int64, log_buckets(8, low=1, high=1_000, sentinels=[-124])),
    feature("score", Float64, boundaries([0.25, 0.5])),
]
VIDEO_FIELDS = [
    entity_id(video, identity(1_000)),
    feature("author_id", Int64, hashed(64)),
    feature("tag", Array(Int64), identity(100), capacity=3),
    feature("embedding", Array(Float64), capacity=4),
]
WINDOWS = [
    count("clicks_1h", "click", HOUR, log_buckets(8, low=1, high=100)),
    count("clicks_1d", "click", DAY, log_buckets(8, low=1, high=100)),
    total("play_ms_1h", "play.value", HOUR, log_buckets(8, low=1_000, high=1_000_000)),
    last_n("last_videos", "play.item", 5, shares="videos:video_id"),
    last_n("liked_authors", "like.author", 4, shares="videos:author_id", length=3),
]


@dataclass(frozen=True)
class Repo:
    """Declarations to vary: `replace(Repo(), user_fields=[…]).compiled()`."""

    user_fields: list[Field] = field(default_factory=lambda: list(USER_FIELDS))
    video_fields: list[Field] = field(default_factory=lambda: list(VIDEO_FIELDS))
    windows: list[Windowed] = field(default_factory=lambda: list(WINDOWS))
    user_ttl: timedelta = timedelta(0)
    activity_ttl: timedelta = timedelta(0)
    selection: dict[str, list[str]] = field(
        default_factory=lambda: {"videos": ["author_id", "tag"]}
    )

    def views(self) -> dict[str, FeatureView]:
        users = batch_view(
            "users", user, "sources/users.parquet", self.user_fields, ttl=self.user_ttl
        )
        videos = batch_view("videos", video, "sources/videos.parquet", self.video_fields)
        activity = streamed_view(
            "user_activity", user, actions("actions"), self.windows, ttl=self.activity_ttl
        )
        return {"users": users, "user_activity": activity, "videos": videos}

    def definitions(self, **changed: Any) -> Definitions:
        views = self.views()
        chosen = [
            view[self.selection[name]] if name in self.selection else view
            for name, view in views.items()
        ]
        held = Definitions(
            (user, video), tuple(views.values()), (feature_service("ranking", chosen),)
        )
        return replace(held, **changed)

    def compiled(self, parent: Plan | None = None) -> Plan:
        plan = compile_plan(self.definitions(), parent)
        assert load_plan(dump_plan(plan)) == plan
        return plan


def activity_of(*windows: Windowed | Sequenced, **declared: Any) -> StreamedFeatureView:
    """A streamed view of just these features."""
    return streamed_view("user_activity", user, actions("actions"), list(windows), **declared)
