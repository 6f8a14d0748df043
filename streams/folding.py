"""Actions into rows: read, drop what is applied, fold, compare-and-set, again where another won.

A row carries the fence (epoch, offset) of the newest message applied to it. A message is applied to
a row exactly once: only if it lies beyond the row's fence, and only by a write that names the fence
it read. So any batch may be folded again, by this process or another, and changes nothing.

Rows depend on nobody but themselves, so a run is folded in parts of ROWS_AT_ONCE rows, which fit
the processor's cache, and some parts are under way at once: while the store writes one, another is
read and a third is folded. The next run may be begun meanwhile; its parts go behind those of this
one that may hold the same rows (`streams.lanes`). What this process wrote is kept in
`streams.hot_rows` and need not be read again: where another writer came in between, the fence is
another and the write fails.

Symbols: a actions, n rows (entities of one view in one micro-batch).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from aggregation.deletion import deletions, fold_in_order
from aggregation.fold import FoldReport, judge
from schemas.errors import RowError, StoreError, StreamError
from schemas.layout import RowLayout, layout_of
from schemas.names import row_keys
from schemas.plan import ViewPlan
from schemas.row import Rows, decode_rows, encode_rows, fences_bytes, read_fence
from schemas.status import Status
from store.base import AsyncRowStore, writes_of
from streams.hot_rows import HotRows
from streams.lanes import LANES, Lanes, lanes_of
from streams.messages import ActionRun
from streams.overlap import ended
from streams.patience import patiently

T = TypeVar("T")

#: Another writer of the same rows is a worker about to lose its partition: it wins a few times.
MAX_ROUNDS: Final = 50
#: Rows of a part: some 5 MB of them. Fewer pay numpy's cost a call, more the memory's.
ROWS_AT_ONCE: Final = 2_048
#: Parts of a run under way at once.
OVERLAP: Final = 3


#: How much later than by its TTL and its topic's retention a row leaves the store.
EXPIRY_SLACK_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class OutsideActions:
    """Actions that a view does not take for their time, of one view. reason: late or future."""

    view: str
    reason: str
    at: NDArray[np.intp]  # places in the run


def physical_ttl_ms(view: ViewPlan, retention_ms: int) -> int:
    """After how long without a write a row may leave the store, 0 for never.

    Longer than the view's TTL, so that what leaves reads as expired already, and than the topic
    keeps messages, so that no message that comes again finds the row and its fence gone.

    retention_ms: of the topic, 0 where nobody says.
    """
    if not (view.ttl_ms and retention_ms):
        return 0
    return max(view.ttl_ms, retention_ms) + EXPIRY_SLACK_MS


#: Confirms the side output of a run before its rows are written.
SideOutput = Callable[[ActionRun, list[OutsideActions]], Awaitable[None]]


@dataclass(slots=True)
class FoldCounts:
    """What a folder did since it was made. Actions count once a view."""

    folded: int = 0
    repeated: int = 0
    late: int = 0
    future: int = 0
    rows_written: int = 0
    conflicts: int = 0
    saturated: int = 0
    deleted: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{each.name}={getattr(self, each.name)}" for each in fields(self))


@dataclass(slots=True)
class Folder:
    """Folds runs into the rows of some views, of users or of items, each row's in the order in
    which they were begun. Used by one event loop.

    epoch: of the topic that the runs are read from. patience_ms: how long a failing store is tried
    again. views may be replaced between two calls. floors: (view, generation) → {partition: the
    first offset it takes}; where none is given, it takes all. speakers: generation → another
    one of its view, which sends aside what is late or from the future for both of them, where it
    takes the message; it stands before the former in `views`, and its rows are written first.
    ended: partition → {epoch of a lost log: from where on its messages may come once more}.
    retention_ms: how long the topic keeps its messages; 0 where nobody says, and rows stay.
    """

    store: AsyncRowStore
    views: tuple[ViewPlan, ...]
    epoch: int
    side_output: SideOutput
    patience_ms: int
    floors: Mapping[tuple[str, int], Mapping[int, int]] = field(default_factory=dict)
    speakers: Mapping[tuple[str, int], ViewPlan] = field(default_factory=dict)
    ended: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    counts: FoldCounts = field(default_factory=FoldCounts)
    hot: HotRows = field(default_factory=HotRows)
    retention_ms: int = 0
    _lanes: Lanes = field(default_factory=Lanes, init=False)

    def begin(self, run: ActionRun, allow: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Begin to fold; the task ends once every action of the run is in its rows.

        allow: called at once and awaited before the first write; what it raises prevents the write
        and is raised by the task, even where there was nothing to write.

        The task raises StreamError when the store fails for longer than patience_ms, went back, or
        another writer never lets go; RowError for a damaged row. Runs that were begun later then
        fail where they may hold the same rows: the folder is of no use any more.
        """
        permitted = asyncio.ensure_future(allow())
        gate = asyncio.Semaphore(OVERLAP)
        parts: list[asyncio.Task[None]] = []
        speaking: dict[tuple[str, range], asyncio.Task[None]] = {}
        for view, lanes, part in self._parts(run):
            work = partial(_fold_part, part, gate, permitted)
            listens = view.key in self.speakers
            # Its row's fence passes over what the speaker tells: that must be told by then.
            after = speaking.get((view.name, lanes)) if listens else None
            parts.append(self._lanes.enter(view.key, lanes, work, after))
            if not listens:
                speaking[view.name, lanes] = parts[-1]
        return asyncio.create_task(_all_of([permitted, *parts]))

    async def apply(self, run: ActionRun, allow: Callable[[], Awaitable[None]]) -> None:
        """Returns once every action of the run is in its rows. Raises as the task of `begin`."""
        await self.begin(run, allow)

    def _parts(self, run: ActionRun) -> Iterator[tuple[ViewPlan, range, Callable[[], _ViewFold]]]:
        """The run by entities, about ROWS_AT_ONCE of a view at a time: which rows' lanes it has,
        and what makes it."""
        if len(run) == 0:
            return
        for entity in dict.fromkeys(view.entity for view in self.views):
            ids, which = np.unique(run.actions[entity], return_inverse=True)  # (n,), (a,)
            for part in _split(ids, which):
                for view in self.views:
                    if view.entity == entity:
                        yield view, part.lanes, partial(_ViewFold, self, view, run, part)

    def above_floor(self, view: ViewPlan, run: ActionRun) -> NDArray[np.bool_]:
        """(a,) bool: the view's generation takes the action, for its place in the topic."""
        takes = np.ones(len(run), bool)
        for partition, floor in self.floors.get(view.key, {}).items():
            takes &= (run.partition != partition) | (run.offset >= floor)
        return takes

    def check_not_back(self, key: str, fence: tuple[int, int]) -> None:
        """Raises StreamError where the stored fence lies before one this process wrote."""
        known = read_fence(self.hot.get(key))
        if known is not None and fence < known:
            raise StreamError(
                f"row {key}",
                required=f"the fence {known} that was written, or a newer one",
                got=f"{fence}: the store went back",
                do="restart the worker: it reads again from the store's progress mark",
            )


@dataclass(frozen=True, slots=True)
class _Part:
    """Some entities of a run. lanes: theirs. ids: (n,) i64. which: (a,) the entity of each of its
    actions, in [0, n). at: (a,) their places in the run, ascending; None for all of them."""

    lanes: range
    ids: NDArray[np.int64]
    which: NDArray[np.intp]
    at: NDArray[np.intp] | None


def _split(ids: NDArray[np.int64], which: NDArray[np.intp]) -> Iterator[_Part]:
    """Parts of about ROWS_AT_ONCE rows, by lanes. ids: (n,). which: (a,) the row of each action."""
    count = min(LANES, -(-len(ids) // ROWS_AT_ONCE))
    if count == 1:
        yield _Part(range(LANES), ids, which, None)
        return
    part_of = (lanes_of(ids).astype(np.intp) * count // LANES).astype(np.uint8)  # (n,)
    rows, of_action = np.argsort(part_of, kind="stable"), part_of[which]  # (n,), (a,)
    actions = np.argsort(of_action, kind="stable")  # (a,)
    place = np.empty(len(ids), np.intp)
    place[rows] = np.arange(len(ids))
    row_ends = np.cumsum(np.bincount(part_of, minlength=count)).tolist()
    action_ends = np.cumsum(np.bincount(of_action, minlength=count)).tolist()
    row = action = 0
    for number, (row_end, action_end) in enumerate(zip(row_ends, action_ends, strict=True)):
        # Lane l is of part l * count // LANES.
        lanes = range(-(-number * LANES // count), -(-(number + 1) * LANES // count))
        at = actions[action:action_end]
        if len(at):
            yield _Part(lanes, ids[rows[row:row_end]], place[which[at]] - row, at)
        row, action = row_end, action_end


async def _fold_part(
    make: Callable[[], _ViewFold], gate: asyncio.Semaphore, permitted: asyncio.Future[None]
) -> None:
    async with gate:
        await make().settle(permitted)


async def _all_of(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Wait for all; raise what the first failed with, once the others are cancelled."""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        await ended(*tasks)


class _ViewFold:
    """One view's part of a run."""

    def __init__(
        self,
        folder: Folder,
        view: ViewPlan,
        run: ActionRun,
        part: _Part,
    ) -> None:
        self.folder, self.view = folder, view
        self.run = run = run if part.at is None else run.at(part.at)
        self.ids, self.which = ids, which = part.ids, part.which
        self.layout: RowLayout = layout_of(view)
        self.keys = row_keys(view.name, view.generation, ids.tolist())
        self.takes = folder.above_floor(view, run)  # (a,)
        self.expire_ms = physical_ttl_ms(view, folder.retention_ms)
        self.reported = False
        self.again = False
        self.first = np.zeros(len(ids), np.intp)  # (n,) a place in the run of each entity
        self.first[which] = np.arange(len(which))

    async def settle(self, permitted: asyncio.Future[None]) -> None:
        """Rounds of read, fold and write until no row is left."""
        if not self.takes.any():
            return
        pending = np.arange(len(self.ids))
        for _ in range(MAX_ROUNDS):
            # After an error any subset of the writes may have landed; the next read tells which.
            pending = await patiently(
                f"store, view {self.view.name}",
                partial(self._round, pending, permitted),
                self.folder.patience_ms,
                (StoreError,),
            )
            if len(pending) == 0:
                return
            self.folder.counts.conflicts += len(pending)
        raise StreamError(
            f"view {self.view.name}",
            required="rows that no other worker writes",
            got=f"{len(pending)} rows lost to another writer {MAX_ROUNDS} times",
            do="check that one group reads this topic, once",
        )

    async def _round(
        self, pending: NDArray[np.intp], permitted: asyncio.Future[None]
    ) -> NDArray[np.intp]:
        """One attempt at the pending rows (places in ids). Returns those that are left."""
        keys = _picked(self.keys, pending)
        rows, absent = self._decode(await self._read(keys), pending, keys)
        self.again = True
        place = np.full(len(self.ids), -1, np.intp)  # entity → row of this round
        place[pending] = np.arange(len(pending))
        fresh = self._beyond_fence(rows, place)  # (a,)
        if not fresh.any():
            if not self.reported:
                self.folder.counts.repeated += len(self.which)
            self.reported = True
            return pending[:0]
        at = np.flatnonzero(fresh)
        row_index = place[self.which[at]]
        old: list[bytes | None] = [*fences_bytes(rows.epoch, rows.offset)]
        for gone in np.flatnonzero(absent).tolist():
            old[gone] = None
        actions = self.run.actions[at]
        report = fold_in_order(self.view, rows, row_index, actions, self.run.sent_ms[at])
        await self._report(report, at)
        await asyncio.shield(permitted)
        touched = np.flatnonzero(report.touched)
        landed = await self._write(rows, row_index, at, touched, keys, old)
        stays = np.ones(len(rows), bool)
        stays[touched[~landed]] = False
        self.folder.counts.folded += int((report.folded & stays[row_index]).sum())
        self.folder.counts.deleted += int((deletions(self.view, actions) & stays[row_index]).sum())
        self.folder.counts.saturated += report.saturated
        return pending[touched[~landed]]

    async def _read(self, keys: list[str]) -> list[bytes | None]:
        """The rows: at first those that this process wrote last, but as they are the next time."""
        if self.again:
            return await self.folder.store.read(keys)
        held = self.folder.hot.take(keys)
        missing = [key for key, row in zip(keys, held, strict=True) if row is None]
        if not missing:
            return held
        read = iter(await self.folder.store.read(missing))
        return [next(read) if row is None else row for row in held]

    def _decode(
        self, raw: list[bytes | None], pending: NDArray[np.intp], keys: list[str]
    ) -> tuple[Rows, NDArray[np.bool_]]:
        rows, status = decode_rows(self.layout, raw, self.ids[pending])
        corrupt = np.flatnonzero(status == Status.CORRUPT)
        if len(corrupt):
            raise RowError(
                f"row {keys[int(corrupt[0])]}",
                required="a row whose checksum fits",
                got=f"{len(corrupt)} damaged rows",
                do="stop the workers, then `encore rebuild` its view: it fills a new generation",
            )
        absent = np.array([row is None for row in raw], bool)
        if self.again:
            fences = zip(rows.epoch.tolist(), rows.offset.tolist(), absent.tolist(), strict=True)
            for key, (epoch, offset, gone) in zip(keys, fences, strict=True):
                if not (gone and self.expire_ms):
                    self.folder.check_not_back(key, (epoch, offset))
        if any(self.folder.ended.values()):
            self._check_not_ahead(rows, self.run.partition[self.first[pending]], keys)
        return rows, absent

    def _check_not_ahead(self, rows: Rows, partition: NDArray[np.int32], keys: list[str]) -> None:
        """Raises StreamError for a row that holds what only the lost log could tell.

        partition: (r,) of each row.
        """
        for place, logs in self.folder.ended.items():
            for epoch, end in logs.items():
                ahead = (partition == place) & (rows.epoch == epoch) & (rows.offset >= end)
                for row in np.flatnonzero(ahead)[:1].tolist():
                    raise StreamError(
                        f"row {keys[row]}",
                        required=f"nothing beyond offset {end} of the lost log of epoch {epoch}",
                        got=f"offset {rows.offset[row]}: its actions would count twice",
                        do=f"run `encore rebuild {self.view.name}`, and keep `encore items` "
                        "starting again meanwhile",
                    )

    def _beyond_fence(self, rows: Rows, place: NDArray[np.intp]) -> NDArray[np.bool_]:
        """(a,) bool: the action's row is of this round, takes its message and has not seen it."""
        row = place[self.which]  # (a,)
        epoch, offset = rows.epoch[row].astype(np.int64), rows.offset[row]  # (a,)
        newer = self.folder.epoch > epoch
        same = self.folder.epoch == epoch
        return self.takes & (row >= 0) & (newer | (same & (self.run.offset > offset)))

    async def _report(self, report: FoldReport, at: NDArray[np.intp]) -> None:
        """Send the side output, once and before any write: a crash repeats it, never loses it."""
        if self.reported:
            return
        counts = self.folder.counts
        counts.late += int(report.late.sum())
        counts.future += int(report.future.sum())
        counts.repeated += len(self.which) - len(at)
        parts = {
            "late": self._untold(at[report.late]),
            "future": self._untold(at[report.future]),
        }
        outside = [
            OutsideActions(self.view.name, reason, places)
            for reason, places in parts.items()
            if len(places)
        ]
        if outside:
            await self.folder.side_output(self.run, outside)
        self.reported = True

    def _untold(self, places: NDArray[np.intp]) -> NDArray[np.intp]:
        """Of these places in the run, those that this generation is to send aside itself."""
        speaker = self.folder.speakers.get(self.view.key)
        if speaker is None or len(places) == 0:
            return places
        late, future, _ = judge(speaker, self.run.actions[places], self.run.sent_ms[places])
        told = (late | future) & self.folder.above_floor(speaker, self.run)[places]
        return places[~told]

    async def _write(
        self,
        rows: Rows,
        row_index: NDArray[np.intp],
        at: NDArray[np.intp],
        touched: NDArray[np.intp],
        keys: list[str],
        old: list[bytes | None],
    ) -> NDArray[np.bool_]:
        """Compare-and-set the touched rows. Returns which landed.

        row_index, at: the row and the place in the run of each fresh action. keys, old: of all
        rows of this round, the key and the fence that was read.
        """
        newest = np.full(len(rows), -1, np.int64)
        np.maximum.at(newest, row_index, self.run.offset[at])
        rows.epoch = np.full(len(rows), self.folder.epoch, np.uint32)
        rows.offset = newest
        encoded = encode_rows(self.layout, rows)
        keys, values = _picked(keys, touched), _picked(encoded, touched)
        writes = writes_of(keys, _picked(old, touched), values, self.expire_ms)
        landed = np.array(await self.folder.store.compare_and_set(writes), bool)
        there = np.flatnonzero(landed)
        self.folder.hot.keep(_picked(keys, there), _picked(values, there))
        self.folder.counts.rows_written += int(landed.sum())
        return landed


def _picked(values: list[T], at: NDArray[np.intp]) -> list[T]:
    """The values at those places, ascending ones."""
    return values if len(at) == len(values) else [values[place] for place in at.tolist()]
