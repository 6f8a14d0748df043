"""What rows, marks and tables must hold, computed from the logs alone.

Every row that lands is compared, byte by byte, with the slow oracle over the set of actions that it
must hold: those it held before, and those of its log between its old fence and its new one. Every
mark that lands is compared with the rows: nothing before it may be missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from aiokafka.structs import ConsumerRecord

from schemas.actions import ActionType
from schemas.layout import layout_of
from schemas.names import (
    HEADER_LOG,
    PLAN_KEY,
    STAGED_KEY,
    by_item_topic,
    gaps_keys,
    generation_group,
    root_topic,
    row_key,
)
from schemas.plan import ViewPlan
from schemas.rekeyed import decode_rekeyed
from schemas.row import TOMBSTONE_MS, encode_rows, read_fence
from store.base import Progress, Write
from store.memory import MemoryRowStore
from streams.gaps import Gap, parse_gaps
from streams.source_table import parse_pair
from tests.oracle.fold import Sent, as_dicts, in_time, rows_of, since_deletion, state_of
from tests.simulation.broker import TopicLog
from tests.simulation.history import (
    History,
    floors_in,
    floors_of,
    place_of,
    plan_of,
    staged_of,
)
from tests.simulation.loop import SimulationError

#: One action: the id of the log it was sent to, partition, offset, index in its message.
Origin = tuple[str, int, int, int]
#: What a row holds.
Held = Mapping[Origin, Sent]
#: What goes back when the store does.
STORED: Final = ("held", "left", "epochs", "pairs", "marks", "stands", "given")
Known = dict[str, dict[Any, Any]]
PARTITIONS: Final = 2
RETENTION_MS: Final = 86_400_000


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
    left: dict[str, frozenset[Origin]] = field(default_factory=dict)  # key → held when it expired
    marks: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)  # by group
    stands: dict[tuple[int, int], int] = field(default_factory=dict)  # (partition, epoch) → mark
    # (view, generation, re-keyed partition) → its source table when it began
    given: dict[tuple[str, int, int], Mapping[int, tuple[int, int]]] = field(default_factory=dict)
    history: History = field(default_factory=History)
    staged: set[tuple[str, int]] = field(default_factory=set)  # generations that ever were
    logs: dict[str, str] = field(default_factory=dict)  # topic → the id it has now
    facts: dict[str, tuple[str, int]] = field(default_factory=dict)  # id → topic, partitions
    stops: dict[tuple[str, int], int] = field(default_factory=dict)  # (id, partition) → its end
    expired: dict[tuple[str, int], int] = field(default_factory=dict)  # → the first offset left
    rows_checked: int = 0

    # --- what is in the logs ------------------------------------------------------------------

    def sent(self, log: TopicLog, record: ConsumerRecord, actions: Any, sent_ms: int) -> None:
        """A message of users' actions is in the log. actions: (a,) ACTION, None where it is
        malformed."""
        partition, offset = int(record.partition), int(record.offset)
        if (log.topic_id, partition) in self.stops:
            return  # behind the end of its topic it counts nowhere
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
        if write.expire_ms <= max(view.ttl_ms, RETENTION_MS):
            raise SimulationError("expiry", f"{write.key} would leave within {write.expire_ms} ms")
        if before is None and self.history.is_filled(self, view, entity_id, new):
            self._filled_row_landed(view, entity_id, write)
            return
        held = dict(self.held.get(write.key, {}))
        left = self.left.get(write.key, frozenset())
        for partition, log_id in enumerate(self._logs(view, new[0])):
            after = max(
                self._floor(view, partition, new[0]) - 1, old[1] if new[0] == old[0] else -1
            )
            without = self._admitted(view, partition, new[0]) | left
            for arrival in self.partitions[log_id, partition].arrivals[entity_id]:
                if self.has_gap(view, partition, new[0], arrival.offset):
                    continue
                if after < arrival.offset <= new[1] and arrival.origin not in without:
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

    def _filled_row_landed(self, view: ViewPlan, entity_id: int, write: Write) -> None:
        """Raises SimulationError unless the row is what lies below the floors."""
        fence = read_fence(write.value)
        assert fence is not None
        for held in self.history.below(self, view, entity_id):
            if self._encoded(view, entity_id, held, fence) == write.value:
                self.held[write.key] = held
                self.rows_checked += 1
                return
        raise SimulationError("filled", f"{write.key} is not what lies below {fence}: {held}")

    def expired_row(self, key: str) -> None:
        """It has left the store; what it held does not come again."""
        self.left[key] = self.left.get(key, frozenset()) | self.held.pop(key, {}).keys()

    def epoch_landed(self, topic: str, topic_id: str, epoch: int) -> None:
        """The store gave a log its number."""
        given = self.epochs.get(topic, ())
        if (topic_id, epoch) not in given:
            self.epochs[topic] = (*given, (topic_id, epoch))

    def progress_landed(self, topic: str, group: str, marks: Mapping[int, Progress]) -> None:
        """Raises SimulationError where a mark speaks of what is not stored."""
        root = root_topic(topic)
        if (root, group) == (self.topic, self.group):
            for partition, mark in marks.items():
                if self._log_of(root, mark.epoch) == self.logs[topic]:
                    self.stands[partition, mark.epoch] = mark.next_offset
        for view in self.views.values():
            if root == view.source and group == generation_group(
                self.group, view.name, view.generation
            ):
                for partition, mark in marks.items():
                    self.require_stored(view, partition, mark.epoch, mark.next_offset)
                    self._require_told(view, partition, mark, self.marks.get((group, partition)))
                    self.marks[group, partition] = mark.epoch, mark.next_offset
        if group.startswith(f"{self.item_group}.rekey."):
            target_epoch = int(group.rpartition(".")[2])
            for partition, mark in marks.items():
                self._require_rekeyed(partition, mark, target_epoch)

    def text_landed(self, key: str, text: str) -> None:
        """A saved source table speaks of rows, too; so does a staged plan that is filled."""
        if key == STAGED_KEY:
            self._staged_landed(text)
        prefix, _, place = key.partition("{")
        topic, _, place = place.partition(f":{self.item_group}:")
        if prefix != "encore:sources:" or not place.endswith("}"):
            return
        whose, pair = place[:-1], parse_pair(text, key)
        if not whose.isdigit():  # of one generation, which catches up
            name, _, rest = whose.partition("@")
            view = self.views[name, int(rest.partition(":")[0])]
            at = int(rest.partition(":")[2])
            if at in floors_in(self, view, topic):  # before, it is the floor
                self.require_stored(view, at, pair.epoch, pair.next_offset)
            else:
                self.given[*view.key, at] = dict(pair.table.reached)
            return
        partition = int(whose)
        if pair.next_offset < self.pairs.get((partition, pair.epoch), 0):
            raise SimulationError("pair", f"{key} went back to {pair.next_offset}")
        self.pairs[partition, pair.epoch] = pair.next_offset
        for view in self.views.values():
            if view.entity == "item" and view.key in pair.folded:
                self.require_stored(view, partition, pair.epoch, pair.next_offset)

    def _staged_landed(self, text: str) -> None:
        """Raises SimulationError where a generation is said to be filled and a row is missing."""
        found = staged_of(text)
        for view in () if found.plan is None else found.plan.views:
            if found.views.get(view.name) == view.generation:
                self.views[view.key] = view
                self.staged.add(view.key)
                if found.state == "filled":
                    self._require_filled(view)

    def _require_filled(self, view: ViewPlan) -> None:
        for entity in {action[view.entity] for action, _ in self.truth.values()}:
            key = row_key(view.name, view.generation, entity)
            if key in self.held or key in self.left:
                continue
            if all(
                any(takes(view, sent) for sent in held.values())
                for held in self.history.below(self, view, entity)
            ):
                raise SimulationError("filled", f"{key} is not there")

    def _require_told(
        self, view: ViewPlan, partition: int, mark: Progress, before: tuple[int, int] | None
    ) -> None:
        """Raises SimulationError where a generation went on in a new log without what the group had
        of the one before, and nobody said so."""
        epoch, at = max(before or (0, 0), floors_of(self, view, mark.epoch).get(partition, (0, 0)))
        if epoch in (0, mark.epoch):
            return
        gaps = self.gaps_of(view).get(partition, ())
        log_id, upto = self._log_of(self.topic, epoch), self.stands.get((partition, epoch), 0)
        for entity, arrivals in self.partitions[log_id, partition].arrivals.items():
            key = row_key(view.name, view.generation, entity)
            for arrival in arrivals:
                if self._gone(key, arrival) or any(g.holds(epoch, arrival.offset) for g in gaps):
                    continue
                wanted = at <= arrival.offset < upto and takes(view, arrival.sent)
                if wanted and arrival.origin not in self.held.get(key, {}):
                    raise SimulationError("told", f"{key} lacks {arrival.origin} for ever")

    def _gone(self, key: str, arrival: Arrival) -> bool:
        return arrival.origin in self.left.get(key, ())

    def require_stored(self, view: ViewPlan, partition: int, epoch: int, upto: int) -> None:
        """Raises SimulationError where an action before this offset is in no row."""
        log_id = self._log_of(view.source, epoch)
        floor = self._floor(view, partition, epoch)
        before_log = self._admitted(view, partition, epoch)
        gaps = self.gaps_of(view).get(partition, ())
        for entity, arrivals in self.partitions[log_id, partition].arrivals.items():
            key = row_key(view.name, view.generation, entity)
            held = self.held.get(key, {})
            for arrival in arrivals:
                taken = floor <= arrival.offset < upto and takes(view, arrival.sent)
                if self._gone(key, arrival):
                    continue
                if any(gap.holds(epoch, arrival.offset) for gap in gaps):
                    continue
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
        """Those of the published plan."""
        text = self.rows.get_text(PLAN_KEY)
        views = plan_of(text).views if text is not None else ()
        return [view for view in views if view.entity == entity]

    def gaps_of(self, view: ViewPlan) -> dict[int, tuple[Gap, ...]]:
        """What it is said to lack, by partition."""
        group = self.group if view.entity == "user" else self.item_group
        found: dict[int, tuple[Gap, ...]] = {}
        for topic in self.topics_of(view):
            key, _ = gaps_keys(topic, group, view.name, view.generation)
            for partition, gaps in parse_gaps(self.rows.get_text(key), key).items():
                found[partition] = (*found.get(partition, ()), *gaps)
        return found

    def topics_of(self, view: ViewPlan) -> list[str]:
        """Those that it is fed from, one after the other."""
        return [topic for topic in self.logs if root_topic(topic) == view.source]

    def topic_of(self, view: ViewPlan, epoch: int) -> str:
        """The one with the log of that number."""
        return self.facts.get(self._log_of(view.source, epoch), (view.source, 0))[0]

    def count_of(self, view: ViewPlan, epoch: int) -> int:
        """The partitions of the log of that number."""
        return self.facts.get(self._log_of(view.source, epoch), ("", PARTITIONS))[1]

    def log_of(self, topic: str, epoch: int) -> str:
        """The id of the log with that number."""
        return self._log_of(topic, epoch)

    def has_gap(self, view: ViewPlan, partition: int, epoch: int, offset: int) -> bool:
        """The message is one that the generation is said to lack."""
        return any(gap.holds(epoch, offset) for gap in self.gaps_of(view).get(partition, ()))

    def _log_of(self, topic: str, epoch: int) -> str:
        return next((id_ for id_, number in self.epochs.get(topic, ()) if number == epoch), "")

    def _logs(self, view: ViewPlan, epoch: int) -> list[str]:
        """The log id for each partition: the same for all."""
        return [self._log_of(view.source, epoch)] * self.count_of(view, epoch)

    def _admitted(self, view: ViewPlan, partition: int, epoch: int) -> set[Origin]:
        """What the source table had of earlier re-keyed logs when they ended, and what of its
        source the generation was filled with."""
        if view.entity == "user":
            return set()
        given = {
            (self._log_of(self.topic, number), source): at
            for source, (number, at) in self.given.get((*view.key, partition), {}).items()
        }
        arrived = self.partitions[self._log_of(view.source, epoch), partition].origins
        return {each for each in arrived if each[2] < given.get(each[:2], 0)} | {
            origin
            for (place, earlier), upto in self.pairs.items()
            if place == partition and earlier < epoch
            for origin, at in self.partitions[
                self._log_of(view.source, earlier), partition
            ].origins.items()
            if at < upto
        }

    def _floor(self, view: ViewPlan, partition: int, epoch: int) -> int:
        at_epoch, floor = floors_of(self, view, epoch).get(partition, (0, 0))
        return floor if at_epoch == epoch else 0

    def to_judge(self, view: ViewPlan, partition: int, epoch: int) -> Iterator[Arrival]:
        """What the stream gave the generation by that partition of that log, deletions aside."""
        floor, before_log = (
            self._floor(view, partition, epoch),
            self._admitted(view, partition, epoch),
        )
        here = self.partitions[self._log_of(view.source, epoch), partition]
        for arrival in (each for arrivals in here.arrivals.values() for each in arrivals):
            if arrival.offset < floor or arrival.origin in before_log:
                continue
            if self.has_gap(view, partition, epoch, arrival.offset):
                continue
            if arrival.sent[0]["type"] != ActionType.DELETE_USER:
                yield arrival

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
        return {name: dict(getattr(self, name)) for name in STORED}

    def restore(self, image: Known | None) -> None:
        """The store went back to then; None: it forgot everything."""
        for name in STORED:
            setattr(self, name, dict(image[name]) if image else {})

    def is_ahead(self, key: str) -> bool:
        """The item row holds messages of a lost log beyond what was saved of that log."""
        fence, entity = read_fence(self.rows.read([key])[0]), int(key.partition("{")[2][:-1])
        name, _, rest = key.partition("@")
        view = self.views[name, int(rest.partition(":")[0])]
        partition = place_of(entity, self.count_of(view, fence[0] if fence else 0))
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
