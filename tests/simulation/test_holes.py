"""Scenes of messages that the topic dropped before they were folded."""

from __future__ import annotations

from contextlib import nullcontext
from random import Random

import pytest

from schemas.names import source_table_key
from streams.rekey import rekey_group
from streams.source_table import lowest_reached, parse_pair
from tests.simulation.loop import SimulationError
from tests.simulation.mutants import (
    GO_ON_AT_THE_MARK,
    TABLES_TAKE_WHAT_WAS_GIVEN,
    WHAT_IS_BEFORE_A_HOLE_IS_FOLDED_FIRST,
)
from tests.simulation.rest import come_to_rest, happen_next, judge
from tests.simulation.setting import CONFIG, Event
from tests.simulation.test_scenes import ONLY_USERS, USERS, produce, step_of
from tests.simulation.test_scenes import world as world
from tests.simulation.world import World


@pytest.mark.parametrize("broken", [False, True])
def test_what_the_topic_dropped_comes_back_from_the_archive(world: World, broken: bool) -> None:
    """Nobody read for long. Worker after worker ends at the hole, until the view is filled up to
    where the log ends; then it goes on from there."""
    produce(world, 6)
    assert come_to_rest(world)
    while world.members(lambda member: True):
        assert world.happen(Event("kill", 0))
    world.loop.pending.clear()
    produce(world, 12)
    log = world.broker.logs[CONFIG.topic]
    for partition in range(CONFIG.partitions):
        world.fillings.archived(log, partition, log.end(partition))
        log.first[partition] = log.end(partition)
    produce(world, 6)
    with GO_ON_AT_THE_MARK.applied() if broken else nullcontext():
        assert world.happen(Event("start", USERS))
        for _ in range(60):
            happen_next(world, Random(1))
        assert any("without a hole, got" in reason for reason in world.reasons)
        assert world.happen(Event("backfill", ONLY_USERS))
        users_go_on(world)
        produce(world, 6)
        users_go_on(world)
        ends = {p: log.end(p) for p in range(CONFIG.partitions)}
        marks = world.server.rows.get_progress(CONFIG.topic, CONFIG.group)
        there = {p: mark.next_offset for p, mark in marks.items()}
        assert (there == ends) is not broken
    if not broken:
        judge(world, "user")


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_items_get_over_what_their_source_dropped(world: World, seed: int, lost: bool) -> None:
    """Item workers are killed anywhere, and nobody reads for long. Where the re-keyed log is lost,
    too, it begins anew behind what the tables know."""
    over_a_hole(world, seed, lost)
    told = [each for each in world.reasons if each.startswith("g.items") and "are missing" in each]
    assert told or seed % 2, "workers end at the hole"
    assert [view.generation for view in world.reference.current("item")] == [2]


def test_over_a_hole_tables_take_what_was_given(world: World) -> None:
    with TABLES_TAKE_WHAT_WAS_GIVEN.applied(), pytest.raises(SimulationError):
        over_a_hole(world, 0, lost=False)


@pytest.mark.parametrize("broken", [False, True])
def test_what_was_re_keyed_before_a_hole_is_folded_first(world: World, broken: bool) -> None:
    """An item worker is killed before it folds what it re-keyed, and a filling takes that, too. One
    that did not wait for the next worker would be level with a table that has nothing of it."""
    produce(world, 6)
    assert come_to_rest(world)
    produce(world, 12)
    dice = Random(5)
    while not re_keyed_and_not_folded(world):
        happen_next(world, dice)
    drop_all(world, dice)
    with WHAT_IS_BEFORE_A_HOLE_IS_FOLDED_FIRST.applied() if broken else nullcontext():
        assert world.happen(Event("backfill", 1))
        operator = world.fillings.operator
        assert operator is not None
        while world.fillings.operator is operator and world.fillings.staged().state != "filled":
            step_of(world, operator.name)  # no item worker runs: it waits in vain, and gives in
        assert (world.fillings.staged().state == "filled") == broken
        if broken:
            with pytest.raises(SimulationError, match=r"row: i@2:"):
                come_to_rest(world)
            return
        for _ in range(200):
            happen_next(world, dice)
        assert not re_keyed_and_not_folded(world)
        assert world.happen(Event("backfill", 1))
        assert come_to_rest(world)
        judge(world, "user item")


def re_keyed_and_not_folded(world: World) -> bool:
    """Something lies in the re-keyed log, by its mark in the source, that no table has."""
    rows, partitions = world.server.rows, range(CONFIG.partitions)
    sent = rows.get_progress(CONFIG.topic, rekey_group(CONFIG.item_group, 1))
    keys = [source_table_key(CONFIG.item_topic, CONFIG.item_group, p) for p in partitions]
    pairs = {p: parse_pair(rows.get_text(key), key) for p, key in enumerate(keys)}
    return any(lowest_reached(pairs, s, 1) < mark.next_offset for s, mark in sent.items())


def over_a_hole(world: World, seed: int, lost: bool) -> None:
    """Until all is stored."""
    drop_what_nobody_read(world, Random(seed), lost)
    for _ in range(0 if seed % 2 else 60):
        happen_next(world, Random(1))
    assert world.happen(Event("backfill", 1))
    assert come_to_rest(world)
    produce(world, 8)
    assert come_to_rest(world)
    judge(world, "user item")


def drop_what_nobody_read(world: World, dice: Random, lost: bool) -> None:
    produce(world, 6)
    assert come_to_rest(world)
    produce(world, 6)
    for _ in range(dice.randrange(120)):
        happen_next(world, dice)
    drop_all(world, dice, lost)


def drop_all(world: World, dice: Random, lost: bool = False) -> None:
    """All processes are killed, and the topic drops what it holds; little of it is not archived."""
    while world.members(lambda member: True):
        assert world.happen(Event("kill", 0))
    world.loop.pending.clear()
    produce(world, 12)
    if lost:
        assert world.happen(Event("lose", 1))
    log = world.broker.logs[CONFIG.topic]
    for partition in range(CONFIG.partitions):
        upto = log.end(partition) - dice.randrange(3)
        world.fillings.archived(log, partition, upto)
        log.first[partition] = world.reference.expired[log.topic_id, partition] = upto
    produce(world, 6)


def users_go_on(world: World) -> None:
    """Long enough for all; the item worker has a hole of its own, and ends there each time."""
    dice = Random(0)
    for _ in range(1_000):
        happen_next(world, dice)
