"""`encore generations list | prune` on a real store: what goes, what stays, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from encore.cli import main
from encore.generations import Choice, Names, names_of, prune
from schemas.errors import PlanError
from schemas.names import (
    PLAN_KEY,
    PLAN_VERSION_KEY,
    STAGED_KEY,
    epoch_key,
    floors_keys,
    generation_group,
    parse_row_key,
    row_keys,
    source_table_key,
)
from schemas.plan import Plan, ViewPlan, dump_plan
from schemas.staged import Staged, dump_staged
from store.keyspace import RedisKeySpace
from store.memory import MemoryRowStore
from streams.config import StreamConfig
from tests.aggregation.plans import small_view

USER: ViewPlan = replace(small_view(), name="acts", generation=3)
ITEM: ViewPlan = replace(small_view(), name="plays", entity="item", source="actions.by-item")
PLAN = Plan(5, 4, (USER, ITEM), (), retired={"gone": 2})
NEXT = replace(PLAN, version=6, parent=5, views=(replace(USER, generation=5), ITEM))
#: @4 was staged and given up, @5 is being filled; @9 and `other` are nobody's.
STAGED = Staged("filling", NEXT, {"acts": 5}, {"acts": 5})
ROWS = {("acts", 1): 3, ("acts", 2): 700, ("acts", 3): 5, ("acts", 4): 2, ("acts", 5): 4} | {
    ("acts", 9): 1, ("plays", 1): 6, ("gone", 2): 2, ("other", 1): 1}  # fmt: skip
OLD = {("acts", 1), ("acts", 2), ("acts", 4), ("gone", 2)}


@pytest.fixture
def config(valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StreamConfig:
    url = valkey.removesuffix("/0") + "/12"
    monkeypatch.setenv("ENCORE_STORE_URL", url)
    monkeypatch.setenv("ENCORE_BOOTSTRAP", "127.0.0.1:9")
    return StreamConfig("127.0.0.1:9", url, tmp_path)


@pytest.fixture
def store(config: StreamConfig) -> Iterator[RedisKeySpace]:
    """Rows of nine generations; floors and marks of some; a database of its own."""
    with RedisKeySpace(config.store_url, sleep=lambda pause_s: None) as space:
        for page in space.pages("*"):
            space.unlink(page)
        space.put_text(PLAN_KEY, dump_plan(PLAN))
        space.put_text(STAGED_KEY, dump_staged(STAGED))
        for (view, generation), count in ROWS.items():
            for key in row_keys(view, generation, list(range(-1, count - 1))):
                space.put_text(key, "a row")
        for generation in (2, 3):
            floors, version = floors_keys("actions", "encore", "acts", generation)
            space.put_text(floors, '{"0": [1, 40]}')
            space.put_text(version, "1")
            own = generation_group("encore", "acts", generation)
            space.put_progress("actions", own, {0: (1, 50, 0)})
        own = generation_group("encore.items", "gone", 1)
        space.put_text(source_table_key("actions.by-item", own, 3), "{}")
        space.epoch_of("actions", "an id")
        yield space


def left(store: RedisKeySpace) -> set[str]:
    return {key for page in store.pages("*") for key in page}


def rows_left(store: RedisKeySpace) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    for parts in filter(None, map(parse_row_key, left(store))):
        found[parts[:2]] = found.get(parts[:2], 0) + 1
    return found


def pruned(store: RedisKeySpace, config: StreamConfig, choice: Choice) -> dict[str, int]:
    held = prune(store, config, choice, lambda done, total: None)
    return {f"{each.view}@{each.generation}": each.rows for each in held}


def test_list_tells_what_each_generation_is(
    store: RedisKeySpace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generations", "list", "--json"]) == 0
    found = {
        (each["view"], each["generation"]): each for each in json.loads(capsys.readouterr().out)
    }
    assert {key: each["rows"] for key, each in found.items()} == ROWS | {("gone", 1): 0}
    states = {key: each["state"] for key, each in found.items()}
    assert {key for key, state in states.items() if state == "old"} == OLD | {("gone", 1)}
    assert (states["acts", 3], states["plays", 1]) == ("published", "published")
    assert states["acts", 5] == "staged"
    assert states["acts", 9] == states["other", 1] == "unknown"
    assert found["acts", 2]["bytes"] > 700 * len("acts@2:{100}" + "a row")
    assert (found["acts", 2]["marks"], found["gone", 1]["marks"]) == (3, 1)
    assert main(["generations", "list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["view", "generation", "state", "rows", "bytes", "marks"]
    assert ["acts", "@2", "old", "700"] in [line[:4] for line in lines]


def test_prune_counts_first_and_removes_old_generations_alone(
    store: RedisKeySpace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = left(store)
    assert main(["generations", "prune", "acts", "--json"]) == 0
    would = json.loads(capsys.readouterr().out)
    assert left(store) == before
    assert main(["generations", "prune", "acts", "--yes"]) == 0
    capsys.readouterr()
    assert {each["generation"]: each["rows"] for each in would} == {1: 3, 2: 700, 4: 2}
    assert rows_left(store) == {
        key: count for key, count in ROWS.items() if key not in OLD or key[0] == "gone"
    }
    gone = before - left(store)
    own = generation_group("encore", "acts", 2)
    assert {
        key for key in gone if "@2:{" not in key and "@1:{" not in key and "@4:{" not in key
    } == {
        *floors_keys("actions", "encore", "acts", 2),
        f"encore:progress:actions:{own}",
    }
    assert epoch_key("actions") in left(store), "numbers of logs stay"
    assert main(["generations", "prune", "acts"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_a_view_that_is_gone_and_one_generation_alone(
    store: RedisKeySpace, config: StreamConfig
) -> None:
    assert pruned(store, config, Choice("gone", remove=True)) == {"gone@1": 0, "gone@2": 2}
    assert pruned(store, config, Choice("gone", remove=True)) == {}
    assert pruned(store, config, Choice("acts", (4,), remove=True)) == {"acts@4": 2}
    assert {("acts", 1), ("acts", 2), ("acts", 3)} < rows_left(store).keys()


@pytest.mark.parametrize(
    "generation, said",
    [(3, "published: readers"), (5, "staged: a backfill"), (6, "unknown: no plan"), (0, "unknown")],
)
def test_what_is_named_or_unknown_is_refused(
    store: RedisKeySpace, config: StreamConfig, generation: int, said: str
) -> None:
    before = left(store)
    with pytest.raises(PlanError, match=f"acts@{generation}: needs an old gen.*one that is {said}"):
        pruned(store, config, Choice("acts", (1, generation), remove=True))
    with pytest.raises(PlanError, match="needs one of acts, gone, plays, got 'other'"):
        pruned(store, config, Choice("other", remove=True))
    assert left(store) == before


def test_a_number_taken_later_is_never_old_before() -> None:
    """What is staged or published while a prune walks has a number that it did not choose."""
    names = Names(PLAN, Staged(used={"acts": 4}))
    ahead = 1 + max(USER.generation, names.newest("acts"))
    assert names.state(("acts", ahead)) == "unknown"
    assert Names(NEXT, STAGED).state(("acts", 5)) == "published"


class Switching(MemoryRowStore):
    """The staged plan is published just before somebody reads what is staged."""

    def get_text(self, key: str) -> str | None:
        if key == STAGED_KEY and super().get_text(PLAN_KEY) == dump_plan(PLAN):
            self.compare_and_set_text(PLAN_KEY, PLAN_VERSION_KEY, 0, dump_plan(NEXT))
            ended = dump_staged(Staged(used={"acts": 5}))
            self.compare_and_set_text(STAGED_KEY, PLAN_VERSION_KEY, 1, ended)
        return super().get_text(key)


def test_a_switch_while_the_plans_are_read() -> None:
    store = Switching()
    store.put_text(PLAN_KEY, dump_plan(PLAN))
    store.put_text(STAGED_KEY, dump_staged(STAGED))
    names = names_of(store)
    assert names.plan == NEXT
    assert names.state(("acts", 5)) == "published"
    assert names.state(("acts", 3)) == "old"
