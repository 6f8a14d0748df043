"""What is said to the server: packing, cutting into round trips, reading replies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from schemas.errors import StoreError, StoreTimeout
from schemas.row import FENCE_SLICE
from store import wire
from store.base import Progress, Write
from store.wire import History, StoreConfig


def test_pack() -> None:
    packed = wire.pack([("GET", "ключ"), ("SET", b"\x00\r\n", 12)])
    assert packed == (
        b"*2\r\n$3\r\nGET\r\n$8\r\n\xd0\xba\xd0\xbb\xd1\x8e\xd1\x87\r\n"
        b"*3\r\n$3\r\nSET\r\n$3\r\n\x00\r\n\r\n$2\r\n12\r\n"
    )


def test_the_script_reads_the_fence_where_the_row_codec_puts_it() -> None:
    bounds = f"{FENCE_SLICE.start}, {FENCE_SLICE.stop - 1})"
    assert f"redis.pcall('GETRANGE', key, {bounds}" in wire.COMPARE_AND_SET


def test_no_script_orders_strings() -> None:
    """Lua's < on strings follows the locale; the one script that orders converts first."""
    for script in wire.SHAS:
        for line in script.splitlines():
            if "<" in line or ">" in line:
                assert line.count("tonumber") == 2, line


@given(st.lists(st.tuples(st.integers(28, 400_000), st.sampled_from([0, 5])), max_size=1_200))
def test_calls_and_round_trips_are_bounded_and_lose_nothing(rows: list[tuple[int, int]]) -> None:
    block = bytes(400_000)
    view = {size: block[:size] for size, _ in rows}
    writes = [Write(str(n), None, view[size], ms) for n, (size, ms) in enumerate(rows)]
    calls = wire.write_calls(writes)
    assert [write for call in calls for write in call] == writes
    for call in calls:
        assert 0 < len(call) <= wire.CALL_WRITES
        assert sum(len(write.value) for write in call[:-1]) <= wire.CALL_BYTES
        assert len({write.expire_ms for write in call}) == 1
    trips = wire.pipelines(calls)
    assert [call for trip in trips for call in trip] == calls
    for trip in trips:
        assert trip
        assert sum(len(w.value) for call in trip[:-1] for w in call) <= wire.PIPELINE_BYTES


def test_buffers_are_the_bytes_of_all_commands() -> None:
    commands = [("SET", str(n), bytes(n * 977 % 70_000)) for n in range(40)]
    pieces = list(wire.buffers(commands))
    assert b"".join(pieces) == wire.pack(commands)
    assert all(len(piece) < wire.CALL_BYTES + 80_000 for piece in pieces)
    assert len(pieces) < len(commands)


def test_missing_scripts() -> None:
    assert wire.missing_scripts([1, NoScriptError("x"), 0, ResponseError("y")]) == [1]


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379"),
        ("redis://user:p%40ss@host:1/2", "redis://host:1"),
        ("unix:///run/valkey.sock?db=1", "unix:///run/valkey.sock"),
        ("rediss://host", "rediss://host"),
    ],
)
def test_place(url: str, place: str) -> None:
    assert StoreConfig(url).place == place


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (RedisTimeoutError("Timeout reading"), StoreTimeout, "within 20 ms"),
        (TimeoutError(), StoreTimeout, "got none"),
        (RedisConnectionError("refused"), StoreError, "needs a connection, got refused"),
        (OSError(111, "refused"), StoreError, "needs a connection"),
        (ResponseError("ERR odd"), StoreError, "needs an answer, got ERR odd"),
        (StoreError("a", required="b", got="c"), StoreError, "a: needs b, got c"),
    ],
)
def test_errors(error: Exception, kind: type[StoreError], says: str) -> None:
    found = wire.as_store_error(error, "redis://h read", 20)
    assert type(found) is kind
    assert says in str(found)


def test_progress_replies() -> None:
    assert wire.parse_progress([], "k") == {}
    assert wire.parse_progress([b"2", b"1,5,-3"], "k") == {2: Progress(1, 5, -3)}
    for field, value in [(b"x", b"1,2,3"), (b"1", b"1,2"), (b"1", b""), (b"1", b"1,2,3,4")]:
        with pytest.raises(StoreError, match='needs "epoch,next_offset,watermark_ms"'):
            wire.parse_progress([field, value], "k")


def test_facts_of_redis_and_of_an_empty_reply() -> None:
    said = b"# Server\r\nredis_version:7.4.0\r\nmaxmemory_policy:volatile-lru\r\n"
    said += b"aof_enabled:1\r\nloading:0\r\nused_memory:12\r\nconnected_slaves:2\r\n"
    said += b"db0:keys=3,expires=0,avg_ttl=0\r\ndb1:keys=4,expires=0\r\n"
    facts = wire.parse_facts(said)
    assert (facts.server, facts.maxmemory_policy) == ("redis 7.4.0", "volatile-lru")
    assert (facts.appendonly, facts.replicas, facts.loading) == (True, 2, False)
    assert (facts.used_memory_bytes, facts.keys) == (12, 7)
    assert wire.parse_facts(b"").maxmemory_policy == "unknown"


def test_a_reply_of_another_kind_is_refused() -> None:
    """As a proxy may give that is no Redis."""
    with pytest.raises(StoreError, match=r"store\.read: needs a list of values, got int"):
        wire.values(7)
    with pytest.raises(StoreError, match="epoch: needs a number, got b'x'"):
        wire.integer(b"x", "epoch")


def test_a_server_that_names_no_life_has_no_history() -> None:
    with pytest.raises(StoreError, match="master_replid in INFO replication, got role"):
        wire.parse_history([b"marker", b"role:master"], "store")


def test_a_disk_that_does_not_confirm_in_time() -> None:
    config = StoreConfig("redis://127.0.0.1:1/0")
    with pytest.raises(
        StoreTimeout, match=r"the store's disk to confirm within \d+ ms, got 0 and 0"
    ):
        wire.check_confirmed([0, [0, 0]], config, History("marker", "life"))
