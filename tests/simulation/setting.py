"""What a simulation is made of before anything happens: configuration, events, consumer groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from faust.types import TP

from streams.app import Handler
from streams.config import StreamConfig
from streams.item_worker import ItemWorker
from streams.servers import Servers
from streams.worker import Worker
from tests.simulation.member import Member
from tests.simulation.reference import PARTITIONS, RETENTION_MS

T0: Final = 1_650_800_000_000
MOST_MEMBERS: Final = 3
CONFIG: Final = StreamConfig(
    "virtual:0",
    "virtual://",
    Path("unused"),
    group="g",
    partitions=PARTITIONS,
    batch_actions=4,
    patience_ms=1_000,
    retention_ms=RETENTION_MS,
)
#: Events of `Fillings`; the others are the world's own.
FILLING: Final = ("archive", "backfill", "interrupt", "give_up")
#: Events of `Moves`.
MOVING: Final = ("grow", "end", "abandon")
MakeHandler = Callable[[StreamConfig, Servers], Handler]


class Event(NamedTuple):
    """kind: a `do_` method of the world. pick: what it chooses by."""

    kind: str
    pick: int


@dataclass(frozen=True)
class Kinds:
    """The processes under test."""

    worker: MakeHandler = Worker
    items: MakeHandler = ItemWorker


REAL: Final = Kinds()


@dataclass
class Group:
    """A consumer group and its topics."""

    name: str
    topics: tuple[str, ...]
    make: MakeHandler
    config: StreamConfig
    members: dict[str, Member] = field(default_factory=dict)
    committed: dict[TP, int] = field(default_factory=dict)
    generation: int = 0

    @property
    def places(self) -> list[TP]:
        partitions = range(self.config.partitions)
        return [TP(topic, partition) for topic in self.topics for partition in partitions]

    def alive(self) -> list[Member]:
        return [member for member in self.members.values() if not member.ended]
