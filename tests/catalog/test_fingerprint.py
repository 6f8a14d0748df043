"""What a model depends on: every attribute of a plan either retires it or does not, both ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation.fold import fold
from aggregation.program import ServiceProgram
from catalog.compiler import compile_plan
from catalog.declare import (
    DAY,
    HOUR,
    MINUTE,
    Int64,
    Lateness,
    String,
    Windowed,
    count,
    feature,
    feature_service,
    hashed,
    identity,
    last_n,
    log_buckets,
    total,
    vocab,
)
from schemas.actions import ACTION
from schemas.fingerprint import service_fingerprint
from schemas.layout import layout_of
from schemas.plan import (
    AccumulatorPlan,
    ConditionPlan,
    CrossPlan,
    FeaturePlan,
    FieldPlan,
    OperandPlan,
    Plan,
    SequencePlan,
    SequenceSlotPlan,
    SlotPlan,
    TransformPlan,
    ViewPlan,
)
from schemas.row import empty_rows, encode_rows
from schemas.values import value_dtype
from tests.catalog.declarations import USER_FIELDS, WINDOWS, Repo, activity_of

BASE = Repo().compiled()


def fingerprint_of(repo: Repo) -> str:
    return repo.compiled().service("ranking").fingerprint


def fixed(windows: list[Windowed], **changed: Any) -> Repo:
    """A repo whose service chooses the features of WINDOWS, whatever else is declared."""
    chosen = [each.field.name for each in WINDOWS]
    return replace(
        Repo(), windows=windows, selection={**Repo().selection, "user_activity": chosen}, **changed
    )


# --- declarations ---------------------------------------------------------------------------

HARMLESS: dict[str, Repo] = {
    "a longer window over a ring that a slot reads": fixed(
        [*WINDOWS, count("clicks_4h", "click", 4 * HOUR, hop=5 * MINUTE)]
    ),
    "a longer sequence that a slot reads": fixed([*WINDOWS, last_n("older", "play.item", 60)]),
    "a feature of its own": fixed([*WINDOWS, total("played_1d", "play.value", DAY)]),
    "a column of a batch view": replace(
        Repo(),
        user_fields=[*USER_FIELDS, feature("age", Int64, identity(9))],
        selection={**Repo().selection, "users": ["degree", "fans", "score"]},
    ),
    "TTL": replace(Repo(), activity_ttl=timedelta(days=30), user_ttl=timedelta(days=9)),
    "order of declaration": fixed(WINDOWS[::-1]),
}


def but_for(index: int, changed: Windowed) -> Repo:
    return replace(Repo(), windows=[*WINDOWS[:index], changed, *WINDOWS[index + 1 :]])


BUCKETS = log_buckets(8, low=1, high=100)
MATTERS: dict[str, Repo] = {
    "window": but_for(0, count("clicks_1h", "click", 2 * HOUR, BUCKETS, hop=5 * MINUTE)),
    "hop": but_for(0, count("clicks_1h", "click", HOUR, BUCKETS, hop=10 * MINUTE)),
    "action": but_for(0, count("clicks_1h", "like", HOUR, BUCKETS)),
    "function": but_for(0, total("clicks_1h", "click.value", HOUR, BUCKETS)),
    "transform": but_for(0, count("clicks_1h", "click", HOUR, log_buckets(8, low=1, high=99))),
    "column of a sequence": but_for(3, last_n("last_videos", "play.author", 5, hashed(8))),
    "length of a sequence": but_for(
        3, last_n("last_videos", "play.item", 5, shares="videos:video_id", length=4)
    ),
    "table": but_for(3, last_n("last_videos", "play.item", 5, identity(1_000))),
    "name": but_for(0, count("clicks_60min", "click", HOUR, BUCKETS)),
    "order of strings that are stored as ids": replace(
        Repo(), user_fields=[feature("degree", String, vocab(["full", "low"])), *USER_FIELDS[1:]]
    ),
    "one slot less": replace(Repo(), user_fields=USER_FIELDS[1:]),
    "order of slots": replace(Repo(), user_fields=USER_FIELDS[::-1]),
    "dtype": replace(
        Repo(), video_fields=[*Repo().video_fields[:1], feature("author_id", Int64, hashed(65))],
        selection={},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HARMLESS)
def test_what_changes_no_tensor_retires_no_model(what: str) -> None:
    assert fingerprint_of(HARMLESS[what]) == fingerprint_of(Repo())


@pytest.mark.parametrize("what", MATTERS)
def test_what_changes_a_tensor_retires_its_models(what: str) -> None:
    assert fingerprint_of(MATTERS[what]) != fingerprint_of(Repo())


def test_lateness_and_the_ring_it_lengthens_retire_no_model() -> None:
    def of(lateness: Lateness) -> Plan:
        views = Repo().views()
        views["user_activity"] = activity_of(*WINDOWS, lateness=lateness)
        return compile_plan(
            replace(
                Repo().definitions(),
                views=tuple(views.values()),
                services=(feature_service("ranking", [views["users"], views["user_activity"]]),),
            )
        )

    before, after = of(Lateness()), of(Lateness(skew=HOUR))
    assert before.view("user_activity").accumulators != after.view("user_activity").accumulators
    assert before.service("ranking").fingerprint == after.service("ranking").fingerprint


# --- attributes of the plan -----------------------------------------------------------------

#: Of each part of a plan, the attributes that are storage, operation, or words for people.
IRRELEVANT: dict[type, set[str]] = {
    SlotPlan: set(),
    SequenceSlotPlan: set(),
    CrossPlan: set(),
    OperandPlan: set(),
    TransformPlan: set(),
    FeaturePlan: {"window_ms"},
    AccumulatorPlan: {"field", "head", "tiles"},
    ConditionPlan: set(),
    SequencePlan: {"name", "fields", "time_field", "capacity"},
    FieldPlan: {"id", "dtype", "capacity", "group"},  # its name is a batch source's column
    ViewPlan: {
        *("generation", "source", "timestamp_field", "join_key", "ttl_ms", "skew_ms", "future_ms"),
        *("string_keys", "push_source", "kind"),
        *(
            "fields",
            "features",
            "accumulators",
            "sequences",
        ),  # their order; what they hold is above
    },
}

IDS = TransformPlan("boundaries", 4, boundaries=(1.0, 2.0), sentinels=(-1.0,))
VIEW = ViewPlan(
    "v",
    "user",
    "streamed",
    1,
    (FieldPlan(0, "stored", "i64"),),
    (
        FeaturePlan("n", "i64", "window", "ring", tiles=12, window_ms=12),
        FeaturePlan("s", "i64", "sequence", "items", 5),
        FeaturePlan("f", "i32", "field", "stored"),
        FeaturePlan("m", "f64", "mean", "sums", tiles=12, others=("ring",)),
        FeaturePlan("r", "f64", "ratio", "n", others=("m",), prior=0.5, weight=2.0),
    ),
    "topic",
    timestamp_field="time",
    join_key="key",
    string_keys=("text_key",),
    push_source="pushed",
    accumulators=(
        AccumulatorPlan("ring", "head", "count", "click", "", 1, 14),
        AccumulatorPlan(
            *("sums", "head", "sum", "click", "value", 1, 14),
            where=(ConditionPlan("value", ">", (5,)),),
        ),
    ),
    sequences=(SequencePlan("seq", "play", ("item",), ("items",), "at_ms", 50),),
    written={"stored": IDS},
)
SLOT = SlotPlan("n", "v", "n", IDS, "table")
RATIO = SlotPlan("r", "v", "r", IDS, "table")
STORED = SlotPlan("f", "v", "f", IDS, "table")
SEQUENCE = SequenceSlotPlan("s", "v", "s", 5, IDS, "table")
CROSS = CrossPlan(
    "c", "user", "ratio", (OperandPlan("v", "n"), OperandPlan("v", "f", (0.0,))), IDS, "t", 0.5, 2.0
)
PARTS = (VIEW, SLOT, STORED, RATIO, SEQUENCE, CROSS)


def attributes() -> list[tuple[type, str]]:
    return [(kind, each.name) for kind in IRRELEVANT for each in fields(kind)]


#: Attributes that are one of a few words, not a name that others refer to.
WORDS = ("dtype", "kind", "scope", "operator", "entity", "function", "action", "column", "op")


def mapped(part: Any, change: Callable[[Any], Any]) -> Any:
    """`part` with `change` applied to every value in it, parts inside first."""
    if isinstance(part, tuple):
        part = tuple(mapped(each, change) for each in part)
    elif isinstance(part, dict):
        part = {key: mapped(each, change) for key, each in part.items()}
    elif type(part) in IRRELEVANT:
        held = object.__new__(type(part))  # unchecked: a renamed literal is no valid one
        values = {each.name: getattr(part, each.name) for each in fields(part)}
        held.__dict__.update({name: mapped(value, change) for name, value in values.items()})
        part = held
    return change(part)


def varied(kind: type, attribute: str) -> Any:
    """PARTS with that attribute of every `kind` another; a name is another wherever it stands."""
    found: list[Any] = []

    def note(part: Any) -> Any:
        if type(part) is kind:
            found.append(part)
        return part

    mapped(PARTS, note)
    values = [getattr(part, attribute) for part in found]
    names = [name for value in values for name in (value if isinstance(value, tuple) else [value])]
    if names and attribute not in WORDS and all(isinstance(name, str) for name in names):
        return renamed(PARTS, {str(name) for name in names})

    def change(part: Any) -> Any:
        if type(part) is kind:
            part.__dict__[attribute] = other(getattr(part, attribute))
        return part

    return mapped(PARTS, change)


def renamed(parts: Any, names: set[str]) -> Any:
    def change(part: Any) -> Any:
        return f"{part}_too" if isinstance(part, str) and part in names else part

    return mapped(parts, change)


def other(value: Any) -> Any:
    match value:
        case str():
            return f"{value}_too"
        case tuple() if value and isinstance(value[0], int | float):
            return (*value, 9)
        case tuple():
            return value[::-1] or (9,)
        case dict():
            return {name: replace(ids, size=ids.size + 1) for name, ids in value.items()}
        case TransformPlan():
            return replace(value, size=value.size + 1)
    return value + 1


def fingerprint(parts: tuple[Any, ...]) -> str:
    view, slot, stored, ratio, sequence, crossed = parts
    slots = (slot, stored, ratio)
    return service_fingerprint({view.name: view}, slots, (), (sequence,), (crossed,))


@pytest.mark.parametrize(
    ("kind", "attribute"),
    [(kind, each.name) for kind in IRRELEVANT for each in fields(kind)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_attribute_either_retires_a_model_or_does_not(kind: type, attribute: str) -> None:
    same = fingerprint(varied(kind, attribute)) == fingerprint(PARTS)
    assert same == (attribute in IRRELEVANT[kind])


# --- any declarations -----------------------------------------------------------------------

EXTRAS = (
    count("clicks_2h", "click", 2 * HOUR, hop=5 * MINUTE),
    count("clicks_2d", "click", 2 * DAY, hop=HOUR),
    count("likes_1h", "like", HOUR),
    total("play_ms_3h", "play.value", 3 * HOUR, hop=5 * MINUTE),
    last_n("older_videos", "play.item", 9),
    last_n("more_authors", "like.author", 12),
)
BEHAVIOUR = st.lists(
    st.tuples(
        st.integers(0, 3 * 24 * 60),
        st.sampled_from((2, 3, 4, 6)),
        st.integers(1, 4),
        st.integers(0, 99),
    ),
    max_size=40,
)
START_MS = 1_700_000_000_000


def actions_of(behaviour: list[tuple[int, int, int, int]]) -> Any:
    """(minute, type, item, value) each → (a,) ACTION in order of time."""
    found = np.zeros(len(behaviour), ACTION)
    for action, (minute, kind, item, value) in zip(found, sorted(behaviour), strict=True):
        action["user"], action["item"], action["author"] = 1, item, item % 2
        action["time_ms"], action["type"], action["value"] = START_MS + minute * 60_000, kind, value
        action["known"] = 1
    return found


def seen_by_a_model(plan: Plan, actions: Any) -> tuple[bytes, ...]:
    """The user's value block and tensors after these actions, as bytes."""
    program = ServiceProgram(plan, "ranking")
    view = plan.view("user_activity")
    rows = empty_rows(layout_of(view), np.array([1], np.int64))
    fold(view, rows, np.zeros(len(actions), np.intp), actions, actions["time_ms"])
    (encoded,) = encode_rows(layout_of(view), rows)
    raw = [encoded if key.startswith("user_activity@") else None for key in program.keys(1, [7])]
    now_ms = START_MS + 3 * 24 * 60 * 60_000
    found = program.assemble(raw, 1, [7], now_ms)
    sequences = found.tensors.sequences.values()
    return (
        found.user_values.tobytes(),
        found.tensors.user_slots.tobytes(),
        *(ids.tobytes() for ids in sequences),
    )


@settings(max_examples=15, deadline=None)
@given(extras=st.permutations(EXTRAS).map(lambda found: found[:3]), did=BEHAVIOUR)
def test_unrelated_features_change_neither_fingerprint_nor_tensors(
    extras: list[Windowed], did: list[tuple[int, int, int, int]]
) -> None:
    plain, more = fixed(WINDOWS).compiled(), fixed([*extras, *WINDOWS]).compiled()
    assert more.service("ranking").fingerprint == plain.service("ranking").fingerprint
    services = plain.service("ranking"), more.service("ranking")
    assert value_dtype(plain, services[0], "user") == value_dtype(more, services[1], "user")
    actions = actions_of(did)
    assert seen_by_a_model(more, actions) == seen_by_a_model(plain, actions)
