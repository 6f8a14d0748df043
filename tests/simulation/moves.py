"""Moves to new topics: `encore topics grow` and `end` as processes that may be killed.

Both are the real ones (`streams.growing`), over the virtual broker and store.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from schemas.errors import StreamError
from schemas.names import CONTENT_END, HEADER_CONTENT, root_topic, topics_keys
from schemas.succession import Succession, load_succession
from streams import growing
from streams.config import StreamConfig
from streams.ends import Partition
from streams.moving import config_of
from streams.servers import Servers
from tests.simulation.broker import Broker
from tests.simulation.loop import OWNER, Task, VirtualLoop
from tests.simulation.member import why_ended
from tests.simulation.server import Server, VirtualStore

MOST_TOPICS: Final = 3


@dataclass
class Mover:
    """One run of a command."""

    name: str
    task: Task


@dataclass
class Moves:
    """At most one command at a time. config: of the first topic."""

    config: StreamConfig
    loop: VirtualLoop
    server: Server
    broker: Broker
    servers: Servers
    operator: Mover | None = None
    started: int = 0

    def __post_init__(self) -> None:
        self.servers = replace(
            self.servers,
            read_ends=self._read_ends,
            read_starts=self._read_starts,
            send_end=self._send_end,
        )

    @property
    def succession(self) -> Succession:
        """As it is recorded now."""
        text = self.server.rows.get_text(self._key)
        return self._succession(None if text is None else text.encode())

    @property
    def _key(self) -> str:
        return topics_keys(root_topic(self.config.topic))[0]

    def _succession(self, text: bytes | None) -> Succession:
        held = None if text is None else text.decode()
        return load_succession(held, self.config.topic, self.config.partitions, self._key)

    def open(self) -> list[StreamConfig]:
        """For the topics that may be read, oldest first."""
        found = self.succession
        return [config_of(self.config, found, n + 1) for n in range(len(found.open))]

    def ended(self) -> str | None:
        """Why the process ended, if it just did."""
        if self.operator is None or not self.operator.task.done():
            return None
        name, task = self.operator.name, self.operator.task
        self.operator = None
        return f"{name}: {why_ended(name, task)}"

    # --- events -------------------------------------------------------------------------------

    def grow(self, pick: int) -> str | None:
        """The next topic is made."""
        found = self.succession
        if len(found.topics) >= MOST_TOPICS:
            return None
        counts = [count for count in (1, 2, 3) if count != found.newest.partitions]
        count = counts[pick % len(counts)]
        return self._start(
            f"grow to {count}", lambda store: growing.grow(store, self.config, count, self.servers)
        )

    def end(self, pick: int) -> str | None:
        """The end of the topic before the newest is declared."""
        if len(self.succession.topics) < 2:
            return None
        return self._start(
            "end", lambda store: growing.end(store, self.config, servers=self.servers)
        )

    def abandon(self, pick: int) -> str | None:
        """The command is killed. What it asked for may still be on its way."""
        if self.operator is None:
            return None
        name, self.operator = self.operator.name, None
        self.loop.kill(name)
        if pick % 2:
            self.loop.pending[:] = [op for op in self.loop.pending if op.owner != name]
        return name

    def topic_to_write(self, dice: Random) -> str:
        """An app's: mostly the newest, sometimes one before."""
        topics = self._succession(self.server.durable.rows.values.get(self._key)).topics
        return (topics[-1] if dice.random() < 0.8 else dice.choice(topics)).name

    def _start(self, what: str, work: Callable[[VirtualStore], Awaitable[object]]) -> str | None:
        if self.operator is not None:
            return None
        self.started += 1
        name = f"{what.split()[0]}-{self.started}"
        token = OWNER.set(name)
        store = VirtualStore(self.loop, self.server)
        self.operator = Mover(name, self.loop.create_task(_run(work(store))))
        OWNER.reset(token)
        return f"{name}: {what}"

    # --- the broker ---------------------------------------------------------------------------

    async def _read_ends(self, bootstrap: str, starts: Mapping[Partition, int]) -> Any:
        """As `streams.ends.read_ends`."""
        logs = self.broker.logs
        return await self.loop.ask(
            "ends", lambda: {(topic, p): logs[topic].end(p) for topic, p in starts}
        )

    async def _read_starts(self, bootstrap: str, places: Mapping[Partition, int]) -> Any:
        """As `streams.ends.read_starts`."""
        logs = self.broker.logs
        return await self.loop.ask(
            "starts", lambda: {(topic, p): logs[topic].first[p] for topic, p in places}
        )

    async def _send_end(self, bootstrap: str, place: Partition, successor: str) -> int:
        """As `streams.producer.send_end`."""
        topic, partition = place
        headers = {HEADER_CONTENT: CONTENT_END}

        def fault(how: str) -> StreamError:
            return StreamError(f"topic {topic}", required="a confirmed record", got=how)

        def send() -> int:
            value = successor.encode()
            return int(self.broker.append(topic, partition, b"end", value, headers).offset)

        return int(await self.loop.ask(f"send end {topic}/{partition}", send, fault))


async def _run(work: Awaitable[object]) -> None:
    await work
