"""MGET as bytes: what is asked, and a reply that arrives in pieces of any size."""

from __future__ import annotations

from typing import Any

import hiredis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from schemas.errors import StoreError
from schemas.stored import RowKeys
from store.reply import RowsReply, pack_mget

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
EDGES = [0, 9, 10, -9, -10, 99, 100, 10**18 - 1, 10**18, -(10**18), (1 << 63) - 1, -(1 << 63)]
IDS = st.lists(st.one_of(INT64, st.integers(-200, 200), st.sampled_from(EDGES)), max_size=20)


@given(st.lists(st.tuples(st.sampled_from(["users", "größe", "100%d"]), IDS), max_size=4))
def test_the_request_is_that_of_the_names(asked: list[tuple[str, list[int]]]) -> None:
    keys = [RowKeys(view, 12, np.array(ids, np.int64)) for view, ids in asked]
    names = [name for each in keys for name in each.names()]
    pack: Any = hiredis.pack_command
    assert pack_mget(keys) == pack(("MGET", *names))


def test_views_that_share_their_ids() -> None:
    ids = np.array(EDGES)
    keys = [RowKeys("a", 1, ids), RowKeys("bb", 2, ids), RowKeys("c", 3, ids[:3])]
    pack: Any = hiredis.pack_command
    assert pack_mget(keys) == pack(("MGET", *(name for each in keys for name in each.names())))


def encoded(values: list[bytes | None], null: bytes = b"$-1\r\n") -> bytes:
    parts = [null if each is None else b"$%d\r\n%b\r\n" % (len(each), each) for each in values]
    return b"*%d\r\n" % len(values) + b"".join(parts)


def arrive(reply: RowsReply, data: bytes, cuts: list[int]) -> None:
    """Hands the bytes over cut at those places, never more at once than there is room for."""
    ends = [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    at = 0
    for end in ends:
        while at < end:
            assert not reply.complete
            room = reply.room()
            count = min(len(room), end - at)
            room[:count] = data[at : at + count]
            reply.add(count)
            at += count


ROW = st.sampled_from([b"row of one size", b"ROW OF ONE SIZE", b"$15\r\n$15\r\n$15\r\n"])
VALUES = st.one_of(
    st.lists(st.one_of(ROW, ROW, ROW, st.none(), st.binary(max_size=12)), min_size=1, max_size=40),
    st.lists(ROW, min_size=1, max_size=60),
    st.lists(st.none(), min_size=1, max_size=60),
)


@given(VALUES, st.lists(st.integers(0, 5_000), max_size=20), st.sampled_from([b"$-1", b"_"]))
def test_a_reply_cut_anywhere(values: list[bytes | None], cuts: list[int], null: bytes) -> None:
    reply = RowsReply(len(values))
    arrive(reply, encoded(values, null + b"\r\n"), cuts)
    assert reply.complete
    assert list(reply.rows()) == values


def test_a_reply_byte_by_byte() -> None:
    values = [b"x" * 700, *([b"y" * 40] * 30), None, b"", None, b"y" * 40]
    data = encoded(values)
    reply = RowsReply(len(values))
    arrive(reply, data, list(range(len(data))))
    assert list(reply.rows()) == values


def test_a_reply_of_views_is_a_few_runs() -> None:
    values: list[bytes | None] = [b"u" * 180, *([b"a" * 148] * 500), *([b"b" * 840] * 500)]
    values[77] = values[900] = None
    reply = RowsReply(len(values))
    arrive(reply, encoded(values), [3, 70_000, 70_001, 200_000])
    assert list(reply.rows()) == values
    sizes = [(run.many, run.size) for run in reply.rows().runs]
    assert sizes == [(1, 180), (76, 148), (1, -1), (423, 148), (399, 840), (1, -1), (100, 840)]


def test_room_grows_with_the_reply() -> None:
    values: list[bytes | None] = [b"z" * 300_000, b"z" * 300_000]
    reply = RowsReply(2, room_bytes=100)
    arrive(reply, encoded(values), [])
    assert list(reply.rows()) == values


def test_a_refusal_is_raised_once_it_is_whole() -> None:
    reply = RowsReply(3)
    arrive(reply, b"-OOM command not allowed\r\n", [1, 8, 9])
    assert reply.complete
    with pytest.raises(ResponseError, match="not allowed"):
        reply.rows()


@pytest.mark.parametrize(
    ("data", "required"),
    [
        (b"*2\r\n$1\r\nx\r\n", "a list of 3 values"),
        (b"$-1\r\n", "a list of 3 values"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a list of 3 values"),
        (b"H" * 60, "a header"),
        (b"*3\r\n:1\r\n", "a value"),
        (b"*3\r\n$-7\r\n", "a value"),
        (b"*3\r\n$" + b"9" * 40, "a header"),
        (b"*3\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n", "nothing behind the reply"),
    ],
)
def test_what_is_no_reply(data: bytes, required: str) -> None:
    with pytest.raises(StoreError, match=rf"store\.read_rows: needs {required}"):
        arrive(RowsReply(3), data, [])
