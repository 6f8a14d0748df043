from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.actions import ActionType
from schemas.errors import RowError, StoreError, StoreTimeout, StreamError
from schemas.layout import layout_of
from schemas.names import row_key
from schemas.row import empty_rows, encode_rows, read_fence
from store.base import Write
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from streams import folding
from streams.catching_up import beside
from streams.folding import Folder, OutsideActions, physical_ttl_ms
from streams.generations import NOTHING
from streams.messages import ActionRun
from tests.aggregation.plans import small_view
from tests.streams.support import T0, assert_rows_equal_oracle, some_actions

VIEW = small_view()
Batch = tuple[NDArray[np.void], int]


async def allowed() -> None:
    """The log is still the same."""


@dataclass
class Bench:
    """A folder over a memory store, and what it sent aside."""

    store: MemoryRowStore = field(default_factory=MemoryRowStore)
    epoch: int = 1
    outside: list[tuple[str, int, list[int]]] = field(default_factory=list)

    def folder(self, patience_ms: int = 1_000) -> Folder:
        async def aside(run: ActionRun, groups: list[OutsideActions]) -> None:
            for group in groups:
                self.outside += [(group.reason, int(run.offset[i]), []) for i in group.at.tolist()]

        return Folder(AsyncMemoryRowStore(self.store), (VIEW,), self.epoch, aside, patience_ms)

    def apply(self, folder: Folder, run: ActionRun) -> None:
        asyncio.run(folder.apply(run, allowed))


def run_of(batches: Sequence[Batch], first_offset: int = 0) -> ActionRun:
    """Messages at consecutive offsets as one run."""
    sizes = [len(actions) for actions, _ in batches]
    offsets = first_offset + np.arange(len(batches))
    return ActionRun(
        np.concatenate([actions for actions, _ in batches]),
        np.zeros(sum(sizes), np.int32),
        np.repeat(offsets, sizes),
        np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        np.repeat(np.array([sent_ms for _, sent_ms in batches], np.int64), sizes),
    )


def messages(count: int, size: int = 20, users: int = 5, seed: int = 0) -> list[Batch]:
    actions = some_actions(count * size, users, seed)
    parts = [actions[start : start + size] for start in range(0, len(actions), size)]
    return [(part, int(part["time_ms"].max()) + 500) for part in parts]


def test_rows_equal_the_oracle_and_carry_the_newest_offset() -> None:
    bench, sent = Bench(), messages(12)
    folder = bench.folder()
    bench.apply(folder, run_of(sent[:5]))
    bench.apply(folder, run_of(sent[5:], 5))
    assert_rows_equal_oracle(bench.store, VIEW, sent)
    user = int(sent[-1][0]["user"][-1])
    assert read_fence(bench.store.read([row_key(VIEW.name, 1, user)])[0]) == (1, 11)


@given(st.lists(st.integers(0, 11), max_size=8), st.integers(1, 12))
def test_any_batch_may_come_again(again: list[int], step: int) -> None:
    """Whatever prefix was applied, reading again from any earlier offset changes nothing."""
    bench, sent = Bench(), messages(12)
    reached = 0
    for begin in (*again, 0):
        begin = min(begin, reached)
        end = min(begin + step, 12)
        bench.apply(bench.folder(), run_of(sent[begin:end], begin))
        reached = max(reached, end)
    assert_rows_equal_oracle(bench.store, VIEW, sent[:reached])


@given(
    st.lists(st.integers(0, 11), max_size=8),
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 239), st.booleans()), min_size=1, max_size=4),
)
def test_a_deleted_user_stays_deleted(
    again: list[int], step: int, places: list[tuple[int, bool]]
) -> None:
    """Older messages that come again bring nothing back; what follows the deletion counts."""
    bench, sent = Bench(), messages(12)
    for place, silent_since in places:
        part, _ = sent[place // 20]
        part[place % 20]["type"] = ActionType.DELETE_USER
        if silent_since:
            user = part[place % 20]["user"]
            for later, _ in sent[place // 20 :]:
                mine = (later["user"] == user) & (later["type"] != ActionType.DELETE_USER)
                later["time_ms"][mine] = T0 + 10_000_000  # nothing of it is folded
    reached = 0
    for begin in (*again, 0):
        begin = min(begin, reached)
        end = min(begin + step, 12)
        bench.apply(bench.folder(), run_of(sent[begin:end], begin))
        reached = max(reached, end)
    assert_rows_equal_oracle(bench.store, VIEW, sent[:reached])


def test_deletions_are_counted_and_a_user_nobody_knew_gets_a_tombstone() -> None:
    bench = Bench()
    folder = bench.folder()
    part = some_actions(3, 1)
    part["type"] = ActionType.DELETE_USER
    bench.apply(folder, run_of([(part, T0 + 20_000)]))
    assert (folder.counts.deleted, folder.counts.folded, folder.counts.rows_written) == (3, 0, 1)
    raw = bench.store.read([row_key(VIEW.name, 1, int(part["user"][0]))])
    assert read_fence(raw[0]) == (1, 0)
    assert_rows_equal_oracle(bench.store, VIEW, [(part, T0 + 20_000)])


FAULTS = [StoreError("s", required="r", got="g"), StoreTimeout("s", required="r", got="g")]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("calls_before", [0, 1, 2, 3])
def test_a_failing_store_is_tried_again(fault: StoreError, calls_before: int) -> None:
    bench, sent = Bench(), messages(6)
    folder = bench.folder()

    class Failing(AsyncMemoryRowStore):
        calls = 0

        async def read(self, keys: Sequence[str]) -> list[bytes | None]:
            self.before()
            return await super().read(keys)

        async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
            self.before()
            return await super().compare_and_set(writes)

        def before(self) -> None:
            self.calls += 1
            if self.calls == calls_before + 1:
                raise fault

    folder.store = Failing(bench.store)
    bench.apply(folder, run_of(sent[:3]))
    bench.apply(folder, run_of(sent[3:], 3))
    assert_rows_equal_oracle(bench.store, VIEW, sent)


def test_a_write_that_landed_though_its_reply_was_lost_counts_once() -> None:
    bench, sent = Bench(), messages(4)

    class Deaf(AsyncMemoryRowStore):
        deaf = True

        async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
            landed = await super().compare_and_set(writes)
            if self.deaf:
                self.deaf = False
                raise StoreTimeout("s", required="a reply", got="none")
            return landed

    folder = bench.folder()
    folder.store = Deaf(bench.store)
    bench.apply(folder, run_of(sent))
    assert_rows_equal_oracle(bench.store, VIEW, sent)
    assert folder.counts.rows_written == 0  # nobody told


def test_a_store_that_stays_away_ends_with_an_error() -> None:
    bench = Bench()
    bench.store.fail_next(*FAULTS * 10)
    with pytest.raises(StreamError, match="needs success within 200 ms"):
        bench.apply(bench.folder(patience_ms=200), run_of(messages(1)))


def test_two_workers_on_one_partition_count_each_action_once() -> None:
    """A worker that lost its partition goes on for a while beside its successor."""
    bench, sent = Bench(), messages(10)
    old, new = bench.folder(), bench.folder()

    class Interrupted(AsyncMemoryRowStore):
        """Between this worker's read and write, the other applies more."""

        interrupted = False

        async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
            if not self.interrupted:
                self.interrupted = True
                await new.apply(run_of(sent[:6]), allowed)
            return await super().compare_and_set(writes)

    old.store = Interrupted(bench.store)
    bench.apply(old, run_of(sent[:4]))
    assert old.counts.conflicts > 0
    bench.apply(new, run_of(sent[6:], 6))
    assert_rows_equal_oracle(bench.store, VIEW, sent)


def test_another_writer_that_never_lets_go_is_an_error() -> None:
    class Losing(AsyncMemoryRowStore):
        async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
            return [False] * len(writes)

    folder = Bench().folder()
    folder.store = Losing()
    with pytest.raises(StreamError, match="rows that no other worker writes"):
        asyncio.run(folder.apply(run_of(messages(1)), allowed))


def test_a_new_log_begins_at_offset_0_in_a_new_epoch() -> None:
    bench, sent = Bench(), messages(6)
    bench.apply(bench.folder(), run_of(sent[:3], 700))
    bench.epoch = 2
    bench.apply(bench.folder(), run_of(sent[3:], 0))
    assert_rows_equal_oracle(bench.store, VIEW, sent)


def test_nothing_is_written_unless_the_log_is_still_the_same() -> None:
    bench = Bench()

    async def refused() -> None:
        raise StreamError("topic", required="its id", got="another")

    for run in (run_of(messages(2)), run_of([(messages(1)[0][0][:0], T0)])):
        with pytest.raises(StreamError, match="needs its id"):
            asyncio.run(bench.folder().apply(run, refused))
    assert_rows_equal_oracle(bench.store, VIEW, [])
    assert bench.store.facts().keys == 0


def test_late_and_future_actions_go_aside_once_and_before_the_write() -> None:
    actions = some_actions(6, 2)
    actions["time_ms"] = T0 + np.array([0, 10_000, 10_000, 10_000, 99_000, 10_000])
    sent = [(actions, T0 + 10_000)]
    bench = Bench()
    folder = bench.folder()
    bench.store.fail_next(FAULTS[0])
    bench.apply(folder, run_of(sent, 3))
    assert sorted(bench.outside) == [("future", 3, []), ("late", 3, [])]
    assert (folder.counts.late, folder.counts.future, folder.counts.folded) == (1, 1, 4)
    assert_rows_equal_oracle(bench.store, VIEW, sent)


def two_generations(bench: Bench, **other: int) -> tuple[Folder, list[Batch]]:
    """A folder of a published and a staged generation, and a message with a late action. other:
    bounds of the staged one."""
    folder, staged = bench.folder(), replace(VIEW, generation=2, **other)  # type: ignore[arg-type]
    folder.views, folder.speakers = (VIEW, staged), {staged.key: VIEW}
    actions = some_actions(6, 1)
    actions["time_ms"] = T0 + np.array([0, 10_000, 10_000, 10_000, 10_000, 10_000])
    return folder, [(actions, T0 + 10_000)]


def test_a_staged_generation_is_written_once_the_speaking_one_has_told() -> None:
    """Its fence passes over what is late: it would not come again after a crash."""
    bench = Bench()
    folder, sent = two_generations(bench)

    async def fails(run: ActionRun, groups: list[OutsideActions]) -> None:
        for _ in range(100):
            await asyncio.sleep(0)  # time for whatever would be written meanwhile
        raise StreamError("actions.late", required="a confirmed record", got="none")

    told, folder.side_output = folder.side_output, fails
    with pytest.raises(StreamError, match="confirmed record"):
        bench.apply(folder, run_of(sent))
    assert bench.store.facts().keys == 0
    folder = replace(two_generations(bench)[0], side_output=told)
    bench.apply(folder, run_of(sent))
    assert bench.outside == [("late", 0, [])], "once"
    for view in folder.views:
        assert_rows_equal_oracle(bench.store, view, sent)


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ({"skew_ms": VIEW.skew_ms + 99_000}, [("late", 0)]),
        ({"skew_ms": 0}, [("late", 0), ("late", 1)]),
        ({"future_ms": 0}, [("late", 0), ("future", 2)]),
    ],
)
def test_what_is_outside_the_bounds_of_two_generations_is_told_once(
    bounds: dict[str, int], told: list[tuple[str, int]]
) -> None:
    bench = Bench()
    folder, _ = two_generations(bench, **bounds)
    actions = some_actions(4, 1)
    actions["time_ms"] = T0 + np.array([0, 9_999, 10_001, 10_000])
    bench.apply(folder, run_of([(actions[i : i + 1], T0 + 10_000) for i in range(4)]))
    assert [(reason, offset) for reason, offset, _ in bench.outside] == told
    for view in folder.views:
        assert_rows_equal_oracle(bench.store, view, [(actions, T0 + 10_000)])


def test_a_generation_beside_the_stream_tells_what_its_speaker_does_not() -> None:
    """While it catches up: the stream has passed, and its speaker has told of what it took."""
    actions = some_actions(3, 1)
    actions["time_ms"] = T0 + np.array([0, 9_999, 10_000])
    run = run_of([(actions[i : i + 1], T0 + 10_000) for i in range(3)])
    for floor, told in ((0, [1]), (1, [0, 1])):
        bench = Bench()
        stream, _ = two_generations(bench, skew_ms=0)
        stream.floors = {VIEW.key: {0: floor}}
        bench.apply(beside(stream, stream.views[1], {}), run)
        assert [offset for _, offset, _ in bench.outside] == told


def test_a_staged_generation_tells_what_the_speaking_one_does_not_take() -> None:
    bench = Bench()
    folder, sent = two_generations(bench)
    folder.floors = {VIEW.key: {0: NOTHING}}
    bench.apply(folder, run_of(sent))
    assert bench.outside == [("late", 0, [])]
    assert_rows_equal_oracle(bench.store, folder.views[1], sent)


def test_a_side_output_that_fails_prevents_the_write() -> None:
    bench = Bench()
    folder = bench.folder()

    async def failing(run: ActionRun, groups: list[OutsideActions]) -> None:
        raise StreamError("actions.late", required="a confirmed record", got="none")

    folder.side_output = failing
    actions = some_actions(4, 1)
    actions["time_ms"][0] = T0 - 99_000
    with pytest.raises(StreamError, match="confirmed"):
        bench.apply(folder, run_of([(actions, T0 + 20_000)]))
    assert bench.store.facts().keys == 0


def test_a_row_that_went_back_is_noticed() -> None:
    bench, sent = Bench(), messages(6)
    folder = bench.folder()
    bench.apply(folder, run_of(sent[:3]))
    folder.store = AsyncMemoryRowStore()  # the store came back without them
    with pytest.raises(StreamError, match="the store went back"):
        bench.apply(folder, run_of(sent[3:], 3))


def test_a_row_ahead_of_what_was_saved_of_a_lost_log_is_refused() -> None:
    """Its newest messages may come again in the next log, and nobody knows which they are."""
    bench, sent = Bench(), messages(6)
    bench.apply(bench.folder(), run_of(sent[:3]))
    bench.epoch = 2
    folder = bench.folder()
    folder.ended = {0: {1: 3}}
    bench.apply(folder, run_of(sent[3:5]))
    bench.epoch = 3
    folder = bench.folder()
    folder.ended = {0: {1: 0, 2: 1}}
    with pytest.raises(StreamError, match="needs nothing beyond offset 1 of the lost log"):
        bench.apply(folder, run_of(sent[5:]))


def test_a_damaged_row_is_never_folded_on() -> None:
    bench, sent = Bench(), messages(2, users=1)
    bench.apply(bench.folder(), run_of(sent[:1]))
    key = row_key(VIEW.name, 1, int(sent[0][0]["user"][0]))
    row = bytearray(bench.store.read([key])[0] or b"")
    fence = bytes(row[-24:-12])
    row[40] ^= 1
    assert bench.store.compare_and_set([Write(key, fence, bytes(row))]) == [True]
    with pytest.raises(RowError, match="checksum"):
        bench.apply(bench.folder(), run_of(sent[1:], 1))


def test_rows_of_other_views_are_left_alone() -> None:
    bench, sent = Bench(), messages(1)
    layout = layout_of(VIEW)
    other = encode_rows(layout, empty_rows(layout, np.array([5], np.int64)))[0]
    bench.store.compare_and_set([Write("other@1:{5}", None, other)])
    bench.apply(bench.folder(), run_of(sent))
    assert bench.store.read(["other@1:{5}"]) == [other]


@pytest.mark.parametrize(
    ("ttl_ms", "retention_ms", "wanted"),
    [(0, 0, 0), (5, 0, 0), (0, 5, 0), (5, 7, 86_400_007), (9, 7, 86_400_009)],
)
def test_rows_outlive_their_ttl_and_their_topic(
    ttl_ms: int, retention_ms: int, wanted: int
) -> None:
    assert physical_ttl_ms(small_view(ttl_ms), retention_ms) == wanted


def test_an_expired_row_begins_anew_though_this_process_wrote_it() -> None:
    now = [0.0]
    bench, sent = Bench(MemoryRowStore(clock_ms=lambda: now[0])), messages(2)
    folder = bench.folder()
    folder.views, folder.retention_ms = (small_view(ttl_ms=1_000),), 1_000
    bench.apply(folder, run_of(sent[:1]))
    assert bench.store.facts().keys > 0
    now[0] = 86_401_001
    bench.apply(folder, run_of(sent[1:], 1))
    assert_rows_equal_oracle(bench.store, small_view(ttl_ms=1_000), sent[1:])


def test_a_generation_that_takes_nothing_is_not_read() -> None:
    """One that lags is folded beside the stream: its rows cost the stream no read."""
    bench = Bench()
    folder = bench.folder(patience_ms=0)
    folder.floors = {VIEW.key: {0: NOTHING}}
    bench.store.fail_next(StoreError("store", required="no call", got="one"))
    bench.apply(folder, run_of(messages(2)))
    assert folder.counts.folded == 0
    with pytest.raises(StoreError, match="no call"):
        bench.store.read([])


@pytest.mark.parametrize("rows_at_once", [1, 3, 1_000])
def test_runs_begun_at_once_make_the_rows_that_one_after_the_other_makes(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    """Whatever the store takes for each call: it answers the first ones last."""
    monkeypatch.setattr(folding, "ROWS_AT_ONCE", rows_at_once)
    bench, sent = Bench(), messages(12, users=30)

    class Slow(AsyncMemoryRowStore):
        calls = 0

        async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
            self.calls += 1
            await asyncio.sleep(0.004 / self.calls)
            return await super().compare_and_set(writes)

    async def run() -> None:
        folder = bench.folder()
        folder.store = Slow(bench.store)
        parts = [folder.begin(run_of(sent[at : at + 3], at), allowed) for at in range(0, 12, 3)]
        await asyncio.gather(*parts)
        assert folder.counts.conflicts == folder.counts.repeated == 0

    asyncio.run(run())
    assert_rows_equal_oracle(bench.store, VIEW, sent)


def test_a_run_behind_one_that_failed_writes_none_of_its_rows() -> None:
    bench, sent = Bench(), messages(8)

    class Failing(AsyncMemoryRowStore):
        async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
            raise ZeroDivisionError

    async def run() -> None:
        folder = bench.folder()
        folder.store = Failing(bench.store)
        first = folder.begin(run_of(sent[:4]), allowed)
        second = folder.begin(run_of(sent[4:6], 4), allowed)
        with pytest.raises(ZeroDivisionError):
            await first
        folder.store = AsyncMemoryRowStore(bench.store)
        for late in (second, folder.begin(run_of(sent[6:], 6), allowed)):
            with pytest.raises(ZeroDivisionError):
                await late

    asyncio.run(run())
    assert bench.store.facts().keys == 0
    bench.apply(bench.folder(), run_of(sent))
    assert_rows_equal_oracle(bench.store, VIEW, sent)
