"""Everything there is in one simulation, and what can happen in it.

An event is a kind and a number; what the number picks depends on what there is. So a history is a
short list, any part of which can be left out and the rest still means something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

from aiokafka.structs import ConsumerRecord
from faust.types import TP

from schemas.names import (
    BY_ITEM_SUFFIX,
    PLAN_KEY,
    PLAN_VERSION_KEY,
    generation_group,
    root_topic,
    source_table_key,
)
from schemas.plan import Plan, ViewPlan, dump_plan
from store.memory import MemoryRowStore
from streams.config import StreamConfig
from streams.servers import Servers
from streams.source_table import lowest_reached, parse_pair
from tests.aggregation.plans import small_view
from tests.simulation.broker import Broker, BrokerAdmin, TopicLog, VirtualReader, VirtualSender
from tests.simulation.filling import Fillings, next_of
from tests.simulation.history import plan_of
from tests.simulation.loop import Op, SimulationError, VirtualLoop
from tests.simulation.member import Member, Places, choose
from tests.simulation.messages import some_message, users_in
from tests.simulation.moves import Moves
from tests.simulation.reference import PARTITIONS, Reference
from tests.simulation.server import Server, VirtualStore
from tests.simulation.setting import CONFIG, FILLING, MOST_MEMBERS, MOVING, T0, Event, Group, Kinds


class World:
    """Servers, groups and time. `happen` lets one event happen."""

    def __init__(self, kinds: Kinds) -> None:
        self.loop = VirtualLoop()
        rows = MemoryRowStore(clock_ms=lambda: 0.0)  # rows expire when an event says so
        self.reference = Reference(CONFIG.topic, CONFIG.group, CONFIG.item_group, rows)
        self.server = Server(rows, self.reference)
        self.broker = Broker(self._heard, self.reference.logs, self.reference.facts)
        self.kinds = kinds
        self.groups = self._groups_of(CONFIG)
        self.clock_ms = T0
        self.started = 0
        self.happened: dict[str, int] = {}
        self.reasons: list[str] = []
        self.story: list[str] = []
        user = replace(small_view(ttl_ms=60_000), name="u", source=CONFIG.topic)
        item = replace(user, name="i", entity="item", source=CONFIG.item_topic)
        self._servers = Servers(
            lambda config: VirtualStore(self.loop, self.server),
            lambda config: BrokerAdmin(self.broker),
            lambda config: VirtualReader(self.loop, self.broker),
            self.loop.time,
        )
        for topic, partitions in CONFIG.topics.items():
            self.broker.create(topic, partitions)
        self.moves = Moves(CONFIG, self.loop, self.server, self.broker, self._servers)
        self._servers = self.moves.servers
        self.fillings = Fillings(
            CONFIG, self.loop, self.server, self.broker, self.reference, self._servers, self.moves
        )
        self._note_source()
        self.publish((user, item))

    def close(self) -> None:
        """End every task."""
        for group in self.groups:
            for name in group.members:
                self.loop.kill(name)
        self.fillings.interrupt(0)
        self.moves.abandon(0)
        self.loop.settle()
        self.loop.close()
        self.fillings.close()

    # --- what is there ------------------------------------------------------------------------

    @property
    def plan(self) -> Plan | None:
        """What is published now."""
        text = self.server.rows.get_text(PLAN_KEY)
        return None if text is None else plan_of(text)

    def _groups_of(self, config: StreamConfig) -> list[Group]:
        """Those who read one topic of actions."""
        make, topics = self.kinds, (config.topic, config.item_topic)
        return [
            Group(config.members(config.group), topics[:1], make.worker, config),
            Group(config.members(config.item_group), topics, make.items, config),
        ]

    def _note_open(self) -> None:
        """Where another topic may be read by now, its groups come to be."""
        for config in self.moves.open():
            if all(group.config.topic != config.topic for group in self.groups):
                self.groups += self._groups_of(config)
                self.reference.history.sources.append(self.broker.logs[config.topic].topic_id)

    def _note_source(self) -> None:
        self.reference.history.sources.append(self.broker.logs[self.newest.topic].topic_id)

    @property
    def newest(self) -> StreamConfig:
        """For the newest topic that may be read."""
        return self.moves.open()[-1]

    def publish(self, views: tuple[ViewPlan, ...]) -> None:
        """A plan with these views."""
        held = self.plan.version if self.plan else 0
        for view in views:
            self.reference.views[view.name, view.generation] = view
        version = int(self.server.rows.get_text(PLAN_VERSION_KEY) or 0)
        text = dump_plan(Plan(held + 1, held, views, ()))
        self.server.compare_and_set_text(PLAN_KEY, PLAN_VERSION_KEY, version, text)
        self.server.sync(len(self.server.moments))

    def _heard(self, log: TopicLog, record: ConsumerRecord) -> None:
        if log.name.endswith(BY_ITEM_SUFFIX):
            self.reference.rekeyed(log, record)
        for partition, at in log.ends.items():
            self.reference.stops[log.topic_id, partition] = at

    def members(self, test: Callable[[Member], bool]) -> list[tuple[Group, Member]]:
        """Those of all groups that pass."""
        return [(g, m) for g in self.groups for m in g.alive() if test(m)]

    # --- events -------------------------------------------------------------------------------

    def happen(self, event: Event) -> bool:
        """False where there was nothing for it to happen to."""
        act: Callable[[int], str | None] = (
            getattr(self.fillings, event.kind)
            if event.kind in FILLING
            else getattr(self.moves, event.kind)
            if event.kind in MOVING
            else getattr(self, f"do_{event.kind}")
        )
        try:
            what = act(event.pick)
        except SimulationError as error:
            self.story.append(f"{event.kind} {event.pick}: {error}")
            raise
        if what is None:
            return False
        self.story.append(f"{event.kind} {event.pick}: {what}")
        self.loop.settle()
        self.happened[event.kind] = self.happened.get(event.kind, 0) + 1
        losses = self.server.losses
        for group in self.groups:
            for name in [name for name, member in group.members.items() if member.ended]:
                self.loop.kill(name)  # with a process go all its tasks
                self.reasons.append(f"{name}: {group.members.pop(name).reason(losses)}")
                self.story.append(f"    {self.reasons[-1]}")
        for ended in (self.fillings.ended(), self.moves.ended()):
            if ended is not None:
                self.story.append(f"    {ended}")
        self._note_open()
        return True

    def _settle_op(self, pick: int, how: str) -> str | None:
        ops = self.loop.pending
        if not ops:
            return None
        op = ops.pop(pick % len(ops))
        self._reply(op, how)
        return f"{op.owner}: {op.label}{'' if how == 'done' else ', ' + how}"

    def _reply(self, op: Op, how: str) -> None:
        try:
            reply = op.settle(how)
        except SimulationError:
            self.story.append(f"{op.owner}: {op.label}")
            raise
        for group in self.groups:
            if op.owner in group.members:
                group.members[op.owner].hear(reply)
        for operator in (self.fillings.operator, self.moves.operator):
            if operator is not None and op.owner == operator.name:
                reply()

    def do_step(self, pick: int) -> str | None:
        """One operation is done."""
        return self._settle_op(pick, "done")

    def do_fault(self, pick: int) -> str | None:
        """One operation fails, undone, done or half done."""
        return self._settle_op(pick // 3, ("refused", "unheard", "part")[pick % 3])

    def do_tick(self, pick: int) -> str | None:
        """Time passes."""
        self.loop.advance((0.1, 0.6, 2.1)[pick % 3])
        return f"to {self.loop.time():.2f} s"

    def do_produce(self, pick: int) -> str | None:
        """An app sends a message; sometimes one that was sent before, or no good one."""
        dice = Random(pick)
        topic = self.moves.topic_to_write(Random(pick // 7))
        log = self.broker.logs[topic]
        partition = dice.randrange(len(log.records))
        self.clock_ms += dice.randrange(900)
        users = users_in(partition, len(log.records))
        if not users:
            return None
        message = some_message(dice, users, self.clock_ms)
        for _ in range(2 if dice.random() < 0.1 else 1):
            record = self.broker.append(
                topic, partition, message.key, message.value, message.headers
            )
            self.reference.sent(log, record, message.actions, self.clock_ms)
        return f"{log.topic_id}/{partition}/{record.offset}"

    def do_start(self, pick: int) -> str | None:
        """One more process."""
        group = self.groups[pick % len(self.groups)]
        if len(group.alive()) >= MOST_MEMBERS:
            return None
        self.started += 1
        name = f"{group.name}-{self.started}"
        handler = group.make(group.config, self._servers)
        sender = VirtualSender(self.loop, self.broker)
        group.members[name] = Member(name, handler, sender, self.loop)
        group.members[name].losses = self.server.losses
        return name

    def do_kill(self, pick: int) -> str | None:
        """A process is gone at once. What it asked for may still be on its way."""
        chosen = choose(self.members(lambda member: True), pick)
        if chosen is None:
            return None
        _, member = chosen
        self.loop.kill(member.name)
        if pick % 2:
            self.loop.pending[:] = [op for op in self.loop.pending if op.owner != member.name]
        return str(member.name)

    def do_pause(self, pick: int) -> str | None:
        """A process stands still."""
        chosen = choose(self.members(lambda member: not member.paused), pick)
        if chosen is None:
            return None
        chosen[1].paused = True
        return str(chosen[1].name)

    def do_resume(self, pick: int) -> str | None:
        """It goes on as if no time had passed."""
        chosen = choose(self.members(lambda member: member.paused), pick)
        if chosen is None:
            return None
        chosen[1].resume()
        return str(chosen[1].name)

    def do_stop(self, pick: int) -> str | None:
        """A process is told to drain."""
        chosen = choose(self.members(lambda m: m.waiting and m.joined and not m.closing), pick)
        if chosen is None:
            return None
        group, member = chosen
        self._commit(group, member)
        member.give(member.drain)
        return str(member.name)

    def do_rebalance(self, pick: int) -> str | None:
        """The group gives its partitions out anew; who stands still is not asked."""
        group = self.groups[pick % len(self.groups)]
        able = [m for m in group.alive() if m.joined and not m.paused and not m.closing]
        if not able:
            return None
        dice = Random(pick)
        group.generation += 1
        owner = {tp: dice.choice(able) for tp in group.places}
        for member in able:
            own = Places(tp for tp, whose in owner.items() if whose is member)
            member.invited = group.generation, own
        return ", ".join(f"{tp.topic}/{tp.partition} {who.name}" for tp, who in owner.items())

    def do_learn(self, pick: int) -> str | None:
        """A process hears of its new share."""
        chosen = choose(self.members(lambda m: m.waiting and m.invited is not None), pick)
        if chosen is None:
            return None
        group, member = chosen
        if member.generation == group.generation - 1:
            self._commit(group, member)
        member.give(partial(member.learn, group.committed))
        return str(member.name)

    def do_fetch(self, pick: int) -> str | None:
        """Records arrive at a process."""
        found = [
            (member, tp, records)
            for _, member in self.members(lambda m: not m.paused and m.generation >= 0)
            for tp in member.places
            if tp in member.position and tp.topic in self.broker.logs
            if (records := self._fetchable(member, tp, 1 + pick % 7))
        ]
        if not found:
            return None
        member, tp, records = found[pick // 7 % len(found)]
        member.fetch(tp, records)
        member.logs.setdefault(tp.topic, self.broker.logs[tp.topic].topic_id)
        place = f"{tp.topic}/{tp.partition}/{records[0].offset}"
        return f"{member.name}: {len(records)} from {place}"

    def _fetchable(self, member: Member, tp: TP, count: int) -> list[ConsumerRecord]:
        log = self.broker.logs[tp.topic]
        return log.fetch(tp.partition, member.position[tp], count)

    def do_hand(self, pick: int) -> str | None:
        """What arrived is given to the handler."""
        chosen = choose(self.members(lambda m: m.waiting and bool(m.inbox)), pick)
        if chosen is None:
            return None
        chosen[1].give(chosen[1].hand)
        return str(chosen[1].name)

    def do_idle(self, pick: int) -> str | None:
        """Nothing came for a while."""
        chosen = choose(self.members(lambda m: m.waiting and not m.inbox), pick)
        if chosen is None or chosen[1].generation < 0:
            return None
        chosen[1].give(chosen[1].hand)
        return str(chosen[1].name)

    def do_commit(self, pick: int) -> str | None:
        """A process commits its marks; the group refuses those of an earlier generation."""
        chosen = choose(self.members(lambda m: not m.paused and m.generation >= 0), pick)
        if chosen is None or chosen[1].generation != chosen[0].generation:
            return None
        self._commit(*chosen)
        return str(chosen[1].name)

    def do_forget(self, pick: int) -> str | None:
        """A coordinator forgets a group: its commits, and who is in it."""
        group = self.groups[pick % len(self.groups)]
        if not group.committed:
            return None
        group.committed.clear()
        group.generation += 1
        return group.name

    def _commit(self, group: Group, member: Member) -> None:
        for tp in member.marks.partitions():
            upto = member.marks.get(tp)
            assert upto is not None
            if not member.outlived:
                self._require_durable(group, member.logs.get(tp.topic, ""), tp, upto)
            group.committed[tp] = upto

    def _require_durable(self, group: Group, topic_id: str, tp: TP, upto: int) -> None:
        """Raises SimulationError for a commit that a crash of the store could leave behind."""
        rows = self.server.durable.rows
        epochs = rows.epochs.get(root_topic(tp.topic), {})
        config = group.config
        name = config.group if len(group.topics) == 1 else config.item_group
        if tp.topic == config.item_topic:
            key = source_table_key(tp.topic, name, tp.partition)
            pair = parse_pair(rows.values.get(key, b"").decode() or None, key)
            known = pair.epoch, pair.next_offset
        else:
            marks = [
                marks[tp.partition][:2]
                for (topic, whose), marks in rows.progress.items()
                if topic == tp.topic and tp.partition in marks
                if whose == name or whose.startswith(f"{name}.rekey.")
            ]
            known = max(marks, default=(0, 0))
        if known < (epochs.get(topic_id, 1 << 30), upto):
            raise SimulationError(
                "durable",
                f"{name} {tp.topic}/{tp.partition} committed {upto}, not {known}",
            )

    def do_sync(self, pick: int) -> str | None:
        """The store's file is flushed, up to some point."""
        if len(self.server.moments) < 2:
            return None
        self.server.sync(pick % len(self.server.moments) + 1)
        return f"{len(self.server.moments) - 1} left"

    def do_crash(self, pick: int) -> str | None:
        """The store dies and comes back with what was on its disk, maybe more."""
        self._break_connections()
        return f"{self.server.crash(pick % (len(self.server.moments) + 1))} changes lost"

    def _break_connections(self) -> None:
        ops = [op for op in self.loop.pending if op.label.startswith("store ")]
        self.loop.pending[:] = [op for op in self.loop.pending if op not in ops]
        for op in ops:
            self._reply(op, "refused")

    def do_lose(self, pick: int) -> str | None:
        """The broker loses the log of a topic and makes a new one under its name."""
        config = self.newest
        topic = (config.topic, config.item_topic)[pick % 2]
        life = next(each for each in self.moves.succession.topics if each.name == config.topic)
        begun = life.end is not None or self.broker.logs[config.topic].ends
        if begun or self.moves.operator is not None:
            return None  # told, and not made good: see docs/topics.md
        self.clock_ms += 1  # no two logs begin at one time
        made = self.broker.create(topic, config.partitions)
        if topic == config.topic:
            self._note_source()
        return f"{topic}, now {made.topic_id}"

    def do_wipe(self, pick: int) -> str | None:
        """The store comes back empty. As told, the plan is applied and the re-keyed topic made
        anew; what the logs hold no more would take a rebuild, so nothing may have expired."""
        if any(any(log.first) for log in self.broker.logs.values()):
            return None
        if (
            len(self.broker.by_id) and len(self.moves.succession.topics) > 1
        ) or self.moves.operator:
            return None
        plan = self.plan
        if plan is None:
            return None
        self._break_connections()
        self.server.wipe()
        for group in self.groups:
            for member in group.members.values():
                member.outlived = True
        self.broker.create(CONFIG.item_topic, PARTITIONS)
        self.publish(plan.views)
        return "with everything in it"

    def do_expire(self, pick: int) -> str | None:
        """The broker drops old messages, of those that the store's disk has in all rows."""
        log = self.broker.logs[self.newest.topic]
        partition = pick % len(log.records)
        upto = self._needed_no_more(log, partition)
        if upto <= log.first[partition]:
            return None
        log.first[partition] = self.reference.expired[log.topic_id, partition] = upto
        self.fillings.archived(log, partition, upto)
        return f"{log.name}/{partition} up to {upto}"

    def _needed_no_more(self, log: TopicLog, partition: int) -> int:
        rows = self.server.durable.rows
        config = self.newest
        epoch = rows.epochs.get(CONFIG.topic, {}).get(log.topic_id, 0)
        groups = [CONFIG.group, self._rekey_group()]
        for view in self.reference.current("user"):
            groups.append(generation_group(CONFIG.group, view.name, view.generation))
        ends = []
        for group in groups:
            mark = rows.progress.get((config.topic, group), {}).get(partition)
            ends.append(mark.next_offset if mark is not None and mark.epoch == epoch else 0)
        keys = [
            source_table_key(config.item_topic, config.item_group, p)
            for p in range(config.partitions)
        ]
        pairs = {
            p: parse_pair(rows.values.get(k, b"").decode() or None, k) for p, k in enumerate(keys)
        }
        return min(*ends, lowest_reached(pairs, partition, epoch))

    def _rekey_group(self) -> str:
        log = self.broker.logs[self.newest.item_topic]
        epochs = self.server.durable.rows.epochs.get(CONFIG.item_topic, {})
        return f"{CONFIG.item_group}.rekey.{epochs.get(log.topic_id, 0)}"

    def do_leave(self, pick: int) -> str | None:
        """A row that nobody wrote for long leaves the store. Nothing is on its way that long."""
        if self.members(lambda member: member.paused or bool(member.inbox)):
            return None
        return self.fillings.expire_row(pick)

    def do_plan(self, pick: int) -> str | None:
        """A plan with a new generation of a view; refused while one is staged."""
        plan, staged = self.plan, self.fillings.staged()
        if plan is None or staged.active:
            return None
        user, item = plan.views
        if pick % 3:
            user = next_of(user, staged)
        else:
            item = next_of(item, staged)
        self.publish((user, item))
        return f"u@{user.generation}, i@{item.generation}"
