"""Scenes that chance brings together too rarely, each with the rule that it needs broken, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from random import Random

import pytest

from tests.simulation.loop import SimulationError
from tests.simulation.mutants import A_LOST_LOG_GETS_NO_NUMBER, ROWS_AHEAD_ARE_REFUSED
from tests.simulation.rest import come_to_rest, happen_next, judge
from tests.simulation.world import REAL, Event, World

ITEMS = 1


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


@pytest.mark.parametrize("broken", [False, True])
def test_rows_ahead_of_a_lost_log_are_refused(world: World, broken: bool) -> None:
    """Killed between rows and table, and then the re-keyed log is gone."""
    produce(world, 12)
    name, dice = started(world), Random(0)
    while not (asks(world, name, "store set encore:sources") and any(item_rows(world))):
        happen_next(world, dice)
    world.loop.pending.clear()
    place = [member.name for _, member in world.members(lambda member: True)].index(name)
    assert world.happen(Event("kill", place))
    assert world.happen(Event("lose", 1))
    if broken:
        with ROWS_AHEAD_ARE_REFUSED.applied(), pytest.raises(SimulationError, match="row"):
            come_to_rest(world)
    else:
        assert not come_to_rest(world), "it is told"
        judge(world, "user")


def item_rows(world: World) -> list[str]:
    return [key for key in world.server.rows.image().values if key.startswith("i@1")]
