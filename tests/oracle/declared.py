"""What a declared feature says at `now_ms`, from the actions themselves: no plan, no state.

It holds for readers whose clock is not before the newest action; windows also for clocks behind it
by at most the lateness that the view allows.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import xxhash

from schemas.actions import UNKNOWN, ActionType
from tests.oracle.fold import column_of

Action = dict[str, Any]
#: Column, operator, constants.
Condition = tuple[str, str, tuple[int, ...]]

MEETS: dict[str, Callable[[int, Any], bool]] = {
    "==": lambda value, given: value == given[0],
    "!=": lambda value, given: value != given[0],
    "<": lambda value, given: value < given[0],
    "<=": lambda value, given: value <= given[0],
    ">": lambda value, given: value > given[0],
    ">=": lambda value, given: value >= given[0],
    "in": lambda value, given: operator.contains(given, value),
}


@dataclass(frozen=True)
class Declared:
    """One feature. types: of actions, "*" any. number: of `distinct` its capacity, of `last_n` and
    `recent` their n, of `decayed_sum` its half-life, of `last` how old it may be, 0 for any age."""

    function: str
    types: tuple[str, ...] = ("*",)
    column: str = ""
    where: tuple[Condition, ...] = ()
    window_ms: int = 0
    hop_ms: int = 0
    number: int = 0


def says(declared: Declared, actions: Sequence[Action], now_ms: int) -> Any:
    """A number, a list, or None for null. actions: the user's that are neither late nor future."""
    taken = [each for each in actions if takes(declared, each)]
    if declared.function == "recent":
        newest = sorted(taken, key=lambda each: (each["time_ms"], kept(declared, each)))[::-1]
        return [entry(declared, each, now_ms) for each in newest[: declared.number]]
    if declared.column not in ("", "age_ms"):
        taken = [each for each in taken if column_of(each, declared.column) is not None]
    if declared.function in ("last", "last_n"):
        newest = sorted(taken, key=lambda each: (each["time_ms"], kept(declared, each)))[::-1]
        if declared.function == "last_n":
            return [entry(declared, each, now_ms) for each in newest[: declared.number]]
        fresh = [
            e for e in newest if not declared.number or now_ms - e["time_ms"] < declared.number
        ]
        return entry(declared, fresh[0], now_ms) if fresh else None
    hops: dict[int, list[int]] = {}  # age in hops → values
    for each in taken:
        age = now_ms // declared.hop_ms - each["time_ms"] // declared.hop_ms
        if 0 <= age < declared.window_ms // declared.hop_ms:
            value = column_of(each, declared.column) if declared.column else 1
            assert value is not None
            hops.setdefault(age, []).append(value)
    return FUNCTIONS[declared.function](declared, hops)


def takes(declared: Declared, action: Action) -> bool:
    """Of one of the types, and meets all conditions; what is not known meets none."""
    named = "*" in declared.types or ActionType(action["type"]).name.lower() in declared.types
    known = [(column_of(action, column), op, given) for column, op, given in declared.where]
    return named and all(v is not None and MEETS[op](v, given) for v, op, given in known)


def kept(declared: Declared, action: Action) -> int:
    """What orders actions of one time."""
    value = 0 if declared.column == "age_ms" else column_of(action, declared.column)
    return UNKNOWN if value is None else value


def entry(declared: Declared, action: Action, now_ms: int) -> int:
    """One element of a sequence."""
    return now_ms - action["time_ms"] if declared.column == "age_ms" else kept(declared, action)


Hops = Mapping[int, list[int]]


def of_all(hops: Hops) -> list[int]:
    return [value for values in hops.values() for value in values]


def total(declared: Declared, hops: Hops) -> int:
    return sum(of_all(hops))


def mean(declared: Declared, hops: Hops) -> float | None:
    values = of_all(hops)
    return float(Fraction(sum(values), len(values))) if values else None


def std(declared: Declared, hops: Hops) -> float | None:
    values = of_all(hops)
    if not values:
        return None
    middle = Fraction(sum(values), len(values))
    return math.sqrt(sum((value - middle) ** 2 for value in values) / len(values))


def least(declared: Declared, hops: Hops) -> int | None:
    return min(of_all(hops), default=None)


def greatest(declared: Declared, hops: Hops) -> int | None:
    return max(of_all(hops), default=None)


def distinct(declared: Declared, hops: Hops) -> int:
    """How many, while no hop has more than the capacity; beyond, estimated from the hashes below
    the least of the full hops' (capacity + 1)-th smallest."""
    hashes = {age: sorted({hash_of(value) for value in values}) for age, values in hops.items()}
    full = [each[declared.number] for each in hashes.values() if len(each) > declared.number]
    if not full:
        return len(set(of_all(hops)))
    below = {each for every in hashes.values() for each in every if each < min(full)}
    return round(len(below) * 2**64 / (min(full) + 1))


def hash_of(value: int) -> int:
    return min(xxhash.xxh3_64_intdigest(struct.pack("<q", value)), 2**64 - 2)


def decayed_sum(declared: Declared, hops: Hops) -> float:
    half_lives = {age: age * declared.hop_ms / declared.number for age in hops}
    return math.fsum(sum(values) * 0.5 ** half_lives[age] for age, values in hops.items())


FUNCTIONS: dict[str, Callable[[Declared, Hops], Any]] = {
    "count": total,
    "sum": total,
    "mean": mean,
    "std": std,
    "min": least,
    "max": greatest,
    "distinct": distinct,
    "decayed_sum": decayed_sum,
}
