"""What `features list` and `features show` say of each function."""

from __future__ import annotations

from encore.describe import all_features, describe
from tests.catalog.test_functions import EVERY, compiled

OF = {
    "plays": "count of play, 1 h in hops of 5 min",
    "long_plays": "count of play where value >= 3000, 1 h in hops of 5 min",
    "watched": "count of play|finish|long_view, 1 h in hops of 5 min",
    "long_ms": "sum of play.value where scene in (1, 2) and value >= 3000, 1 d in hops of 1 h",
    "mean_ms": "mean of play.value, 1 h in hops of 5 min",
    "std_ms": "std of play.value, 1 h in hops of 5 min",
    "first_place": "min of click.position, 1 d in hops of 1 h",
    "newest": "max of *.time_ms, 1 h in hops of 5 min",
    "authors": "distinct, exact to 16 a hop and beyond that an estimate, of play.author, "
    "1 d in hops of 1 h",
    "decayed_ms": "sum, half after 6 h, of play.value, 1 d in hops of 1 h",
    "decayed_plays": "count, half after 6 h, of play, 1 d in hops of 1 h",
    "last_item": "newest of play.item",
    "since_like": "newest of like.age_ms, within 1 d",
    "long_rate": "long_plays / plays, smoothed by 0.25 over 20",
    "long_items": "newest 5 of play.item where value >= 3000",
    "liked": "newest 3 of like.item where scene != 0, of likes",
}


def test_every_function_says_what_it_is_of() -> None:
    assert {each.feature: each.of for each in all_features(compiled(*EVERY))} == OF


def test_a_page_names_all_that_is_stored_for_a_feature() -> None:
    plan = compiled(*EVERY)
    stored = {name: {line.split()[0] for line in describe(plan, name).stored} for name in OF}
    assert stored["std_ms"] == {
        *("head_5min", "squares_play_value_5min", "sum_play_value_5min", "count_play_5min"),
    }
    assert stored["long_rate"] == stored["plays"] | stored["long_plays"]
    assert stored["last_item"] == {"last_play_item", "last_play_item_at_ms"}
