"""The end of a history: no more faults, until all is stored; then the sums must come out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random
from typing import Final

from schemas.actions import decode_batch
from schemas.names import (
    HEADER_SOURCE,
    HEADER_VIEW,
    dead_letter_topic,
    generation_group,
    late_topic,
    row_key,
    source_table_key,
)
from schemas.plan import ViewPlan
from streams.config import StreamConfig
from streams.source_table import parse_pair
from tests.oracle.fold import Sent, as_dicts, in_time
from tests.simulation.broker import TopicLog
from tests.simulation.history import floors_in
from tests.simulation.loop import SimulationError
from tests.simulation.member import Member
from tests.simulation.reference import same
from tests.simulation.setting import CONFIG, Event
from tests.simulation.world import World

#: Most rounds of events until a world without faults must have come to rest.
REST_EVENTS: Final = 6_000


def come_to_rest(world: World) -> bool:
    """No more faults: until everything that was logged is stored.

    False where item workers rightly say that only a rebuild can tell what rows hold. Raises
    SimulationError where rest does not come.
    """
    dice = Random(len(world.reasons))
    while world.happen(Event("resume", 0)):
        pass
    for _ in range(REST_EVENTS):
        if at_rest(world):
            return True
        if is_told(world):
            return False
        happen_next(world, dice)
    raise SimulationError("rest", f"does not come: {lagging(world)}; {world.reasons[-4:]}")


def is_told(world: World) -> bool:
    """An item worker refused a row that holds more than anyone knows, and it does."""
    found = re.search(r"row (i@\S+): needs nothing beyond", (world.reasons or [""])[-1])
    late = lagging(world) if found else []
    return bool(
        found
        and late
        and all(each.startswith(("pair", "staged")) for each in late)
        and world.reference.is_ahead(found[1])
    )


def happen_next(world: World, dice: Random) -> None:
    """Whatever moves things on, the nearest first."""
    for kind in ("step", "learn", "hand", "fetch"):
        if world.happen(Event(kind, dice.getrandbits(30))):
            return
    began = False
    for place, group in enumerate(world.groups):
        alive = group.alive()
        if group.config.topic != world.newest.topic and not _behind_anywhere(world):
            continue  # all is stored: who reads an old topic ends
        held = {tp for m in alive if m.generation == group.generation for tp in m.places}
        if not alive:
            began = world.happen(Event("start", place))
            continue
        asked = any(member.invited for member in alive)
        if (
            held != set(group.places)
            and not asked
            and world.happen(Event("rebalance", place + len(world.groups) * dice.getrandbits(20)))
        ):
            return
    if began:
        rest_a_while(world, dice)  # they may wait for one that sleeps, or has nothing to read
        return
    if world.fillings.refused:
        world.happen(Event("give_up", 0))
    elif world.fillings.operator is None and world.fillings.staged().active:
        world.happen(Event("backfill", 1))
    found = world.moves.succession
    if world.moves.operator is None and len(found.open) < len(found.topics):
        world.happen(Event("end", 0))
    rest_a_while(world, dice)


def rest_a_while(world: World, dice: Random) -> None:
    """Time passes, and who waits looks around."""
    world.happen(Event("tick", dice.getrandbits(20)))
    for _ in range(4):
        world.happen(Event("idle", dice.getrandbits(30)))


def at_rest(world: World) -> bool:
    """Nobody lags and nothing is on its way."""
    return not world.loop.pending and not lagging(world) and all(map(idle, members(world)))


def members(world: World) -> list[Member]:
    """All that live."""
    return [member for group in world.groups for member in group.alive()]


def idle(member: Member) -> bool:
    """It waits for work, and there is none."""
    return member.waiting and not member.inbox


def lagging(world: World) -> list[str]:
    """Marks that are not where their log ends."""
    late = _behind_anywhere(world)
    if world.fillings.staged().active:
        late.append(f"staged: {world.fillings.staged().views}")
    found = world.moves.succession
    if len(found.open) < len(found.topics):
        late.append(f"{found.newest.name} is not open")
    return late


def _behind_anywhere(world: World) -> list[str]:
    """Marks and pairs that lag, of any topic that is read.

    Whoever reads the old topic goes on while those of the new one wait for it: what is stored in
    each generation, only its own readers can tell.
    """
    return [
        each
        for config in world.moves.open()
        for lags in (_users_lag, _items_lag)
        for each in lags(world, config)
    ]


def _behind(world: World, config: StreamConfig, group: str) -> list[str]:
    """Marks of a group that are not where the source ends."""
    late = []
    marks = world.server.rows.get_progress(config.topic, group)
    for partition, want in _source_ends(world, config).items():
        if want[1] and (partition not in marks or marks[partition][:2] != want):
            late.append(f"{group}/{partition} at {marks.get(partition)}, log ends at {want}")
    return late


def _source_ends(world: World, config: StreamConfig) -> dict[int, tuple[int, int]]:
    source = world.broker.logs[config.topic]
    epoch = dict(world.reference.epochs.get(CONFIG.topic, ())).get(source.topic_id, 0)
    return {partition: (epoch, source.stop(partition)) for partition in range(config.partitions)}


def _users_lag(world: World, config: StreamConfig) -> list[str]:
    late = _behind(world, config, CONFIG.group)
    for view in world.reference.current("user"):
        floors = floors_in(world.reference, view, config.topic)
        group = generation_group(CONFIG.group, view.name, view.generation)
        marks = world.server.rows.get_progress(config.topic, group)
        for partition, want in _source_ends(world, config).items():
            at = max(floors.get(partition, (0, 0)), marks.get(partition, (0, 0))[:2])
            if partition not in floors or (want[1] and at != want):
                late.append(f"{group}/{partition} at {at}, log ends at {want}")
    return late


def _items_lag(world: World, config: StreamConfig) -> list[str]:
    target = world.broker.logs[config.item_topic]
    epoch = dict(world.reference.epochs.get(CONFIG.item_topic, ())).get(target.topic_id, 0)
    late = _behind(world, config, f"{CONFIG.item_group}.rekey.{epoch}")
    for partition in range(config.partitions):
        key = source_table_key(target.name, CONFIG.item_group, partition)
        pair = parse_pair(world.server.rows.get_text(key), key)
        if config.topic != world.newest.topic:  # what comes behind is repeated
            reached = pair.table.reached
            for place, want in _source_ends(world, config).items():
                if want[1] and reached.get(place, (0, 0)) != want:
                    late.append(f"pair {partition} at {reached}, {place} ends at {want}")
            continue
        end = target.end(partition)
        if end and pair.next_offset != end:
            late.append(f"pair {partition} at {pair.next_offset} of {end}")
        wanted = {view.key for view in world.reference.current("item")}
        if end and not wanted <= pair.folded:
            late.append(f"pair {partition} speaks for {sorted(pair.folded)}")
    return late


# --- judgement -------------------------------------------------------------------------------


def judge(world: World, entities: str) -> None:
    """Folded + late + future + dead = logged, for each generation that is folded now."""
    reference, rows = world.reference, world.server.rows
    views = [view for entity in entities.split() for view in reference.current(entity)]
    for view in views:
        for log, partition in logs_of(world, view):
            epoch = dict(reference.epochs.get(view.source, ())).get(log.topic_id, 0)
            reference.require_stored(view, partition, epoch, log.stop(partition))
    for key, held in reference.held.items():
        if held and rows.read([key]) == [None]:
            raise SimulationError("gone", key)
    judge_dead(world)
    for view in views:
        judge_late(world, view)


def logs_of(world: World, view: ViewPlan) -> Iterator[tuple[TopicLog, int]]:
    """The partitions of the logs that it is fed from, as far as it takes part in them."""
    for config in world.moves.open():
        topic = config.topic if view.entity == "user" else config.item_topic
        for partition in range(config.partitions):
            key = source_table_key(topic, CONFIG.item_group, partition)
            pair = parse_pair(world.server.rows.get_text(key), key)
            newest = config.topic == world.newest.topic
            if view.entity == "user" or newest or view.key in pair.folded:
                yield world.broker.logs[topic], partition


def judge_dead(world: World) -> None:
    """Of the logs that are there: each malformed message is a dead letter."""
    logs = {world.broker.logs[config.topic].topic_id for config in world.moves.open()}
    dead = {
        dict(record.headers)[HEADER_SOURCE].decode()
        for record in world.broker.logs[dead_letter_topic(CONFIG.topic)].records[0]
    }
    for topic_id, partition, offset in world.reference.malformed:
        place = f"{world.broker.by_id[topic_id].name}/{partition}/{offset}"
        if topic_id in logs and place not in dead:
            raise SimulationError("dead", f"{place} is malformed, and no dead letter")


def judge_late(world: World, view: ViewPlan) -> None:
    """Every action that came by the log is in its row, or is aside for this view."""
    reference = world.reference
    told = aside(world, view)
    for log, partition in logs_of(world, view):
        epoch = dict(reference.epochs.get(view.source, ())).get(log.topic_id, 0)
        for arrival in reference.to_judge(view, partition, epoch):
            sent, place = arrival.sent, f"{log.name}/{partition}/{arrival.offset}"
            key = row_key(view.name, view.generation, sent[0][view.entity])
            if in_time(view, *sent):
                folded = reference.held.get(key, {}), reference.left.get(key, ())
                if not any(arrival.origin in each for each in folded):
                    raise SimulationError("nowhere", str(arrival.origin))
            elif not any(same(each, sent) for each in told.get(place, ())):
                raise SimulationError("late", f"{arrival.origin} is late and not aside for {key}")


def aside(world: World, view: ViewPlan) -> dict[str, list[Sent]]:
    """What was told to be late or from the future for a view, by the message it came in."""
    found: dict[str, list[Sent]] = {}
    for record in world.broker.logs[late_topic(view.source)].records[0]:
        headers = {name: value.decode() for name, value in record.headers}
        if headers[HEADER_VIEW] == view.name:
            batch = decode_batch(record.value)
            actions = [(action, batch.sent_ms) for action in as_dicts(batch.actions)]
            found.setdefault(headers[HEADER_SOURCE], []).extend(actions)
    return found
