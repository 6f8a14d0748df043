"""Every `raise` of `catalog/` is reached: by a table of refusals, or by a test named here."""

from __future__ import annotations

import ast
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from feast import Field, FileSource
from feast.aggregation import Aggregation
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto

from catalog.apply import apply
from catalog.compiler import Definitions, compile_plan
from catalog.declare import (
    DAY,
    HOUR,
    Array,
    Int64,
    StreamedFeatureView,
    String,
    Windowed,
    actions,
    batch_view,
    boundaries,
    contains,
    count,
    cross,
    decayed_sum,
    feature,
    feature_service,
    hashed,
    last,
    log_buckets,
    streamed_view,
    vocab,
)
from catalog.lock import LOCK_NAME
from catalog.registry import registered
from catalog.repo import load_repo
from encore.starter import create_project
from schemas.errors import DeclarationError, EncoreError, PlanError
from tests.catalog import (
    test_crosses,
    test_functions,
    test_keys,
    test_refusals,
    test_sequences,
)
from tests.catalog.declarations import user
from tests.catalog.test_refusals import USERS, users_of

CATALOG = Path(__file__).parent.parent.parent / "catalog"


def by_hand(name: str, *aggregations: Aggregation) -> Definitions:
    """A streamed view whose Fields and aggregations do not come in pairs."""
    source = actions("actions")
    view = StreamedFeatureView(
        name="user_activity",
        entities=[user],
        schema=[Field(name=name, dtype=Int64)],
        aggregations=list(aggregations),
        source=source,
        timestamp_field=source.timestamp_field,
        mode="python",
        udf_string=None,
    )
    return Definitions((user,), (view,), ())


def users_from(**source: Any) -> Definitions:
    view = batch_view("users", user, USERS, [feature("fans", Int64)])
    view.batch_source = FileSource(name="users_source", path=USERS, **source)
    return Definitions((user,), (view,), ())


def derived() -> Definitions:
    view = batch_view("users", user, USERS, [feature("fans", Int64)])
    view.source_views = [batch_view("others", user, USERS, [feature("fans", Int64)])]
    return Definitions((user,), (view,), ())


CLICKS = count("n", "click", DAY)


def of_actions(declared: Windowed) -> Definitions:
    view = streamed_view("user_activity", user, actions("actions"), [declared])
    return Definitions((user,), (view,), ())


MORE: list[tuple[str, Callable[[], object], str]] = [
    (
        "a source that renames columns",
        lambda: users_from(timestamp_field="event_timestamp", field_mapping={"a": "fans"}),
        "users.source.field_mapping: needs none, got a; name the features as the columns",
    ),
    (
        "a source without a timestamp",
        users_from,
        "users.source.timestamp_field: needs a timestamp column, got none",
    ),
    (
        "a derived view",
        derived,
        "users: needs a view without a user-defined function, got a derived view; "
        "write its results into the Parquet source",
    ),
    (
        "an Array that is too long",
        lambda: users_of(feature("tags", Array(Int64), capacity=1_025)),
        "users.tags.capacity: needs 1 to 1024, got 1025",
    ),
    (
        "a hop of 0",
        lambda: by_hand("n", Aggregation("click", "count", HOUR, -HOUR, "n")),
        "user_activity.n.hop: needs a hop longer than 0, got -1 h",
    ),
    (
        "a Field without an aggregation",
        lambda: by_hand("m", Aggregation("click", "count", HOUR, HOUR, "n")),
        "user_activity.m: needs a Field and an aggregation of one name, got no such aggregation",
    ),
    (
        "a sum of a column that no action has",
        lambda: by_hand("n", Aggregation("play.song", "sum", HOUR, HOUR, "n")),
        "user_activity.n.column: needs a column of an action, one of user, item, author",
    ),
    (
        "sentinels of strings",
        lambda: users_of(feature("city", String, hashed(8, sentinels=[0]))),
        "users.city.transform: needs no sentinels for strings, got [0]; leave the string out",
    ),
    (
        "values of no id",
        lambda: users_of(feature("fans", Int64, vocab(cast(Any, [1.5])))),
        "users.fans.transform.vocab: needs integers or strings, got 1.5",
    ),
    (
        "values of two types",
        lambda: users_of(feature("fans", Int64, vocab(cast(Any, [1, "one"])))),
        "users.fans.transform.vocab: needs values of one type, got (1, 'one')",
    ),
    (
        "too few ranges",
        lambda: users_of(feature("fans", Int64, log_buckets(2, low=1, high=9))),
        "users.fans.transform.log_buckets: needs 3 to 1024 buckets, got 2",
    ),
    (
        "a duration in seconds",
        lambda: of_actions(count("n", "click", cast(Any, 86_400))),
        "n.window: needs a duration, got 86400; write it as 5 * MINUTE, HOUR, 7 * DAY",
    ),
    (
        "a half-life in seconds",
        lambda: of_actions(decayed_sum("n", "click", DAY, half_life=cast(Any, 3_600))),
        "n.half_life: needs a duration, got 3600",
    ),
    (
        "a duration as a transform's number",
        lambda: of_actions(last("n", "click.age_ms", log_buckets(9, low=1, high=cast(Any, DAY)))),
        "n.transform.log_buckets: needs numbers or strings, got datetime.timedelta(days=1); "
        "ages are milliseconds",
    ),
    (
        "a number for a transform",
        lambda: of_actions(count("n", "click", DAY, cast(Any, 20))),
        "n.transform: needs an ID transform, such as log_buckets(…), got 20",
    ),
    (
        "a name for a topic",
        lambda: streamed_view("user_activity", user, cast(Any, "actions"), [CLICKS]),
        'user_activity.source: needs actions("…") or actions_by_item("…"), got \'actions\'',
    ),
    (
        "a name for an entity",
        lambda: streamed_view("user_activity", cast(Any, "user"), actions("actions"), [CLICKS]),
        "user_activity.entities: needs user_entity(…) or item_entity(…), got 'user'",
    ),
    (
        "a topic that nobody reads",
        lambda: streamed_view("user_activity", user, actions("action"), [CLICKS]),
        "user_activity.source: needs the topic that workers read, actions, got action; "
        'declare source=actions("actions")',
    ),
    (
        "sharing with a view that is misspelt",
        lambda: users_of(feature("city", Int64, shares="user:fans")),
        "users.city.shares: needs a feature with a transform, got 'user:fans'; did you mean users?",
    ),
    (
        "sharing with a feature that is misspelt",
        lambda: users_of(
            feature("city", Int64, shares="users:fan"), feature("fans", Int64, hashed(8))
        ),
        "users.city.shares: needs a feature with a transform, got 'users:fan'; did you mean fans?",
    ),
]


@pytest.mark.parametrize(
    ("declared", "message"), [case[1:] for case in MORE], ids=[case[0] for case in MORE]
)
def test_refused(declared: Callable[[], object], message: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        compile_plan(cast(Any, declared()))
    assert message in str(caught.value)


# --- at once --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "declare",
    [
        lambda: batch_view("users", user, USERS, [feature("fans", Int64, boundaries([]))]),
        lambda: batch_view("users", user, USERS, [feature("city", String)]),
        lambda: streamed_view(
            "user_activity", user, actions("actions"), [count("n", "click", DAY + HOUR / 2)]
        ),
        lambda: feature_service(
            "ranking", ["users"], crosses=[cross("c", contains("a:b", "c:d"), hashed(8))]
        ),
    ],
    ids=["a transform", "a dtype", "a window", "a cross"],
)
def test_nonsense_is_refused_where_it_is_declared(declare: Callable[[], object]) -> None:
    with pytest.raises(DeclarationError) as caught:
        declare()
    assert all(caught.value.parts()[part] for part in ("where", "required", "got"))


# --- every raise ----------------------------------------------------------------------------

#: What a table of declarations cannot reach: the tests that do, and the functions that raise.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "test_apply.py::test_a_configuration_that_cannot_be_used": (
        "apply.load_config",
        "registry.registry_path",
    ),
    "test_apply.py::test_a_lock_is_replaced_whole_or_not_at_all": ("lock.require_lock",),
    "test_apply.py::test_a_module_that_does_not_import_is_named_with_its_line": ("repo._import",),
    "test_apply.py::test_a_plan_of_another_line_is_refused": ("publish.check_follows",),
    "test_apply.py::test_a_registry_of_other_bytes_is_refused": ("registry.read_registry",),
    "test_apply.py::test_a_registry_with_code_is_refused_before_feast_reads_it": (
        "registry.refuse_code",
    ),
    "test_apply.py::test_another_apply_in_between_is_noticed": ("publish.publish",),
    "test_apply.py::test_on_demand_views_are_refused": ("repo._collect",),
    "test_every_refusal.py::test_a_registry_that_lost_something": ("apply.apply",),
    "test_every_refusal.py::test_a_repo_without_modules": ("repo.load_repo",),
    "test_feast_universal.py::test_a_key_of_another_type_is_refused": (
        "entity_keys._value",
        "entity_keys.entity_id",
    ),
    "test_item_views.py::test_an_item_view_on_the_topic_keyed_by_user_is_refused": (
        "streamed._topic",
    ),
    "test_materialize.py::test_a_source_that_does_not_hold_what_is_declared": (
        "columns._cast",
        "columns._keys",
        "columns._lists",
        "columns._scalar",
        "columns._written",
        "columns.event_times",
    ),
    "test_materialize.py::test_a_source_that_is_not_there": ("materialize._batches",),
    "test_materialize.py::test_missing_columns_are_named": ("columns.source_columns",),
    "test_materialize.py::test_rows_that_never_stay_as_read_end_in_an_error": (
        "materialize.write_rows",
    ),
    "test_online_store.py::test_feast_apply_is_refused_where_the_lock_is_older": (
        "online_store.update",
    ),
    "test_online_store.py::test_no_store_url": ("online_store._open",),
    "test_required.py::test_a_view_that_the_service_does_not_read_is_refused": (
        "required.with_required",
    ),
    "test_staging.py::test_of_two_at_once_one_wins": ("publish.set_staged",),
    "test_staging.py::test_a_generation_is_filled_from_one_history": ("staging._check_history",),
    "test_staging.py::test_rule_14_a_number_that_was_given_up_is_not_used_again": (
        "staging.mark_filled",
    ),
    "test_staging.py::test_rule_14_nothing_else_is_published_while_a_plan_is_staged": (
        "publish.check_may_publish",
        "publish.check_not_staged",
    ),
    "test_staging.py::test_rows_that_hold_more_than_the_log_are_not_filled_from_the_log_alone": (
        "staging.require_history",
    ),
    "test_staging.py::test_unchanged_declarations_take_a_new_generation": ("staging.stage",),
    "test_staging.py::test_what_cannot_be_staged": ("staging._checked", "staging._held"),
    "test_staging.py::test_what_is_not_filled_is_not_switched_to": ("staging.switch",),
}


def test_a_repo_without_modules(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"needs at least one \.py file, got none"):
        load_repo(tmp_path, "encore")


def test_a_registry_that_lost_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(registry: RegistryProto, project: str) -> Definitions:
        return replace(registered(registry, project), services=())

    create_project(tmp_path / "songs")
    monkeypatch.setattr("catalog.apply.registered", lost)
    with pytest.raises(PlanError, match="the registry to hold what the repo declares"):
        apply(tmp_path / "songs" / "feature_repo")
    assert not (tmp_path / "songs" / "feature_repo" / LOCK_NAME).exists()


def raises() -> Iterator[tuple[str, str, range]]:
    """(module, function, lines) of every `raise X(…)` in catalog/."""
    for path in sorted(CATALOG.glob("*.py")):
        tree = ast.parse(path.read_text())
        functions = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None:
                inside = [
                    each
                    for each in functions
                    if each.lineno <= node.lineno <= (each.end_lineno or 0)
                ]
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                yield path.stem, inside[-1].name, lines


def reached() -> set[tuple[str, int]]:
    """(module, line) of the frames that the tables' refusals came through."""
    tables: list[Callable[[], Any]] = [case[1] for case in MORE]
    for module in (test_refusals, test_crosses, test_keys):
        tables += [case[1] for case in module.REFUSALS]
    tables += [partial(test_sequences.declared, *windows) for windows, _ in test_sequences.REFUSALS]
    tables += [partial(test_functions.declared, *case[1]) for case in test_functions.REFUSALS]
    found: set[tuple[str, int]] = set()
    for declared in tables:
        with pytest.raises(EncoreError) as caught:
            compile_plan(declared())
        for frame in traceback.extract_tb(caught.value.__traceback__):
            if Path(frame.filename).parent == CATALOG and frame.lineno:
                found.add((Path(frame.filename).stem, frame.lineno))
    return found


def test_every_raise_is_reached() -> None:
    hits = reached()
    missed = sorted(
        {
            f"{module}.{function}"
            for module, function, lines in raises()
            if not any((module, line) in hits for line in lines)
        }
    )
    named = sorted(site for sites in ELSEWHERE.values() for site in sites)
    assert missed == named, "add a refusal to a table, or name the test that has it"


@pytest.mark.parametrize("named", ELSEWHERE)
def test_the_named_tests_are_there(named: str) -> None:
    file, name = named.split("::")
    assert f"def {name}(" in (Path(__file__).parent / file).read_text()
