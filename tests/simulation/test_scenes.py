"""Scenes that chance brings together too rarely, each with the rule that it needs broken, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import count
from random import Random

import pytest

from schemas.plan import ViewPlan
from streams.item_worker import ItemWorker
from tests.oracle.fold import in_time
from tests.simulation.loop import SimulationError
from tests.simulation.mutants import (
    A_FILLING_IS_OF_ONE_HISTORY,
    A_FILLING_IS_OF_ONE_SOURCE,
    A_LOST_LOG_GETS_NO_NUMBER,
    A_LOST_LOG_IS_FOLDED_TO_ITS_END,
    NOTES_COME_BEFORE_ROWS,
    READERS_SWITCH_TO_WHAT_HAS_CAUGHT_UP,
    ROWS_AHEAD_ARE_REFUSED,
    WHAT_IS_LEFT_TO_TELL_COMES_AFTER,
    WHAT_IS_OUTSIDE_OF_BOTH_IS_TOLD_ONCE,
    WHAT_LAGS_TAKES_NOTHING,
    Mutant,
)
from tests.simulation.reference import Origin
from tests.simulation.rest import aside, come_to_rest, happen_next, judge
from tests.simulation.setting import REAL, Event
from tests.simulation.world import World

USERS, ITEMS = 0, 1
SAVES = "store set encore:sources"
#: A backfill of the user view alone, and of the item view, with no end to its rows.
ONLY_USERS, ONLY_ITEMS = 49, 97


@pytest.fixture
def world() -> Iterator[World]:
    made = World(REAL)
    yield made
    made.close()


def started(world: World) -> str:
    """A new item worker's name."""
    assert world.happen(Event("start", ITEMS))
    return next(reversed(world.groups[ITEMS].members))


def asks(world: World, name: str, label: str) -> bool:
    """It waits for the answer to such a request."""
    return any(op.owner == name and op.label.startswith(label) for op in world.loop.pending)


def go_on(world: World, name: str, label: str) -> None:
    """This one alone, up to such a request, which is not done yet."""
    while not asks(world, name, label):
        place = next(n for n, op in enumerate(world.loop.pending) if op.owner == name)
        assert world.happen(Event("step", place))


def produce(world: World, count: int) -> None:
    for pick in range(count):
        assert world.happen(Event("produce", pick))


@pytest.mark.parametrize("broken", [False, True])
def test_a_log_that_was_lost_gets_no_number_above_its_successors(
    world: World, broken: bool
) -> None:
    with A_LOST_LOG_GETS_NO_NUMBER.applied() if broken else nullcontext():
        produce(world, 4)
        late = started(world)
        go_on(world, late, "store epoch actions.by-item")
        assert world.happen(Event("lose", 1))
        early = started(world)
        go_on(world, early, "store get encore:plan")
        if broken:
            with pytest.raises(SimulationError):
                come_to_rest(world)
        else:
            assert come_to_rest(world)
            judge(world, "user item")


def killed_ahead_of_its_table(world: World) -> None:
    """An item worker is killed between rows and table, and then the re-keyed log is gone."""
    produce(world, 12)
    name, dice = started(world), Random(0)
    while not (asks(world, name, SAVES) and table_is_next(world, name) and any(item_rows(world))):
        happen_next(world, dice)
    world.loop.pending.clear()
    place = [member.name for _, member in world.members(lambda member: True)].index(name)
    assert world.happen(Event("kill", place))
    assert world.happen(Event("lose", 1))


def table_is_next(world: World, name: str) -> bool:
    """Of what it saves one is a table, no note of what is to be written."""
    handler = world.groups[ITEMS].members[name].handler
    assert isinstance(handler, ItemWorker)
    return any(not pair.ahead and pair.next_offset for pair in handler._pairs.values())


@pytest.mark.parametrize("broken", [None, A_LOST_LOG_IS_FOLDED_TO_ITS_END, NOTES_COME_BEFORE_ROWS])
def test_what_was_folded_of_a_lost_log_is_folded_to_its_end(
    world: World, broken: Mutant | None
) -> None:
    """Its rows are ahead of any table; the source has what they and others lack."""
    with nullcontext() if broken is None else broken.applied():
        killed_ahead_of_its_table(world)
        assert come_to_rest(world) is (broken is None)
        judge(world, "user" if broken else "user item")


@pytest.mark.parametrize("broken", [False, True])
def test_rows_ahead_of_a_lost_log_are_refused(world: World, broken: bool) -> None:
    """Where nothing was noted of them."""
    with NOTES_COME_BEFORE_ROWS.applied():
        killed_ahead_of_its_table(world)
        if broken:
            with ROWS_AHEAD_ARE_REFUSED.applied(), pytest.raises(SimulationError, match="row"):
                come_to_rest(world)
        else:
            assert not come_to_rest(world), "it is told"
            judge(world, "user")


def item_rows(world: World) -> list[str]:
    return [key for key in world.server.rows.image().values if key.startswith("i@1")]


def begin_filling(world: World) -> str:
    """All is stored, and a backfill of both views has written its rows: the process's name."""
    produce(world, 8)
    assert come_to_rest(world)
    assert world.happen(Event("backfill", 1))
    operator = world.fillings.operator
    assert operator is not None
    go_on(world, operator.name, "store confirm")
    return operator.name


def stream_alone(world: World, without: str, held: str = "nothing") -> None:
    """What there is to read is folded, while one process stands still. held: what
    begins with it has no answer."""
    dice = Random(0)
    for _ in range(400):
        others = [
            n
            for n, op in enumerate(world.loop.pending)
            if op.owner != without and not op.label.startswith(held)
        ]
        if others:
            world.happen(Event("step", others[0]))
        elif not any(world.happen(Event(k, dice.getrandbits(20))) for k in ("hand", "fetch")):
            return


def read_slowly(world: World) -> None:
    """Each read of a span takes longer than a slice: the stream goes on in between."""
    dice = Random(0)
    for _ in range(600):
        if any(op.label.startswith("read actions/") for op in world.loop.pending):
            world.happen(Event("tick", 1))
        happen_next(world, dice)


@pytest.mark.parametrize("broken", [False, True])
def test_a_filled_generation_lags_and_is_caught_up(world: World, broken: bool) -> None:
    with WHAT_LAGS_TAKES_NOTHING.applied() if broken else nullcontext():
        name = begin_filling(world)
        produce(world, 14)
        stream_alone(world, name)
        produce(world, 14)
        if broken:
            with pytest.raises(SimulationError, match=r"u@2"):
                read_slowly(world)
        else:
            read_slowly(world)
            assert come_to_rest(world)
            judge(world, "user item")
            assert [view.generation for view in world.reference.current("user")] == [2]


@pytest.mark.parametrize("broken", [False, True])
def test_readers_switch_to_what_has_caught_up(world: World, broken: bool) -> None:
    """The stream is beyond the floors, and no worker takes a step while the backfill goes on."""
    with READERS_SWITCH_TO_WHAT_HAS_CAUGHT_UP.applied() if broken else nullcontext():
        name = begin_filling(world)
        produce(world, 14)
        stream_alone(world, name)
        for _ in range(300):
            if world.fillings.operator is not None:
                step_of(world, name)
        switched = [view.generation for view in world.reference.current("user")] == [2]
        assert switched == broken
        assert come_to_rest(world)
        judge(world, "user item")
        assert [view.generation for view in world.reference.current("user")] == [2]


def test_a_staged_generation_whose_messages_left_the_topic_holds_nobody_up(world: World) -> None:
    name = begin_filling(world)
    produce(world, 14)
    stream_alone(world, name)
    for partition in range(2):
        log = world.broker.logs["actions"]
        world.fillings.archived(log, partition, log.end(partition))
        log.first[partition] = world.reference.expired[log.topic_id, partition] = log.end(partition)
    assert come_to_rest(world)
    judge(world, "user item")
    assert any("--cancel" in line for line in world.story), "the backfill says what to do"
    assert [view.generation for view in world.reference.current("user")] == [1]
    assert not any("ended" in reason for reason in world.reasons), "workers went on"


def test_a_row_that_left_the_store_begins_anew(world: World) -> None:
    produce(world, 12)
    assert come_to_rest(world)
    while world.happen(Event("sync", 1 << 20)):
        pass
    for partition in range(2):
        assert world.happen(Event("expire", partition))
    left = 0
    while world.happen(Event("leave", 0)):
        left += 1
    assert left > 1
    produce(world, 20)
    assert come_to_rest(world)
    judge(world, "user item")


def wiped_in_a_filling(after: int) -> bool:
    """A history in which the store comes back empty after so many steps of a filling. False where
    the filling has ended by then."""
    world = World(REAL)
    try:
        produce(world, 8)
        assert come_to_rest(world)
        assert world.happen(Event("backfill", ONLY_USERS))
        for _ in range(after):
            if world.fillings.operator is None:
                return False
            step_of(world, world.fillings.operator.name)
        assert world.happen(Event("wipe", 0))
        assert come_to_rest(world)
        judge(world, "user item")
        return True
    finally:
        world.close()


def step_of(world: World, name: str) -> None:
    """Its next operation, or some time where it waits for none."""
    place = next((n for n, op in enumerate(world.loop.pending) if op.owner == name), None)
    assert world.happen(Event("tick", 0) if place is None else Event("step", place))


@pytest.mark.parametrize("broken", [False, True])
def test_a_filling_writes_nothing_into_a_store_that_was_wiped_since(broken: bool) -> None:
    """Its generation's number may be another's there."""
    with A_FILLING_IS_OF_ONE_HISTORY.applied() if broken else nullcontext():
        if broken:
            with pytest.raises(SimulationError, match=r"u@2"):
                wiped_anywhere()
        else:
            assert wiped_anywhere() > 20


def wiped_anywhere() -> int:
    """At how many places of a filling the store was wiped: at each."""
    return next(after for after in count() if not wiped_in_a_filling(after))


@pytest.mark.parametrize("broken", [False, True])
def test_a_filling_of_items_ends_with_the_log_that_it_began_with(
    world: World, broken: bool
) -> None:
    """Run again after its source was lost, it would take the lost log as a whole from the archive,
    and once more what was re-keyed of it behind the floors."""
    with A_FILLING_IS_OF_ONE_SOURCE.applied() if broken else nullcontext():
        produce(world, 8)
        assert come_to_rest(world)
        assert world.happen(Event("backfill", ONLY_ITEMS))
        operator = world.fillings.operator
        assert operator is not None
        go_on(world, operator.name, "store get encore:floors")
        assert world.happen(Event("interrupt", 1))
        produce(world, 14)
        stream_alone(world, "nobody")
        for partition in range(2):
            log = world.broker.logs["actions"]
            world.fillings.archived(log, partition, log.end(partition))
        assert world.happen(Event("lose", 0))
        if broken:
            with pytest.raises(SimulationError, match=r"i@2"):
                come_to_rest(world)
        else:
            assert come_to_rest(world)
            judge(world, "user item")
            assert any("the broker lost that log" in line for line in world.story)


@pytest.mark.parametrize("broken", [False, True])
def test_what_is_late_is_told_before_a_staged_generation_passes_it(
    world: World, broken: bool
) -> None:
    """Workers are killed before they told, and after the switch the staged one is alone."""
    with WHAT_IS_LEFT_TO_TELL_COMES_AFTER.applied() if broken else nullcontext():
        produce(world, 8)
        assert come_to_rest(world)
        assert world.happen(Event("backfill", ONLY_USERS))
        operator = world.fillings.operator
        assert operator is not None
        while world.fillings.staged().state != "filled":
            step_of(world, operator.name)
        assert world.happen(Event("tick", 2))
        produce(world, 14)
        stream_alone(world, operator.name, "send actions.late")
        names = list(world.groups[USERS].members)
        assert any(asks(world, name, "send actions.late") for name in names)
        for name in names:
            place = [member.name for _, member in world.members(lambda member: True)].index(name)
            assert world.happen(Event("kill", place))
            world.loop.pending[:] = [op for op in world.loop.pending if op.owner != name]
        while world.fillings.operator is not None:
            step_of(world, operator.name)
        assert [view.generation for view in world.reference.current("user")] == [2]
        assert come_to_rest(world)
        if broken:
            with pytest.raises(SimulationError, match="late and not aside"):
                judge(world, "user item")
        else:
            judge(world, "user item")


@pytest.mark.parametrize("broken", [False, True])
def test_what_is_outside_of_two_generations_is_told_once(world: World, broken: bool) -> None:
    """Their bounds differ. One that catches up and one that is folded beside the published one."""
    with WHAT_IS_OUTSIDE_OF_BOTH_IS_TOLD_ONCE.applied() if broken else nullcontext():
        name = begin_filling(world)
        produce(world, 20)
        stream_alone(world, name)  # what the staged ones will have to catch up
        while world.fillings.staged().state != "filled":
            step_of(world, name)
        assert world.happen(Event("tick", 2))
        produce(world, 40)
        stream_alone(world, name)
        assert come_to_rest(world)
        judge(world, "user item")
        assert [view.generation for view in world.reference.current("user")] == [2]
        for view in world.reference.current("user") + world.reference.current("item"):
            first = world.reference.views[view.name, 1]
            both = outside(world, first), outside(world, view)
            assert both[0] & both[1] and both[1] - both[0], "bounds that differ"
            told = sum(map(len, aside(world, view).values()))
            assert (told == len(both[0] | both[1])) != broken, f"{view.name}, without any crash"


def outside(world: World, view: ViewPlan) -> set[Origin]:
    """What the stream gave the generation that is late or from the future."""
    arrivals = (a for p in range(2) for a in world.reference.to_judge(view, p, 1))
    return {each.origin for each in arrivals if not in_time(view, *each.sent)}


def test_what_is_waited_for_is_not_taken_back(world: World) -> None:
    """Rows count as filled once the store's disk knows it; then the backfill waits for workers."""
    produce(world, 8)
    assert come_to_rest(world)
    assert world.happen(Event("backfill", ONLY_USERS))
    operator = world.fillings.operator
    assert operator is not None
    while world.fillings.staged().state != "filled":
        step_of(world, operator.name)
    go_on(world, operator.name, "store marks g")
    assert world.happen(Event("crash", len(world.server.moments)))
    assert world.fillings.staged().state == "filled"
    assert come_to_rest(world)
    judge(world, "user item")
