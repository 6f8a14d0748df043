"""Broken on purpose: each mutant breaks one rule that exactness rests on.

A simulation that did not notice one of them would not notice the mistake either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest.mock import patch

import numpy as np
from faust.types import TP

from aggregation import deletion
from aggregation.fold import fold
from schemas.errors import EncoreError
from store import memory
from store.base import Progress, Write
from store.memory import MemoryRowStore
from streams import (
    backfill,
    filling,
    folding,
    generations,
    growing,
    item_messages,
    lanes,
    moving,
    origins,
    pipeline,
    positions,
)
from streams.durability import Confirmations
from streams.folding import Folder
from streams.generations import Generations
from streams.item_holes import ItemHoles
from streams.item_worker import ItemWorker
from streams.messages import ActionRun
from streams.moving import Place
from streams.refolding import Refolding
from streams.side_outputs import SideOutputs
from streams.source import Source
from streams.source_table import Pair, SourceTable
from tests.simulation import server

Allow = Callable[[], Awaitable[None]]
Task = asyncio.Task[None]
begin: Final = Folder.begin
enter: Final = lanes.Lanes.enter
admit: Final = SourceTable.admit


@dataclass(frozen=True)
class Mutant:
    """rule: what it breaks. target.attribute: what is replaced by `by`. first: the seed to begin
    with; where most histories keep the rule by chance, one that is known to break it."""

    rule: str
    target: Any
    attribute: str
    by: Any
    first: int = 0

    def applied(self) -> AbstractContextManager[Any]:
        """While it is open, the rule is broken."""
        return patch.object(self.target, self.attribute, self.by)


# --- rows ------------------------------------------------------------------------------------


def fold_again(self: Any, rows: Any, place: Any) -> Any:
    return self.takes & (place[self.which] >= 0)


def forget_epochs(self: Any, rows: Any, place: Any) -> Any:
    row = place[self.which]
    return self.takes & (row >= 0) & (self.run.offset > rows.offset[row])


def write_blindly(self: MemoryRowStore, write: Write) -> bool:
    self._data.values[write.key] = write.value
    return True


def fold_the_newest_again(self: Any, rows: Any, place: Any) -> Any:
    row = place[self.which]
    newer, same = self.folder.epoch > rows.epoch[row], self.folder.epoch == rows.epoch[row]
    return self.takes & (row >= 0) & (newer | (same & (self.run.offset >= rows.offset[row])))


def judge_by_the_batch(self: Folder, run: ActionRun, allow: Allow) -> Task:
    newest = np.full(len(run), run.sent_ms.max(initial=0))
    return begin(self, replace(run, sent_ms=newest), allow)


def go_on_after_failure(self: Folder, run: ActionRun, allow: Allow) -> Task:
    async def apply() -> None:
        with suppress(EncoreError):
            await begin(self, run, allow)

    return asyncio.ensure_future(apply())


def answer_before_it_is_done(self: Folder, run: ActionRun, allow: Allow) -> Task:
    waiting = LATE.pop(id(self), None)
    LATE[id(self)] = run
    return begin(self, run.at(np.zeros(0, np.intp)) if waiting is None else waiting, allow)


LATE: Final[dict[int, ActionRun]] = {}


def keep_what_was_deleted(view: Any, actions: Any) -> Any:
    return np.zeros(len(actions), bool)


# --- marks, commits, logs --------------------------------------------------------------------


def overwrite_marks(old: Progress | None, new: Progress) -> Progress:
    return new


def commit_what_is_answered(self: Confirmations, upto: Mapping[TP, int]) -> None:
    self._advance(upto)


async def never_check(self: Source) -> None:
    return


async def number_a_lost_log(cls: Any, admin: Any, facts: Any, store: Any, *rest: Any) -> Source:
    return Source(admin, facts, await store.epoch_of(facts.name, facts.topic_id), *rest)


def trust_any_history(known: str, found: str, place: str = "") -> None:
    return


def begin_at_once(before: list[Task], work: Callable[[], Awaitable[None]]) -> Awaitable[None]:
    return work()


async def finish_in_any_order(
    before: Task | None, work: Callable[[], Awaitable[None]], done: Callable[[], None]
) -> None:
    await work()
    done()


# --- items -----------------------------------------------------------------------------------


def admit_everything(self: SourceTable, batch: Any, where: str) -> Any:
    return np.ones_like(admit(self, batch, where))


def share_the_table(self: SourceTable) -> SourceTable:
    return self


def forget_which_log(record: Any) -> dict[str, bytes]:
    return {}


async def fold_nothing_again(*_: Any) -> bool:
    return False


async def note_nothing(self: Any, batch: Any, same_log: Any) -> None:
    await asyncio.shield(same_log)


def forget_where_it_ended(self: Pair, epoch: int, source_epoch: int) -> None:
    self.epoch, self.next_offset = epoch, 0


def save_blindly(
    self: MemoryRowStore, key: str, version_key: str, expected: int, text: str
) -> bool:
    self._data.values[key] = text.encode()
    self._data.values[version_key] = str(expected + 1).encode()
    return True


# --- generations, side outputs ---------------------------------------------------------------


async def send_nothing(self: SideOutputs, *what: Any) -> None:
    return


def wait_for_nobody(self: Any, of: Any, lanes: range, work: Any, after: Any = None) -> Task:
    return enter(self, of, lanes, work)


def leave_all_to_the_speaker(self: Any, places: Any) -> Any:
    return places[:0] if self.view.key in self.folder.speakers else places


def tell_all(self: Any, places: Any) -> Any:
    return places


async def go_on_at_the_mark(self: Generations, views: Any, marks: Any) -> Any:
    return marks


def take_more_than_was_given(self: SourceTable, partition: int, epoch: int, offset: int) -> None:
    self.reached[partition] = max(self.reached.get(partition, (0, 0)), (epoch, offset + 2))


def take_all_of_the_stream(self: Generations) -> Any:
    return {key: self._recorded[key] for key in self._views}


def fill_to_the_end(task: Any) -> Any:
    return np.full((task.of, task.of), 1 << 40)


def fence_at_the_floor(floors: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    return dict(floors)


def forget_deletions(view: Any, rows: Any, row_index: Any, actions: Any, sent_ms: Any) -> Any:
    return fold(view, rows, row_index, actions, sent_ms)


def begin_with_any_source(*_: Any) -> None:
    return


async def never_wait(*_: Any) -> None:
    return


async def keep_no_floor(store: Any, topic: str, group: str, view: Any, wanted: Any) -> Any:
    return dict(wanted)


def expire_too_soon(view: Any, retention_ms: int) -> int:
    return int(view.ttl_ms)


#: For `test_scenes` and `test_holes` beside it: chance finds them once in a hundred histories.
A_LOST_LOG_GETS_NO_NUMBER: Final = Mutant(
    "a lost log gets no number", Source, "open", classmethod(number_a_lost_log)
)
A_LOST_LOG_IS_FOLDED_TO_ITS_END: Final = Mutant(
    "what was folded of a lost log is folded to its end", Refolding, "fold", fold_nothing_again
)
NOTES_COME_BEFORE_ROWS: Final = Mutant("notes come before rows", ItemWorker, "_note", note_nothing)
GO_ON_AT_THE_MARK: Final = Mutant(
    "what all generations were given need not be read", Generations, "starts", go_on_at_the_mark
)
TABLES_TAKE_WHAT_WAS_GIVEN: Final = Mutant(
    "tables take for folded what all generations were given",
    SourceTable,
    "raise_to",
    take_more_than_was_given,
)
WHAT_IS_BEFORE_A_HOLE_IS_FOLDED_FIRST: Final = Mutant(
    "what was re-keyed before a hole is folded first", ItemHoles, "_wait_folded", never_wait
)
ROWS_AHEAD_ARE_REFUSED: Final = Mutant(
    "rows ahead of a lost log are refused", Pair, "enter", forget_where_it_ended
)
WHAT_LAGS_TAKES_NOTHING: Final = Mutant(
    "what lags takes nothing of the stream", Generations, "floors", property(take_all_of_the_stream)
)
A_FILLING_IS_OF_ONE_HISTORY: Final = Mutant(
    "a filling is of one history", filling, "check_history", trust_any_history
)
A_FILLING_IS_OF_ONE_SOURCE: Final = Mutant(
    "a filling is of one source", origins, "_check_begun", begin_with_any_source
)
WHAT_IS_LEFT_TO_TELL_COMES_AFTER: Final = Mutant(
    "a staged generation is written once the other told", lanes.Lanes, "enter", wait_for_nobody
)
WHAT_IS_OUTSIDE_OF_BOTH_IS_TOLD_ONCE: Final = Mutant(
    "what is outside of both is told once", folding._ViewFold, "_untold", tell_all
)
READERS_SWITCH_TO_WHAT_HAS_CAUGHT_UP: Final = Mutant(
    "readers switch to what has caught up", backfill, "wait_caught_up", never_wait
)

# --- moves to a new topic --------------------------------------------------------------------


def reach_everything(*_: Any) -> bool:
    return True


def see_no_end(records: Any) -> int | None:
    return None


async def find_no_end(*_: Any) -> int | None:
    return None


MUTANTS: Final = (
    Mutant(
        "a message at or below the fence is dropped",
        folding._ViewFold,
        "_beyond_fence",
        fold_again,
        12,
    ),
    Mutant(
        "at the fence is not beyond it",
        folding._ViewFold,
        "_beyond_fence",
        fold_the_newest_again,
        12,
    ),
    Mutant("fences have epochs", folding._ViewFold, "_beyond_fence", forget_epochs, 32),
    Mutant("a write names the fence it read", MemoryRowStore, "_land", write_blindly, 72),
    Mutant("late is judged by each message", Folder, "begin", judge_by_the_batch),
    Mutant("nothing is acked after a failure", Folder, "begin", go_on_after_failure, 12),
    Mutant("rows come before their mark", Folder, "begin", answer_before_it_is_done),
    Mutant("a row's messages come in order", lanes, "_behind", begin_at_once, 8),
    Mutant("a mark waits for all before it", pipeline, "_in_order", finish_in_any_order, 244),
    Mutant("a deletion empties its row", deletion, "deletions", keep_what_was_deleted),
    Mutant("marks never move back", memory, "merge_progress", overwrite_marks, 38),
    Mutant("commits follow durability", Confirmations, "stored", commit_what_is_answered, 6),
    Mutant("nothing is written once the log is another", Source, "check", never_check, 25),
    Mutant("a process stays in one history", server, "check_history", trust_any_history, 37),
    Mutant("what the table has is dropped", SourceTable, "admit", admit_everything, 16),
    Mutant("a table is saved as at its position", SourceTable, "copy", share_the_table, 289),
    Mutant("a message is for one log", item_messages, "record_headers", forget_which_log, 36),
    Mutant(
        "a table names the version it read",
        MemoryRowStore,
        "compare_and_set_text",
        save_blindly,
        143,
    ),
    Mutant("malformed messages are dead letters", SideOutputs, "send_dead", send_nothing),
    Mutant("late actions go aside", SideOutputs, "send_late", send_nothing),
    Mutant(
        "each generation's own late actions go aside",
        folding._ViewFold,
        "_untold",
        leave_all_to_the_speaker,
        6,
    ),
    Mutant("a filling ends at the floor", filling, "_bounds", fill_to_the_end, 10),
    Mutant("filled rows end before the floor", origins, "_fences", fence_at_the_floor, 5),
    Mutant("a filling deletes, too", filling, "fold_in_order", forget_deletions, 17),
    Mutant("floors never change", generations, "record_floors", keep_no_floor),
    Mutant("rows outlive their messages", folding, "physical_ttl_ms", expire_too_soon),
    Mutant("the next topic waits for all of the last", moving, "_reaches", reach_everything, 43),
    Mutant("who reads a topic has looked at those before", Place, "check", never_check, 71),
    Mutant("nothing behind an end is read", positions, "end_among", see_no_end),
    Mutant("the first end record counts", growing, "_first_end", find_no_end, 1),
)
