"""What a plan changes, in words: each kind of change alone, and the text people read."""

from __future__ import annotations

import threading
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

from catalog.compiler import compile_plan
from catalog.declare import (
    DAY,
    HOUR,
    MINUTE,
    Int64,
    String,
    boundaries,
    count,
    cross,
    feature,
    feature_service,
    hashed,
    identity,
    last_n,
    log_buckets,
    ratio,
    vocab,
)
from catalog.declare import difference as operator_difference
from catalog.difference import Difference, difference, lines
from catalog.publish import publish, published
from schemas.errors import PlanError
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY
from schemas.plan import Plan, ServicePlan, ViewPlan, dump_plan
from store.redis_store import RedisRowStore
from tests.catalog.declarations import USER_FIELDS, WINDOWS, Repo

FIRST = Repo().compiled()
RATES = boundaries([0.1, 0.5])
WINDOW_IDS = log_buckets(8, low=1, high=100)


def from_first(changed: Repo) -> Difference:
    return difference(FIRST, changed.compiled(FIRST))


def test_no_change_is_one_line() -> None:
    found = from_first(Repo())
    assert found.empty
    assert lines(found) == ["plan version 1: nothing changes"]


def test_a_first_plan_adds_everything() -> None:
    found = difference(None, FIRST)
    assert {change.what for change in found.features} == {"added"}
    assert {change.what for change in found.views} == {"added"}
    assert {change.what for change in found.services} == {"added"}
    assert [view.name for view in found.views] == ["user_activity", "users", "videos"]
    assert len(found.features) == sum(len(view.features) for view in FIRST.views)
    assert lines(found)[0] == "plan version none → 1"


def test_a_window_more_needs_a_generation_and_says_why() -> None:
    found = from_first(
        replace(Repo(), windows=[*WINDOWS, count("likes_1h", "like", HOUR, hashed(8))])
    )
    assert [(each.what, each.name) for each in found.features] == [
        ("added", "user_activity.likes_1h")
    ]
    (view,) = found.views
    assert (view.before, view.after, view.new_generation) == (1, 2, True)
    assert len(view.reasons) == 1
    assert view.reasons[0].startswith("new ring")
    (service,) = found.services
    assert service.added == ("user_activity__likes_1h",)
    assert (service.changed, service.removed, service.reordered) == ((), (), False)
    text = lines(found)
    assert text[0] == "plan version 1 → 2"
    assert text[1] == "  + feature user_activity.likes_1h"
    assert text[2].startswith("  ~ view user_activity@1 → @2, a new generation: new ring")
    assert text[2].endswith(
        "; starts empty and fills from the worker's position on"
        " (`encore backfill user_activity` fills in its past)"
    )
    assert text[3].startswith(f"  ~ service ranking ({FIRST.service('ranking').fingerprint} → ")
    assert text[4] == "      slots added: user_activity__likes_1h"


def test_a_window_of_another_length_is_a_change() -> None:
    windows = [count("clicks_1h", "click", 2 * HOUR, hashed(8)), *WINDOWS[1:]]
    found = from_first(replace(Repo(), windows=windows))
    assert found.features[0].what == "changed"
    assert found.features[0].details[0] == "window 1 h → 2 h"
    assert "user_activity__clicks_1h" in found.services[0].changed


def test_another_transform_changes_slots_and_no_feature() -> None:
    fields = [USER_FIELDS[0], feature("fans", Int64, identity(8)), USER_FIELDS[2]]
    found = from_first(replace(Repo(), user_fields=fields))
    assert (found.features, found.views) == ((), ())
    assert found.services[0].changed == ("users__fans",)


def test_another_vocabulary_of_stored_ids_is_a_new_generation() -> None:
    fields = [feature("degree", String, vocab(["low", "full", "new"])), *USER_FIELDS[1:]]
    found = from_first(replace(Repo(), user_fields=fields))
    assert found.features[0].details == ("transform when written",)
    assert found.views[0].reasons == ("changed stored ids degree",)
    assert lines(found)[2].endswith("; starts empty until `encore load`")


def test_what_changes_in_place_says_so() -> None:
    found = from_first(replace(Repo(), activity_ttl=timedelta(days=30)))
    assert lines(found) == [
        "plan version 1 → 2",
        "  ~ view user_activity@1, in place: ttl 0 ms → 30 d",
    ]
    more = from_first(
        replace(Repo(), user_fields=[*USER_FIELDS, feature("age", Int64, identity(9))])
    )
    assert more.views[0].reasons == ("new stored field age",)
    assert not more.views[0].new_generation


def with_crosses(repo: Repo, parent: Plan | None = None) -> Plan:
    plain = repo.definitions()
    service = feature_service(
        "ranking",
        list(plain.views[:2]),
        crosses=[
            cross("rate", ratio("user_activity:clicks_1h", "user_activity:clicks_1d"), RATES),
            cross("fame", operator_difference("users:fans", "users:score"), RATES),
        ],
    )
    return compile_plan(replace(plain, services=(service,)), parent)


def test_a_cross_changes_with_its_operand_and_says_so() -> None:
    before = with_crosses(Repo())
    windows = [count("clicks_1h", "click", HOUR, WINDOW_IDS, hop=10 * MINUTE), *WINDOWS[1:]]
    found = difference(before, with_crosses(replace(Repo(), windows=windows), before))
    assert found.features[0].details == ("hop 5 min → 10 min",)
    (service,) = found.services
    assert service.changed == ("user_activity__clicks_1h", "rate")
    assert service.crossed == {"user_activity.clicks_1h": ("rate",)}
    assert "      crosses changed by user_activity.clicks_1h: rate" in lines(found)


def test_a_feature_less() -> None:
    found = from_first(replace(Repo(), windows=WINDOWS[:-1]))
    assert [each.what for each in found.features] == ["removed"]
    assert any(reason.startswith("dropped sequence") for reason in found.views[0].reasons)
    assert found.services[0].removed == ("user_activity__liked_authors",)


def test_slots_in_another_order() -> None:
    found = from_first(replace(Repo(), selection={"videos": ["tag", "author_id"]}))
    assert found.services[0].reordered
    assert lines(found)[-1] == "      slots in another order"


def declared(*required: Any, parent: Plan | None = None) -> Plan:
    plain = Repo().definitions()
    users, activity, _ = plain.views
    service = feature_service("ranking", [users, activity], required=list(required))
    return compile_plan(replace(plain, services=(service,)), parent)


def test_required_views_alone_are_told_and_retire_nothing() -> None:
    users, activity, _ = Repo().definitions().views
    before = declared()
    after = declared(users, activity, parent=before)
    found = difference(before, after)
    (service,) = found.services
    assert not service.retires
    mark = before.service("ranking").fingerprint
    assert lines(found) == [
        "plan version 1 → 2",
        f"  ~ service ranking ({mark}, models stay)",
        "      required views none → users, user_activity",
    ]
    back = declared(activity, parent=after)
    assert lines(difference(after, back))[2:] == [
        "      required views users, user_activity → user_activity"
    ]


def test_what_is_read_by_the_services_name_is_told() -> None:
    service = FIRST.service("ranking")
    chosen = service.features

    def with_features(*names: str) -> list[str]:
        changed = replace(service, features=names)
        return lines(difference(FIRST, replace(FIRST, version=2, services=(changed,))))[2:]

    assert with_features(*chosen[1:]) == [f"      no more read by the service's name: {chosen[0]}"]
    assert with_features(*chosen, "users:more") == [
        "      more read by the service's name: users:more"
    ]
    assert with_features(*chosen[::-1]) == [
        "      features read by the service's name in another order"
    ]


IN_PLACE = {
    "entity": "item",
    "kind": "streamed",
    "source": "other.parquet",
    "timestamp_field": "at",
    "join_key": "uid",
    "ttl_ms": 60_000,
    "skew_ms": 60_000,
    "future_ms": 60_000,
    "string_keys": ("user_id",),
    "push_source": "users_push",
}


def test_each_attribute_of_a_view_is_told() -> None:
    told_otherwise = {
        *("name", "generation", "features", "fields"),  # as changes of features, or a new key
        *("accumulators", "sequences", "written"),  # as another generation
    }
    assert {each.name for each in fields(ViewPlan)} == {*IN_PLACE, *told_otherwise}
    users = FIRST.view("users")
    rest = tuple(view for view in FIRST.views if view.name != "users")
    for name, value in IN_PLACE.items():
        changed: Any = {name: value}
        after = replace(FIRST, version=2, views=(*rest, replace(users, **changed)))
        (line,) = [each for each in lines(difference(FIRST, after)) if "view users@1" in each]
        said = name.removesuffix("_ms").replace("string_keys", "string keys")
        assert line.startswith(f"  ~ view users@1, in place: {said}"), line


def test_each_attribute_of_a_service_is_told() -> None:
    """By the fingerprint with its slots, or by a line of its own."""
    slots = {"user_slots", "item_slots", "sequences", "crosses", "fingerprint"}
    assert {each.name for each in fields(ServicePlan)} == {*slots, "name", "features", "required"}


def test_a_view_and_a_service_less() -> None:
    kept = Plan(2, 1, FIRST.views[:1], (), retired={"users": 1, "videos": 1})
    found = difference(FIRST, kept)
    assert "  - view users@1: its rows are read no more" in lines(found)
    (service,) = found.services
    assert (service.what, service.after) == ("removed", "")
    assert "users__fans" in service.removed


# --- rule 6: a name that comes back ----------------------------------------------------------


def without_users(parent: Plan) -> Plan:
    definitions = Repo().definitions()
    views = tuple(view for view in definitions.views if view.name != "users")
    return compile_plan(replace(definitions, views=views, services=()), parent)


def test_rule_6_a_name_that_comes_back_begins_at_the_next_generation() -> None:
    gone = without_users(FIRST)
    assert gone.retired == {"users": 1}
    again = without_users(gone)
    assert again is gone, "nothing changes, so nothing is retired twice"
    back = Repo().compiled(gone)
    assert back.view("users").generation == 2
    assert back.retired == {}
    view = next(view for view in difference(gone, back).views if view.name == "users")
    assert view.reasons == ("the name was used up to generation 1",)


# --- two people at once ---------------------------------------------------------------------


def test_rule_8_of_two_applies_at_once_one_wins_and_one_is_told(valkey: str) -> None:
    """Threads on the real store, again and again from one parent."""
    mine = replace(Repo(), windows=[*WINDOWS, count("likes_1d", "like", DAY, hashed(8))])
    theirs = replace(Repo(), windows=[*WINDOWS, last_n("more", "play.item", 9, hashed(8))])
    rivals = [each.compiled(FIRST) for each in (mine, theirs)]
    for _ in range(10):
        with RedisRowStore(valkey) as store:
            counter = int(store.get_text(PLAN_VERSION_KEY) or 0)
            store.put_text(PLAN_KEY, dump_plan(FIRST))
            outcomes = publish_at_once(valkey, rivals)
            (told,) = [each for each in outcomes if each is not True]
            assert isinstance(told, PlanError)
            assert "another apply" in str(told)
            # The loser reads the store before or after the winner wrote.
            assert "run `encore apply` again" in str(told) or "--take-over" in str(told)
            assert published(store) == rivals[outcomes.index(True)]
            assert store.get_text(PLAN_VERSION_KEY) == str(counter + 1)


def publish_at_once(url: str, plans: list[Plan]) -> list[object]:
    """What each publication returned or raised, each by a thread with a connection of its own."""
    together = threading.Barrier(len(plans))
    outcomes: list[object] = [None] * len(plans)

    def run(place: int) -> None:
        with RedisRowStore(url) as store:
            store.ping()
            together.wait()
            try:
                outcomes[place] = publish(store, plans[place])
            except PlanError as error:
                outcomes[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(plans))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
