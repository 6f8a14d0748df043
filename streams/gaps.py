"""What a generation of a view lacks, and nobody can give the stream again: recorded, and told.

A generation that lags (`streams.generations`) reads what it lacks from the log. Where the log does
not hold that any more, or was lost as a whole, the generation goes on without it: what is served
must not stand still for it, and a generation that is only staged must not hold up the one that is
served. The span is recorded before anything is folded behind it, `encore stream status` shows it
until a rebuild has put another generation in its place, and a staged one is not switched to.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Final

from schemas.errors import PlanError, StreamError
from schemas.names import gaps_keys
from schemas.plan import Side, ViewPlan
from store.base import AsyncRowStore
from streams.amending import ONE_GROUP, amend_text
from streams.config import StreamConfig
from streams.plans import fed_views, published_plan, staged_plan

log = logging.getLogger("encore.streams")

#: The end of a gap that reaches to wherever its log ended.
END: Final = -1


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages [first, next_offset) of the log of that epoch. next_offset: END where nobody knows.

    >>> str(Gap(1, 12, 40)), str(Gap(1, 12, END))
    ('offsets 12 to 39 of epoch 1', 'what lies from offset 12 on in epoch 1')
    """

    epoch: int
    first: int
    next_offset: int

    def __str__(self) -> str:
        if self.next_offset == END:
            return f"what lies from offset {self.first} on in epoch {self.epoch}"
        return f"offsets {self.first} to {self.next_offset - 1} of epoch {self.epoch}"

    def holds(self, epoch: int, offset: int) -> bool:
        """The message is in the gap."""
        before_end = self.next_offset == END or offset < self.next_offset
        return epoch == self.epoch and self.first <= offset and before_end


#: By partition.
Gaps = dict[int, tuple[Gap, ...]]


@dataclass(frozen=True, slots=True)
class Lack:
    """A gap of a view that is published, or staged. topic: which it is fed from."""

    view: str
    generation: int
    staged: bool
    topic: str
    partition: int
    gap: Gap

    @property
    def do(self) -> str:
        """What brings it back."""
        return "encore backfill --cancel" if self.staged else f"encore rebuild {self.view}"

    def __str__(self) -> str:
        place = f"{self.view}@{self.generation} lacks {self.gap} of {self.topic}/{self.partition}"
        return f"{place}: {self.do}"


async def record_gaps(
    store: AsyncRowStore, reader: tuple[str, str], view: ViewPlan, found: Mapping[int, Gap]
) -> None:
    """Add these to what is recorded. reader: topic and group. Raises StoreError, StreamError."""
    if not found:
        return
    keys = gaps_keys(*reader, view.name, view.generation)
    fresh: dict[int, Gap] = {}

    def with_found(text: str | None) -> str | None:
        nonlocal fresh
        held = parse_gaps(text, keys[0])
        gaps = held | {p: _joined((*held.get(p, ()), gap)) for p, gap in found.items()}
        if gaps == held:
            fresh = {}
            return None
        fresh = {p: gap for p, gap in found.items() if gap not in held.get(p, ())}
        return json.dumps({str(p): [astuple(gap) for gap in gaps[p]] for p in sorted(gaps)})

    what = f"gaps of {view.name}@{view.generation}"
    await amend_text(store, keys, with_found, what, ONE_GROUP)
    _tell(reader[0], view, fresh)


def _tell(topic: str, view: ViewPlan, found: Mapping[int, Gap]) -> None:
    for partition, gap in found.items():
        log.error(
            "%s@%d lacks %s of %s/%d, and the log does not hold it any more",
            view.name,
            view.generation,
            gap,
            topic,
            partition,
        )


def _joined(gaps: Sequence[Gap]) -> tuple[Gap, ...]:
    """Of those that begin at one offset the longest."""
    ends: dict[tuple[int, int], int] = {}
    for gap in gaps:
        place = gap.epoch, gap.first
        both = ends.get(place, gap.next_offset), gap.next_offset
        ends[place] = END if END in both else max(both)
    return tuple(Gap(*place, end) for place, end in sorted(ends.items()))


async def recorded_gaps(store: AsyncRowStore, reader: tuple[str, str], view: ViewPlan) -> Gaps:
    """What the generation lacks. reader: topic and group. Raises StoreError, StreamError."""
    key, _ = gaps_keys(*reader, view.name, view.generation)
    return parse_gaps(await store.get_text(key), key)


def parse_gaps(text: str | None, where: str) -> Gaps:
    """The gaps of a stored text, none without one. Raises StreamError for any other text.

    >>> parse_gaps('{"0": [[1, 12, 40]]}', "gaps")
    {0: (Gap(epoch=1, first=12, next_offset=40),)}
    """
    if text is None:
        return {}
    try:
        held = json.loads(text)
        return {
            int(p): tuple(Gap(int(epoch), int(at), int(end)) for epoch, at, end in each)
            for p, each in held.items()
        }
    except (ValueError, TypeError, AttributeError):
        raise StreamError(
            where,
            required="gaps, {partition: [[epoch, first, next], ...]}",
            got=repr(text[:80]),
            do="rebuild the view: `encore rebuild`",
        ) from None


async def known_gaps(store: AsyncRowStore, config: StreamConfig) -> tuple[Lack, ...]:
    """What views lack that are folded now, published or staged; nothing for a plan that cannot be
    used, since nobody folds by it. Raises StoreError, StreamError."""
    try:
        plan, staged = await published_plan(store), await staged_plan(store)
    except PlanError:
        return ()
    readers: tuple[tuple[Side, str, str], ...] = (
        ("user", config.topic, config.group),
        ("item", config.item_topic, config.item_group),
    )
    found: list[Lack] = []
    for side, topic, group in readers:
        views = {view.key: (view, False) for view in fed_views(plan, side, topic)}
        for view in () if staged.plan is None else fed_views(staged.plan, side, topic):
            if staged.views.get(view.name) == view.generation:
                views.setdefault(view.key, (view, True))
        for view, is_staged in views.values():
            gaps = await recorded_gaps(store, (topic, group), view)
            found += [
                Lack(view.name, view.generation, is_staged, topic, partition, gap)
                for partition, each in sorted(gaps.items())
                for gap in each
            ]
    return tuple(found)
