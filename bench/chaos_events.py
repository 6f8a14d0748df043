"""What happens to the processes and servers of the chaos benchmark, one event after another.

Before each event the workers are given time to store something, so that it strikes at work under
way; how soon after that is drawn. What ended, killed or by itself, is started again at once, as a
supervisor would; what was stopped goes on after longer than the group's session lasts, when others
have its partitions.

Who has just joined is hit by what comes, as all others are. Who leaves is sent SIGTERM once the
groups are formed, drains and is not started again; what comes strikes while others take over.
"""

from __future__ import annotations

import os
import queue
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from bench.chaos_deck import EventKind, Move
from bench.chaos_nursery import Nursery
from bench.chaos_world import Load, World, continued
from schemas.errors import StreamError

PROGRESS_S: Final = 4.0
TICK_S: Final = 0.01
STOPPED_S: Final = (2.5, 4.5)  # the session ends after 2 s
CUT_S: Final = (0.5, 3.5)
SETTLE_S: Final = 120.0
LOOK_S: Final = 0.2
#: More than a process gives itself (`streams.app`): DRAIN_S for its work, LEAVE_S for Faust's.
DRAIN_S: Final = 60.0
LEAVE_S: Final = 60.0
#: A member learns that another left by its next heartbeat.
NOTICED_S: Final = 1.0
#: Between who joins or leaves and what strikes then: partitions are about to be moved.
MOVED_S: Final = (0.0, 1.0)
FILLED_S: Final = 180.0
FILLER: Final = "filler"
#: How the ends of those that were told to leave are told apart.
LEFT: Final = "left, "


@dataclass(slots=True)
class Crew:
    """The stream processes: name → pid, kept running. kinds: of those that shall run. stopped: pid
    → when it goes on. leaving: pid → when it has to be gone. filled: how many backfills were done.
    """

    nursery: Nursery
    kinds: dict[str, str]
    pids: dict[str, int] = field(default_factory=dict)
    stopped: dict[int, float] = field(default_factory=dict)
    leaving: dict[int, float] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    filled: int = 0
    _named: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._named.update(self.kinds.values())

    def start(self) -> None:
        """Everybody that does not run."""
        for name, kind in self.kinds.items():
            if name not in self.pids:
                self.pids[name] = self.nursery.start(name, kind)

    def look_after(self) -> None:
        """Start again what ended, let go on what was stopped for long enough.

        Raises StreamError where one that was told to leave does not.
        """
        while True:
            try:
                name, pid, code = self.nursery.ended.get_nowait()
            except queue.Empty:
                break
            how = "killed" if code == -signal.SIGKILL else f"exit {code}"
            left = self.leaving.pop(pid, None) is not None
            self.ended[f"{LEFT}{how}" if left else how] += 1
            self.stopped.pop(pid, None)
            if self.pids.get(name) == pid:
                del self.pids[name]
                if name == FILLER and code == 0:
                    del self.kinds[name]
                    self.filled += 1
        now_s = time.monotonic()
        for pid in [pid for pid, until_s in self.stopped.items() if now_s >= until_s]:
            del self.stopped[pid]
            self._signal(pid, signal.SIGCONT)
        if any(now_s > until_s for until_s in self.leaving.values()):
            names = [name for name, pid in self.pids.items() if pid in self.leaving]
            required = f"an end within {LEAVE_S:g} s of SIGTERM"
            raise StreamError("leave", required=required, got=f"none of {', '.join(names)}")
        self.start()

    def join(self, kind: str) -> None:
        """One more of a kind, under a name that nobody had."""
        self._named[kind] += 1
        self.kinds[f"{kind}-{self._named[kind]}"] = kind
        self.start()

    def leave(self, kind: str, dice: random.Random) -> None:
        """SIGTERM to one of a kind, which is not started again."""
        name = dice.choice(sorted(name for name, each in self.kinds.items() if each == kind))
        del self.kinds[name]
        self.leaving[self.pids[name]] = time.monotonic() + LEAVE_S
        self._signal(self.pids[name], signal.SIGTERM)

    @property
    def fills(self) -> bool:
        """A backfill is not done yet."""
        return FILLER in self.kinds

    def fill(self) -> None:
        """Begin a backfill of all views; it is run again until it is done."""
        self.kinds.setdefault(FILLER, "fill")
        self.start()

    def kill(self, dice: random.Random) -> None:
        """SIGKILL one, stopped or not."""
        self._signal(self.pids[dice.choice(sorted(self.pids))], signal.SIGKILL)

    def stop(self, dice: random.Random) -> None:
        """SIGSTOP one that runs, until its session is over."""
        names = [name for name, pid in self.pids.items() if pid not in self.stopped]
        if names:
            pid = self.pids[dice.choice(sorted(names))]
            self.stopped[pid] = time.monotonic() + dice.uniform(*STOPPED_S)
            self._signal(pid, signal.SIGSTOP)

    def drain(self) -> Counter[str]:
        """SIGTERM to all; how they ended. Raises StreamError where one does not."""
        for pid in self.pids.values():
            self._signal(pid, signal.SIGCONT)
            self._signal(pid, signal.SIGTERM)
        codes: Counter[str] = Counter()
        deadline_s = time.monotonic() + DRAIN_S
        while self.pids:
            try:
                name, pid, code = self.nursery.ended.get(timeout=deadline_s - time.monotonic())
            except (queue.Empty, ValueError):
                raise StreamError(
                    "drain",
                    required=f"processes that end within {DRAIN_S:g} s of SIGTERM",
                    got=", ".join(self.pids),
                ) from None
            if self.pids.get(name) == pid:
                del self.pids[name]
                codes[f"exit {code}"] += 1
        return codes

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return


@dataclass(slots=True)
class Chaos:
    """One run: strikes until the deck is empty.

    dice: of the events. moving: of who leaves, and how soon it is followed. done: how often each.
    """

    world: World
    crew: Crew
    dice: random.Random
    moving: random.Random
    load: Load
    per_s: int
    say: Callable[[str], None]
    done: Counter[str] = field(default_factory=Counter)

    def run(self, events: list[EventKind], moves: Mapping[int, Move]) -> None:
        """All events, each behind its move; then quiet: the load ends and everything is stored.

        moves: number of an event, from 1 on → what comes before it.
        """
        for number, event in enumerate(events, 1):
            self._progress()
            self._wait(self.dice.uniform(0.0, 0.6))
            if number in moves:
                self._move(moves[number])
            self.say(f"{number}/{len(events)} {event}")
            self._strike(event)
            self.done[event] += 1
        self._formed()
        self._settle()
        self._at_rest()
        self.world.read_log()

    def _move(self, move: Move) -> None:
        how, kind = move
        self.say(" ".join(move))
        if how == "join":
            self.crew.join(kind)
        else:
            self._formed()
            self.crew.leave(kind, self.moving)
            while self.crew.leaving:
                self._wait(TICK_S)
        self.done[how] += 1
        self._wait(self.moving.uniform(*MOVED_S))

    def _strike(self, event: EventKind) -> None:
        if event == "kill":
            self.crew.kill(self.dice)
        elif event == "stop":
            self.crew.stop(self.dice)
        elif event == "store":
            self.world.stall_disk()
            self._wait(self.dice.uniform(0.1, 0.6))
            self.world.cut_store(self.dice)
        elif event == "rekeyed":
            self.world.lose_rekeyed_log()
        elif event == "fill":
            self.crew.fill()
        elif event == "cut":
            self.world.gate.cut()
            self._wait(self.dice.uniform(*CUT_S))
            self.world.gate.open()
        else:
            self._settle()  # what only the lost log held could not be counted by anybody
            self.world.read_log()
            self.world.lose_broker_log()
            seed = self.dice.randrange(1 << 30)
            self.load = continued(self.load, self.world.config, seed, self.per_s)
            self.load.start()

    def _settle(self) -> None:
        self.load.finish()
        self._caught_up(self.world.ends())

    def _caught_up(self, ends: dict[int, int]) -> None:
        """Until all rows have these offsets, whoever has to be started again meanwhile."""
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            try:
                self.world.behind(ends, LOOK_S)
                return
            except StreamError:
                self.crew.look_after()
                if time.monotonic() > deadline_s:
                    raise

    def _formed(self) -> None:
        """Until the groups are formed: nobody is stopped, and all that was sent by then is stored.

        The embedded broker's coordinator does not get over a leader that leaves before.
        """
        while self.crew.stopped:
            self._wait(TICK_S)
        self._wait(NOTICED_S)
        self._caught_up(self.world.ends())

    def _at_rest(self) -> None:
        """Until no backfill is under way."""
        deadline_s = time.monotonic() + FILLED_S
        while self.crew.fills:
            self._wait(LOOK_S)
            if time.monotonic() > deadline_s:
                raise StreamError(
                    "backfill", required=f"to be done within {FILLED_S:g} s", got="one under way"
                )

    def _progress(self) -> None:
        """Until something is stored, or PROGRESS_S at most."""
        deadline_s = time.monotonic() + PROGRESS_S
        reached = self.world.reached()
        while self.world.reached() == reached and time.monotonic() < deadline_s:
            self._wait(0.05)

    def _wait(self, seconds: float) -> None:
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            self.crew.look_after()
            time.sleep(TICK_S)
