"""Where filled generations begin, what their history is, and when they have caught up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from aiokafka.structs import ConsumerRecord

from schemas.errors import HistoryError, NotHeldError, StreamError
from schemas.names import generation_group, row_keys
from store.memory import AsyncMemoryRowStore, Image, MemoryRowStore
from streams.action_table import ACTION_SCHEMA, action_table
from streams.admin import TopicFacts
from streams.archive import name_log, partition_dir, write_file
from streams.backfill import BackfillConfig, fill_view, lacking, tasks_of, wait_caught_up
from streams.catching_up import CatchUp, nowhere
from streams.collecting import Collected, Rest, collect
from streams.config import StreamConfig
from streams.ends import Partition
from streams.filling import FillTask, fill
from streams.folding import Folder, physical_ttl_ms
from streams.generations import Generations, record_floors, recorded_floors
from streams.history import WHOLE, HistoryFile, read_chunks
from streams.losses import Loss
from streams.origins import (
    Log,
    Origin,
    beyond_holes,
    item_origin,
    user_origin,
    wait_for_lost_log,
)
from streams.servers import Servers
from streams.source import Source
from streams.source_table import Pair, PairStore, SourceTable
from tests.aggregation.plans import small_view
from tests.streams.support import PARTITIONS, assert_rows_equal_oracle, batch_record
from tests.streams.test_filling import messages
from tests.streams.test_folding import Batch, run_of

CONFIG = StreamConfig("nowhere:1", "nowhere", Path("."), topic="t", group="g", partitions=2)
USERS = replace(small_view(), source="t", generation=2)
ITEMS = replace(USERS, entity="item", source=CONFIG.item_topic)
LOG, REKEYED = Log("t", "id-2", 2), Log(CONFIG.item_topic, "id-9", 1)


@dataclass
class ListReader:
    """A `streams.log_reader.LogReader` over lists. held_from: the first offset it still holds."""

    logs: list[list[Batch]]
    held_from: int = 0
    error: type[StreamError] = NotHeldError
    reads: list[tuple[int, int, int]] = field(default_factory=list)

    async def read(
        self, topic: str, partition: int, first: int, before: int
    ) -> tuple[ConsumerRecord, ...]:
        self.reads.append((partition, first, before))
        if first < self.held_from:
            raise self.error("t", required="r", got="g")
        part = list(enumerate(self.logs[partition]))[first:before][:7]
        return tuple(batch_record(*batch, offset, partition) for offset, batch in part)

    async def close(self) -> None:
        """Nothing is open."""


# --- origins --------------------------------------------------------------------------------


def test_a_user_view_begins_at_the_workers_marks() -> None:
    async def scenario() -> None:
        store = AsyncMemoryRowStore()
        await store.put_progress("t", "g", {0: (2, 40, 0), 1: (1, 7, 0)})
        origin = await user_origin(store, CONFIG, USERS, LOG)
        assert origin == Origin({0: (2, 39), 1: (2, -1)}, {0: {0: 40}, 1: {1: 0}})
        await store.put_progress("t", "g", {0: (2, 90, 0)})
        assert await user_origin(store, CONFIG, USERS, LOG) == origin, "recorded once"
        assert await recorded_floors(store, "t", "g", USERS) == {0: (2, 40), 1: (2, 0)}
        with pytest.raises(StreamError, match=r"epoch 2 in partition 0: the broker lost that log"):
            await user_origin(store, CONFIG, USERS, Log("t", "id-3", 3))

    asyncio.run(scenario())


def test_a_floor_lies_beyond_what_the_log_has_dropped() -> None:
    """The worker reads offset 4 next, and the log of one partition begins at 9."""

    async def read_ends(starts: Mapping[tuple[str, int], int]) -> Mapping[tuple[str, int], int]:
        assert starts == {("t", 0): 4}
        return {("t", 0): 12}

    async def scenario(held_from: int) -> dict[int, tuple[int, int]]:
        store = AsyncMemoryRowStore()
        await store.put_progress("t", "g", {0: (2, 4, 0), 1: (1, 7, 0)})
        reader = ListReader(messages(30), held_from)
        beyond = await beyond_holes(store, CONFIG, LOG, reader, read_ends)
        return (await user_origin(store, CONFIG, USERS, LOG, beyond)).fences

    assert asyncio.run(scenario(9)) == {0: (2, 11), 1: (2, -1)}
    assert asyncio.run(scenario(4)) == {0: (2, 3), 1: (2, -1)}


def test_an_item_view_begins_at_saved_pairs_with_their_tables() -> None:
    async def scenario() -> None:
        store = AsyncMemoryRowStore()
        topic, group = CONFIG.item_topic, CONFIG.item_group
        theirs = PairStore(store, topic, group, 100)
        await theirs.save(0, Pair(1, 8, SourceTable({0: (2, 30), 1: (1, 50)}), 0))
        origin = await item_origin(store, CONFIG, ITEMS, (LOG, REKEYED))
        assert origin.fences == {0: (1, 7), 1: (1, -1)}
        assert origin.bounds == {0: {0: 30}, 1: {}}, "of the present source log alone"
        own = PairStore(store, topic, generation_group(group, ITEMS.name, 2), 100)
        assert (await own.load(0)).table.reached == {0: (2, 30), 1: (1, 50)}
        moved = await theirs.load(0)
        await theirs.save(0, replace(moved, next_offset=20))
        assert await item_origin(store, CONFIG, ITEMS, (LOG, REKEYED)) == origin
        lost = r"that it began with \(epoch 2\), got epoch 3: the broker lost that log"
        with pytest.raises(StreamError, match=lost):
            await item_origin(store, CONFIG, ITEMS, (Log("t", "id-3", 3), REKEYED))

    asyncio.run(scenario())


def test_an_item_view_waits_for_rows_that_are_ahead_of_a_lost_log() -> None:
    """The item worker's table goes on to where they are, and the stream brings none of it again."""

    async def scenario() -> None:
        store = AsyncMemoryRowStore()
        theirs = PairStore(store, CONFIG.item_topic, CONFIG.item_group, 100)
        pair = Pair(1, 8, SourceTable({0: (2, 30)}), 0, ahead={8: ((0, 2, 30, 34),)})
        await theirs.save(0, pair)
        hurried, later = replace(CONFIG, patience_ms=100), replace(REKEYED, epoch=2)
        with pytest.raises(StreamError, match=r"t\.by-item/0: needs an item worker that went on"):
            await item_origin(store, hurried, ITEMS, (LOG, later))
        waiting = asyncio.create_task(item_origin(store, CONFIG, ITEMS, (LOG, later)))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        pair.table = SourceTable({0: (2, 34)})
        pair.enter(2, 2)
        await theirs.save(0, pair)
        assert (await waiting).bounds[0] == {0: 34}

    asyncio.run(scenario())


def test_a_view_of_another_topic_is_refused() -> None:
    view, config = (
        replace(USERS, source="other"),
        BackfillConfig(replace(CONFIG, durability="answered")),
    )
    store = AsyncMemoryRowStore()
    with pytest.raises(StreamError, match=r"needs t or t\.by-item, which workers read, got other"):
        asyncio.run(fill_view(config, view, store, lambda *_: None))


def test_an_item_view_waits_for_what_was_re_keyed_of_a_lost_log() -> None:
    """A lost log is history as a whole: what of it is not folded yet would come once more."""
    topic, group = CONFIG.item_topic, CONFIG.item_group
    asked: list[dict[tuple[str, int], int]] = []

    async def read_ends(starts: Mapping[tuple[str, int], int]) -> Mapping[tuple[str, int], int]:
        asked.append(dict(starts))
        return {(topic, 0): 9, (topic, 1): 0}

    async def scenario() -> None:
        store = AsyncMemoryRowStore()
        theirs = PairStore(store, topic, group, 100)
        pair = Pair(1, 8, SourceTable({0: (2, 30)}), 0)
        await theirs.save(0, pair)
        await wait_for_lost_log(store, CONFIG, (replace(LOG, epoch=1), REKEYED), read_ends)
        assert asked == [], "there was no earlier log"
        hurried = replace(CONFIG, patience_ms=100)
        with pytest.raises(StreamError, match=r"all folded up to 9.* would count twice, got 8"):
            await wait_for_lost_log(store, hurried, (LOG, REKEYED), read_ends)
        assert asked == [{(topic, 0): 8, (topic, 1): 0}]
        waiting = asyncio.create_task(wait_for_lost_log(store, CONFIG, (LOG, REKEYED), read_ends))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        pair.next_offset = 9
        await theirs.save(0, pair)
        await waiting

    asyncio.run(scenario())


# --- expiry ---------------------------------------------------------------------------------


class OneLog:
    """A `streams.servers.TopicAdmin` of a broker whose logs have these ids, one after another."""

    def __init__(self, *ids: str) -> None:
        self._ids = iter(ids)
        self._id = ids[0]

    def describe(self, topic: str) -> TopicFacts:
        return TopicFacts(topic, self._id, PARTITIONS)

    def ensure_topics(self, topics: Mapping[str, int]) -> dict[str, TopicFacts]:
        """The next logs from now on."""
        self._id = next(self._ids)
        return {topic: self.describe(topic) for topic in topics}

    def close(self) -> None:
        """Nothing is open."""


def test_rows_that_are_filled_and_caught_up_leave_the_store_as_streamed_ones(
    tmp_path: Path,
) -> None:
    clock_ms, sent = [0], messages(20)
    config = replace(CONFIG, retention_ms=86_400_000)
    view = replace(USERS, ttl_ms=86_400_000)
    store = MemoryRowStore(clock_ms=lambda: clock_ms[0])
    archive(tmp_path / "archive", "id-2", 0, sent[0][:10], 0)
    found = gather(tmp_path, ListReader(sent), {0: 10, 1: 0})
    origin = Origin({0: (2, 9), 1: (2, -1)}, {0: {0: 10}, 1: {1: 0}})
    for task in tasks_of(BackfillConfig(config), view, origin, found.files, ()):
        fill(task, store, lambda actions: None)
    users = {int(user) for actions, _ in sent[0] for user in actions["user"]}
    keys = row_keys(view.name, view.generation, sorted(users))
    filled = [key for key, row in zip(keys, store.read(keys), strict=True) if row]

    async def catch_up() -> None:
        own = AsyncMemoryRowStore(store)
        stream = Folder(own, (view,), 2, nowhere, 100, retention_ms=config.retention_ms)
        source = Source(OneLog("id-2"), TopicFacts("t", "id-2", PARTITIONS), 2, 100)
        made = Generations(own, "t", "g", 2, 100)
        await record_floors(own, "t", "g", view, {0: (2, 10), 1: (2, 0)})
        await made.begin([view], (0,), {0: 20})
        servers = Servers(open_reader=lambda config: ListReader(sent))
        assert await CatchUp(config, servers, source, made).step({0: 20}, stream)

    asyncio.run(catch_up())
    assert filled
    clock_ms[0] = physical_ttl_ms(view, config.retention_ms) - 1
    assert all(store.read(filled))
    clock_ms[0] += 1
    assert not any(store.read(keys))


# --- collecting -----------------------------------------------------------------------------


def archive(root: Path, topic_id: str, partition: int, batches: Sequence[Batch], at: int) -> None:
    directory = partition_dir(root, topic_id, partition)
    run = run_of(batches, at)
    write_file(directory, at, at + len(batches) - 1, action_table(run))


def gather(
    root: Path, reader: ListReader, needed: dict[int, int], accept_loss: bool = False
) -> Collected:
    rest = Rest(reader, root / "aside", accept_loss)
    return asyncio.run(collect(root / "archive", LOG, needed, rest))


def offsets(files: Sequence[HistoryFile]) -> list[int]:
    chunks = read_chunks(
        [file for file in files if file.log_partition != WHOLE], ["offset", "sent_ms", "action"]
    )
    return sorted({int(at) for chunk in chunks for at in chunk.offset})


def test_gaps_of_the_archive_are_read_from_the_log(tmp_path: Path) -> None:
    sent, root = messages(30), tmp_path / "archive"
    archive(root, "id-2", 0, sent[0][5:12], 5)
    archive(root, "id-2", 0, sent[0][12:20], 12)
    found = gather(tmp_path, (reader := ListReader(sent)), {0: 25, 1: 9})
    assert [read[0] for read in reader.reads] == [0, 0, 1, 1]
    assert (found.missing, found.read) == ({}, 5 + 5 + 9)
    assert offsets(found.files[0]) == list(range(25))
    assert offsets(found.files[1]) == list(range(9))
    made = FillTask(
        USERS,
        (*found.files[0], *found.files[1]),
        (0, 1),
        PARTITIONS,
        {0: {0: 15}, 1: {1: 9}},
        {0: (2, 14), 1: (2, 8)},
    )
    fill(made, store := MemoryRowStore(), lambda actions: None)
    assert_rows_equal_oracle(store, USERS, [*sent[0][:15], *sent[1][:9]])
    again = gather(tmp_path, ListReader(sent), {0: 14, 1: 0})
    assert offsets(again.files[0]) == list(range(20)), "a file is read whole, the bound cuts it"


def test_history_is_not_taken_from_a_log_that_was_replaced_meanwhile(tmp_path: Path) -> None:
    """The offsets of one log, the messages of another."""
    config = replace(CONFIG, data_dir=tmp_path, durability="answered")

    async def scenario() -> None:
        store = AsyncMemoryRowStore()
        await store.put_progress("t", "g", {0: (1, 5, 0), 1: (1, 5, 0)})
        admin = OneLog("id-1", "id-2")

        async def read_ends(
            bootstrap: str, starts: Mapping[Partition, int]
        ) -> Mapping[Partition, int]:
            return dict.fromkeys(starts, 30)

        servers = Servers(
            open_admin=lambda config: admin,
            open_reader=lambda config: ListReader(messages(30)),
            read_ends=read_ends,
        )
        with pytest.raises(StreamError, match=r"got id-2: the broker lost its log meanwhile"):
            await fill_view(BackfillConfig(config), USERS, store, lambda *said: None, servers)

    asyncio.run(scenario())


def test_a_view_is_not_filled_in_a_later_history_than_it_was_staged_in(tmp_path: Path) -> None:
    config, store = replace(CONFIG, data_dir=tmp_path), MemoryRowStore()
    staged_in = store.begin_history()
    store.restore(Image())

    async def scenario() -> None:
        own = AsyncMemoryRowStore(store)
        with pytest.raises(HistoryError, match=rf"needs {staged_in}, got .*wiped"):
            await fill_view(
                BackfillConfig(config), USERS, own, lambda *_: None, store_history=staged_in
            )

    asyncio.run(scenario())
    assert store.image() == Image()


def test_what_nobody_holds_is_told_and_a_hole_at_the_end_refused(tmp_path: Path) -> None:
    sent, root = messages(30), tmp_path / "archive"
    archive(root, "id-2", 0, sent[0][5:20], 5)
    found = gather(tmp_path, ListReader(sent, held_from=10), {0: 22, 1: 0})
    assert found.missing == {0: 5}
    assert offsets(found.files[0]) == list(range(5, 22))
    gone = "needs offsets 20 to 20 of t/0, which the archive ends before, got a log that begins at"
    with pytest.raises(StreamError, match=gone):
        gather(tmp_path, ListReader(sent, held_from=21), {0: 22, 1: 0})
    with pytest.raises(StreamError, match=r"20 to 21 .* got a log without them; .* --accept-loss"):
        gather(tmp_path, ListReader(sent, held_from=25), {0: 22, 1: 0})
    found = gather(tmp_path, ListReader(sent, held_from=21), {0: 22, 1: 0}, accept_loss=True)
    assert (found.missing, found.lost) == ({0: 5}, {Loss("t", "id-2", 0, 20, 21)})
    assert found.messages_missing == 6
    assert offsets(found.files[0]) == [*range(5, 20), 21]


def test_what_the_archive_says_is_lost_is_refused_unless_accepted(tmp_path: Path) -> None:
    """Of the present log, and of one before it."""
    sent, root = messages(30), tmp_path / "archive"
    for topic_id in ("id-1", "id-2"):
        archive(root, topic_id, 0, sent[0][:5], 0)
        directory = partition_dir(root, topic_id, 0)
        write_file(directory, 5, 9, ACTION_SCHEMA.empty_table(), lost=True)
        archive(root, topic_id, 0, sent[0][10:20], 10)
    reader = ListReader(sent, held_from=20)
    with pytest.raises(StreamError, match="offsets 5 to 9 of t/0, which the archive should hold"):
        gather(tmp_path, reader, {0: 20, 1: 0})
    found = gather(tmp_path, reader, {0: 8, 1: 0}, accept_loss=True)
    assert found.lost == {Loss("t", "id-1", 0, 5, 10), Loss("t", "id-2", 0, 5, 8)}
    assert found.messages_missing == 8


def test_a_broker_that_does_not_answer_holds_everything_still(tmp_path: Path) -> None:
    """The part before the archive is not given up for a time-out."""
    sent, root = messages(30), tmp_path / "archive"
    archive(root, "id-2", 0, sent[0][5:20], 5)
    with pytest.raises(StreamError):
        gather(tmp_path, ListReader(sent, 10, StreamError), {0: 20, 1: 0})


def test_earlier_logs_are_history_as_a_whole_oldest_first(tmp_path: Path) -> None:
    sent, root = messages(9), tmp_path / "archive"
    later = [(actions, sent_ms + 10_000) for actions, sent_ms in sent[0]]
    archive(root, "a-later", 0, later, 0)
    archive(root, "b-first", 0, sent[0], 0)
    archive(root, "id-2", 0, sent[0], 0)
    for topic_id in ("a-later", "b-first"):
        name_log(root, topic_id, LOG.topic, 2)
    found = gather(tmp_path, ListReader(sent), {0: 4, 1: 0})
    files = found.files[0]
    assert [file.log_partition for file in files] == [WHOLE, WHOLE, 0]
    assert ["b-first" in file.path for file in files] == [True, False, False]
    assert found.files[1] == [], "users of the one partition have nothing in the other"


def test_tasks_share_out_the_cores() -> None:
    files = {0: [HistoryFile("a", 5, 0)], 1: [HistoryFile("b", 5, 1)]}
    foreign = [HistoryFile("f", 5)]
    for cores, users, items in ((1, 2, 1), (2, 2, 2), (4, 4, 4)):
        config = BackfillConfig(CONFIG, cores)
        made = tasks_of(config, USERS, Origin({}, {}), files, foreign)
        assert len(made) == users
        assert {task.files[0].path for task in made} == {"f"}
        assert made[0].partitions == (0,)
        made = tasks_of(config, ITEMS, Origin({}, {}), files, foreign)
        assert [(task.way, task.ways) for task in made] == [(way, items) for way in range(items)]
        assert made[0].partitions == (0, 1)


# --- catching up ----------------------------------------------------------------------------


def test_a_user_generation_has_caught_up_when_its_marks_have() -> None:
    async def scenario() -> None:
        store = AsyncMemoryRowStore()
        await store.put_progress("t", "g", {0: (2, 40, 0)})
        await user_origin(store, CONFIG, USERS, LOG)
        assert await lacking(CONFIG, USERS, store) == {0: (40, 40), 1: (0, 0)}
        await store.put_progress("t", "g", {0: (2, 60, 0), 1: (2, 5, 0)})
        assert await lacking(CONFIG, USERS, store) == {0: (40, 60), 1: (0, 5)}
        notes: list[tuple[str, int, int, str]] = []
        wait = wait_caught_up(CONFIG, [USERS], store, lambda *note: notes.append(note), 0.2)
        with pytest.raises(StreamError, match="25 messages to go"):
            await wait
        own = generation_group("g", USERS.name, 2)
        await store.put_progress("t", own, {0: (2, 60, 0), 1: (2, 5, 0)})
        await wait_caught_up(CONFIG, [USERS], store, lambda *note: notes.append(note), 0.2)
        assert notes[-1] == (f"catch up {USERS.name}", 2, 2, "0 messages to go")
        await store.put_progress("t", "g", {0: (3, 1, 0)})
        with pytest.raises(StreamError, match="epoch 3: the broker lost that log"):
            await lacking(CONFIG, USERS, store)

    asyncio.run(scenario())


def test_an_item_generation_has_caught_up_when_the_pairs_name_it() -> None:
    async def scenario() -> None:
        store = AsyncMemoryRowStore()
        theirs = PairStore(store, CONFIG.item_topic, CONFIG.item_group, 100)
        await theirs.save(0, Pair(1, 8, SourceTable({0: (2, 30)}), 0))
        await item_origin(store, CONFIG, ITEMS, (LOG, REKEYED))
        assert await lacking(CONFIG, ITEMS, store) == {0: (7, 8), 1: (0, 0)}, "not named yet"
        pair = await theirs.load(0)
        await theirs.save(0, replace(pair, next_offset=20))
        assert await lacking(CONFIG, ITEMS, store) == {0: (8, 20), 1: (0, 0)}
        pair = await theirs.load(0)
        await theirs.save(0, replace(pair, next_offset=21, folded=frozenset({ITEMS.key})))
        assert await lacking(CONFIG, ITEMS, store) == {0: (21, 21), 1: (0, 0)}

    asyncio.run(scenario())
