"""What happens to the processes and servers of the chaos benchmark, one event after another.

Before each event the workers are given time to store something, so that it strikes at work under
way; how soon after that is drawn. What ended, killed or by itself, is started again at once, as a
supervisor would; what was stopped goes on after longer than the group's session lasts, when others
have its partitions.
"""

from __future__ import annotations

import os
import queue
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from bench.chaos_nursery import Nursery
from bench.chaos_world import Load, World, continued
from schemas.errors import StreamError

EventKind = Literal["kill", "stop", "store", "broker", "rekeyed", "cut", "fill"]

PROGRESS_S: Final = 4.0
TICK_S: Final = 0.01
STOPPED_S: Final = (2.5, 4.5)  # the session ends after 2 s
CUT_S: Final = (0.5, 3.5)
SETTLE_S: Final = 60.0
LOOK_S: Final = 0.2
DRAIN_S: Final = 25.0
FILLED_S: Final = 180.0
FILLER: Final = "filler"


def deck(kills: int, dice: random.Random) -> list[EventKind]:
    """The events, shuffled: of ten about one store, of twenty one lost log of each kind, one time
    that the broker is away with its log, and one backfill of all views."""
    few = max(1, kills // 20)
    events: list[EventKind] = ["store"] * max(1, kills // 10)
    counts: dict[EventKind, int] = {
        "broker": few if kills >= 4 else 0,
        "rekeyed": few if kills >= 5 else 0,
        "cut": few if kills >= 6 else 0,
        "fill": few if kills >= 7 else 0,
        "stop": kills // 4,
    }
    for event, count in counts.items():
        events += [event] * count
    events += ["kill"] * (kills - len(events))
    dice.shuffle(events)
    return events[:kills]


@dataclass(slots=True)
class Crew:
    """The stream processes: name → pid, kept running. stopped: pid → when it goes on.
    filled: how many backfills were done."""

    nursery: Nursery
    kinds: dict[str, str]
    pids: dict[str, int] = field(default_factory=dict)
    stopped: dict[int, float] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    filled: int = 0

    def start(self) -> None:
        """Everybody that does not run."""
        for name, kind in self.kinds.items():
            if name not in self.pids:
                self.pids[name] = self.nursery.start(name, kind)

    def look_after(self) -> None:
        """Start again what ended, let go on what was stopped for long enough."""
        while True:
            try:
                name, pid, code = self.nursery.ended.get_nowait()
            except queue.Empty:
                break
            self.ended["killed" if code < 0 else f"exit {code}"] += 1
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
        self.start()

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
    """One run: strikes until the deck is empty."""

    world: World
    crew: Crew
    dice: random.Random
    load: Load
    per_s: int
    say: Callable[[str], None]
    done: Counter[str] = field(default_factory=Counter)

    def run(self, events: list[EventKind]) -> None:
        """All events, then quiet: the load ends and everything is stored."""
        for number, event in enumerate(events, 1):
            self._progress()
            self._wait(self.dice.uniform(0.0, 0.6))
            self.say(f"{number}/{len(events)} {event}")
            self._strike(event)
            self.done[event] += 1
        self._settle()
        self._filled()
        self.world.read_log()

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

    def _filled(self) -> None:
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
