"""What happens in a run of the chaos benchmark, and in which order: all of it drawn by its seed.

The deck is of what strikes. Beside it the crews are scaled out and in: before some of the events
one process more joins or one leaves for good, so that the event strikes while partitions are moved.
Those are drawn by dice of their own, which leave the deck of a seed as it is without them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Final, Literal

EventKind = Literal["kill", "stop", "store", "broker", "rekeyed", "cut", "fill"]
MoveKind = Literal["join", "leave"]
#: Who joins or leaves: the kind of its process.
Move = tuple[MoveKind, str]

#: The least and the most processes of a kind.
CREW: Final = (2, 4)


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


def moves(kills: int, crew: Mapping[str, int], dice: random.Random) -> dict[int, Move]:
    """Number of the event, from 1 on → the move before it.

    crew: how many of each of two kinds there are at first, in the bounds of CREW, which no move
    leaves. Of the first kind as many join as leave, one each for twelve events, of the second one
    for twenty-four; there is one of each from four events on, and none where there are fewer.
    """
    if kills < 4:
        return {}
    pairs = {kind: max(1, kills // share) for kind, share in zip(crew, (12, 24), strict=True)}
    kinds = [kind for kind, count in pairs.items() for _ in range(2 * count)]
    dice.shuffle(kinds)
    left = Counter[Move](
        {(how, kind): count for kind, count in pairs.items() for how in ("join", "leave")}
    )
    size, found = dict(crew), {}
    for place, kind in zip(
        sorted(dice.sample(range(1, kills + 1), len(kinds))), kinds, strict=True
    ):
        # As many join as leave, so at either bound some of what leads away from it is left.
        open_moves: list[MoveKind] = []
        if left["join", kind] and size[kind] < CREW[1]:
            open_moves.append("join")
        if left["leave", kind] and size[kind] > CREW[0]:
            open_moves.append("leave")
        move = dice.choice(open_moves), kind
        left[move] -= 1
        size[kind] += 1 if move[0] == "join" else -1
        found[place] = move
    return found
