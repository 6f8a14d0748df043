"""What apps send: whole messages, late and future actions, deletions, and what cannot be read."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.actions import ACTION, ActionType, encode_batch
from schemas.ids import partitions_of
from schemas.names import CONTENT_ACTION, HEADER_CONTENT
from tests.simulation.reference import PARTITIONS


def entities(first: int) -> list[int]:
    """Four ids, two of each partition."""
    ids = np.arange(first, first + 200)
    owner = partitions_of(ids, PARTITIONS)
    return [int(i) for p in range(PARTITIONS) for i in ids[owner == p][:2]]


USERS: Final = entities(1_000)
ITEMS: Final = entities(7)


@dataclass(frozen=True)
class Message:
    """actions: (a,) ACTION, None where the message is malformed."""

    key: bytes
    value: bytes
    headers: dict[str, bytes]
    actions: NDArray[np.void] | None


def users_in(partition: int, partitions: int) -> list[int]:
    """Those of a topic's partition."""
    owner = partitions_of(np.array(USERS), partitions)
    return [user for user, place in zip(USERS, owner.tolist(), strict=True) if place == partition]


def some_message(dice: Random, users: list[int], sent_ms: int) -> Message:
    """Of users of one partition. One in three holds a bare action, one in sixteen is damaged."""
    actions = some_actions(dice, users, sent_ms)
    key, headers = b"%d" % int(actions["user"][0]), {}
    value = encode_batch(actions, sent_ms)
    if dice.random() < 0.3:
        actions = actions[:1]
        value = struct.pack("<q", sent_ms) + actions.tobytes()
        headers = {HEADER_CONTENT: CONTENT_ACTION}
    damage = dice.random()
    if damage < 0.03:
        return Message(b"no id", value, headers, None)
    if damage < 0.06:
        return Message(key, value[:-9], headers, None)
    return Message(key, value, headers, actions)


def some_actions(dice: Random, users: list[int], sent_ms: int) -> NDArray[np.void]:
    """(a,) ACTION, 1 to 3 of these users; some late, some from the future."""
    actions = np.zeros(dice.randint(1, 3), ACTION)
    for action in actions:
        action["user"] = dice.choice(users)
        action["item"] = dice.choice(ITEMS)
        lag_ms = dice.choice((0, dice.randrange(2_500), dice.randrange(2_000), 2_501, -1_001, -900))
        action["time_ms"] = sent_ms - lag_ms
        action["value"], action["author"] = dice.randrange(100), dice.randrange(4)
        action["position"], action["known"] = dice.randrange(9), dice.randrange(16)
        kinds = [kind for kind in ActionType if kind != ActionType.DELETE_USER]
        action["type"] = ActionType.DELETE_USER if dice.random() < 0.02 else dice.choice(kinds)
    return actions
