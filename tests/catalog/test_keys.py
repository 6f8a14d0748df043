"""Views keyed by strings and by several entities, and views that are pushed to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa
import pytest
from feast import Entity, FeatureService, FeatureView

from catalog.columns import rows_of
from catalog.compiler import Definitions, compile_plan
from catalog.declare import (
    Float64,
    Int64,
    actions,
    batch_view,
    boundaries,
    cross,
    entity_id,
    feature,
    feature_service,
    hashed,
    identity,
    item_entity,
    push_source,
    ratio,
    user_entity,
)
from encore.lookup import views_of
from schemas.errors import DeclarationError
from schemas.ids import key_id, string_id

user = user_entity("user", join_key="user_id")
city = item_entity("city", join_key="city_name", string_ids=True)
ENTITIES = (user, city)
LIKING = [feature("liking", Float64)]
FANS = [feature("fans", Int64, hashed(8))]
PATH = "sources/taste.parquet"


def taste(*keys: Entity) -> FeatureView:
    return batch_view("taste", keys or (user, city), PATH, LIKING)


def test_the_plan_says_the_keys_sorted_and_which_are_strings() -> None:
    plan = compile_plan(Definitions(ENTITIES, (taste(),), ()))
    view = plan.view("taste")
    assert (view.join_keys, view.string_keys) == (("city_name", "user_id"), ("city_name",))
    assert compile_plan(Definitions(ENTITIES, (taste(city, user),), ()), plan).views == plan.views
    alone = compile_plan(Definitions(ENTITIES, (taste(city),), ()), plan).view("taste")
    assert (alone.join_keys, alone.generation) == (("city_name",), 2)


def test_rows_of_a_source_are_keyed_by_the_composite_id() -> None:
    view = compile_plan(Definitions(ENTITIES, (taste(),), ())).view("taste")
    table = pa.table(
        {
            "user_id": [7, -7],
            "city_name": ["Oslo", "Rome"],
            "event_timestamp": pa.array([1, 2], pa.timestamp("ms", "UTC")),
            "liking": [0.5, None],
        }
    )
    ids = [key_id(["Oslo", 7]), key_id(["Rome", -7])]
    assert rows_of(view, table).entity_ids.tolist() == ids
    assert key_id(["Oslo", 7]) == key_id([string_id("Oslo"), 7]) != key_id([7, "Oslo"])


def test_features_are_looked_up_where_all_keys_are_given() -> None:
    users = batch_view("users", user, "sources/users.parquet", FANS)
    plan = compile_plan(Definitions(ENTITIES, (taste(), users), ()))
    assert [view.name for view in views_of(plan, ["user_id"], None)] == ["users"]
    both = views_of(plan, ["user_id", "city_name"], None)
    assert [view.name for view in both] == ["taste", "users"]


def test_a_service_says_what_it_chose_and_a_view_its_push_source() -> None:
    users = batch_view("users", user, push_source("users_push", "sources/users.parquet"), FANS)
    plan = compile_plan(Definitions(ENTITIES, (users,), (feature_service("ranking", [users]),)))
    assert plan.service("ranking").features == ("users:fans",)
    view = plan.view("users")
    assert (view.push_source, view.source) == ("users_push", "sources/users.parquet")
    quiet = batch_view("users", user, "sources/users.parquet", FANS)
    after = compile_plan(Definitions(ENTITIES, (quiet,), (feature_service("ranking", [quiet]),)))
    assert after.views == (replace(view, push_source=""),)
    assert after.service("ranking") == plan.service("ranking")


def over_a_topic() -> FeatureView:
    source = actions("actions.parquet")
    return FeatureView(name="users", entities=[user], schema=LIKING, source=source)


def users_view() -> FeatureView:
    return batch_view("users", user, "sources/users.parquet", FANS)


def crossing() -> FeatureService:
    per_fan = cross("per_fan", ratio("taste:liking", "users:fans"), boundaries([0.5]))
    return feature_service("ranking", [users_view()], crosses=[per_fan])


REFUSALS: list[tuple[str, Callable[[], Definitions], str]] = [
    (
        "a composite view in a service",
        lambda: Definitions(ENTITIES, (taste(),), (feature_service("ranking", [taste()]),)),
        "ranking.taste: needs views of one entity, got one keyed by city_name,user_id; "
        'read it by "view:feature"; a request ranks one user and single items',
    ),
    (
        "a cross with a composite view",
        lambda: Definitions(ENTITIES, (taste(), users_view()), (crossing(),)),
        ".of: needs features of views of one entity, got taste:liking, keyed by city_name,user_id",
    ),
    (
        "an id slot in a composite view",
        lambda: Definitions(
            ENTITIES,
            (batch_view("taste", [user, city], PATH, [entity_id(user, identity(9)), *LIKING]),),
            (),
        ),
        "taste.user_id: needs a view of one entity for the slot of its id, got one keyed by "
        "city_name,user_id; declare entity_id(…) in a view that the entity alone keys",
    ),
    (
        "an unknown entity of several",
        lambda: Definitions((user,), (taste(),), ()),
        "taste.entities: needs one entity of the repo, got city",
    ),
    (
        "a batch view over a topic",
        lambda: Definitions(ENTITIES, (over_a_topic(),), ()),
        "users.source: needs a FileSource or a PushSource over one, got KafkaSource",
    ),
]


@pytest.mark.parametrize(
    ("declared", "message"), [each[1:] for each in REFUSALS], ids=[each[0] for each in REFUSALS]
)
def test_refusals(declared: Callable[[], Definitions], message: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        compile_plan(declared())
    assert message in str(refused.value)
