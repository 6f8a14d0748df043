"""Plans for the tests of this room: a small one with every case, and one of the demo's size."""

from __future__ import annotations

from schemas.fingerprint import service_fingerprint
from schemas.ids import log_boundaries
from schemas.plan import (
    AccumulatorPlan,
    CrossPlan,
    Dtype,
    FeaturePlan,
    FieldPlan,
    OperandPlan,
    Plan,
    SequencePlan,
    SequenceSlotPlan,
    ServicePlan,
    SlotPlan,
    TransformPlan,
    ViewPlan,
)

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR

#: (window name, window ms, hop ms)
WINDOWS = (("1h", HOUR, 5 * MINUTE), ("1d", DAY, HOUR), ("7d", 7 * DAY, DAY))


class StreamedView:
    """Builds a streamed view: fields get ids in the order they are first needed."""

    def __init__(self, name: str, skew_ms: int, future_ms: int = MINUTE) -> None:
        self.name, self.skew_ms, self.future_ms = name, skew_ms, future_ms
        self.fields: list[FieldPlan] = []
        self.accumulators: list[AccumulatorPlan] = []
        self.sequences: list[SequencePlan] = []
        self.features: list[FeaturePlan] = []

    def field(self, name: str, dtype: Dtype, capacity: int = 0) -> str:
        if name not in {field.name for field in self.fields}:
            self.fields.append(FieldPlan(len(self.fields), name, dtype, capacity))
        return name

    def ring(
        self, action: str, column: str, window: tuple[str, int, int], dtype: Dtype | None = None
    ) -> StreamedView:
        label, window_ms, hop_ms = window
        tiles = window_ms // hop_ms + -(-self.skew_ms // hop_ms)
        stem = f"{'any' if action == '*' else action}{'_' + column if column else ''}"
        head = self.field(f"head_{hop_ms}", "i64")
        field = self.field(
            f"{stem}_{label}_tiles", dtype or ("i64" if column else "u16"), capacity=tiles
        )
        self.accumulators.append(
            AccumulatorPlan(
                field, head, "sum" if column else "count", action, column, hop_ms, tiles
            )
        )
        self.features.append(
            FeaturePlan(
                f"{stem}_{label}",
                "i64",
                "window",
                field,
                tiles=window_ms // hop_ms,
                window_ms=window_ms,
            )
        )
        return self

    def window(self, name: str, source: str, tiles: int, dtype: Dtype = "i64") -> StreamedView:
        """Another window over a ring that is there."""
        self.features.append(FeaturePlan(name, dtype, "window", source, tiles=tiles))
        return self

    def sequence(
        self, name: str, action: str, columns: tuple[str, ...], capacity: int, gaps: bool = False
    ) -> StreamedView:
        time_field = self.field(f"{name}_time_ms", "i64", capacity)
        dtypes: dict[str, Dtype] = {"position": "i16", "scene": "u16"}
        fields = tuple(
            self.field(f"{name}_{column}", dtypes.get(column, "i64"), capacity)
            for column in columns
        )
        self.sequences.append(
            SequencePlan(name, action, columns, fields, time_field, capacity, gaps)
        )
        for column, field in zip(columns, fields, strict=True):
            dtype = dtypes.get(column, "i64")
            self.features.append(FeaturePlan(field, dtype, "sequence", field, capacity))
        return self

    def plan(self, entity: str = "user", ttl_ms: int = 0) -> ViewPlan:
        return ViewPlan(
            name=self.name,
            entity="user" if entity == "user" else "item",
            kind="streamed",
            generation=1,
            fields=tuple(self.fields),
            features=tuple(self.features),
            source="actions",
            ttl_ms=ttl_ms,
            skew_ms=self.skew_ms,
            future_ms=self.future_ms,
            accumulators=tuple(self.accumulators),
            sequences=tuple(self.sequences),
        )


def small_view(ttl_ms: int = 0) -> ViewPlan:
    """Rings of 4 to 7 tiles over seconds, saturating u8 counts, every column of an action."""
    view = StreamedView("small", skew_ms=2_500, future_ms=1_000)
    view.ring("click", "", ("5s", 5_000, 1_000), "u8")
    view.ring("*", "", ("5s", 5_000, 1_000), "u16")
    view.ring("play", "value", ("5s", 5_000, 1_000))
    view.ring("play", "position", ("8s", 8_000, 4_000))
    view.ring("like", "", ("3s", 3_000, 1_000), "u32")
    view.window("click_2s", "click_5s_tiles", 2).window("any_small", "any_5s_tiles", 5, "i8")
    view.sequence("plays", "play", ("item", "author", "value"), 4)
    view.sequence("liked", "like", ("author",), 2)
    view.sequence("seen", "*", ("item", "tag", "position", "scene", "music", "user"), 3)
    view.sequence("clicks", "click", ("author", "item", "position", "tag"), 4, gaps=True)
    view.features.append(FeaturePlan("click_ages", "i64", "age", "clicks_time_ms", 3))
    return view.plan(ttl_ms=ttl_ms)


def activity_view() -> ViewPlan:
    """The demo's user view: five accumulators of three hops, 50 videos, 20 liked authors."""
    view = StreamedView("user_activity", skew_ms=10 * MINUTE)
    for window in WINDOWS:
        for action, column in (
            ("impression", ""),
            ("play", ""),
            ("click", ""),
            ("like", ""),
            ("play", "value"),
        ):
            view.ring(action, column, window)
    view.sequence("videos", "play", ("item", "author"), 50)
    view.features.append(FeaturePlan("video_ages", "i64", "age", "videos_time_ms", 50))
    view.sequence("liked", "like", ("author",), 20)
    return view.plan()


def batch_view(name: str, entity: str, fields: tuple[tuple[str, Dtype, int], ...]) -> ViewPlan:
    """A batch view whose features are its fields, (name, dtype, capacity) each."""
    return ViewPlan(
        name=name,
        entity="user" if entity == "user" else "item",
        kind="batch",
        generation=1,
        fields=tuple(
            FieldPlan(index, field, dtype, capacity)
            for index, (field, dtype, capacity) in enumerate(fields)
        ),
        features=tuple(
            FeaturePlan(field, dtype, "field", field, capacity) for field, dtype, capacity in fields
        ),
        source="nowhere.parquet",
    )


def users_view() -> ViewPlan:
    fields: tuple[tuple[str, Dtype, int], ...] = (
        ("user_id", "i64", 0),
        ("active_degree", "i32", 0),
        ("is_author", "bool", 0),
        ("follow_count", "i64", 0),
        ("fans", "i64", 0),
        ("friends", "i64", 0),
        ("days", "i32", 0),
        ("onehot", "f32", 0),
        ("interests", "i64", 3),
    )
    return batch_view("users", "user", fields)


def videos_view() -> ViewPlan:
    fields: tuple[tuple[str, Dtype, int], ...] = (
        ("video_id", "i64", 0),
        ("author_id", "i64", 0),
        ("music_id", "i64", 0),
        ("video_type", "i32", 0),
        ("duration", "f64", 0),
        ("width", "i32", 0),
    )
    return batch_view("videos", "item", fields)


def popularity_view() -> ViewPlan:
    """A streamed item view."""
    view = StreamedView("video_activity", skew_ms=10 * MINUTE)
    view.ring("impression", "", WINDOWS[1]).ring("click", "", WINDOWS[1])
    return view.plan("item")


COUNTS = TransformPlan("boundaries", 23, boundaries=log_boundaries(20, 1, 1e6))
VIDEO = TransformPlan("hash", 50_002, buckets=50_000, seed=1)
AUTHOR = TransformPlan("hash", 20_002, buckets=20_000, seed=2, sentinels=(-124.0,))
AGES = TransformPlan("boundaries", 11, boundaries=log_boundaries(8, 60_000, 7 * DAY))


def demo_plan() -> Plan:
    """31 slots, 22 of the user and 9 of the item (two of one feature), 10 crosses, of which 2 are
    the user's and 1 the item's, and five sequences, three of them aligned."""
    users, activity, videos, popular = (
        users_view(),
        activity_view(),
        videos_view(),
        popularity_view(),
    )
    user_slots = (
        _slot(users, "user_id", TransformPlan("hash", 30_002, buckets=30_000)),
        _slot(users, "active_degree", TransformPlan("stored", 8)),
        _slot(users, "is_author", TransformPlan("identity", 4, buckets=2)),
        _slot(users, "follow_count", COUNTS),
        _slot(users, "fans", COUNTS),
        _slot(users, "days", TransformPlan("vocab", 5, values=(1, 30, -7), sentinels=(-124.0,))),
        _slot(users, "onehot", TransformPlan("boundaries", 5, boundaries=(0.5, 1.0))),
        *(_slot(activity, f.name, COUNTS) for f in activity.features if f.kind == "window"),
    )
    item_slots = (
        _slot(videos, "video_id", VIDEO, "video"),
        _slot(videos, "author_id", AUTHOR, "author"),
        _slot(videos, "music_id", TransformPlan("hash", 5_002, buckets=5_000, sentinels=(0.0,))),
        _slot(videos, "video_type", TransformPlan("vocab", 4, values=("NORMAL", "AD"))),
        _slot(videos, "duration", COUNTS),
        _slot(videos, "duration", TransformPlan("boundaries", 4, boundaries=(60.0,)), "length"),
        _slot(videos, "width", TransformPlan("identity", 2_002, buckets=2_000)),
        _slot(popular, "impression_1d", COUNTS),
        _slot(popular, "click_1d", COUNTS),
    )
    sequences = (
        SequenceSlotPlan("last_videos", "user_activity", "videos_item", 50, VIDEO, "video", "v"),
        SequenceSlotPlan("authors", "user_activity", "videos_author", 50, AUTHOR, "author", "v"),
        SequenceSlotPlan("ages", "user_activity", "video_ages", 50, AGES, "ages", "v"),
        SequenceSlotPlan("liked_authors", "user_activity", "liked_author", 10, AUTHOR, "author"),
        SequenceSlotPlan("interests", "users", "interests", 3, AUTHOR, "author"),
    )
    views = {view.name: view for view in (users, activity, videos, popular)}
    crosses = demo_crosses()
    fingerprint = service_fingerprint(views, user_slots, item_slots, sequences, crosses)
    service = ServicePlan("ranking", user_slots, item_slots, sequences, fingerprint, crosses)
    return Plan(1, 0, tuple(views.values()), (service,))


FLAG = TransformPlan("identity", 4, buckets=2)
RATES = TransformPlan("boundaries", 6, boundaries=(0.01, 0.25, 0.5))
PLACES = TransformPlan("boundaries", 7, boundaries=(0.0, 1.0, 4.0, 16.0))


def demo_crosses() -> tuple[CrossPlan, ...]:
    """Each operator, and each scope; `friends` and `interests` are read by crosses alone or too."""
    clicks, seen = _of("user_activity:click_7d"), _of("user_activity:impression_7d")
    video, author = _of("videos:video_id"), _of("videos:author_id", -124.0)
    watched, liked = _of("user_activity:videos_item"), _of("user_activity:liked_author")
    flow = (_of("video_activity:click_1d"), _of("video_activity:impression_1d"))
    return (
        CrossPlan("click_rate", "user", "ratio", (clicks, seen), RATES, "click_rate", 0.3, 10),
        CrossPlan("watched", "pair", "contains", (watched, video), FLAG, "watched"),
        CrossPlan("own_dot", "user", "dot", (_of("users:interests"),) * 2, PLACES, "own_dot"),
        CrossPlan("video_rate", "item", "ratio", flow, RATES, "video_rate"),
        CrossPlan("watched_at", "pair", "position", (watched, video), PLACES, "watched_at"),
        CrossPlan("author_liked", "pair", "contains", (liked, author), FLAG, "author_liked"),
        CrossPlan("author_share", "pair", "share", (liked, author), RATES, "author_share"),
        CrossPlan("own_video", "pair", "equals", (_of("users:user_id"), author), FLAG, "own_video"),
        CrossPlan(
            "fame",
            "pair",
            "difference",
            (_of("users:friends"), _of("videos:duration")),
            PLACES,
            "fame",
        ),
        CrossPlan("width", "pair", "ratio", (_of("videos:width"), clicks), RATES, "width"),
    )


def _of(reference: str, *sentinels: float) -> OperandPlan:
    view, _, feature = reference.partition(":")
    return OperandPlan(view, feature, sentinels)


def _slot(view: ViewPlan, feature: str, transform: TransformPlan, table: str = "") -> SlotPlan:
    name = table or f"{view.name}_{feature}"
    return SlotPlan(name, view.name, feature, transform, name)
