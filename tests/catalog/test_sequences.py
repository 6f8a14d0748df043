"""Sequences of several columns: declared, stored side by side, read position by position."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from feast import Field
from feast.aggregation import Aggregation
from feast.types import Array, Int64

from aggregation.fold import fold
from aggregation.program import ServiceProgram
from catalog import tags
from catalog.compiler import Definitions, compile_plan
from catalog.declare import (
    HOUR,
    Sequenced,
    Windowed,
    boundaries,
    column,
    contains,
    cross,
    feature_service,
    hashed,
    identity,
    last_n,
    log_buckets,
    position,
    recent,
    share,
)
from schemas.actions import ACTION, KNOWN_AUTHOR, KNOWN_TAGS_SHIFT, UNKNOWN, ActionType
from schemas.errors import DeclarationError
from schemas.layout import layout_of
from schemas.plan import Plan
from schemas.row import empty_rows, encode_rows
from tests.catalog.declarations import Repo, activity_of

AGES = boundaries([1_000, 60_000])
PLAYS = recent(
    "last_plays",
    "play",
    4,
    [
        column("last_videos", "item", shares="videos:video_id"),
        column("last_authors", "author", shares="videos:author_id"),
        column("last_tags", "tag", shares="videos:tag"),
        column("last_play_ms", "value", boundaries([10, 100])),
        column("last_ages", "age_ms", AGES),
    ],
    length=3,
)
CROSSES = [
    cross("tag_recent", contains("user_activity:last_tags", "videos:tag_1"), identity(2)),
    cross("tag_share", share("user_activity:last_tags", "videos:tag_1"), boundaries([0.3, 0.6])),
    cross("tag_place", position("user_activity:last_tags", "videos:tag_1"), boundaries([0, 1])),
    cross("author_recent", contains("user_activity:last_authors", "videos:author_id"), identity(2)),
]
T0 = 1_700_000_000_000


def declared(*windows: Windowed | Sequenced) -> Definitions:
    views = Repo().views()
    views["user_activity"] = activity_of(*windows)
    chosen = [views["user_activity"], views["videos"][["author_id", "tag"]]]
    service = feature_service("ranking", chosen, crosses=CROSSES if PLAYS in windows else ())
    return replace(Repo().definitions(), views=tuple(views.values()), services=(service,))


def compiled(*windows: Windowed | Sequenced) -> Plan:
    return compile_plan(declared(*windows))


def test_columns_rest_side_by_side() -> None:
    view = compiled(PLAYS).view("user_activity")
    (held,) = view.sequences
    assert (held.name, held.action, held.capacity, held.gaps) == ("last_plays", "play", 4, True)
    assert held.columns == ("author", "item", "tag", "value")
    assert held.fields == tuple(f"last_plays_{each}" for each in held.columns)
    assert {field.name for field in view.fields} == {*held.fields, held.time_field}
    kinds = {each.name: (each.kind, each.source) for each in view.features}
    assert kinds["last_ages"] == ("age", "last_plays_at_ms")
    assert kinds["last_videos"] == ("sequence", "last_plays_item")


def test_slots_share_tables_and_are_aligned() -> None:
    slots = {each.feature: each for each in compiled(PLAYS).service("ranking").sequences}
    assert {each.aligned for each in slots.values()} == {"last_plays"}
    assert {each.capacity for each in slots.values()} == {3}
    assert slots["last_tags"].table == "videos__tag"
    assert slots["last_authors"].transform.sentinels == (float(UNKNOWN),)
    assert slots["last_videos"].transform.sentinels == ()
    assert slots["last_ages"].transform.boundaries == (1_000.0, 60_000.0)


def test_order_of_columns_is_the_slots_alone() -> None:
    turned = Sequenced(PLAYS.columns[::-1])
    assert compiled(turned).views == compiled(PLAYS).views


def test_a_sequence_alone_stands_beside_it() -> None:
    view = compiled(PLAYS, last_n("videos_alone", "play.item", 9, hashed(8))).view("user_activity")
    assert [held.name for held in view.sequences] == ["last_play_item", "last_plays"]
    assert [held.gaps for held in view.sequences] == [False, True]


def test_ages_alone_and_times_that_are_read() -> None:
    windows = last_n("ages", "like.age_ms", 3, AGES), last_n("times", "like.time_ms", 5)
    plan = compile_plan(replace(declared(*windows), services=()))
    (held,) = plan.view("user_activity").sequences
    assert (held.columns, held.fields, held.capacity) == ((), (), 5)
    assert {each.source for each in plan.view("user_activity").features} == {held.time_field}


def _play(minute: int, item: int, author: int | None, tag: int | None, value: int) -> Any:
    action = np.zeros((), ACTION)
    action["type"], action["user"], action["item"] = ActionType.PLAY, 1, item
    action["time_ms"], action["value"] = T0 + minute * 60_000, value
    action["author"], action["tags"][0] = author or 0, tag or 0
    action["known"] = (author is not None) * KNOWN_AUTHOR | (tag is not None) << KNOWN_TAGS_SHIFT
    return action


def test_each_entry_is_one_action_whatever_its_edge_knew() -> None:
    plan = compiled(PLAYS)
    program, view = ServiceProgram(plan, "ranking"), plan.view("user_activity")
    plays = np.array(
        [_play(0, 5, 50, 7, 5), _play(1, 6, None, 8, 50), _play(2, 7, 70, None, 500)], ACTION
    )
    rows = empty_rows(layout_of(view), np.array([1], np.int64))
    fold(view, rows, np.zeros(3, np.intp), plays, plays["time_ms"])
    (encoded,) = encode_rows(layout_of(view), rows)
    raw = [encoded if "user_activity@" in key else None for key in program.keys(1, [9])]
    found = program.assemble(raw, 1, [9], T0 + 2 * 60_000 + 500)
    values = {name: found.user_values[f"user_activity__{name}"][0].tolist() for name in (
        "last_videos", "last_authors", "last_tags", "last_play_ms", "last_ages")}  # fmt: skip
    assert values == {
        "last_videos": [7, 6, 5, 0],
        "last_authors": [70, UNKNOWN, 50, 0],
        "last_tags": [UNKNOWN, 8, 7, 0],
        "last_play_ms": [500, 50, 5, 0],
        "last_ages": [500, 60_500, 120_500, 0],
    }
    ids = {name.split("__")[1]: ids[0].tolist() for name, ids in found.tensors.sequences.items()}
    assert ids["last_videos"] == [9, 8, 7]
    assert ids["last_tags"] == [0, 10, 9]
    assert ids["last_authors"][1] == 0
    assert min(ids["last_authors"][0], ids["last_authors"][2]) >= 2
    assert ids["last_play_ms"] == [4, 3, 2]
    assert ids["last_ages"] == [2, 4, 4]
    later = program.assemble(raw, 1, [9], T0 + 3 * 60_000)
    assert later.user_values["user_activity__last_ages"][0].tolist() == [
        60_000, 120_000, 180_000, 0]  # fmt: skip
    before = program.assemble(raw, 1, [9], T0 + 60_000)
    assert before.user_values["user_activity__last_videos"][0].tolist() == [6, 5, 0, 0]
    assert before.user_values["user_activity__last_ages"][0].tolist() == [0, 60_000, 0, 0]


# --- refusals -------------------------------------------------------------------------------


def _by_hand(name: str, column: str, function: str, **tagged: str) -> Windowed:
    marks = {f"{tags.PREFIX}{tag}": value for tag, value in tagged.items()}
    field = Field(name=name, dtype=Array(Int64), tags=marks)
    return Windowed(field, Aggregation(column=column, function=function, name=name))


def plays(*columns: Any, n: int = 4, name: str = "last_plays") -> Sequenced:
    return recent(name, "play", n, list(columns))


REFUSALS: list[tuple[list[Windowed | Sequenced], str]] = [
    (
        [plays(column("times", "time_ms", hashed(8)))],
        "user_activity.times.transform: needs none for a time, which no later request has "
        "again, got one over play.time_ms; declare 'play.age_ms', the time that has passed at "
        "the request",
    ),
    (
        [_by_hand("n", "play.age", "last_n:5")],
        "user_activity.n.column: needs a column of an action, one of user, item, author, "
        "music, value, position, scene, time_ms, tag, age_ms, got 'age'",
    ),
    (
        [plays(column("a", "item"), column("b", "item"))],
        "user_activity.last_plays.item: needs each column once, got a and b; keep one of them",
    ),
    (
        [plays(column("a", "item")), plays(column("b", "author"), n=5)],
        "user_activity.last_plays.length: needs one length for all columns of a sequence, got "
        "4 and 5; declare them with one recent(…)",
    ),
    (
        [plays(column("a", "item")), recent("last_plays", "like", 4, [column("b", "author")])],
        "user_activity.last_plays.action: needs one action for all columns of a sequence, got "
        "play and like; declare them with one recent(…)",
    ),
    (
        [plays(column("a", "item"), name="last_play_item"), last_n("b", "play.item", 4)],
        "user_activity.last_play_item: needs a name that no other sequence has, got that of b; "
        "name the sequence otherwise",
    ),
    (
        [plays(column("a", "item"), name="Plays")],
        "user_activity.a.sequence: needs a name of a-z, 0-9 and single underscores that starts "
        "with a letter, got 'Plays'",
    ),
    (
        [
            _by_hand("a", "play.item", "last_n:4:plays", shares="videos:video_id", length="3"),
            _by_hand("b", "play.author", "last_n:4:plays", shares="videos:author_id"),
        ],
        "user_activity.b.length: needs 3, as a of the same sequence, got 4; declare length= "
        "once, with recent(…)",
    ),
    (
        [
            Windowed(
                _by_hand("n", "click", "count", length="3").field,
                Aggregation("click", "count", HOUR, HOUR, "n"),
            )
        ],
        "user_activity.n.dtype: needs Int64, got Array(Int64)",
    ),
    (
        [
            Windowed(
                Field(name="n", dtype=Int64, tags={tags.LENGTH: "3"}),
                Aggregation("click", "count", HOUR, HOUR, "n"),
            )
        ],
        "user_activity.n.length: needs no length for a number, got 3",
    ),
]


@pytest.mark.parametrize(("windows", "message"), REFUSALS)
def test_refused(windows: list[Windowed | Sequenced], message: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        compiled(*windows)
    assert str(refused.value) == message


def test_numbers_that_log_buckets_take() -> None:
    column_of_log = plays(column("played", "value", log_buckets(8, low=1, high=100)))
    (slot,) = compiled(column_of_log).service("ranking").sequences
    assert slot.transform.kind == "boundaries"
