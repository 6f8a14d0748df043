"""What cannot be compiled is refused: where, what was required, what came, what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
from feast.aggregation import Aggregation
from feast.types import Array, Bytes, Map, String, UnixTimestamp

from catalog.compiler import Definitions, compile_plan
from catalog.declare import (
    DAY,
    HOUR,
    MINUTE,
    Float64,
    Int64,
    Lateness,
    StreamedFeatureView,
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
    vocab,
)
from schemas.errors import DeclarationError
from tests.catalog.declarations import (
    USER_FIELDS,
    VIDEO_FIELDS,
    WINDOWS,
    Repo,
    activity_of,
    user,
    video,
)

USERS = "sources/users.parquet"


def users_of(*fields: Field, **declared: Any) -> Definitions:
    return Definitions((user, video), (batch_view("users", user, USERS, fields, **declared),), ())


def windows_of(*windows: Windowed, **declared: Any) -> Definitions:
    return Definitions((user, video), (activity_of(*windows, **declared),), ())


def raw_window(*arguments: Any, dtype: Any = Int64) -> Definitions:
    """A view written with Feast's own classes."""
    aggregation = Aggregation(*arguments)
    return windows_of(Windowed(Field(name=aggregation.name or "n", dtype=dtype), aggregation))


def service_of(repo: Repo, *features: Any) -> Definitions:
    return replace(repo.definitions(), services=(feature_service("ranking", list(features)),))


def videos_with(*fields: Field) -> Definitions:
    return replace(Repo(), video_fields=[*VIDEO_FIELDS, *fields], selection={}).definitions(
        services=()
    )


def tagged(**tags: str) -> Field:
    return Field(name="fans", dtype=Int64, tags={f"encore.{k}": v for k, v in tags.items()})


NO_NAME = "needs a name of a-z, 0-9 and single underscores that starts with a letter, got"

REFUSALS: list[tuple[str, Callable[[], Definitions], str]] = [
    # --- what an online row cannot hold
    (
        "string",
        lambda: users_of(feature("city", String)),
        "users.city: needs an ID transform for a String in an online view, got none; "
        'declare vocab(["…"]) for a known list, or hashed(buckets)',
    ),
    (
        "map",
        lambda: users_of(feature("attributes", Map)),
        "users.attributes: needs Bool, Int32, Int64, Float32, Float64 or an Array of them in an "
        "online view, got Map; declare a column for each key that is used, a String one with "
        'vocab(["…"]) for a known list, or hashed(buckets), a number with hashed(buckets), '
        "vocab([1, 2]), log_buckets(n) or identity(n)",
    ),
    (
        "array of strings",
        lambda: users_of(feature("cities", Array(String))),
        "declare Array(Int64)",
    ),
    ("bytes", lambda: users_of(feature("photo", Bytes)), "users.photo: needs Bool, Int32"),
    (
        "timestamp",
        lambda: users_of(feature("seen", UnixTimestamp)),
        "got UnixTimestamp; write milli",
    ),
    (
        "array without capacity",
        lambda: users_of(feature("tags", Array(Int64))),
        "users.tags.capacity: needs the most elements an Array holds, got none",
    ),
    (
        "capacity 0",
        lambda: users_of(feature("tags", Array(Int64), capacity=0)),
        "users.tags.capacity: needs a whole number of at least 1, got 0",
    ),
    (
        "capacity of a scalar",
        lambda: users_of(feature("fans", Int64, capacity=3)),
        "users.fans.capacity: needs no capacity for a scalar, got 3; declare Array(Int64)",
    ),
    # --- windows
    (
        "window not a multiple of the hop",
        lambda: windows_of(count("clicks_7m", "click", 7 * MINUTE, hop=5 * MINUTE)),
        "user_activity.clicks_7m.window: "
        "needs a multiple of the 5 min hop, got 7 min; use 5 or 10 min",
    ),
    (
        "window of 90 min over 1 h",
        lambda: windows_of(count("clicks", "click", 90 * MINUTE)),
        "needs a multiple of the 1 h hop, got 90 min; use 1 or 2 h",
    ),
    (
        "window of 47.5 h over 1 d",
        lambda: windows_of(count("clicks", "click", 47 * HOUR + 30 * MINUTE, hop=DAY)),
        "needs a multiple of the 1 d hop, got 2850 min; use 1 or 2 d",
    ),
    (
        "window below the hop",
        lambda: windows_of(count("clicks", "click", 2 * MINUTE)),
        "needs a multiple of the 5 min hop, got 2 min; use 5 min",
    ),
    ("no window", lambda: raw_window("click", "count", None, None, "n"), "a window longer than 0"),
    (
        "too many tiles",
        lambda: windows_of(count("clicks", "click", 30 * DAY, hop=MINUTE)),
        "user_activity.clicks.hop: needs at most 4096 tiles a window, got 43200; "
        "use a hop of 11 min or more",
    ),
    (
        "unknown function",
        lambda: raw_window("play.value", "median", HOUR, 5 * MINUTE, "n"),
        "n.function: needs count, sum, mean, std, min, max, distinct:<k>, decayed_sum:<half-life "
        "in ms>, last, ratio:<prior>:<weight> or last_n:<n>, got 'median'",
    ),
    (
        "unknown action",
        lambda: windows_of(count("n", cast(Any, "clik"), HOUR)),
        "user_activity.n.column: needs an action, one of impression, play,",
    ),
    (
        "delete_user is no behaviour",
        lambda: windows_of(count("n", cast(Any, "delete_user"), HOUR)),
        "got 'delete_user'",
    ),
    (
        "unknown column",
        lambda: windows_of(last_n("n", cast(Any, "play.song"), 5)),
        "user_activity.n.column: needs a column of an action, one of user, item,",
    ),
    (
        "count of a column",
        lambda: windows_of(count("n", cast(Any, "click.item"), HOUR)),
        "needs the action alone for a count, got 'click.item'; use 'click'",
    ),
    (
        "sum of an id",
        lambda: windows_of(total("n", "play.item", HOUR)),
        "needs <action>.value or position or scene for a sum, got 'play.item'; use 'play.value'",
    ),
    (
        "last_n of no column",
        lambda: windows_of(last_n("n", cast(Any, "play"), 5)),
        "needs <action>.<column> for last_n, got 'play'; use 'play.item'",
    ),
    ("last_n of 0", lambda: windows_of(last_n("n", "play.item", 0)), "last_n of 1 to 1024, got 0"),
    ("last_n of -1", lambda: windows_of(last_n("n", "play.item", -1)), "got -1"),
    (
        "last_n within a window",
        lambda: raw_window("play.item", "last_n:5", HOUR, None, "n", dtype=Array(Int64)),
        "needs no window for last_n",
    ),
    (
        "no name=",
        lambda: raw_window("click", "count", HOUR, 5 * MINUTE),
        "user_activity.count(click): needs name=, got none; name the feature",
    ),
    (
        "one name twice",
        lambda: windows_of(count("n", "click", HOUR), count("n", "like", HOUR)),
        "user_activity.n: needs one aggregation of a name, got two; rename one",
    ),
    (
        "wrong dtype",
        lambda: raw_window("click", "count", HOUR, 5 * MINUTE, "n", dtype=Float64),
        "user_activity.n.dtype: needs Int64, got Float64",
    ),
    ("no aggregation", lambda: windows_of(), "needs at least one aggregation, got none"),
    (
        "length beyond the capacity",
        lambda: windows_of(last_n("n", "play.item", 5, hashed(8), length=6)),
        "user_activity.n.length: needs at most the 5 stored, got 6; "
        "declare last_n of 6, or a length of 5",
    ),
    # --- views
    ("negative ttl", lambda: users_of(*USER_FIELDS, ttl=timedelta(days=-1)), "got -86400 s"),
    ("ttl of 1 ms", lambda: users_of(*USER_FIELDS, ttl=timedelta(milliseconds=1)), "got 0.001 s"),
    ("ttl of a century", lambda: users_of(*USER_FIELDS, ttl=36_500 * DAY), "1 s to 10 years"),
    (
        "ttl within a window",
        lambda: windows_of(count("n", "click", 7 * DAY), ttl=DAY),
        "user_activity.ttl: needs at least the longest window, 7 d, got 1 d; use 7 d or more, or 0",
    ),
    (
        "a day and more of skew",
        lambda: windows_of(*WINDOWS, lateness=Lateness(skew=2 * DAY)),
        "user_activity.skew_ms: needs at most 1 d, got 2 d",
    ),
    (
        "negative skew",
        lambda: windows_of(*WINDOWS, lateness=Lateness(skew=-HOUR)),
        "user_activity.skew_ms: needs a whole number of at least 0, got -3600000",
    ),
    ("capital letters", lambda: users_of(feature("Fans", Int64)), f"users.Fans: {NO_NAME} 'Fans'"),
    ("two underscores", lambda: users_of(feature("a__b", Int64)), f"users.a__b: {NO_NAME} 'a__b'"),
    ("a reserved name", lambda: users_of(feature("entity_id", Int64)), f"{NO_NAME} 'entity_id'"),
    (
        "one feature twice",
        lambda: users_of(feature("fans", Int64), feature("fans", Float64)),
        "users.fans: needs one feature of a name, got two; rename one",
    ),
    (
        "an element's name taken",
        lambda: videos_with(feature("tag_2", Int64)),
        "videos.tag_2: needs one feature of a name, got two",
    ),
    (
        "one view twice",
        lambda: Definitions(
            (user,), (batch_view("users", user, USERS, []), activity_named("users")), ()
        ),
        "feature_repo.users: needs one view of a name, got two; rename one",
    ),
    (
        "no entity",
        lambda: Definitions((), (batch_view("users", user, USERS, USER_FIELDS),), ()),
        "users.entities: needs one entity of the repo, got user",
    ),
    (
        "an entity of no side",
        lambda: Definitions(
            (plain_entity(),), (batch_view("users", plain_entity(), USERS, USER_FIELDS),), ()
        ),
        "user.side: needs user or item, got none; declare it with user_entity(…)",
    ),
    ("a csv source", lambda: Definitions((user,), (csv_view(),), ()), "one .parquet file, got"),
    (
        "a push source",
        lambda: Definitions((user,), (pushed_view(),), ()),
        "needs a KafkaSource with a topic, got PushSource",
    ),
    (
        "a udf",
        lambda: Definitions((user,), (view_with_code(),), ()),
        "whose pickled code the registry",
    ),
    (
        "a pinned version",
        lambda: Definitions((user,), (pinned_view(),), ()),
        "got 'v2'; drop version=",
    ),
    # --- tags and transforms
    (
        "an unknown tag",
        lambda: users_of(tagged(transfrom="{}")),
        "got 'encore.transfrom'; use encore.transform",
    ),
    (
        "a transform that is no JSON",
        lambda: users_of(tagged(transform="hash")),
        "users.fans.transform: needs the JSON of an ID transform, got 'hash'",
    ),
    (
        "an unknown transform",
        lambda: users_of(tagged(transform='{"kind": "modulo"}')),
        "needs one of hashed, vocab, boundaries, log_buckets, identity, got 'modulo'",
    ),
    (
        "a parameter of another type",
        lambda: users_of(tagged(transform='{"kind": "hashed", "buckets": "9"}')),
        "users.fans.transform.hashed: needs an integer for buckets, got '9'",
    ),
    (
        "no buckets",
        lambda: users_of(feature("fans", Int64, hashed(0))),
        "1 to 67108864 values, got 0",
    ),
    (
        "an empty vocabulary",
        lambda: users_of(feature("fans", Int64, vocab([]))),
        "at least one value",
    ),
    (
        "a value twice",
        lambda: users_of(feature("fans", Int64, vocab([1, 2, 1]))),
        "users.fans.transform.vocab: needs each value once, got 1 twice; remove one",
    ),
    (
        "boundaries that fall",
        lambda: users_of(feature("fans", Int64, boundaries([2, 1]))),
        "needs ascending numbers, each once, got [2, 1]",
    ),
    (
        "a boundary that is NaN",
        lambda: users_of(feature("fans", Int64, boundaries([float("nan")]))),
        "needs finite numbers, got nan",
    ),
    (
        "log buckets from 0",
        lambda: users_of(feature("fans", Int64, log_buckets(8, low=0, high=9))),
        "needs 0 < low < high, got low=0, high=9",
    ),
    (
        "a vocabulary of strings on an integer",
        lambda: users_of(feature("fans", Int64, vocab(["a"]))),
        "users.fans.transform: needs a transform that takes i64 values, got vocab(1 values) of "
        "strings; declare hashed(buckets), vocab([1, 2]), log_buckets(n) or identity(n)",
    ),
    (
        "a vocabulary of integers on a string",
        lambda: users_of(feature("city", String, vocab([1]))),
        "needs a transform that takes String values, got vocab(1 values)",
    ),
    (
        "boundaries on a string",
        lambda: users_of(feature("city", String, boundaries([1.0]))),
        "needs a transform that takes String values, got boundaries(1 numbers)",
    ),
    (
        "a hash of a float",
        lambda: users_of(feature("score", Float64, hashed(8))),
        "needs a transform that takes f64 values, got hashed(8); "
        "declare boundaries([…]) or log_buckets(n)",
    ),
    # --- sharing
    (
        "two sizes of one table",
        lambda: replace(
            Repo(), windows=[last_n("n", "like.author", 5, hashed(128), shares="videos:author_id")]
        ).definitions(services=()),
        "user_activity.n.transform: needs the 66 ids of videos:author_id, whose table it shares, "
        "got hash of 130 ids; drop the transform",
    ),
    (
        "sharing nothing",
        lambda: videos_with(feature("n", Int64, shares="videos:nobody")),
        "videos.n.shares: needs a feature with a transform, got 'videos:nobody'; videos has ",
    ),
    (
        "sharing half a name",
        lambda: videos_with(feature("n", Int64, shares="videos")),
        '"view:feature"',
    ),
    (
        "sharing in a circle",
        lambda: videos_with(
            feature("a", Int64, shares="videos:b"), feature("b", Int64, shares="videos:a")
        ),
        "needs a feature with a table of its own, got videos.a → videos.b → videos.a",
    ),
    (
        "sharing a string's ids",
        lambda: replace(
            Repo(), video_fields=[*VIDEO_FIELDS, feature("n", Int64, shares="users:degree")]
        ).definitions(services=()),
        "videos.n.shares: needs values like those of users:degree, string, got i64",
    ),
    # --- services
    (
        "an unknown feature",
        lambda: service_of(Repo(), "users:fame"),
        "ranking.users.fame: needs a feature of users: degree, fans, score, got 'fame'",
    ),
    (
        "an unknown view",
        lambda: service_of(Repo(), "people:fans"),
        "ranking.people: needs an online view: user_activity, users, videos, got 'people'",
    ),
    (
        "a slot without a transform",
        lambda: service_of(Repo(), "videos:embedding"),
        "ranking.videos.embedding: needs a feature with an ID transform, got one without; "
        "declare its transform, or choose features without it: view[[…]]",
    ),
    (
        "a feature twice",
        lambda: service_of(Repo(), "users:fans", "users:fans"),
        "ranking.users.fans: needs each feature once, got it twice",
    ),
    (
        "an empty service",
        lambda: service_of(Repo()),
        "ranking: needs at least one feature, got none",
    ),
    (
        "a renamed view",
        lambda: service_of(Repo(), Repo().views()["users"].with_name("people")),
        "ranking.users: needs a view under its own name",
    ),
    (
        "a sequence of items",
        lambda: service_of_item_sequence(),
        "ranking.video_activity.fans: needs sequences of the user, got one of the item",
    ),
]


def plain_entity() -> Entity:
    return Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)


def activity_named(name: str) -> FeatureView:
    return streamed_view(name, user, actions("actions"), WINDOWS)


def csv_view() -> FeatureView:
    return batch_view("users", user, "sources/users.csv", USER_FIELDS)


def pushed_view() -> FeatureView:
    batch = FileSource(name="archive", path="archive", timestamp_field="time_ms")
    source: Any = PushSource(name="pushed", batch_source=batch)
    return StreamedFeatureView(
        name="user_activity",
        entities=[user],
        schema=[WINDOWS[0].field],
        aggregations=[WINDOWS[0].aggregation],
        source=source,
        timestamp_field="time_ms",
        mode="python",
        udf_string=None,
    )


def view_with_code() -> FeatureView:
    view = activity_of(*WINDOWS)
    view.udf = lambda rows: rows  # type: ignore[assignment]
    return view


def pinned_view() -> FeatureView:
    view = batch_view("users", user, USERS, USER_FIELDS)
    view.version = "v2"
    return view


def service_of_item_sequence() -> Definitions:
    song = item_entity("song", join_key="song_id")
    fans = last_n("fans", "play.user", 5, hashed(8))
    view = streamed_view("video_activity", song, actions("actions.by-item"), [fans])
    return Definitions((song,), (view,), (feature_service("ranking", [view]),))


@pytest.mark.parametrize(
    ("declared", "message"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
def test_refused(declared: Callable[[], Definitions], message: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        compile_plan(declared())
    assert message in str(caught.value)
    assert all(caught.value.parts()[part] for part in ("where", "required", "got"))


def test_an_id_slot_takes_the_transforms_of_an_integer() -> None:
    repo = replace(Repo(), video_fields=[entity_id(video, vocab(["a"]))], selection={})
    with pytest.raises(DeclarationError, match=r"videos.video_id.transform"):
        compile_plan(repo.definitions())


def test_identity_takes_a_float_and_a_bool() -> None:
    compile_plan(users_of(feature("score", Float64, identity(8))))
