"""Looking again at what a log seems to lack, before anybody calls it a hole.

A broker may show a later batch before an earlier one while two producers write to a partition at
the same time, and a moment later both. So a consumer that was given an offset behind the next one
keeps it back, pauses, seeks to the missing offset and fetches again, once for each pause in
LOOKS_S. What is missing then is missing: it is given on, and who reads judges it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aiokafka.structs import ConsumerRecord
from faust.types import TP

log = logging.getLogger("encore.streams")

#: The pause before each further look, s.
LOOKS_S: Final = (0.3, 0.7)


def first_gap(records: Sequence[ConsumerRecord], at: int) -> tuple[int, int] | None:
    """The first offsets [first, next) from `at` on that are missing before or among records, in
    offset order and at least one. None where none are."""
    first, last = int(records[0].offset), int(records[-1].offset)
    if first <= at and last - first + 1 == len(records):
        return None
    for record in records:
        if record.offset > at:
            return at, int(record.offset)
        at = max(at, int(record.offset) + 1)
    return None


@dataclass(slots=True)
class Look:
    """At a missing offset. count: how often it was looked for again. due_s: when it is to be the
    next time; None once it has been."""

    offset: int
    count: int = 0
    due_s: float | None = None


class SecondLooks:
    """The further looks of one consumer. pauses_s: before each."""

    def __init__(self, pauses_s: Sequence[float] = LOOKS_S) -> None:
        self._pauses_s = tuple(pauses_s)
        self._next: dict[TP, int] = {}
        self._looks: dict[TP, Look] = {}

    def begin(self, places: Mapping[TP, int]) -> None:
        """Partitions were newly assigned, and are read from there. Of others the first list is
        taken as it comes."""
        self._next = dict(places)
        self._looks.clear()

    def cut(self, tp: TP, records: Sequence[ConsumerRecord], now_s: float) -> int:
        """How many of the records that came, at least one, are to be given on now. The rest comes
        again after a look, and until then nothing of the partition shall be fetched."""
        at = self._next.get(tp, int(records[0].offset))
        while (gap := first_gap(records, at)) is not None:
            missing, after = gap
            look = self._looks.get(tp)
            if look is None or look.offset != missing:
                look = self._looks[tp] = Look(missing)
            if look.count < len(self._pauses_s):
                where, pause_s = f"{tp.topic}/{tp.partition}", self._pauses_s[look.count]
                log.warning("%s: offset %d came before %d: looked for again", where, after, missing)
                look.due_s = now_s + pause_s
                look.count += 1
                self._next[tp] = missing
                return sum(int(record.offset) < missing for record in records)
            at = after
        self._looks.pop(tp, None)
        self._next[tp] = max(at, int(records[-1].offset) + 1)
        return len(records)

    def waiting(self) -> frozenset[TP]:
        """Partitions that wait for their next look."""
        return frozenset(tp for tp, look in self._looks.items() if look.due_s is not None)

    def due(self, now_s: float) -> dict[TP, int]:
        """Partitions whose pause is over, with the offset that is missing."""
        looks = self._looks.items()
        return {
            tp: look.offset for tp, look in looks if look.due_s is not None and look.due_s <= now_s
        }

    def looked(self, tps: Iterable[TP]) -> None:
        """These were sought back to the missing offset: what comes next of them is another look."""
        for tp in tps:
            self._looks[tp].due_s = None
