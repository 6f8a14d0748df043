"""Histories: made from a seed, run, brought to rest, judged, and made shorter when they fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.simulation.loop import SimulationError
from tests.simulation.rest import come_to_rest, judge
from tests.simulation.setting import MOVING, REAL, Event, Kinds
from tests.simulation.world import World

#: How often each kind is tried. What goes on in the middle of work is settled step by step.
WEIGHTS: Final = {
    "step": 100,
    "produce": 14,
    "fetch": 24,
    "hand": 24,
    "idle": 3,
    "learn": 20,
    "commit": 4,
    "tick": 4,
    "start": 4,
    "rebalance": 4,
    "kill": 1.2,
    "pause": 1.5,
    "resume": 3,
    "stop": 0.7,
    "fault": 2,
    "sync": 4,
    "crash": 0.35,
    "lose": 0.3,
    "plan": 0.5,
    "wipe": 0.08,
    "expire": 2,
    "archive": 2,
    "backfill": 1,
    "interrupt": 0.2,
    "give_up": 0.1,
    "leave": 8,
    "grow": 1,
    "end": 4,
    "abandon": 0.5,
    "forget": 0.2,
}


RARE: Final = (
    "kill",
    "pause",
    "fault",
    "sync",
    "crash",
    "lose",
    "plan",
    "wipe",
    "expire",
    "backfill",
    "interrupt",
    "leave",
    "rebalance",
    "grow",
    "end",
    "abandon",
)
WEATHER: Final = (0, 0.5, 1, 1, 2)
#: Of a failing history as much is shown.
MOST_LINES: Final = 150


@dataclass
class Outcome:
    """What came of one history. error: None where every rule held."""

    events: list[Event] = field(default_factory=list)
    happened: dict[str, int] = field(default_factory=dict)
    rows_checked: int = 0
    told: bool = False
    story: list[str] = field(default_factory=list)
    error: SimulationError | None = None


def generate(seed: int, steps: int, kinds: Kinds = REAL) -> Outcome:
    """A history of that many events, then rest and judgement."""
    dice = Random(seed)
    names = list(WEIGHTS)
    # Each history has its own weather: faults that come together find what an even mix does not.
    weights = [
        weight * (dice.choice(WEATHER) if kind in RARE else 1) for kind, weight in WEIGHTS.items()
    ]
    if dice.random() < 0.5:  # after a move a store is not wiped and an old log not lost
        weights = [
            0 if name in MOVING else weight for name, weight in zip(names, weights, strict=True)
        ]

    def drawn() -> Iterator[Event]:
        while True:
            yield Event(dice.choices(names, weights)[0], dice.getrandbits(30))

    return _run(drawn(), steps, kinds)


def replay(events: Sequence[Event], kinds: Kinds = REAL) -> Outcome:
    """The same again, or a part of it."""
    return _run(iter(events), len(events), kinds)


def _run(source: Iterator[Event], steps: int, kinds: Kinds) -> Outcome:
    outcome = Outcome()
    with _quiet_log():
        world = World(kinds)
        try:
            while len(outcome.events) < steps:
                event = next(source, None)
                if event is None:
                    break
                outcome.events.append(event)  # before it happens: it may be what fails
                if not world.happen(event):
                    outcome.events.pop()
            world.story.append("no more faults")
            outcome.told = not come_to_rest(world)
            judge(world, "user" if outcome.told else "user item")
        except SimulationError as error:
            outcome.error = error
        finally:
            world.close()
    outcome.happened, outcome.story = world.happened, world.story
    outcome.rows_checked = world.reference.rows_checked
    return outcome


@contextmanager
def _quiet_log() -> Iterator[None]:
    log = logging.getLogger("encore.streams")
    before, log.level = log.level, logging.CRITICAL
    try:
        yield
    finally:
        log.setLevel(before)


# --- shorter ---------------------------------------------------------------------------------


def shrink(events: Sequence[Event], rule: str, kinds: Kinds, runs: int) -> list[Event]:
    """A shorter history that breaks the same rule, after at most that many runs."""
    best, size = list(events), max(1, len(events) // 2)
    while runs > 0:
        start = 0
        while start < len(best) and runs > 0:
            runs -= 1
            found = replay(best[:start] + best[start + size :], kinds)
            if found.error is None or found.error.rule != rule:
                start += size
            else:
                best = found.events
        if size == 1:
            break
        size //= 2
    return best


def cut(story: list[str]) -> list[str]:
    """Without the middle of a long one."""
    if len(story) <= MOST_LINES:
        return story
    return [*story[: MOST_LINES // 2], "…", *story[-MOST_LINES // 2 :]]


def describe(seed: int, outcome: Outcome, kinds: Kinds = REAL, runs: int = 150) -> str:
    """The seed, the error, and a short history that shows it."""
    assert outcome.error is not None
    short = replay(shrink(outcome.events, outcome.error.rule, kinds, runs), kinds)
    lines = [f"seed {seed}: {outcome.error}", f"shortest found, {len(short.events)} events:"]
    lines += [f"  {line}" for line in cut(short.story)]
    return "\n".join([*lines, f"{short.error}"])
