"""What every row store does, whatever is behind it (`store/base.py` is the contract)."""

from __future__ import annotations

import threading
import time
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import StoreError
from schemas.layout import TRAILER_BYTES
from schemas.row import FENCE_SLICE, fence_bytes, seal
from schemas.stored import RowKeys
from store.base import MAX_VALUE_BYTES, Progress, RowStore, Write

INT64_MAX = 2**63 - 1
FENCES = [
    (0, -1),
    (0, 0),
    (0, 10),  # a newline byte, a zero byte, the largest of each
    (1, 256),
    (2**32 - 1, INT64_MAX),
    (0, -(2**63)),
]

# An async store belongs to one loop, so threads may share the blocking ones only.
THREADED = pytest.mark.parametrize("kind", ["memory", "redis"], indirect=True)


def row(epoch: int, offset: int, front: bytes = b"front of a row") -> bytes:
    """The bytes of a row with that fence; a store looks at nothing else."""
    return seal(front, 0, (epoch, offset), newest_ms=0)


def fence_of(value: bytes) -> bytes:
    return value[FENCE_SLICE]


class TestRead:
    def test_no_keys(self, store: RowStore) -> None:
        assert store.read([]) == []

    def test_absent_is_none(self, store: RowStore, prefix: str) -> None:
        assert store.read([f"{prefix}:a", f"{prefix}:b"]) == [None, None]

    def test_order_and_duplicates_of_the_keys(self, store: RowStore, prefix: str) -> None:
        one, two = row(1, 1), row(1, 2)
        keys = [f"{prefix}@1:{{{n}}}" for n in range(3)]
        store.compare_and_set([Write(keys[0], None, one), Write(keys[2], None, two)])
        asked = [keys[2], keys[1], keys[0], keys[2]]
        assert store.read(asked) == [two, None, one, two]

    def test_any_bytes_come_back_as_they_were(self, store: RowStore, prefix: str) -> None:
        value = row(1, 1, bytes(range(256)) * 3 + b"\r\n$-1\r\n\x00")
        store.compare_and_set([Write(prefix, None, value)])
        assert store.read([prefix]) == [value]

    def test_the_longest_value(self, store: RowStore, prefix: str) -> None:
        value = row(1, 1, b"x" * (MAX_VALUE_BYTES - TRAILER_BYTES))
        assert store.compare_and_set([Write(prefix, None, value)]) == [True]
        assert store.read([prefix]) == [value]

    def test_ten_thousand_keys(self, store: RowStore, prefix: str) -> None:
        assert store.read([f"{prefix}:{n}" for n in range(10_000)]) == [None] * 10_000


class TestReadRows:
    """The same by views and ids; what comes is a sequence of the same values."""

    @staticmethod
    def put(store: RowStore, keys: RowKeys, values: list[bytes | None]) -> None:
        named = zip(keys.names(), values, strict=True)
        writes = [Write(key, None, value) for key, value in named if value is not None]
        assert store.compare_and_set(writes) == [True] * len(writes)

    def test_no_keys(self, store: RowStore, prefix: str) -> None:
        assert list(store.read_rows([])) == []
        assert list(store.read_rows([RowKeys(prefix, 1, np.array([], np.int64))])) == []

    def test_order_and_duplicates_of_the_keys(self, store: RowStore, prefix: str) -> None:
        one, two = row(1, 1), row(1, 2, b"a longer front of a row")
        self.put(store, RowKeys(prefix, 1, np.array([1, -2, 30])), [one, None, two])
        self.put(store, RowKeys(prefix, 2, np.array([1])), [two])
        first, second = np.array([30, -2, 1, 1, 30]), np.array([1, 1])
        keys = [RowKeys(prefix, 1, first), RowKeys(prefix, 2, second), RowKeys(prefix, 3, second)]
        found = store.read_rows(keys)
        assert list(found) == [two, None, one, one, two, two, two, None, None]
        assert list(found) == store.read([name for each in keys for name in each.names()])

    def test_any_bytes_come_back_as_they_were(self, store: RowStore, prefix: str) -> None:
        fronts = [bytes(range(256)) * 3, b"\r\n$-1\r\n\x00", b"$84\r\n" * 14]
        values = [row(1, place, front) for place, front in enumerate(fronts * 2)]
        keys = RowKeys(prefix, 1, np.arange(len(values)))
        self.put(store, keys, [*values])
        assert list(store.read_rows([keys])) == values

    def test_thousands_of_rows_with_gaps(self, store: RowStore, prefix: str) -> None:
        keys = RowKeys(prefix, 1, np.arange(3_000))
        values = [row(1, n, b"x" * 400) if n % 97 else None for n in range(3_000)]
        self.put(store, keys, values)
        assert list(store.read_rows([keys, keys])) == values * 2
        assert list(store.read_rows([keys])) == values

    def test_the_longest_value(self, store: RowStore, prefix: str) -> None:
        keys = RowKeys(prefix, 1, np.array([7, 7]))
        value = row(1, 1, b"x" * (MAX_VALUE_BYTES - TRAILER_BYTES))
        assert store.compare_and_set([Write(keys.names()[0], None, value)]) == [True]
        assert list(store.read_rows([keys])) == [value, value]

    def test_other_calls_between(self, store: RowStore, prefix: str) -> None:
        keys = RowKeys(prefix, 1, np.arange(3))
        self.put(store, keys, [row(1, 1)] * 3)
        for _ in range(3):
            assert list(store.read_rows([keys])) == store.read(keys.names())
            store.ping()


class TestCompareAndSet:
    def test_no_writes(self, store: RowStore) -> None:
        assert store.compare_and_set([]) == []

    def test_absent_is_a_value(self, store: RowStore, prefix: str) -> None:
        first, second = row(1, 5), row(1, 6)
        assert store.compare_and_set([Write(prefix, None, first)]) == [True]
        assert store.compare_and_set([Write(prefix, None, second)]) == [False]
        assert store.read([prefix]) == [first]

    def test_a_fence_never_matches_absent(self, store: RowStore, prefix: str) -> None:
        for epoch, offset in FENCES:
            write = Write(prefix, fence_bytes(epoch, offset), row(2, 0))
            assert store.compare_and_set([write]) == [False]
        assert store.read([prefix]) == [None]

    @pytest.mark.parametrize("fence", FENCES)
    def test_lands_on_its_own_fence_only(
        self, store: RowStore, prefix: str, fence: tuple[int, int]
    ) -> None:
        stored, after = row(*fence), row(7, 7)
        assert fence_of(stored) == fence_bytes(*fence)
        assert store.compare_and_set([Write(prefix, None, stored)]) == [True]
        for other in FENCES:
            if other != fence:
                write = Write(prefix, fence_bytes(*other), after)
                assert store.compare_and_set([write]) == [False]
        assert store.read([prefix]) == [stored]
        assert store.compare_and_set([Write(prefix, fence_bytes(*fence), after)]) == [True]
        assert store.read([prefix]) == [after]

    def test_only_the_fence_is_compared(self, store: RowStore, prefix: str) -> None:
        store.compare_and_set([Write(prefix, None, row(1, 1, b"a front"))])
        replacement = row(1, 2, b"another, longer front")
        assert store.compare_and_set([Write(prefix, fence_bytes(1, 1), replacement)]) == [True]

    def test_a_lower_fence_replaces_a_higher_one_that_was_read(
        self, store: RowStore, prefix: str
    ) -> None:
        store.compare_and_set([Write(prefix, None, row(9, 900))])
        assert store.compare_and_set([Write(prefix, fence_bytes(9, 900), row(1, 1))]) == [True]

    def test_one_result_a_write(self, store: RowStore, prefix: str) -> None:
        keys = [f"{prefix}:{n}" for n in range(4)]
        store.compare_and_set([Write(keys[1], None, row(1, 1)), Write(keys[2], None, row(1, 1))])
        writes = [
            Write(keys[0], None, row(1, 2)),
            Write(keys[1], None, row(1, 2)),
            Write(keys[2], fence_bytes(1, 1), row(1, 2)),
            Write(keys[3], fence_bytes(1, 1), row(1, 2)),
        ]
        assert store.compare_and_set(writes) == [True, False, True, False]
        assert store.read(keys) == [row(1, 2), row(1, 1), row(1, 2), None]

    def test_writes_of_one_call_apply_in_order(self, store: RowStore, prefix: str) -> None:
        writes = [
            Write(prefix, None, row(1, 1)),
            Write(prefix, fence_bytes(1, 1), row(1, 2)),
            Write(prefix, fence_bytes(1, 1), row(1, 3)),
        ]
        assert store.compare_and_set(writes) == [True, True, False]
        assert store.read([prefix]) == [row(1, 2)]

    def test_more_writes_than_one_round_trip_carries(self, store: RowStore, prefix: str) -> None:
        keys = [f"{prefix}:{n}" for n in range(1_500)]
        writes = [Write(key, None, row(1, n)) for n, key in enumerate(keys)]
        assert store.compare_and_set(writes) == [True] * 1_500
        assert store.compare_and_set(writes) == [False] * 1_500
        assert store.read(keys) == [write.value for write in writes]

    @pytest.mark.parametrize(
        ("fence", "value", "place"),
        [
            (b"", row(1, 1), "fence"),
            (b"11 bytes...", row(1, 1), "fence"),
            (b"x" * 13, row(1, 1), "fence"),
            (None, b"", "value"),
            (None, b"x" * (TRAILER_BYTES - 1), "value"),
            (None, bytes(MAX_VALUE_BYTES + 1), "value"),
        ],
    )
    def test_a_malformed_write_is_refused_before_any_lands(
        self, store: RowStore, prefix: str, fence: bytes | None, value: bytes, place: str
    ) -> None:
        good = Write(f"{prefix}:good", None, row(1, 1))
        with pytest.raises(StoreError, match=rf"compare_and_set\[{prefix}\]\.{place}: needs"):
            store.compare_and_set([good, Write(prefix, fence, value)])
        assert store.read([good.key]) == [None]

    @THREADED
    def test_of_many_threads_one_lands(self, store: RowStore, prefix: str) -> None:
        results: list[bool] = []

        def write(number: int) -> None:
            results.extend(store.compare_and_set([Write(prefix, None, row(1, number))]))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [False] * 7 + [True]

    @settings(
        max_examples=40,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        steps=st.lists(
            st.tuples(
                st.integers(0, 2),
                st.none() | st.tuples(st.integers(0, 1), st.integers(-1, 2)),
                st.tuples(st.integers(0, 1), st.integers(-1, 2)),
            ),
            max_size=12,
        ),
    )
    def test_equals_a_dict(
        self,
        store: RowStore,
        steps: list[tuple[int, tuple[int, int] | None, tuple[int, int]]],
    ) -> None:
        model: dict[str, tuple[int, int]] = {}
        run = uuid4().hex  # an example may run twice
        keys = [f"{run}:{n}" for n in range(3)]
        expected = []
        writes = []
        for at, expect, fence in steps:
            key = keys[at]
            lands = model.get(key) == expect
            if lands:
                model[key] = fence
            expected.append(lands)
            given_fence = None if expect is None else fence_bytes(*expect)
            writes.append(Write(key, given_fence, row(*fence)))
        assert store.compare_and_set(writes) == expected
        assert store.read(keys) == [row(*model[key]) if key in model else None for key in keys]


class TestExpiry:
    """A row may leave the store some time after it was written last; a tombstone, too."""

    def test_leaves_when_it_was_not_written_for_so_long(self, store: RowStore, prefix: str) -> None:
        short, long, stays = (f"{prefix}:{name}" for name in ("short", "long", "stays"))
        writes = [
            Write(short, None, row(1, 1), 30),
            Write(long, None, row(1, 1), 60_000),
            Write(stays, None, row(1, 1)),
        ]
        assert store.compare_and_set(writes) == [True] * 3
        time.sleep(0.06)
        assert store.read([short, long, stays]) == [None, row(1, 1), row(1, 1)]
        again = [Write(short, fence_bytes(1, 1), row(1, 2)), Write(short, None, row(1, 3))]
        assert store.compare_and_set(again) == [False, True]

    def test_each_write_begins_anew(self, store: RowStore, prefix: str) -> None:
        for turn in range(100):  # on a machine that stalls the first write may leave too early
            key, again = f"{prefix}:{turn}", Write(f"{prefix}:{turn}", None, row(1, 4), 30)
            store.compare_and_set([Write(key, None, row(1, 1), 30)])
            stays = Write(key, fence_bytes(1, 1), row(1, 2))
            if store.compare_and_set([stays]) == [True]:
                time.sleep(0.06)
                assert store.read([key]) == [row(1, 2)]
                store.compare_and_set([Write(key, fence_bytes(1, 2), row(1, 3), 30)])
                if store.compare_and_set([again]) == [False]:
                    break
        else:
            pytest.fail("a row was never there for the 30 ms that it was given")
        time.sleep(0.06)
        assert store.read([key]) == [None]


class TestTexts:
    def test_absent(self, store: RowStore, prefix: str) -> None:
        assert store.get_text(prefix) is None

    @pytest.mark.parametrize("text", ["", "0", "plán ✓ 計画", "line\r\nline\x00"])
    def test_put_and_get(self, store: RowStore, prefix: str, text: str) -> None:
        store.put_text(prefix, "before")
        store.put_text(prefix, text)
        assert store.get_text(prefix) == text

    def test_publication_is_compare_and_set_on_the_version(
        self, store: RowStore, prefix: str
    ) -> None:
        key, version = f"{{{prefix}}}", f"{{{prefix}}}:version"
        assert not store.compare_and_set_text(key, version, 1, "from the future")
        assert store.get_text(key) is None
        assert store.compare_and_set_text(key, version, 0, "first")
        assert not store.compare_and_set_text(key, version, 0, "a second first")
        assert store.compare_and_set_text(key, version, 1, "second")
        assert store.get_text(key) == "second"
        assert store.get_text(version) == "2"


class TestProgress:
    def test_none_yet(self, store: RowStore, prefix: str) -> None:
        assert store.get_progress(prefix, "group") == {}

    def test_by_topic_group_and_partition(self, store: RowStore, prefix: str) -> None:
        store.put_progress(prefix, "a", {0: (1, 10, 1_000), 3: (1, 0, -1)})
        store.put_progress(prefix, "a", {1: (2, 20, 2_000)})
        store.put_progress(prefix, "b", {0: (1, 5, 500)})
        store.put_progress(prefix, "b", {})
        assert store.get_progress(prefix, "a") == {
            0: Progress(1, 10, 1_000),
            1: Progress(2, 20, 2_000),
            3: Progress(1, 0, -1),
        }
        assert store.get_progress(prefix, "b") == {0: Progress(1, 5, 500)}

    @pytest.mark.parametrize(
        ("then", "kept"),
        [
            ((1, 101, 2_000), (1, 101, 2_000)),
            ((1, 99, 900), (1, 100, 1_000)),  # a worker that lost the partition
            ((1, 99, 2_000), (1, 100, 2_000)),  # each mark is a maximum of its own
            ((1, 100, 1_001), (1, 100, 1_001)),  # idle, but time passed
            ((0, 500, 9_000), (1, 100, 1_000)),  # an earlier log
            ((2, 3, 10), (2, 3, 10)),  # a later log starts again
            ((1, 2**53 - 1, 2**53 - 1), (1, 2**53 - 1, 2**53 - 1)),
        ],
    )
    def test_never_goes_back(
        self,
        store: RowStore,
        prefix: str,
        then: tuple[int, int, int],
        kept: tuple[int, int, int],
    ) -> None:
        store.put_progress(prefix, "g", {0: (1, 100, 1_000)})
        store.put_progress(prefix, "g", {0: then})
        assert store.get_progress(prefix, "g") == {0: Progress(*kept)}

    @pytest.mark.parametrize("numbers", [(-1, 0, 0), (0, -1, 0), (0, 2**53, 0), (0, 0, 2**53)])
    def test_numbers_that_lua_cannot_compare(
        self, store: RowStore, prefix: str, numbers: tuple[int, int, int]
    ) -> None:
        with pytest.raises(StoreError, match=r"put_progress\[4\]"):
            store.put_progress(prefix, "g", {4: numbers})


class TestEpochs:
    def test_numbers_from_one_in_order_of_first_sight(self, store: RowStore, prefix: str) -> None:
        assert store.epoch_of(prefix, "id-a") == 1
        assert store.epoch_of(prefix, "id-b") == 2
        assert store.epoch_of(prefix, "id-a") == 1
        assert store.epoch_of(f"{prefix}-other", "id-b") == 1

    @THREADED
    def test_threads_get_numbers_of_their_own(self, store: RowStore, prefix: str) -> None:
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda n=n: found.append(store.epoch_of(prefix, f"id-{n}")))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == list(range(1, 9))


class TestServer:
    def test_answers(self, store: RowStore) -> None:
        store.ping()
        store.check_policy()
        facts = store.facts()
        assert facts.maxmemory_policy == "noeviction"
        assert not facts.loading
        assert facts.server.split()[0] in {"memory", "valkey", "redis"}

    def test_closes_twice(self, store: RowStore) -> None:
        store.ping()
        store.close()
        store.close()


class TestHistory:
    def test_has_one_name_for_all(self, store: RowStore) -> None:
        assert store.begin_history() == store.begin_history() != ""

    def test_confirms_what_was_written(self, store: RowStore, prefix: str) -> None:
        with pytest.raises(StoreError, match="confirm: needs a history"):
            store.confirm()
        store.begin_history()
        store.put_text(prefix, "x")
        store.confirm()
        store.confirm()
        assert store.get_text(prefix) == "x"

    def test_is_asked_for_where_it_was_fixed(self, store: RowStore, prefix: str) -> None:
        store.check_history()
        store.begin_history()
        store.put_text(prefix, "x")
        store.check_history()
        assert store.get_text(prefix) == "x"
