"""Backfill: history in Parquet → rows of a new generation in a store, on one core.

What is timed is a whole task of `streams.filling`: reading the archive's files, folding, encoding,
and a compare-and-set of every row against a Valkey of its own, which runs beside. Three views fill
from the same archive: the demo's user view with its windows alone, the same with its sequences, and
its item view, whose actions lie in all partitions. Not counted: starting a process, listing files.

Compared first: every row that was filled equals the row that the stream's folder makes of the same
actions in micro-batches, to the last byte once both carry one fence.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.report import Options, Report
from bench.samples import KUAIRAND, demo_plan
from bench.server import own_store
from bench.timing import Timings, take_turns
from encore.kuairand import load_timeline
from schemas.ids import partitions_of
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import ViewPlan
from schemas.row import decode_rows, encode_rows
from store.base import RowStore
from store.memory import AsyncMemoryRowStore
from store.redis_store import RedisRowStore
from streams.action_table import action_table
from streams.archive import write_file
from streams.catching_up import nowhere
from streams.filling import FillTask, fill
from streams.folding import Folder
from streams.history import HistoryFile, columns_of, read_chunks
from streams.messages import ActionRun

PARTITIONS: Final = 4
FILE_ACTIONS: Final = 50_000  # as the sink rolls them
BATCH_ACTIONS: Final = 20_000  # as workers take them
TURNS, QUICK_TURNS = 9, 3
SHARES: Final = 16
EPOCH: Final = 1

Actions = NDArray[np.void]
Files = Mapping[int, Sequence[HistoryFile]]


@dataclass(frozen=True, slots=True)
class Archive:
    """Files by partition of the log, with the offset after the last of each."""

    files: Files
    ends: dict[int, int]

    def tasks(self, view: ViewPlan) -> list[FillTask]:
        """As `streams.backfill` makes them for one core."""
        every = tuple(file for files in self.files.values() for file in files)
        fences = {p: (EPOCH, end - 1) for p, end in self.ends.items()}
        if view.entity == "item":
            bounds = dict.fromkeys(self.ends, self.ends)
            return [FillTask(view, every, tuple(self.ends), PARTITIONS, bounds, fences)]
        return [
            FillTask(view, tuple(files), (p,), PARTITIONS, {p: {p: self.ends[p]}}, fences)
            for p, files in self.files.items()
        ]


def run(options: Options) -> Report:
    """Raises LocalError without the data or the server."""
    actions = load_timeline(KUAIRAND, 0.0, 0.0).actions
    plan = demo_plan()
    users, items = plan.view("user_activity"), plan.view("video_activity")
    views = {"windows": windows_of(users), "whole": users, "items": items}
    turns = QUICK_TURNS if options.quick else TURNS
    with tempfile.TemporaryDirectory(prefix="bench") as directory, own_store() as (host, port):
        archive = write_archive(Path(directory), actions)
        with RedisRowStore(f"redis://{host}:{port}/0") as store:
            options.say("filling and streaming the same actions")
            found = {name: compare(view, archive, actions, store) for name, view in views.items()}
            options.say(f"{turns} turns")
            contenders = {
                name: partial(_fill_turn, view, archive, store) for name, view in views.items()
            }
            contenders["read"] = partial(_read_turn, views["windows"], archive)
            contenders["share"] = partial(_share_turn, items, archive, store)
            timings = take_turns(contenders, turns, warm=1)
    return _report(len(actions), found, timings)


def windows_of(view: ViewPlan) -> ViewPlan:
    """The view without its sequences, under a name of its own."""
    kept = {name for part in view.sequences for name in (part.time_field, *part.fields)}
    fields = tuple(field for field in view.fields if field.name not in kept)
    return replace(view, name=f"{view.name}_windows", fields=fields, sequences=(), features=())


def write_archive(root: Path, actions: Actions) -> Archive:
    """The actions as the sink archives them, one a message."""
    owner = partitions_of(actions["user"], PARTITIONS)
    files: dict[int, list[HistoryFile]] = {}
    ends: dict[int, int] = {}
    for partition in range(PARTITIONS):
        own = actions[owner == partition]
        files[partition], ends[partition] = [], len(own)
        for first in range(0, len(own), FILE_ACTIONS):
            part = own[first : first + FILE_ACTIONS]
            table = action_table(_run(part, partition, first))
            path = write_file(root / str(partition), first, first + len(part) - 1, table)
            files[partition].append(HistoryFile(str(path), len(part), partition))
    return Archive(files, ends)


def compare(view: ViewPlan, archive: Archive, actions: Actions, store: RowStore) -> tuple[int, int]:
    """Rows, and how many of them the stream makes otherwise."""
    for task in archive.tasks(view):
        fill(task, store, _say_nothing)
    streamed = AsyncMemoryRowStore()
    asyncio.run(stream(view, actions, streamed))
    ids = np.unique(actions[view.entity])
    keys = row_keys(view.name, view.generation, ids.tolist())
    raw = [store.read(keys), streamed.store.read(keys)]
    left, right = (_under_one_fence(view, ids, each) for each in raw)
    rows = sum(row is not None for row in raw[0])
    missing = [(a is None) != (b is None) for a, b in zip(*raw, strict=True)]
    return rows, sum(lost or a != b for lost, a, b in zip(missing, left, right, strict=True))


def _under_one_fence(
    view: ViewPlan, ids: NDArray[np.int64], raw: Sequence[bytes | None]
) -> list[bytes]:
    rows, _ = decode_rows(layout_of(view), raw, ids)
    rows.epoch, rows.offset = np.zeros(len(ids), np.uint32), np.zeros(len(ids), np.int64)
    return encode_rows(layout_of(view), rows)


async def stream(view: ViewPlan, actions: Actions, store: AsyncMemoryRowStore) -> None:
    """The same actions as a worker folds them, in micro-batches."""
    folder = Folder(store, (view,), EPOCH, nowhere, 1_000)
    for first in range(0, len(actions), BATCH_ACTIONS):
        part = actions[first : first + BATCH_ACTIONS]
        owner = partitions_of(part[view.entity], PARTITIONS)
        run = replace(_run(part, 0, first), partition=owner.astype(np.int32))
        await folder.apply(run, _allowed)


async def _allowed() -> None:
    """There is no log that could change."""


def _run(actions: Actions, partition: int, first: int) -> ActionRun:
    n = len(actions)
    return ActionRun(
        actions,
        np.full(n, partition, np.int32),
        first + np.arange(n),
        np.zeros(n, np.int32),
        actions["time_ms"].copy(),
    )


def _fill_turn(view: ViewPlan, archive: Archive, store: RowStore, turn: int) -> None:
    """Each turn fills a generation of its own."""
    for task in archive.tasks(replace(view, generation=view.generation + 2 + turn)):
        fill(task, store, _say_nothing)


def _share_turn(view: ViewPlan, archive: Archive, store: RowStore, turn: int) -> None:
    """What one of SHARES processes does of an item view: it reads all, and folds its items."""
    for task in archive.tasks(replace(view, generation=view.generation + 1_000 + turn)):
        fill(replace(task, ways=SHARES), store, _say_nothing)


def _read_turn(view: ViewPlan, archive: Archive, _: int) -> None:
    for files in archive.files.values():
        for _chunk in read_chunks(files, columns_of(view)):
            pass


def _say_nothing(actions: int) -> None:
    """Nobody watches."""


def check(report: Report, found: Mapping[str, tuple[int, int]]) -> None:
    """What must hold: rows are filled, and are the stream's. found: rows and unequal ones."""
    for name, (rows, unequal) in found.items():
        stray = f"{name}: {unequal:,} rows are not the stream's, of {rows:,}"
        report.check(rows > 0 and not unequal, stray)


def _report(count: int, found: Mapping[str, tuple[int, int]], timings: Timings) -> Report:
    report = Report()
    names = {
        "windows": "user windows",
        "whole": "user windows and sequences",
        "items": "item windows",
    }
    rates = {name: count / timings.median(name) for name in names}
    of_core = {name: count / float(np.median(timings.cpu_seconds[name])) for name in names}
    report.table(
        f"{count:,} actions from Parquet into rows of a new generation, one core",
        ("view", "rows", "unequal", "actions/s", "actions/s of the core"),
        [
            (label, *found[name], round(rates[name]), round(of_core[name]))
            for name, label in names.items()
        ],
    )
    share = float(np.median(timings.cpu_seconds["read"] / timings.cpu_seconds["windows"]))
    report.note("")
    report.note(
        f"Reading the files takes {share:.0%} of the core's time for the windows; a fold, encoding "
        "and sending the rows the rest."
    )
    part = float(np.median(timings.cpu_seconds["share"] / timings.cpu_seconds["items"]))
    report.note(
        f"One of {SHARES} processes that fill the item view needs {part:.0%} of the time of one "
        "that does it alone: each reads all files."
    )
    report.note(
        "The last column counts this process's own time: what the store and others take is not in."
    )
    report.line = {
        "per_s": rates["windows"],
        "per_s_whole": rates["whole"],
        "per_s_items": rates["items"],
        "per_cpu_s": of_core["windows"],
        "per_cpu_s_whole": of_core["whole"],
        "per_cpu_s_items": of_core["items"],
        "read_share": share,
        "item_share": part,
        "rows": sum(rows for rows, _ in found.values()),
        "equal_rows": sum(rows - unequal for rows, unequal in found.values()),
    }
    check(report, {names[name]: rows for name, rows in found.items()})
    return report
