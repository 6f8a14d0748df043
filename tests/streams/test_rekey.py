"""Re-keying without servers: rounds, batches, source tables, pairs; cut any way, counted once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import StoreTimeout, StreamError
from schemas.ids import partitions_of
from schemas.names import source_table_key
from schemas.rekeyed import SOURCE_RANGE, RekeyedBatch, decode_rekeyed, encode_rekeyed
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from streams.item_messages import decode_rekeyed_records, run_of
from streams.messages import decode_records, join_runs
from streams.refolding import unmakeable
from streams.rekey import ROUND_BYTES, rekey, rounds_of
from streams.replay import StreamMark, item_mark, wait_stored
from streams.source_table import (
    Pair,
    PairStore,
    SourceTable,
    check_epochs,
    dump_pair,
    parse_pair,
)
from tests.streams.support import PARTITIONS, T0, batch_record, plain, record, some_actions

EPOCH = 3


def source_log(messages: int) -> list[Any]:
    """Records of source partition 0; each holds actions of users of that partition."""
    actions = some_actions(messages * 40, 60)
    actions = actions[partitions_of(actions["user"], PARTITIONS) == 0]
    return [
        batch_record(part, T0 + 20_000 + offset, offset)
        for offset, part in enumerate(np.array_split(actions, messages))
    ]


def rekeyed(records: Sequence[Any]) -> list[RekeyedBatch]:
    """A round of these records of source partition 0, as decoded from its messages."""
    covers = np.zeros(1, SOURCE_RANGE)
    covers[0] = (records[0].offset, records[-1].offset + 1, EPOCH, 0)
    run, refused = decode_records(records, PARTITIONS)
    assert not refused
    batches = rekey(join_runs([run]), covers, EPOCH, PARTITIONS)
    return [decode_rekeyed(encode_rekeyed(each)) for each in batches]


def test_each_action_goes_to_its_items_partition_with_its_source() -> None:
    records = source_log(6)
    run, _ = decode_records(records, PARTITIONS)
    batches = rekeyed(records)
    assert len(batches) == PARTITIONS
    owner = partitions_of(run.actions["item"], PARTITIONS)
    for partition, batch in enumerate(batches):
        mine = run.at(owner == partition)
        assert plain(batch.actions) == plain(mine.actions)
        assert batch.sources["offset"].tolist() == mine.offset.tolist()
        assert batch.sources["index"].tolist() == mine.index.tolist()
        assert batch.sources["sent_ms"].tolist() == mine.sent_ms.tolist()
        assert batch.sent_ms == T0 + 20_005
        assert batch.covers.tolist() == [(0, 6, EPOCH, 0)]


def test_a_partition_without_actions_is_covered_too() -> None:
    run, _ = decode_records(source_log(1), PARTITIONS)
    covers = np.zeros(1, SOURCE_RANGE)
    covers[0] = (4, 5, EPOCH, 0)
    batches = rekey(run.at(np.zeros(0, np.intp)), covers, EPOCH, 3)
    assert [(len(batch.actions), batch.sent_ms) for batch in batches] == [(0, 0)] * 3
    assert decode_rekeyed(encode_rekeyed(batches[0])).covers.tolist() == [(4, 5, EPOCH, 0)]


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12)), max_size=8))
def test_however_often_and_however_cut_each_action_is_accepted_once(
    rounds: list[tuple[int, int]],
) -> None:
    """Whoever re-keys starts again anywhere at or before where the last one ended."""
    records = source_log(12)
    want, _ = decode_records(records, PARTITIONS)
    owner = partitions_of(want.actions["item"], PARTITIONS)
    tables = [SourceTable() for _ in range(PARTITIONS)]
    taken: list[list[bytes]] = [[] for _ in tables]
    reached = 0
    for begin, size in (*rounds, (0, 12)):
        begin = min(begin, reached)
        part = records[begin : begin + size]
        reached = max(reached, begin + len(part))
        for partition, batch in enumerate(rekeyed(part)):
            accepted = tables[partition].admit(batch, "t")
            taken[partition].append(plain(batch.actions[accepted]))
    for partition, parts in enumerate(taken):
        assert sum(map(len, parts)) == len(plain(want.actions[owner == partition]))
        assert tables[partition].reached == {0: (EPOCH, 12)}


def covering(first: int, after: int, epoch: int = EPOCH) -> RekeyedBatch:
    covers = np.zeros(1, SOURCE_RANGE)
    covers[0] = (first, after, epoch, 0)
    empty = rekeyed(source_log(1))[0]
    return RekeyedBatch(0, empty.actions[:0], empty.sources[:0], covers)


def test_a_gap_ends_the_process() -> None:
    table = SourceTable({0: (EPOCH, 10)})
    with pytest.raises(StreamError, match=r"t: needs source offset 10 of partition 0 next") as gap:
        table.admit(covering(11, 15), "t")
    assert "the range [11, 15)" in str(gap.value)
    assert table.reached == {0: (EPOCH, 10)}


def test_a_new_log_of_the_source_begins_anew_and_an_old_one_is_dropped() -> None:
    table = SourceTable({0: (EPOCH, 10)})
    table.admit(covering(0, 4, EPOCH + 1), "t")
    assert table.reached == {0: (EPOCH + 1, 4)}
    table.admit(covering(10, 15), "t")
    assert table.reached == {0: (EPOCH + 1, 4)}


def test_rounds_keep_order_and_end_at_their_size() -> None:
    first, second = TP("t", 0), TP("t", 1)
    half = b"x" * (ROUND_BYTES // 2)
    lists = [
        (first, tuple(record(half, offset) for offset in range(3))),
        (second, (record(b"y", 7, partition=1), record(None, 8, partition=1))),
    ]
    rounds = list(rounds_of(lists))
    assert [part.ends for part in rounds] == [{first: 2}, {first: 3, second: 9}]
    assert [each.offset for each in rounds[1].records[second]] == [7, 8]
    assert list(rounds_of([])) == []


# --- messages -------------------------------------------------------------------------------


def test_messages_that_are_not_ours_are_dead_letters() -> None:
    (batch, other) = rekeyed(source_log(2))
    key = b"%d" % int(batch.actions["item"][0])
    good = encode_rekeyed(batch)
    empty = encode_rekeyed(covering(2, 3))
    records = [
        record(good, 0, key=key),
        record(b"garbage", 1, key=key),
        record(good, 2, key=b"77"),
        record(good, 3),
        record(encode_rekeyed(other), 4, key=b"%d" % int(other.actions["item"][0])),
        record(empty, 5),
        record(empty, 6, key=b"1"),
    ]
    messages, dead = decode_rekeyed_records(records, PARTITIONS, "log")
    assert [message.offset for message in messages] == [0, 5]
    reasons = [str(letter.error) for letter in dead]
    assert [letter.record.offset for letter in dead] == [1, 2, 3, 4, 6]
    assert "actions/0/1: needs a FlatBuffer of 8 bytes or more, got 7 bytes" in reasons[0]
    assert (
        f"actions/0/2.key: needs the decimal id of the first action's item, {key.decode()}"
        in (reasons[1])
    )
    assert "got null" in reasons[2]
    assert "].item: needs an item of partition 0, got" in reasons[3]
    assert "actions/0/6.key: needs null where there is no action" in reasons[4]


def test_what_was_made_for_another_log_is_a_stray() -> None:
    """Who re-keys may be stopped before it sends, and go on when the topic has another log."""
    value = encode_rekeyed(covering(2, 3))
    records = [
        record(value, offset, headers=[("encore-log", name)])
        for offset, name in enumerate((b"log", b"an earlier one", b""))
    ]
    messages, dead = decode_rekeyed_records(records, PARTITIONS, "log")
    assert ([message.offset for message in messages], dead) == ([0], [])


def test_a_run_is_judged_by_its_sources_time_and_fenced_by_its_own_offset() -> None:
    batch = rekeyed(source_log(3))[0]
    key = b"%d" % int(batch.actions["item"][0])
    records = [record(encode_rekeyed(batch), 41, key=key)]
    messages, _ = decode_rekeyed_records(records, PARTITIONS, "log")
    mask = batch.sources["offset"] > 0
    held = run_of(0, messages, [mask])
    assert set(held.run.offset.tolist()) == {41}
    assert held.run.sent_ms.tolist() == batch.sources["sent_ms"][mask].tolist()
    assert held.run.index.tolist() == np.flatnonzero(mask).tolist()
    assert plain(held.run.actions) == plain(batch.actions[mask])
    assert len(run_of(0, [], []).run) == 0


# --- pairs ----------------------------------------------------------------------------------


def pairs(store: MemoryRowStore, patience_ms: int = 500) -> PairStore:
    return PairStore(AsyncMemoryRowStore(store), "t.by-item", "g", patience_ms)


def test_a_pair_is_saved_whole_and_comes_back() -> None:
    tables = pairs(MemoryRowStore())

    async def run() -> None:
        pair = await tables.load(1)
        assert (pair.epoch, pair.next_offset, pair.table.reached, pair.version) == (0, 0, {}, 0)
        pair.epoch, pair.next_offset = 2, 17
        pair.table.reached = {0: (1, 5), 3: (2, 9)}
        await tables.save(1, pair)
        assert await tables.load(1) == pair
        assert pair.version == 1
        assert (await tables.load(0)).version == 0

    asyncio.run(run())


def test_a_log_that_ended_before_its_table_was_saved_is_remembered() -> None:
    """As long as the source is the same, what rows hold beyond the table comes once more."""
    pair = Pair(2, 17, SourceTable({0: (EPOCH, 5)}), 4)
    pair.enter(3, EPOCH)
    assert (pair.epoch, pair.next_offset, pair.ended) == (3, 0, {2: 17})
    assert parse_pair(dump_pair(pair, 4), "k") == pair
    pair.ahead = {4: ((0, EPOCH, 5, 9), (1, EPOCH, 0, 2)), 6: ()}
    assert parse_pair(dump_pair(pair, 4), "k") == pair
    assert unmakeable(pair, EPOCH) == [] and unmakeable(pair, EPOCH + 1) == [4]
    pair.ahead = {4: ((0, EPOCH + 1, 0, 9),)}
    pair.enter(4, EPOCH + 1)
    assert (pair.ended, pair.ahead) == ({2: 17, 3: 0}, {}), "noted of the source that is there"
    pair.enter(5, EPOCH + 2)
    assert pair.ended == {2: 17, 3: 0}, "of a source that is gone too nothing comes again"
    with pytest.raises(StreamError, match=r"needs the log of epoch 5, or a newer one, got the log"):
        pair.enter(4, EPOCH)


def test_a_successor_cannot_be_overwritten() -> None:
    store = MemoryRowStore()
    tables = pairs(store)

    async def run() -> None:
        old, new = await tables.load(0), await tables.load(0)
        new.next_offset = 9
        await tables.save(0, new)
        old.next_offset = 4
        with pytest.raises(StreamError, match="another process folds this partition"):
            await tables.save(0, old)
        assert (await tables.load(0)).next_offset == 9

    asyncio.run(run())


def test_a_save_whose_reply_was_lost_is_recognised() -> None:
    store = MemoryRowStore()

    class Deaf(AsyncMemoryRowStore):
        deaf = True

        async def compare_and_set_text(
            self, key: str, version_key: str, expected_version: int, text: str
        ) -> bool:
            landed = await super().compare_and_set_text(key, version_key, expected_version, text)
            if self.deaf:
                self.deaf = False
                raise StoreTimeout("s", required="a reply", got="none")
            return landed

    async def run() -> None:
        tables = PairStore(Deaf(store), "t.by-item", "g", 500)
        pair = Pair(1, 5, SourceTable({0: (1, 2)}), 0)
        await tables.save(0, pair)
        pair.next_offset = 6
        await tables.save(0, pair)
        assert (await tables.load(0)) == pair

    asyncio.run(run())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 1, "sources": {"a": 1}}'])
def test_a_text_that_is_no_table_is_refused(text: str) -> None:
    store = MemoryRowStore()
    key = source_table_key("t.by-item", "g", 0)
    store.put_text(key, text)
    with pytest.raises(StreamError, match=r"needs a saved source table, got .*; rebuild"):
        asyncio.run(pairs(store).load(0))


def test_a_replay_waits_for_the_slowest_re_keyed_partition() -> None:
    store = MemoryRowStore()
    mark = StreamMark(AsyncMemoryRowStore(store), "t", "w", EPOCH)
    items = item_mark(mark, "g", PARTITIONS)

    async def run() -> None:
        assert await items.behind({}) == 0
        assert await items.behind({0: 5, 1: 2}) == 5
        tables = pairs(store)
        await tables.save(0, Pair(1, 4, SourceTable({0: (EPOCH, 5), 1: (EPOCH, 2)}), 0))
        await tables.save(1, Pair(1, 4, SourceTable({0: (EPOCH, 3), 1: (EPOCH - 1, 9)}), 0))
        assert await items.behind({0: 5}) == 2
        assert await items.behind({0: 3, 1: 2}) == 2
        await wait_stored(items, {0: 3}, 1)
        with pytest.raises(StreamError, match=r"topic t, group g: .* got 2 messages behind"):
            await wait_stored(items, {0: 5}, 0.05)

    asyncio.run(run())


def test_a_log_that_the_store_has_no_number_of_is_an_error() -> None:
    """A wiped store numbers anew: what it re-keyed would be taken for an earlier log."""
    batch = covering(2, 3)
    check_epochs(batch, int(batch.covers["epoch"][0]), "by-item/0/7")
    with pytest.raises(StreamError, match=r"by-item/0/7: needs source epoch 0, .* delete the re-k"):
        check_epochs(batch, 0, "by-item/0/7")
