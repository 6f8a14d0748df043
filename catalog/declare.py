"""What a feature repo is written with: typed helpers that make genuine Feast objects.

    user = user_entity("user", join_key="user_id")

    users = batch_view("users", user, "sources/users.parquet", [
        feature("active_degree", String, vocab(["low", "full"])),
        feature("fans", Int64, log_buckets(16, low=1, high=1e6)),
    ])

    activity = streamed_view("user_activity", user, actions("actions"), [
        count("clicks_1h", "click", HOUR, log_buckets(16, low=1, high=1_000)),
        last_n("last_videos", "play.item", 50, shares="videos:video_id"),
    ])

    ranking = feature_service("ranking", [users, activity, videos], crosses=[
        cross("video_seen", contains("user_activity:last_videos", "videos:video_id"), identity(2)),
    ])

A windowed feature more is one line more. A feature that has a transform (or shares another's) can
be a slot of a service; one without can only be read.

What can be known of a view or of a service's crosses alone is refused where it is declared, by the
line that says it. `catalog.compiler` checks that again, for declarations written without these
helpers, and what joins several: shared ids, the features of a service, operands of crosses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    KafkaSource,
    PushSource,
    ValueType,
)
from feast.data_format import JsonFormat
from feast.types import Array, Bool, FeastType, Float32, Float64, Int32, Int64, String

from catalog import tags as names
from catalog.arguments import duration, instance
from catalog.batch import compile_batch
from catalog.crosses import (
    Cross,
    contains,
    cross,
    crosses_tag,
    declared_crosses,
    difference,
    dot,
    equals,
    position,
    ratio,
    share,
)
from catalog.durations import to_ms
from catalog.measures import (
    decayed_sum,
    distinct,
    greatest,
    last,
    mean,
    smallest,
    smoothed,
    std,
)
from catalog.selections import Only, only
from catalog.stream_view import StreamedFeatureView
from catalog.streamed import compile_streamed
from catalog.transforms import (
    Transform,
    boundaries,
    hashed,
    identity,
    log_buckets,
    vocab,
)
from catalog.windows import (
    DAY,
    HOUR,
    MINUTE,
    WEEK,
    Sequenced,
    Windowed,
    column,
    count,
    last_n,
    new_field,
    recent,
    total,
)
from schemas.names import by_item_topic
from schemas.plan import Side

__all__ = [
    "DAY",
    "HOUR",
    "MINUTE",
    "WEEK",
    "Array",
    "Bool",
    "Float32",
    "Float64",
    "Int32",
    "Int64",
    "Lateness",
    "Only",
    "Sequenced",
    "StreamedFeatureView",
    "String",
    "Windowed",
    "actions",
    "actions_by_item",
    "batch_view",
    "boundaries",
    "column",
    "contains",
    "count",
    "cross",
    "decayed_sum",
    "difference",
    "distinct",
    "dot",
    "entity_id",
    "equals",
    "feature",
    "feature_service",
    "greatest",
    "hashed",
    "identity",
    "item_entity",
    "last",
    "last_n",
    "log_buckets",
    "mean",
    "only",
    "position",
    "push_source",
    "ratio",
    "recent",
    "share",
    "smallest",
    "smoothed",
    "std",
    "streamed_view",
    "total",
    "user_entity",
    "vocab",
]

EVENT_TIMESTAMP: Final = "event_timestamp"
ENTITY: Final = "user_entity(…) or item_entity(…)"

#: What one action's JSON holds, for tools that read the registry; workers read any content form.
_ACTION_JSON: Final = (
    "user long, item long, type string, time_ms long, value long, request_id string, "
    "author long, music long, tags array<long>, scene int, position int"
)


@dataclass(frozen=True)
class Lateness:
    """What is still folded, judged against a batch's `sent_ms`; the rest is counted and set aside.

    skew: an action older by more is late. future: one newer by more is from the future.
    """

    skew: timedelta = 10 * MINUTE
    future: timedelta = MINUTE


DEFAULT_LATENESS: Final = Lateness()


def user_entity(name: str, *, join_key: str, string_ids: bool = False) -> Entity:
    """The entity of a request. string_ids: the source's join key is a string, hashed to int64."""
    return _entity(name, join_key, "user", string_ids)


def item_entity(name: str, *, join_key: str, string_ids: bool = False) -> Entity:
    """The entity of a candidate."""
    return _entity(name, join_key, "item", string_ids)


def _entity(name: str, join_key: str, side: Side, string_ids: bool) -> Entity:
    value_type = ValueType.STRING if string_ids else ValueType.INT64
    return Entity(name=name, join_keys=[join_key], value_type=value_type, tags={names.SIDE: side})


def feature(
    name: str,
    dtype: FeastType,
    transform: Transform | None = None,
    *,
    shares: str = "",
    capacity: int | None = None,
) -> Field:
    """A column of a batch view.

    dtype: Bool, Int32, Int64, Float32, Float64, an Array of one of them, or String with a
    transform, whose id then is what is stored. shares: "view:feature" whose ids and embedding table
    this one uses; its transform is taken over. capacity: most elements of an Array; with a
    transform each element becomes a slot, `name_1` to `name_<capacity>`.
    """
    return new_field(name, dtype, transform, {names.SHARES: shares, names.CAPACITY: capacity})


def entity_id(entity: Entity, transform: Transform | None = None, *, shares: str = "") -> Field:
    """The entity's own id as a slot of every service that reads the view.

    It is stored in the batch row, so an entity without a row has id 0.
    """
    dtype = String if entity.value_type == ValueType.STRING else Int64
    return new_field(entity.join_key, dtype, transform, {names.SHARES: shares})


def push_source(name: str, path: str) -> PushSource:
    """A batch view's Parquet file as `path` of `batch_view`, and the name that pushes go by."""
    return PushSource(name=name, batch_source=_file(f"{name}_file", path))


def batch_view(
    name: str,
    entity: Entity | Sequence[Entity],
    path: str | PushSource,
    fields: Sequence[Field],
    *,
    ttl: timedelta = timedelta(0),
    online: bool = True,
) -> FeatureView:
    """Attributes read from a Parquet file with an `event_timestamp` column.

    entity: several for rows that a combination of them keys; such a view can be read, but its
    features are no slots. path: relative to encore's data directory; Feast's own offline store
    takes it relative to the repo; or a `push_source`. ttl: how long after its event time a row
    holds; zero is for ever.
    """
    source = _file(f"{name}_source", path) if isinstance(path, str) else path
    keys = [entity] if isinstance(entity, Entity) else list(entity)
    for key in keys:
        instance(key, Entity, f"{name}.entities", ENTITY)
    view = FeatureView(
        name=name,
        entities=keys,
        schema=list(fields),
        source=source,
        ttl=duration(ttl, f"{name}.ttl"),
        online=online,
    )
    if online:
        compile_batch(view, {each.name: each for each in keys})
    return view


def _file(name: str, path: str) -> FileSource:
    return FileSource(name=name, path=path, timestamp_field=EVENT_TIMESTAMP)


def actions(topic: str, *, archive: str = "archive") -> KafkaSource:
    """The topic that feeds streamed views of users.

    archive: where its Parquet files lie, as a `path` above.

    Servers are a setting of the deployment, not of a declaration, so none are named here.
    """
    return KafkaSource(
        name=topic,
        topic=topic,
        timestamp_field="time_ms",
        message_format=JsonFormat(_ACTION_JSON),
        batch_source=FileSource(
            name=f"{topic}_archive", path=f"{archive}/{topic}", timestamp_field="time_ms"
        ),
    )


def actions_by_item(topic: str, *, archive: str = "archive") -> KafkaSource:
    """The same actions, re-keyed by item (`encore items`): what feeds streamed views of items.

    topic: the one keyed by user.
    """
    return actions(by_item_topic(topic), archive=archive)


def streamed_view(
    name: str,
    entity: Entity,
    source: KafkaSource,
    features: Sequence[Windowed | Sequenced],
    *,
    ttl: timedelta = timedelta(0),
    lateness: Lateness = DEFAULT_LATENESS,
) -> StreamedFeatureView:
    """State folded from a topic, finalised when it is read."""
    declared = [
        windowed
        for each in features
        for windowed in (each.columns if isinstance(each, Sequenced) else (each,))
    ]
    topic = instance(source, KafkaSource, f"{name}.source", 'actions("…") or actions_by_item("…")')
    view = StreamedFeatureView(
        name=name,
        entities=[instance(entity, Entity, f"{name}.entities", ENTITY)],
        schema=[each.field for each in declared],
        aggregations=[each.aggregation for each in declared],
        source=topic,
        timestamp_field=topic.timestamp_field,
        mode="python",
        udf_string=None,
        ttl=duration(ttl, f"{name}.ttl"),
        tags={
            names.SKEW_MS: str(to_ms(duration(lateness.skew, f"{name}.skew"))),
            names.FUTURE_MS: str(to_ms(duration(lateness.future, f"{name}.future"))),
        },
    )
    compile_streamed(view, {entity.name: entity})
    return view


def feature_service(
    name: str,
    features: Sequence[FeatureView | str],
    *,
    crosses: Sequence[Cross] = (),
    required: Sequence[FeatureView | str] = (),
) -> FeatureService:
    """One model input: all slots of the views, or of the chosen features, in this order.

    features: a view, `view[["feature", …]]`, or "view:feature". crosses: slots computed from two
    features each, behind the other slots of their side. required: views without whose rows a
    request is refused; without those of others it is served, and says so.
    """
    tags = {names.CROSSES: crosses_tag(crosses)} if crosses else {}
    if required:
        views = [each if isinstance(each, str) else each.name for each in required]
        tags[names.REQUIRED] = ",".join(views)
    declared_crosses(tags, name)
    return FeatureService(name=name, features=list(features), tags=tags)
