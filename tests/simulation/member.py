"""A stream process as `streams.app` runs one: a handler, its inbox, its share of a group."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

from faust.types import TP

from schemas.errors import EncoreError
from streams.app import Fetched, Handler, Sender
from streams.transport import Marks
from tests.simulation.loop import OWNER, SimulationError, Task, VirtualLoop

Job = Callable[[], Awaitable[None]]

#: What a process says that takes the store for another, or for an older one.
ALARM: Final = re.compile(", its history: needs|: the store went back")


class Places(frozenset[TP]):
    """Partitions that are walked in one order, whatever the hashes of strings are today."""

    def __iter__(self) -> Iterator[TP]:
        return iter(sorted(super().__iter__()))


def choose(among: Sequence[Any], pick: int) -> Any:
    """One of them, None where there is none."""
    return among[pick % len(among)] if among else None


def why_ended(name: str, task: Task) -> str:
    """Of a process. Raises SimulationError for an error that nobody foresaw."""
    if task.cancelled() or not task.done():
        return "killed"
    error = task.exception()
    if error is None:
        return "drained"
    if not isinstance(error, EncoreError):
        raise SimulationError("unforeseen", f"{name} ended by {error!r}") from error
    return str(error)


class Member:
    """One process of a group. It takes one job at a time, as the application's pump does."""

    def __init__(self, name: str, handler: Handler, sender: Sender, loop: VirtualLoop) -> None:
        self.name, self.handler, self.loop = name, handler, loop
        self.marks = Marks()
        self.paused = False
        self.outlived = False  # the store was wiped under it
        self.losses = 0  # of the store, before it began
        self.unheard: list[Callable[[], None]] = []  # replies that came while it stood still
        self.joined = False
        self.closing = False
        self.generation = -1
        self.places: Places = Places()
        self.position: dict[TP, int] = {}
        self.logs: dict[str, str] = {}  # topic → the id of the log it began to read
        self.inbox: list[Fetched] = []
        self.invited: tuple[int, Places] | None = None
        self._next: asyncio.Future[Job] | None = None
        token = OWNER.set(name)
        self.task = loop.create_task(self._live(sender))
        OWNER.reset(token)

    async def _live(self, sender: Sender) -> None:
        await self.handler.open(sender, self.marks)
        self.joined = True
        while not self.closing:
            self._next = self.loop.create_future()
            job = await self._next
            await job()

    # --- as seen from outside -----------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """It would take a job now."""
        free = self._next is not None and not self._next.done()
        return free and not self.paused and not self.ended

    @property
    def ended(self) -> bool:
        """The process is gone: killed, drained, or by an error."""
        return self.task.done()

    def reason(self, losses: int) -> str:
        """Why it ended. Raises SimulationError for an error that nobody foresaw, and where it tells
        of a loss of the store that was none. losses: how many there were by now."""
        reason = why_ended(self.name, self.task)
        if losses == self.losses and ALARM.search(reason):
            raise SimulationError("alarm", f"{self.name}: {reason}")
        return reason

    def give(self, job: Job) -> None:
        """Let it do this next."""
        assert self._next is not None
        self._next.set_result(job)

    def hear(self, reply: Callable[[], None]) -> None:
        """A reply arrives; a process that stands still hears of it later."""
        if self.paused:
            self.unheard.append(reply)
        else:
            reply()

    def resume(self) -> None:
        """Go on as if no time had passed."""
        self.paused = False
        for reply in self.unheard:
            reply()
        self.unheard.clear()

    # --- jobs ---------------------------------------------------------------------------------

    async def learn(self, committed: dict[TP, int]) -> None:
        """Take over the assignment it was invited to, and go where the handler says."""
        assert self.invited is not None
        (self.generation, self.places), self.invited = self.invited, None
        self.marks.forget(list(self.marks.partitions()))
        self.position = {}  # nothing is fetched until it was sought
        self.marks.own(self.places)
        self.marks.committed.update((tp, committed.get(tp, 0)) for tp in self.places)
        starts = await self.handler.start_at(self.places)
        self.position = {tp: starts.get(tp, committed.get(tp, 0)) for tp in self.places}

    async def hand(self) -> None:
        """The inbox to the handler; what was fetched before the last rebalance is dropped."""
        lists = [fetched for fetched in self.inbox if fetched.generation == self.generation]
        self.inbox = []
        if lists:
            await self.handler.handle(lists)
        else:
            await self.handler.idle()

    async def drain(self) -> None:
        """The end of a SIGTERM."""
        self.closing = True
        await self.handler.close()

    def fetch(self, tp: TP, records: list[Any]) -> None:
        """Records of one partition arrived."""
        self.inbox.append(Fetched(tp, tuple(records), self.generation))
        self.position[tp] = int(records[-1].offset) + 1
