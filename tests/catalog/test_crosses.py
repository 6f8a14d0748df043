"""Crosses from their declaration to the plan, and every refusal with its message."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureService

from aggregation.program import ServiceProgram
from catalog.compiler import Definitions, compile_plan
from catalog.crosses import Cross, crosses_tag, parse_crosses
from catalog.declare import (
    Bool,
    boundaries,
    contains,
    cross,
    difference,
    dot,
    equals,
    feature,
    feature_service,
    hashed,
    identity,
    log_buckets,
    position,
    ratio,
    share,
    vocab,
)
from catalog.tags import CROSSES
from schemas.errors import DeclarationError
from schemas.plan import Plan, ServicePlan, dump_plan, load_plan
from tests.catalog.declarations import USER_FIELDS, Repo

GOLDEN = Path(__file__).parent.parent / "golden" / "catalog_small.lock.json"

SEEN, LIKED = "user_activity:last_videos", "user_activity:liked_authors"
RATES = boundaries([0.25, 0.5])
CROSSES_OF_ALL = (
    cross("video_seen", contains(SEEN, "videos:video_id"), identity(2)),
    cross(
        "click_rate",
        ratio("user_activity:clicks_1h", "user_activity:clicks_1d", prior=0.5, weight=2),
        RATES,
    ),
    cross("author_share", share(LIKED, "videos:author_id"), RATES),
    cross("author_place", position(LIKED, "videos:author_id"), boundaries([0, 1, 2])),
    cross("tags_alike", equals("videos:tag_1", "videos:tag_2"), identity(2)),
    cross("fame", difference("users:fans", "users:score"), log_buckets(4, low=1, high=9)),
    cross("taste", dot("videos:embedding", "videos:embedding"), RATES),
)


def declared(*crosses: Cross, repo: Repo | None = None) -> Definitions:
    repo = repo or Repo()
    plain = repo.definitions()
    views = [
        view[repo.selection[name]] if name in repo.selection else view
        for name, view in repo.views().items()
    ]
    return replace(plain, services=(feature_service("ranking", views, crosses=crosses),))


def tagged(text: str) -> Definitions:
    """A service whose tag was written by other hands."""
    plain = Repo().definitions()
    service = feature_service("ranking", ["users"])
    service.tags[CROSSES] = text
    return replace(plain, services=(service,))


def service_of(*crosses: Cross, parent: Plan | None = None) -> ServicePlan:
    return compile_plan(declared(*crosses), parent).service("ranking")


def test_each_operator_compiles_and_computes() -> None:
    plan = compile_plan(declared(*CROSSES_OF_ALL))
    assert load_plan(dump_plan(plan)) == plan
    service = plan.service("ranking")
    assert [each.name for each in service.crosses] == [each.name for each in CROSSES_OF_ALL]
    scopes = ["pair", "user", "pair", "pair", "item", "user", "item"]
    assert [each.scope for each in service.crosses] == scopes
    assert [slot.name for slot in service.slots("user")][-2:] == ["click_rate", "fame"]
    assert [slot.name for slot in service.slots("item")][5:] == [
        "tags_alike",
        "taste",
        "video_seen",
        "author_share",
        "author_place",
    ]
    rate = service.crosses[1]
    assert (rate.prior, rate.weight, rate.table) == (0.5, 2.0, "click_rate")
    assert rate.transform.kind == "boundaries"
    program = ServiceProgram(plan, "ranking")
    assert "videos__embedding" in (program.item_dtype.names or ())  # read by a cross alone
    tensors = program.assemble([None] * 5, 1, [7, 8, 9], 0).tensors
    assert tensors.expand().shape == (3, 18)


def test_operands_take_over_what_means_missing() -> None:
    (fame,) = service_of(CROSSES_OF_ALL[5]).crosses
    assert [operand.sentinels for operand in fame.operands] == [(-124.0,), ()]


def test_a_view_is_read_for_a_cross_alone() -> None:
    plain = Repo().definitions()
    only = feature_service(
        "ranking",
        ["users"],
        crosses=[cross("seen", contains(SEEN, "videos:video_id"), identity(2))],
    )
    plan = compile_plan(replace(plain, services=(only,)))
    program = ServiceProgram(plan, "ranking")
    assert [view.name for view in program.user_views] == ["users", "user_activity"]
    assert [view.name for view in program.item_views] == ["videos"]
    assert program.keys(1, [2])[1:] == ["user_activity@1:{1}", "videos@1:{2}"]


def test_crosses_are_part_of_the_fingerprint_and_of_nothing_else() -> None:
    parent = Repo().compiled()
    plan = compile_plan(declared(CROSSES_OF_ALL[0]), parent)
    assert plan.views == parent.views
    prints = {
        service_of(*crosses, parent=parent).fingerprint
        for crosses in (
            (),
            CROSSES_OF_ALL[:1],
            CROSSES_OF_ALL[:2],
            CROSSES_OF_ALL[1::-1],
            (cross("video_seen", contains(SEEN, "videos:author_id"), identity(2)),),
        )
    }
    assert len(prints) == 5
    assert service_of().fingerprint == parent.service("ranking").fingerprint


def test_a_lock_file_that_spells_its_defaults_is_read() -> None:
    """As those from before crosses, and those that wrote every attribute."""
    held = json.loads(GOLDEN.read_text())
    for service in held["services"]:
        assert "crosses" not in service
        service["crosses"] = []
    assert load_plan(json.dumps(held | {"retired": {}})) == Repo().compiled()


def test_the_registry_keeps_crosses() -> None:
    definitions = declared(*CROSSES_OF_ALL)
    (service,) = definitions.services
    again = FeatureService.from_proto(service.to_proto())
    assert again == service
    assert compile_plan(replace(definitions, services=(again,))) == compile_plan(definitions)


def test_the_tag_round_trips() -> None:
    assert parse_crosses(crosses_tag(CROSSES_OF_ALL), "ranking.crosses") == CROSSES_OF_ALL


def entry(**changes: Any) -> str:
    held = CROSSES_OF_ALL[0].to_data() | changes
    return json.dumps([{key: value for key, value in held.items() if value is not None}])


SEEN_BY = contains(SEEN, "videos:video_id")
REFUSALS: list[tuple[str, Callable[[], Definitions], str]] = [
    (
        "no JSON",
        lambda: tagged("contains"),
        "ranking.crosses: needs the JSON of a list of crosses, got 'contains'; "
        "declare crosses=[cross(…)] of catalog.declare",
    ),
    ("no list", lambda: tagged("{}"), "needs the JSON of a list of crosses, got '{}'"),
    (
        "too many",
        lambda: tagged(json.dumps([{}] * 257)),
        "ranking.crosses: needs at most 256, got 257",
    ),
    (
        "no operands",
        lambda: tagged(entry(of=None)),
        "ranking.crosses.video_seen: needs name, operator, of and transform, got none of of",
    ),
    ("code", lambda: tagged(entry(udf="x")), "needs name, operator, of and transform, got 'udf'"),
    (
        "an unknown operator",
        lambda: tagged(entry(operator="median")),
        "ranking.crosses.video_seen.operator: needs one of contains, share, position, equals, "
        "difference, ratio, dot, got 'median'",
    ),
    ("an operator of another type", lambda: tagged(entry(operator=[])), "operator: needs one of"),
    (
        "three operands",
        lambda: tagged(entry(of=["a:b", "c:d", "e:f"])),
        "ranking.crosses.video_seen.of: needs two features, got ['a:b', 'c:d', 'e:f']",
    ),
    (
        "a weight that is no number",
        lambda: tagged(entry(weight="2")),
        "ranking.crosses.video_seen.weight: needs a finite number, got '2'",
    ),
    (
        "a weight of contains",
        lambda: tagged(entry(weight=2)),
        "ranking.crosses.video_seen: needs prior and weight of a ratio only, got contains",
    ),
    (
        "a prior without a weight",
        lambda: declared(cross("r", ratio("users:fans", "users:score", prior=0.5), RATES)),
        "ranking.crosses.r.weight: needs a weight above 0 where there is a prior, got 0; "
        "say how many observations the prior is worth, or drop it",
    ),
    (
        "a negative weight",
        lambda: declared(cross("r", ratio("users:fans", "users:score", weight=-1), RATES)),
        "ranking.crosses.r.weight: needs a weight above 0 where there is a prior, got -1",
    ),
    (
        "a name of two parts",
        lambda: declared(cross("video__seen", SEEN_BY, identity(2))),
        "ranking.crosses.video__seen: needs a name of a-z, 0-9 and single underscores",
    ),
    (
        "one name twice",
        lambda: declared(CROSSES_OF_ALL[0], CROSSES_OF_ALL[0]),
        "ranking.crosses.video_seen: needs one cross of a name, got two; rename one",
    ),
    (
        "half a reference",
        lambda: declared(cross("c", contains("last_videos", "videos:video_id"), identity(2))),
        "ranking.crosses.c.of: needs \"view:feature\", got 'last_videos'",
    ),
    (
        "an unknown view",
        lambda: declared(cross("c", contains(SEEN, "songs:video_id"), identity(2))),
        "ranking.crosses.c.of: needs an online view: user_activity, users, videos, got 'songs'",
    ),
    (
        "an unknown feature",
        lambda: declared(cross("c", equals("users:fans", "users:fame"), identity(2))),
        "ranking.crosses.c.of: needs a feature of users: degree, fans, score, got 'fame'",
    ),
    (
        "a scalar where a sequence belongs",
        lambda: declared(cross("c", contains("users:fans", "videos:video_id"), identity(2))),
        "ranking.crosses.c.contains: needs (sequence, scalar), got fans, a scalar",
    ),
    (
        "a sequence where a scalar belongs",
        lambda: declared(cross("c", equals(SEEN, "videos:video_id"), identity(2))),
        "ranking.crosses.c.equals: needs (scalar, scalar), got last_videos, a vector of 5",
    ),
    (
        "ids that are floats",
        lambda: declared(cross("c", contains(SEEN, "users:score"), identity(2))),
        "ranking.crosses.c.contains: needs ids: integers, got score of f64",
    ),
    (
        "a number that is a bool",
        lambda: declared(
            cross("c", ratio("users:vip", "users:fans"), RATES),
            repo=replace(Repo(), user_fields=[*USER_FIELDS, feature("vip", Bool, identity(2))]),
        ),
        "ranking.crosses.c.ratio: needs numbers, got vip of bool",
    ),
    (
        "vectors of two capacities",
        lambda: declared(cross("c", dot(SEEN, "videos:embedding"), RATES)),
        "ranking.crosses.c.dot: needs vectors of one capacity, got 5 and 4",
    ),
    (
        "a string",
        lambda: declared(cross("c", equals("users:degree", "users:fans"), identity(2))),
        "ranking.crosses.c.of: needs numbers, or ids that are comparable, got users:degree, "
        "a String that rests as the id of its transform; cross a column of numbers",
    ),
    (
        "a hash of a ratio",
        lambda: declared(cross("c", ratio("users:fans", "users:score"), hashed(8))),
        "ranking.crosses.c.transform: needs a transform that takes f64 values, got hashed(8); "
        "declare boundaries([…]) or log_buckets(n)",
    ),
    (
        "a vocabulary of a bool",
        lambda: declared(cross("c", SEEN_BY, vocab([0, 1]))),
        "needs a transform that takes bool values, got vocab(2 values); declare identity(2)",
    ),
    (
        "no transform",
        lambda: tagged(entry(transform={"kind": "modulo"})),
        "ranking.crosses.video_seen.transform: needs one of hashed, vocab, boundaries",
    ),
]


@pytest.mark.parametrize(
    ("definitions", "message"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
def test_refused(definitions: Callable[[], Definitions], message: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        compile_plan(definitions())
    assert message in str(caught.value)
    assert all(caught.value.parts()[part] for part in ("where", "required", "got"))


def test_an_unknown_tag_of_a_service_is_refused() -> None:
    plain = Repo().definitions()
    service = feature_service("ranking", ["users"])
    service.tags["encore.crosess"] = "[]"
    with pytest.raises(
        DeclarationError, match=r"ranking.tags: needs one of encore.crosses, encore.req"
    ):
        compile_plan(replace(plain, services=(service,)))
