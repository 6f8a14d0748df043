"""Messages of a lost re-keyed log, made again from the source: the rows that the log would give."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from schemas.rekeyed import SOURCE_RANGE, RekeyedBatch
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from streams.admin import TopicFacts
from streams.folding import Folder
from streams.item_messages import RekeyedMessage, run_of
from streams.messages import decode_records, join_runs
from streams.refolding import Refolding
from streams.rekey import rekey
from streams.source import Source
from streams.source_table import Pair, SourceTable, covers_of
from tests.aggregation.plans import small_view
from tests.simulation.broker import BrokerAdmin
from tests.streams.support import T0, batch_record, some_actions
from tests.streams.test_backfill import ListReader

VIEW = replace(small_view(), name="i", entity="item", source="t.by-item")
EPOCH, LOST, PARTITIONS = 3, 7, 2
#: The messages of the lost log cover these source offsets of each of both partitions.
CUTS = ((0, 4), (4, 5), (3, 9), (9, 12))


class Here(BrokerAdmin):
    """The source is there."""

    def __init__(self) -> None:
        return

    def describe(self, topic: str) -> TopicFacts | None:
        return TopicFacts(topic, "id", PARTITIONS)


def sent(partition: int) -> list[tuple[Any, int]]:
    """Messages of a source partition; each of one user, who is of that partition."""
    user = (1, 2)[partition]
    found = []
    for offset in range(12):
        actions = some_actions(6, 9, 100 * partition + offset)
        actions["user"] = user
        actions["item"] %= 9
        found.append((actions, T0 + 20_000 + offset))
    return found


LOGS = [sent(0), sent(1)]


def message(first: int, after: int, epoch: int = EPOCH) -> RekeyedBatch:
    """What the item worker re-keyed into partition 0 of the lost log."""
    covers = np.array([(first, after, epoch, p) for p in range(PARTITIONS)], SOURCE_RANGE)
    runs = []
    for partition, log in enumerate(LOGS):
        records = [batch_record(*log[at], at, partition) for at in range(first, after)]
        runs.append(decode_records(records, 1)[0])
    return rekey(join_runs(runs), covers, epoch, PARTITIONS)[0]


def folder(rows: MemoryRowStore) -> Folder:
    async def aside(*_: Any) -> None:
        return

    return Folder(AsyncMemoryRowStore(rows), (VIEW,), LOST, aside, 100)


def stream(rows: MemoryRowStore, upto: int, only: Sequence[int] = ()) -> SourceTable:
    """Fold that many messages of the lost log; of the last one, if given, only these items."""

    async def run() -> SourceTable:
        table, into = SourceTable(), folder(rows)
        for offset, (first, after) in enumerate(CUTS[:upto]):
            batch = message(first, after)
            accepted = table.admit(batch, "here")
            got = run_of(0, [RekeyedMessage("here", offset, batch)], [accepted]).run
            if only and offset == upto - 1:
                got = got.at(np.isin(got.actions["item"], only))
            await into.apply(got, lambda: asyncio.sleep(0))
        return table

    return asyncio.run(run())


def refolding(rows: MemoryRowStore, reader: ListReader) -> Refolding:
    source = Source(Here(), TopicFacts("t", "id", PARTITIONS), EPOCH, 100)
    return Refolding(source, PARTITIONS, reader, folder(rows))


def noted(saved: int, table: SourceTable) -> Pair:
    """A pair that was saved behind so many messages."""
    ahead = {at: covers_of(message(*CUTS[at])) for at in range(saved, len(CUTS))}
    return Pair(LOST, saved, table, 1, ahead=ahead)


@pytest.fixture(autouse=True)
def one_partition_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose users are whose is not the matter here."""

    def decode(records: Sequence[Any], partitions: int) -> Any:
        return decode_records(records, 1)

    monkeypatch.setattr("streams.refolding.decode_records", decode)


@pytest.mark.parametrize("saved", range(len(CUTS)))
@pytest.mark.parametrize("written", range(len(CUTS) + 1))
def test_rows_end_as_the_lost_log_would_have_left_them(saved: int, written: int) -> None:
    """Wherever the pair was saved, and whichever rows were written beyond it."""
    whole, rows = MemoryRowStore(), MemoryRowStore()
    all_of_it = stream(whole, len(CUTS))
    stream(rows, max(saved, written), range(0, 9, 2) if written > saved else ())
    pair = noted(saved, stream(MemoryRowStore(), saved))
    assert asyncio.run(refolding(rows, ListReader(LOGS)).fold(0, pair))
    assert rows.image().values == whole.image().values
    assert (pair.table, pair.next_offset, pair.ahead) == (all_of_it, len(CUTS), {})
    before = rows.image().values
    assert asyncio.run(refolding(rows, ListReader(LOGS)).fold(0, noted(saved, SourceTable())))
    assert rows.image().values == before, "again, and nothing changes"


def test_what_the_table_has_need_not_be_in_the_source_any_more() -> None:
    rows = MemoryRowStore()
    pair = noted(2, stream(rows, 2))
    reader = ListReader(LOGS, held_from=5)
    assert asyncio.run(refolding(rows, reader).fold(0, pair))
    assert min(first for _, first, _ in reader.reads) == 5


def test_what_the_source_does_not_hold_leaves_the_pair_as_it_was() -> None:
    rows = MemoryRowStore()
    pair = noted(2, stream(rows, 2))
    before = replace(pair, table=pair.table.copy(), ahead=dict(pair.ahead))
    assert not asyncio.run(refolding(rows, ListReader(LOGS, held_from=6)).fold(0, pair))
    assert pair == before


def test_messages_of_a_lost_source_are_left_out() -> None:
    """Their actions come no more; those of the present source are folded."""
    rows = MemoryRowStore()
    pair = Pair(LOST, 0, SourceTable(), 1)
    pair.ahead = {0: covers_of(message(0, 9, EPOCH - 1)), 1: covers_of(message(0, 4))}
    assert asyncio.run(refolding(rows, ListReader(LOGS)).fold(0, pair))
    assert pair.next_offset == 2
    assert pair.table.reached == {0: (EPOCH, 4), 1: (EPOCH, 4)}
