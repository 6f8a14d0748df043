"""Marks and floors of generations, and what a worker makes of a plan published under it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import PlanError, StoreError, StreamError
from schemas.names import (
    PLAN_KEY,
    PLAN_VERSION_KEY,
    STAGED_KEY,
    floors_keys,
    generation_group,
)
from schemas.plan import Plan, ViewPlan, dump_plan
from schemas.staged import Staged, dump_staged
from store.base import Progress
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from streams.admin import ensure_topics
from streams.following import PlanFollower
from streams.generations import NOTHING, Generations, parse_floors
from streams.producer import ActionProducer
from tests.aggregation.plans import small_view
from tests.streams.support import (
    PARTITIONS,
    Stack,
    assert_rows_equal_oracle,
    make_stack,
    running,
    some_actions,
    wait_stored,
    wait_until,
)
from tests.streams.test_folding import Batch, Bench, messages, run_of

VIEW = replace(small_view(), source="t")
NEXT = replace(VIEW, generation=2)


def generations(store: MemoryRowStore, epoch: int = 1) -> Generations:
    return Generations(AsyncMemoryRowStore(store), "t", "g", epoch, 100)


def begin(made: Generations, views: Sequence[ViewPlan], marks: dict[int, int]) -> None:
    asyncio.run(made.begin(views, (0, 1), marks))


def lags(made: Generations) -> dict[tuple[str, int], int]:
    """(view, partition) → the next offset that it lacks."""
    return {(view.name, partition): at for view, partition, at in made.lagging()}


def floors_of(store: MemoryRowStore, view: ViewPlan) -> dict[int, tuple[int, int]]:
    return parse_floors(store.get_text(floors_keys("t", "g", view.name, view.generation)[0]), "f")


def test_a_first_start_reads_from_the_beginning() -> None:
    store = MemoryRowStore()
    made = generations(store)
    begin(made, [VIEW], {})
    assert floors_of(store, VIEW) == {0: (1, 0), 1: (1, 0)}
    assert made.floors == {VIEW.key: {0: 0, 1: 0}}
    assert lags(made) == {}


def test_a_new_generation_begins_at_the_groups_position_and_keeps_its_floor() -> None:
    store = MemoryRowStore()
    first = generations(store)
    begin(first, [VIEW], {})
    asyncio.run(first.change([NEXT], {0: 40, 1: 7}))
    assert first.floors == {NEXT.key: {0: 40, 1: 7}}
    asyncio.run(first.store({0: (50, 900)}))
    group = generation_group("g", VIEW.name, 2)
    assert store.get_progress("t", group) == {0: Progress(1, 50, 900)}
    again = generations(store)
    begin(again, [NEXT], {0: 50, 1: 7})
    assert lags(again) == {}, "its own mark, else its floor"
    assert floors_of(store, NEXT) == {0: (1, 40), 1: (1, 7)}


def test_a_generation_lags_where_its_mark_lies_before_the_stream() -> None:
    """Nothing of the stream is folded into it there, nor marked, until it has caught up."""
    store = MemoryRowStore()
    other = replace(VIEW, name="other")
    for view, offset in ((VIEW, 30), (other, 20)):
        store.put_progress("t", generation_group("g", view.name, 1), {0: (1, offset, 0)})
    made = generations(store)
    begin(made, [VIEW, other], {0: 25})
    assert lags(made) == {("other", 0): 20}
    assert made.floors == {VIEW.key: {0: 25, 1: 0}, other.key: {0: NOTHING, 1: 0}}
    asyncio.run(made.store({0: (35, 0), 1: (3, 0)}))
    group = generation_group("g", "other", 1)
    assert store.get_progress("t", group) == {0: Progress(1, 20, 0), 1: Progress(1, 3, 0)}
    asyncio.run(made.advance(other, 0, (31, 5)))
    assert lags(made) == {("other", 0): 31}
    assert store.get_progress("t", group)[0] == Progress(1, 31, 5)
    made.caught_up(other, 0)
    assert lags(made) == {}
    assert made.floors[other.key] == {0: 25, 1: 0}


def test_a_generation_that_another_worker_folded_less_far_lags() -> None:
    store = MemoryRowStore()
    late = generations(store)
    begin(late, [VIEW], {})
    other = generations(store)
    begin(other, [VIEW], {})
    asyncio.run(other.change([NEXT], {0: 10, 1: 0}))
    asyncio.run(other.store({0: (12, 0)}))
    asyncio.run(late.change([NEXT], {0: 40, 1: 0}))
    assert lags(late) == {(NEXT.name, 0): 12}


def test_a_new_log_has_no_floor() -> None:
    store = MemoryRowStore()
    begin(generations(store), [VIEW], {0: 40, 1: 40})
    made = generations(store, epoch=2)
    begin(made, [VIEW], {0: 5})
    assert lags(made) == {(VIEW.name, 0): 0}
    assert made.floors == {VIEW.key: {0: NOTHING}}


def test_floors_that_others_record_at_once_are_kept() -> None:
    class Contended(MemoryRowStore):
        lost = 3

        def compare_and_set_text(
            self, key: str, version_key: str, expected_version: int, text: str
        ) -> bool:
            self.lost -= 1
            if self.lost >= 0:
                return False
            return super().compare_and_set_text(key, version_key, expected_version, text)

    store = Contended()
    begin(generations(store), [VIEW], {0: 4})
    assert floors_of(store, VIEW) == {0: (1, 4), 1: (1, 0)}
    store = Contended()
    store.lost = 1_000
    with pytest.raises(StreamError, match=r"floors of .* needs to be recorded, got another writer"):
        begin(generations(store), [VIEW], {0: 4})


@pytest.mark.parametrize("text", ["[", "[1]", '{"0": 1}'])
def test_other_texts_are_no_floors(text: str) -> None:
    store = MemoryRowStore()
    store.put_text(floors_keys("t", "g", VIEW.name, 1)[0], text)
    with pytest.raises(StreamError, match=r"needs floors, \{partition"):
        begin(generations(store), [VIEW], {})


def test_nothing_below_the_floor_is_folded() -> None:
    bench, sent = Bench(), messages(12)
    folder = bench.folder()
    folder.floors = {VIEW.key: {0: 5, 1: 9}}
    bench.apply(folder, run_of(sent))
    assert_rows_equal_oracle(bench.store, small_view(), sent[5:])


# --- the published plan ---------------------------------------------------------------------


def publish(store: MemoryRowStore, plan: Plan) -> None:
    version = int(store.get_text(PLAN_VERSION_KEY) or 0)
    assert store.compare_and_set_text(PLAN_KEY, PLAN_VERSION_KEY, version, dump_plan(plan))


def stage(store: MemoryRowStore, staged: Staged) -> None:
    version = int(store.get_text(PLAN_VERSION_KEY) or 0)
    assert store.compare_and_set_text(STAGED_KEY, PLAN_VERSION_KEY, version, dump_staged(staged))


def generations_of(follower: PlanFollower) -> list[int]:
    return [view.generation for view in follower.views]


def test_a_publication_is_noticed_once() -> None:
    async def scenario() -> None:
        store = MemoryRowStore()
        publish(store, Plan(4, 3, (VIEW,), ()))
        follower = PlanFollower(AsyncMemoryRowStore(store), "user", "t", clock_s=count().__next__)
        await follower.open()
        assert not await follower.look()
        publish(store, Plan(5, 4, (NEXT,), ()))
        assert await follower.look_now_and_then()
        assert generations_of(follower) == [2]
        assert not await follower.look_now_and_then()
        publish(store, Plan(6, 5, (NEXT, replace(VIEW, name="batch", kind="batch")), ()))
        assert not await follower.look(), "what this topic does not feed changes nothing here"
        newer = replace(VIEW, generation=3)
        staged = Staged("filling", Plan(7, 6, (newer,), ()), {VIEW.name: 3}, {VIEW.name: 3})
        stage(store, staged)
        assert not await follower.look(), "its rows are not complete yet"
        stage(store, replace(staged, state="filled"))
        assert await follower.look()
        assert generations_of(follower) == [2, 3]
        assert follower.speakers == {newer.key: NEXT}
        other = replace(newer, name="new")
        stage(store, Staged("filled", Plan(7, 6, (other,), ()), {"new": 3}, {"new": 3}))
        assert await follower.look()
        assert follower.views == (NEXT, other)
        assert follower.speakers == {}, "no published one tells what is late for it"
        stage(store, replace(staged, state="filled"))
        publish(store, Plan(7, 6, (newer,), ()))
        assert await follower.look()
        assert generations_of(follower) == [3]
        assert follower.speakers == {}
        stage(store, Staged())
        assert not await follower.look()

    asyncio.run(scenario())


def test_a_plan_that_cannot_be_used_is_told_and_not_followed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        store = MemoryRowStore()
        follower = PlanFollower(AsyncMemoryRowStore(store), "user", "t", clock_s=count().__next__)
        with pytest.raises(PlanError, match="needs a published plan, got none"):
            await follower.open()
        publish(store, Plan(1, 0, (VIEW,), ()))
        await follower.open()
        publish(store, Plan(2, 1, (), ()))
        assert not await follower.look()
        assert not await follower.look()
        assert follower.views == (VIEW,)
        store.fail_next(StoreError("s", required="r", got="g"))
        assert not await follower.look_now_and_then()

    asyncio.run(scenario())
    assert caplog.text.count("the new plan is refused") == 1
    assert "could not be looked at" in caplog.text


# --- a worker -------------------------------------------------------------------------------


@pytest.fixture
def stack(broker: str, valkey: str, tmp_path: Path) -> Stack:
    made = make_stack(broker, valkey, tmp_path / "data")
    ensure_topics(broker, made.config.topics)
    return made


def test_a_running_worker_takes_over_a_new_generation(stack: Stack) -> None:
    """The old generation holds what came before, the new one exactly what came from its floors."""
    config, old = stack.config, stack.view
    new = replace(old, generation=2)
    sent: list[tuple[Batch, dict[int, int]]] = []

    def send(producer: ActionProducer, count: int) -> dict[int, int]:
        ends: dict[int, int] = {}
        for _ in range(count):
            user = np.unique((part := some_actions(60, 9, len(sent)))["user"])[0]
            batch = (part[part["user"] == user], int(part["time_ms"].max()))
            sent.append((batch, producer.send(*batch)))
            ends |= sent[-1][1]
        return ends

    with (
        stack.store() as store,
        ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer,
        running("worker", stack) as worker,
    ):
        wait_stored(stack, send(producer, 10))
        version = int(store.get_text(PLAN_VERSION_KEY) or 0)
        text = dump_plan(Plan(2, 1, (new,), ()))
        assert store.compare_and_set_text(PLAN_KEY, PLAN_VERSION_KEY, version, text)
        while f"{new.name}@2" not in worker.text():
            wait_stored(stack, send(producer, 2))
        wait_stored(stack, send(producer, 10))
        key, _ = floors_keys(config.topic, config.group, new.name, 2)
        floors = {int(p): at for p, (_, at) in json.loads(store.get_text(key) or "").items()}
        split = [
            (batch, next(p in floors and end > floors[p] for p, end in ends.items()))
            for batch, ends in sent
        ]
        assert 10 <= sum(late for _, late in split) < len(sent)
        assert_rows_equal_oracle(store, old, [batch for batch, late in split if not late])
        assert_rows_equal_oracle(store, new, [batch for batch, late in split if late])
        group = generation_group(config.group, new.name, 2)
        marks = {p: mark.next_offset for p, mark in store.get_progress(config.topic, group).items()}
        ends = {p: max(e[p] for _, e in sent if p in e) for p in marks}
        assert marks == ends
        worker.kill()
        with running("worker", replace(stack, plan=Plan(2, 1, (new,), ()))) as again:
            ends = send(producer, 4)
            wait_stored(stack, ends)
            split += [(batch, True) for batch, _ in sent[len(split) :]]
            assert_rows_equal_oracle(store, new, [batch for batch, late in split if late])
            assert again.terminate() == 0
    wait_until(lambda: worker.popen.poll() is not None)
