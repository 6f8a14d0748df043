"""What rows, marks and tables must hold, computed from the logs alone.

Every row that lands is compared, byte by byte, with the slow oracle over the set of actions that it
must hold: those it held before, and those of its log between its old fence and its new one. Every
mark that lands is compared with the rows: nothing before it may be missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from aiokafka.structs import ConsumerRecord

from schemas.actions import ActionType
from schemas.ids import partitions_of
from schemas.layout import layout_of
from schemas.names import HEADER_LOG, by_item_topic, floors_keys, generation_group, row_key
from schemas.plan import ViewPlan
from schemas.rekeyed import decode_rekeyed
from schemas.row import TOMBSTONE_MS, encode_rows, read_fence
from store.base import Progress, Write
from store.memory import MemoryRowStore
from streams.generations import parse_floors
from streams.source_table import parse_pair
from tests.oracle.fold import Sent, as_dicts, in_time, rows_of, since_deletion, state_of
from tests.simulation.broker import TopicLog
from tests.simulation.loop import SimulationError

#: One action: the id of the log it was sent to, partition, offset, index in its message.
Origin = tuple[str, int, int, int]
#: What a row holds.
Held = Mapping[Origin, Sent]
#: What was stored at one moment: rows, and the number of each log.
Known = tuple[dict[str, Held], dict[str, tuple[tuple[str, int], ...]], dict[tuple[int, int], int]]
PARTITIONS: Final = 2


@dataclass(frozen=True)
class Arrival:
    """An action in a log that rows are folded from."""

    offset: int
    origin: Origin
    sent: Sent


@dataclass
class Partition:
    """What came by one partition of one log, by entity."""

    arrivals: dict[int, list[Arrival]] = field(default_factory=lambda: defaultdict(list))
    newest_epoch: dict[int, int] = field(default_factory=dict)
    origins: dict[Origin, int] = field(default_factory=dict)  # → the offset it came first at


@dataclass
class Reference:
    """Hears of everything that happens. views: by (name, generation)."""

    topic: str
    group: str
    item_group: str
    rows: MemoryRowStore
    views: dict[tuple[str, int], ViewPlan] = field(default_factory=dict)
    partitions: dict[tuple[str, int], Partition] = field(
        default_factory=lambda: defaultdict(Partition)
    )
    truth: dict[Origin, Sent] = field(default_factory=dict)
    malformed: set[tuple[str, int, int]] = field(default_factory=set)
    held: dict[str, Held] = field(default_factory=dict)
    epochs: dict[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    pairs: dict[tuple[int, int], int] = field(default_factory=dict)  # (partition, epoch) → saved
    logs: dict[str, str] = field(default_factory=dict)  # topic → the id it has now
    expired: dict[tuple[str, int], int] = field(default_factory=dict)  # → the first offset left
    rows_checked: int = 0

    # --- what is in the logs ------------------------------------------------------------------

    def sent(self, log: TopicLog, record: ConsumerRecord, actions: Any, sent_ms: int) -> None:
        """A message of users' actions is in the log. actions: (a,) ACTION, None where it is
        malformed."""
        partition, offset = int(record.partition), int(record.offset)
        if actions is None:
            self.malformed.add((log.topic_id, partition, offset))
            return
        here = self.partitions[log.topic_id, partition]
        for index, action in enumerate(as_dicts(actions)):
            origin = (log.topic_id, partition, offset, index)
            self.truth[origin] = action, sent_ms
            here.arrivals[action["user"]].append(Arrival(offset, origin, (action, sent_ms)))

    def rekeyed(self, log: TopicLog, record: ConsumerRecord) -> None:
        """A re-keyed message is in its log. Each action in it must be one that was sent."""
        if dict(record.headers)[HEADER_LOG].decode() != log.topic_id:
            return  # its sender had not heard yet that the log was lost
        batch = decode_rekeyed(record.value)
        here = self.partitions[log.topic_id, int(record.partition)]
        stale = set()
        for partition, epoch in batch.covers[["partition", "epoch"]].tolist():
            if epoch < here.newest_epoch.get(partition, 0):
                stale.add(partition)  # of a log that is gone, behind one that came after it
            here.newest_epoch[partition] = max(epoch, here.newest_epoch.get(partition, 0))
        for action, source in zip(as_dicts(batch.actions), batch.sources, strict=True):
            place = int(source["partition"]), int(source["offset"]), int(source["index"])
            origin = (self._log_of(self.topic, int(source["epoch"])), *place)
            if not same(self.truth.get(origin), (action, int(source["sent_ms"]))):
                raise SimulationError(
                    "re-keyed", f"{origin} was re-keyed as {action}, not as it was sent"
                )
            if place[0] in stale or origin in here.origins:
                continue
            here.origins[origin] = int(record.offset)
            arrival = Arrival(int(record.offset), origin, self.truth[origin])
            here.arrivals[action["item"]].append(arrival)

    # --- what lands in the store --------------------------------------------------------------

    def row_landed(self, before: bytes | None, write: Write) -> None:
        """Raises SimulationError unless the row is what the oracle says."""
        name, _, rest = write.key.partition("@")
        generation, _, entity = rest.partition(":")
        view = self.views[name, int(generation)]
        old, new = read_fence(before) or (0, -1), read_fence(write.value)
        assert new is not None
        if new <= old:
            raise SimulationError("fence", f"{write.key}: fence {old} became {new}")
        entity_id = int(entity[1:-1])
        held = dict(self.held.get(write.key, {}))
        for partition, log_id in enumerate(self._logs(view, new[0])):
            after = max(
                self._floor(view, partition, new[0]) - 1, old[1] if new[0] == old[0] else -1
            )
            before_log = self._admitted(view, partition, new[0])
            for arrival in self.partitions[log_id, partition].arrivals[entity_id]:
                if after < arrival.offset <= new[1] and arrival.origin not in before_log:
                    held[arrival.origin] = arrival.sent
        want = self._encoded(view, entity_id, held, new)
        if want != write.value:
            raise SimulationError(
                "row",
                f"{write.key}: fence {old} became {new}, and the row is not the oracle over "
                f"{sorted(held)}",
            )
        self.held[write.key] = held
        self.rows_checked += 1

    def epoch_landed(self, topic: str, topic_id: str, epoch: int) -> None:
        """The store gave a log its number."""
        given = self.epochs.get(topic, ())
        if (topic_id, epoch) not in given:
            self.epochs[topic] = (*given, (topic_id, epoch))

    def progress_landed(self, topic: str, group: str, marks: Mapping[int, Progress]) -> None:
        """Raises SimulationError where a mark speaks of what is not stored."""
        for view in self.views.values():
            if topic == view.source and group == generation_group(
                self.group, view.name, view.generation
            ):
                for partition, mark in marks.items():
                    self.require_stored(view, partition, mark.epoch, mark.next_offset)
        if group.startswith(f"{self.item_group}.rekey."):
            target_epoch = int(group.rpartition(".")[2])
            for partition, mark in marks.items():
                self._require_rekeyed(partition, mark, target_epoch)

    def text_landed(self, key: str, text: str) -> None:
        """A saved source table speaks of rows, too."""
        place = f"encore:sources:{{{by_item_topic(self.topic)}:{self.item_group}:"
        if not key.startswith(place):
            return
        partition, pair = int(key[len(place) : -1]), parse_pair(text, key)
        if pair.next_offset < self.pairs.get((partition, pair.epoch), 0):
            raise SimulationError("pair", f"{key} went back to {pair.next_offset}")
        self.pairs[partition, pair.epoch] = pair.next_offset
        for view in self.current("item"):
            if view.key in pair.folded:
                self.require_stored(view, partition, pair.epoch, pair.next_offset)

    def require_stored(self, view: ViewPlan, partition: int, epoch: int, upto: int) -> None:
        """Raises SimulationError where an action before this offset is in no row."""
        log_id = self._logs(view, epoch)[partition]
        floor = self._floor(view, partition, epoch)
        before_log = self._admitted(view, partition, epoch)
        for entity, arrivals in self.partitions[log_id, partition].arrivals.items():
            key = row_key(view.name, view.generation, entity)
            held = self.held.get(key, {})
            for arrival in arrivals:
                taken = floor <= arrival.offset < upto and takes(view, arrival.sent)
                if taken and arrival.origin not in held and arrival.origin not in before_log:
                    raise SimulationError(
                        "stored",
                        f"{view.name}@{view.generation} is said to be stored before "
                        f"{upto} of partition {partition}, but {key} lacks {arrival.origin}",
                    )

    def _require_rekeyed(self, partition: int, mark: Progress, target_epoch: int) -> None:
        source = self._log_of(self.topic, mark.epoch)
        target = self._log_of(by_item_topic(self.topic), target_epoch)
        if target not in self.logs.values():
            return  # nobody goes on from a mark of a log that is gone
        there = set().union(
            *(here.origins for (id_, _), here in self.partitions.items() if id_ == target)
        )
        for origin in self.truth:
            left = self.expired.get((source, partition), 0) <= origin[2] < mark.next_offset
            wanted = origin[:2] == (source, partition) and left
            if wanted and origin not in there:
                raise SimulationError("re-keyed", f"{origin} is said to be, and is not")

    # --- lookups ------------------------------------------------------------------------------

    def current(self, entity: str) -> list[ViewPlan]:
        """The newest generation of each view of that entity."""
        newest = {view.name: view for view in self.views.values() if view.entity == entity}
        return list(newest.values())

    def _log_of(self, topic: str, epoch: int) -> str:
        return next((id_ for id_, number in self.epochs.get(topic, ()) if number == epoch), "")

    def _logs(self, view: ViewPlan, epoch: int) -> list[str]:
        """The log id for each partition: the same for all."""
        return [self._log_of(view.source, epoch)] * PARTITIONS

    def _admitted(self, view: ViewPlan, partition: int, epoch: int) -> set[Origin]:
        """What the source table had of earlier re-keyed logs when they ended."""
        if view.entity == "user":
            return set()
        return {
            origin
            for (place, earlier), upto in self.pairs.items()
            if place == partition and earlier < epoch
            for origin, at in self.partitions[
                self._log_of(view.source, earlier), partition
            ].origins.items()
            if at < upto
        }

    def _floor(self, view: ViewPlan, partition: int, epoch: int) -> int:
        group = self.group if view.entity == "user" else self.item_group
        key, _ = floors_keys(view.source, group, view.name, view.generation)
        at_epoch, floor = parse_floors(self.rows.get_text(key), key).get(partition, (0, 0))
        return floor if at_epoch == epoch else 0

    def floor(self, view: ViewPlan, partition: int, log_id: str) -> int:
        """Below which offset of that log nothing is folded into the generation."""
        return self._floor(view, partition, dict(self.epochs.get(view.source, ())).get(log_id, 0))

    @staticmethod
    def _encoded(view: ViewPlan, entity_id: int, held: Held, fence: tuple[int, int]) -> bytes:
        counts = list(held.values())
        if view.entity == "user":
            counts = list(since_deletion(counts))
        state = state_of(view, counts)
        if state is None and len(counts) < len(held):
            state = {"newest_ms": TOMBSTONE_MS}
        rows = rows_of(view, [entity_id], [state])
        rows.epoch[:], rows.offset[:] = fence
        return encode_rows(layout_of(view), rows)[0]

    # --- the store goes back ------------------------------------------------------------------

    def image(self) -> Known:
        """What `restore` takes."""
        return dict(self.held), dict(self.epochs), dict(self.pairs)

    def restore(self, image: Known | None) -> None:
        """The store went back to then; None: it forgot everything."""
        held, epochs, pairs = image or ({}, {}, {})
        self.held, self.epochs, self.pairs = dict(held), dict(epochs), dict(pairs)

    def is_ahead(self, key: str) -> bool:
        """The item row holds messages of a lost log beyond what was saved of that log."""
        fence, entity = read_fence(self.rows.read([key])[0]), int(key.partition("{")[2][:-1])
        partition = int(partitions_of(np.array([entity]), PARTITIONS)[0])
        return fence is not None and fence[1] >= self.pairs.get((partition, fence[0]), 0)


def takes(view: ViewPlan, sent: Sent) -> bool:
    """The action changes its row."""
    action, sent_ms = sent
    if action["type"] == ActionType.DELETE_USER:
        return view.entity == "user"
    return in_time(view, action, sent_ms)


def same(one: Sent | None, other: Sent) -> bool:
    """Equal in each column."""
    if one is None or one[1] != other[1]:
        return False
    return all(np.array_equal(value, other[0][name]) for name, value in one[0].items())
