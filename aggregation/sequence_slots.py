"""Sequence slots: the users' block → ids, those of one transform together.

Symbols: U users (1 in a request), S sequences, L capacity of one, M the greatest of them, g
sequences of a kernel.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.kernels import Ids, Kernel, kernel, together
from schemas.ids import MISSING
from schemas.plan import SequenceSlotPlan
from schemas.values import LENGTH_SUFFIX, Block, value_name

Array = NDArray[Any]

_PART: Final = 8_192  # users at once: what is made of them on the way stays in the cache


@dataclass(frozen=True, slots=True)
class _Member:
    """One sequence. place: among all. field: of the block. row: of its group. unsafe: floats that
    become whole numbers, for which what is missing must be no NaN."""

    name: str
    place: int
    field: str
    capacity: int
    row: int
    floating: bool
    unsafe: bool
    sentinels: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences of one kernel."""

    kernel: Kernel
    members: tuple[_Member, ...]


class SequenceProgram:
    """The compiled sequences of a service. Immutable; safe to share between threads."""

    def __init__(self, slots: Sequence[SequenceSlotPlan], dtype: np.dtype[np.void]) -> None:
        self._slots = tuple(slots)
        self._capacities = np.array([slot.capacity for slot in slots], np.int32)[:, None]  # (S, 1)
        self._most = max((slot.capacity for slot in slots), default=0)  # M
        self._columns = np.arange(self._most, dtype=np.int32)  # (M,)
        fields = [value_name(slot.view, slot.feature) for slot in slots]
        self._lengths = tuple(field + LENGTH_SUFFIX for field in fields)
        groups: dict[Hashable, list[int]] = {}
        for place, (slot, field) in enumerate(zip(slots, fields, strict=True)):
            groups.setdefault(together(slot.transform, dtype[field].base), []).append(place)
        self._groups = tuple(self._group(places, fields, dtype) for places in groups.values())

    def _group(self, places: list[int], fields: list[str], dtype: np.dtype[np.void]) -> _Group:
        transforms = [self._slots[place].transform for place in places]
        shared = kernel(transforms, dtype[fields[places[0]]].base)
        members = []
        for row, place in enumerate(places):
            slot, floating = self._slots[place], dtype[fields[place]].base.kind == "f"
            members.append(
                _Member(
                    name=slot.name,
                    place=place,
                    field=fields[place],
                    capacity=slot.capacity,
                    row=row,
                    floating=floating,
                    unsafe=floating and shared.dtype.kind != "f",
                    sentinels=slot.transform.sentinels,
                )
            )
        return _Group(shared, tuple(members))

    def __call__(self, users: Block) -> tuple[dict[str, Ids], dict[str, Ids]]:
        """Of each sequence ids, (U, L) int32, 0 behind the length, and the lengths, (U,) int32."""
        n = len(users)
        ids = np.empty((len(self._slots), n, self._most), np.int32)  # (S, U, M)
        lengths = np.empty((len(self._slots), n), np.int32)  # (S, U)
        for start in range(0, n, _PART):
            part = slice(start, start + _PART)
            self._fill(users[part], ids[:, part], lengths[:, part])
        return (
            {
                slot.name: np.ascontiguousarray(ids[place, :, : slot.capacity])
                for place, slot in enumerate(self._slots)
            },
            {slot.name: lengths[place] for place, slot in enumerate(self._slots)},
        )

    def _fill(self, users: Block, ids: Array, lengths: Array) -> None:
        """ids: (S, U, M); lengths: (S, U)."""
        for place, field in enumerate(self._lengths):
            lengths[place] = users[field]
        np.minimum(lengths, self._capacities, out=lengths)
        missing = self._columns >= lengths[:, :, None]  # (S, U, M)
        for group in self._groups:
            shape = (len(group.members), len(users), self._most)
            values = np.zeros(shape, group.kernel.dtype)  # (g, U, M)
            for member in group.members:
                _take(member, users[member.field][:, : member.capacity], values, missing)
            found = group.kernel(values.reshape(len(values), -1)).reshape(shape)  # (g, U, M)
            for member in group.members:
                ids[member.place] = found[member.row]
        np.copyto(ids, np.int32(MISSING), where=missing)


def _take(member: _Member, found: Array, values: Array, missing: Array) -> None:
    """One sequence's values, (U, L), into its group's, and what of them is missing."""
    lacks = missing[member.place, :, : member.capacity]  # (U, L), a view
    if member.floating:
        lacks |= np.isnan(found)
    for sentinel in member.sentinels:
        lacks |= found == sentinel
    if member.unsafe:
        found = np.where(lacks, 0, found)
    values[member.row, :, : member.capacity] = found
