"""What a filled generation must hold: all below its floors that the archive or the log has.

Below the floors of a user view lies, of the log that they are in, what comes before them; of
earlier logs what was archived before they were lost. Of an item view, of the log that the users'
actions came by when the filling began, what the source table of its floor says; of earlier logs the
same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from schemas.ids import partitions_of
from schemas.names import floors_keys, generation_group, source_table_key
from schemas.plan import Plan, ViewPlan, load_plan
from schemas.staged import Staged, load_staged
from streams.generations import parse_floors
from streams.source_table import parse_pair

if TYPE_CHECKING:
    from tests.simulation.reference import Held, Origin, Reference

#: Source log, and per partition of it the first offset that is not below the floor.
Bounds = tuple[str, Mapping[int, int]]


@dataclass
class History:
    """sources: ids of the logs of the users' topic, oldest first. archived: (log, partition) → up
    to where. since: place in `sources` of the log there was when the newest filling began."""

    sources: list[str] = field(default_factory=list)
    archived: dict[tuple[str, int], int] = field(default_factory=dict)
    since: int = 0
    topics: dict[str, str] = field(default_factory=dict)  # by entity, which the filling goes by

    def is_filled(
        self, known: Reference, view: ViewPlan, entity: int, fence: tuple[int, int]
    ) -> bool:
        """A row with this fence is one that a filling wrote."""
        floors = floors_of(known, view, fence[0])
        partition = place_of(entity, known.count_of(view, fence[0]))
        return view.key in known.staged and floors.get(partition) == (fence[0], fence[1] + 1)

    def below(self, known: Reference, view: ViewPlan, entity: int) -> Iterator[Held]:
        """What the row may hold: one set, or one for each log there was while it was filled."""
        partitions = known.facts[known.logs[self.topics[view.entity]]][1]
        for log, bounds in self._bounds(known, view, place_of(entity, partitions)):
            order = {each: place for place, each in enumerate(self.sources)}
            # As it is read, log after log: a deletion in one leaves what lies in the next.
            sent_in_order = sorted(known.truth.items(), key=lambda each: order.get(each[0][0], -1))
            yield {
                origin: sent
                for origin, sent in sent_in_order
                if sent[0][view.entity] == entity
                and origin[2] < self._end(known, order, (log, bounds), origin)
            }

    def _end(
        self, known: Reference, order: Mapping[str, int], bound: Bounds, origin: Origin
    ) -> int:
        (log, bounds), place = bound, origin[:2]
        if origin[0] == log:
            return bounds.get(origin[1], 0)
        if origin[0] not in order or order[origin[0]] > order[log]:
            return 0
        return known.stops.get(place, self.archived.get(place, 0))

    def _bounds(self, known: Reference, view: ViewPlan, partition: int) -> Iterator[Bounds]:
        topic = self.topics[view.entity]
        epoch, floor = floors_in(known, view, topic)[partition]
        if view.entity == "user":
            yield known.log_of(view.source, epoch), {partition: floor}
            return
        name = generation_group(known.item_group, view.name, view.generation)
        key = source_table_key(topic, name, partition)
        pair = parse_pair(known.rows.get_text(key), key)
        for log in self.sources[self.since :]:
            number = dict(known.epochs.get(known.topic, ())).get(log, 0)
            reached = pair.table.reached.items()
            yield log, {source: at for source, (epoch, at) in reached if epoch == number}


@cache
def plan_of(text: str) -> Plan:
    """A published plan; the same text comes again and again."""
    return load_plan(text, "plan")


@cache
def staged_of(text: str | None) -> Staged:
    """What is staged."""
    return load_staged(text, "staged")


def place_of(entity: int, partitions: int) -> int:
    """The partition of an entity."""
    return int(partitions_of(np.array([entity]), partitions)[0])


def floors_of(known: Reference, view: ViewPlan, epoch: int) -> dict[int, tuple[int, int]]:
    """{partition: (epoch, floor)} as they are stored, in the topic with the log of that number."""
    return floors_in(known, view, known.topic_of(view, epoch))


def floors_in(known: Reference, view: ViewPlan, topic: str) -> dict[int, tuple[int, int]]:
    """The same of a topic by name."""
    group = known.group if view.entity == "user" else known.item_group
    key, _ = floors_keys(topic, group, view.name, view.generation)
    return parse_floors(known.rows.get_text(key), key)
