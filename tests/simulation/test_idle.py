"""The store loses what it has under processes that nothing more comes for, and cuts nobody off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from random import Random
from typing import Any, Final

import pytest

from streams.holding import Holding
from streams.positions import Positions
from streams.source_table import PairStore
from tests.simulation.loop import SimulationError
from tests.simulation.mutants import Mutant
from tests.simulation.rest import at_rest, come_to_rest, happen_next, judge
from tests.simulation.run import generate
from tests.simulation.server import Moment
from tests.simulation.setting import REAL, Event
from tests.simulation.world import World


async def look_at_nothing(*_: Any) -> None:
    return


async def require_its_own(self: Positions) -> None:
    there = await self._store.get_progress(self._topic, self._group)
    for partition, offset in self._stored.items():
        self._require_mark(there[partition]._replace(epoch=0), partition, offset)


IDLE_PROCESSES_LOOK: Final = Mutant("idle processes look", Holding, "watch", look_at_nothing)
MARKS_ARE_LOOKED_AT: Final = Mutant("marks are looked at", Positions, "check", look_at_nothing)
TABLES_ARE_LOOKED_AT: Final = Mutant("tables are looked at", PairStore, "check", look_at_nothing)
WHAT_IS_THERE_IS_NO_LOSS: Final = Mutant(
    "what is there is no loss", Positions, "check", require_its_own
)


@pytest.fixture
def world() -> Iterator[World]:
    made = World(REAL)
    yield made
    made.close()


def folded(world: World, count: int) -> list[Moment]:
    """So many messages more are sent, and all is stored: what the store went through."""
    for pick in range(count):
        assert world.happen(Event("produce", pick))
    moments, dice = [world.server.moments[-1]], Random(0)
    while not at_rest(world):
        happen_next(world, dice)
        if world.server.moments[-1] is not moments[-1]:
            moments.append(world.server.moments[-1])
    return moments


def outlive(world: World) -> int:
    """Who lives now commits what the store had confirmed before. How many that is."""
    members = world.members(lambda member: True)
    for _, member in members:
        member.outlived = True
    return len(members)


@pytest.mark.parametrize("broken", [False, True])
def test_what_was_flushed_under_idle_processes_is_folded_again(world: World, broken: bool) -> None:
    """The plan is applied at once, so that nothing but the look tells of it."""
    with IDLE_PROCESSES_LOOK.applied() if broken else nullcontext():
        folded(world, 12)
        plan = world.plan
        assert plan is not None
        assert world.reasons == []
        world.server.flush()
        world.publish(plan.views)
        count = outlive(world)
        if broken:
            with pytest.raises(SimulationError, match="rest: does not come"):
                come_to_rest(world)
        else:
            assert come_to_rest(world)
            judge(world, "user item")
            assert sum("its history" in reason for reason in world.reasons) == count


def gone_back(behind: int) -> bool:
    """A history in which the store goes back by so many changes. False where it had not so many."""
    world = World(REAL)
    try:
        folded(world, 4)
        moments = folded(world, 4)
        if behind >= len(moments):
            return False
        world.server.go_back(moments[-1 - behind])
        outlive(world)
        assert come_to_rest(world)
        judge(world, "user item")
        return True
    finally:
        world.close()


@pytest.mark.parametrize("broken", [None, MARKS_ARE_LOOKED_AT, TABLES_ARE_LOOKED_AT])
def test_what_was_put_back_under_idle_processes_is_folded_again(broken: Mutant | None) -> None:
    """To each moment on the way, the history's marker with it."""
    with nullcontext() if broken is None else broken.applied():
        if broken is None:
            behind = 1
            while gone_back(behind):
                behind += 1
            assert behind > 10
        else:
            with pytest.raises(SimulationError):
                for behind in range(1, 40):
                    assert gone_back(behind)


def test_a_false_alarm_is_found() -> None:
    with WHAT_IS_THERE_IS_NO_LOSS.applied():
        error = generate(2, 300).error
    assert error is not None
    assert error.rule == "alarm"
