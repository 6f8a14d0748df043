"""Declarations → plan, against a committed plan that a reader can check by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from catalog.compiler import compile_plan
from catalog.declare import (
    DAY,
    HOUR,
    MINUTE,
    StreamedFeatureView,
    count,
    feature_service,
    hashed,
    last_n,
    log_buckets,
)
from catalog.durations import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.layout import layout_of
from schemas.plan import dump_plan
from schemas.values import value_dtype
from tests.catalog.declarations import USER_FIELDS, WINDOWS, Repo

GOLDEN = Path(__file__).parent.parent / "golden" / "catalog_small.lock.json"


def test_golden_plan() -> None:
    assert dump_plan(Repo().compiled()) == GOLDEN.read_text()


def test_windows_of_one_hop_share_a_ring_that_holds_the_longest_and_the_skew() -> None:
    more = count("clicks_30min", "click", 30 * MINUTE, hashed(8))
    view = replace(Repo(), windows=[*WINDOWS, more]).compiled().view("user_activity")
    rings = {ring.field: ring for ring in view.accumulators}
    assert set(rings) == {"count_click_5min", "count_click_1h", "sum_play_value_5min"}
    assert rings["count_click_5min"].tiles == HOUR_MS // (5 * MINUTE_MS) + 2  # skew 10 min
    assert rings["count_click_1h"].tiles == DAY_MS // HOUR_MS + 1
    assert {ring.head for ring in rings.values()} == {"head_5min", "head_1h"}
    assert view.feature("clicks_30min").source == view.feature("clicks_1h").source
    assert view.feature("clicks_30min").tiles == 6
    fields = {field.name: field for field in view.fields}
    assert (fields["count_click_5min"].dtype, fields["sum_play_value_5min"].dtype) == ("u16", "i64")


def test_sequences_of_one_column_share_the_longest() -> None:
    windows = [*WINDOWS, last_n("newest_video", "play.item", 1, hashed(8))]
    view = replace(Repo(), windows=windows).compiled().view("user_activity")
    stored = {sequence.name: sequence.capacity for sequence in view.sequences}
    assert stored == {"last_play_item": 5, "last_like_author": 4}
    assert view.feature("newest_video").capacity == 1


def test_slots_follow_the_service_and_shared_tables_follow_their_owner() -> None:
    plan = Repo().compiled()
    service = plan.service("ranking")
    assert [slot.feature for slot in service.user_slots] == [
        "degree",
        "fans",
        "score",
        "clicks_1h",
        "clicks_1d",
        "play_ms_1h",
    ]
    assert [slot.feature for slot in service.item_slots] == [
        "video_id",
        "author_id",
        "tag_1",
        "tag_2",
        "tag_3",
    ]
    videos, authors = service.sequences
    own_id, author = service.item_slots[:2]
    assert (videos.table, videos.transform) == (own_id.table, own_id.transform)
    assert (authors.table, authors.transform) == (author.table, author.transform)
    assert (videos.capacity, authors.capacity) == (5, 3)
    assert {slot.table for slot in service.item_slots[2:]} == {"videos__tag"}


def test_a_string_is_stored_as_its_id() -> None:
    plan = Repo().compiled()
    view = plan.view("users")
    assert view.feature("degree").dtype == "i32"
    assert view.written["degree"].values == ("low", "full")
    slot = plan.service("ranking").user_slots[0]
    assert (slot.transform.kind, slot.transform.size) == ("stored", 4)


def test_everything_downstream_takes_the_plan() -> None:
    plan = Repo().compiled()
    for view in plan.views:
        assert layout_of(view).size > 0
    for side in ("user", "item"):
        assert value_dtype(plan, plan.service("ranking"), side).names


def test_order_of_declaration_changes_nothing_but_slots() -> None:
    plan = Repo().compiled()
    turned = replace(Repo(), user_fields=USER_FIELDS[::-1], windows=WINDOWS[::-1]).compiled()
    assert turned.views == plan.views
    assert turned.service("ranking").fingerprint != plan.service("ranking").fingerprint


def test_an_unrelated_feature_retires_no_model() -> None:
    plan = Repo().compiled()
    more = count("likes_1h", "like", HOUR, log_buckets(4, low=1, high=10))
    repo = replace(
        Repo(),
        windows=[*WINDOWS, more],
        selection={**Repo().selection, "user_activity": [each.field.name for each in WINDOWS]},
    )
    after = repo.compiled(plan)
    assert after.view("user_activity").generation == 2
    assert after.service("ranking").fingerprint == plan.service("ranking").fingerprint


def test_references_as_strings_choose_the_same_slots() -> None:
    repo = Repo()
    plain = repo.definitions()
    by_name = feature_service(
        "ranking", ["users", "user_activity", "videos:author_id", "videos:tag"]
    )
    plan = compile_plan(replace(plain, services=(by_name,)))
    assert plan == repo.compiled()


def test_an_offline_view_is_feasts_alone() -> None:
    views = Repo().views()
    views["users"].online = False
    definitions = replace(Repo().definitions(), views=tuple(views.values()), services=())
    assert [view.name for view in compile_plan(definitions).views] == ["user_activity", "videos"]


def test_a_streamed_view_equals_itself_after_the_registry() -> None:
    view = Repo().views()["user_activity"]
    proto = view.to_proto()
    again = StreamedFeatureView.from_proto(proto, skip_udf=True)
    assert again == view
    assert again.to_proto() == proto
    assert [field.name for field in proto.spec.features] == [each.field.name for each in WINDOWS]


def test_default_hops() -> None:
    def hop_ms(window: object) -> int:
        view = replace(Repo(), windows=[count("n", "*", window)], selection={})  # type: ignore[arg-type]
        (ring,) = (
            compile_plan(replace(view.definitions(), services=()))
            .view("user_activity")
            .accumulators
        )
        return ring.hop_ms

    assert hop_ms(HOUR) == 5 * MINUTE_MS
    assert hop_ms(DAY) == HOUR_MS
    assert hop_ms(7 * DAY) == DAY_MS
