from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.actions import ACTION, encode_batch
from schemas.ids import partitions_of
from schemas.names import HEADER_CODE, HEADER_CONTENT, HEADER_REASON, HEADER_SOURCE
from streams.messages import decode_records, join_runs
from tests.streams.support import (
    PARTITIONS,
    T0,
    batch_record,
    plain,
    record,
    some_actions,
    user_of,
)


def own_actions(count: int, partition: int = 0, seed: int = 0) -> Any:
    """Actions of users of one partition."""
    actions = some_actions(count * 20, 40, seed)
    owner = partitions_of(actions["user"], PARTITIONS)
    return actions[owner == partition][:count]


GOOD = own_actions(3)
VALUE = encode_batch(GOOD, T0)
KEY = b"%d" % int(GOOD["user"][0])


def json_value(**changes: Any) -> bytes:
    action = {"user": int(GOOD["user"][0]), "item": 5, "type": "click", "time_ms": T0} | changes
    return json.dumps({"sent_ms": T0, "actions": [action]}).encode()


JSON = [(HEADER_CONTENT, b"action-json")]
FAR = GOOD.copy()
FAR["time_ms"] = 2**60

#: name → (record, what the reason must name)
MALFORMED = {
    "null value": (record(None, key=KEY), "null"),
    "empty": (record(b"", key=KEY), "0 bytes"),
    "one byte": (record(b"\x00", key=KEY), "byte"),
    "truncated": (record(VALUE[:-40], key=KEY), "t/0/0"),
    "wrong file id": (record(VALUE[:4] + b"ERNK" + VALUE[8:], key=KEY), "EACT"),
    "giant length": (
        record(VALUE.replace(len(GOOD).to_bytes(4, "little"), b"\xff\xff\xff\x7f", 1), key=KEY),
        "t/0/0",
    ),
    "far future": (record(encode_batch(FAR, T0), key=KEY), "time_ms"),
    "no actions": (record(encode_batch(GOOD[:0], T0), key=KEY), "at least one action"),
    "null key": (record(VALUE, key=None), "key: needs the decimal id"),
    "other key": (record(VALUE, key=b"user-17"), "key: needs the decimal id"),
    "unknown content": (record(VALUE, key=KEY, headers=[(HEADER_CONTENT, b"avro")]), "avro"),
    "no JSON": (record(b"{", key=KEY, headers=JSON), "JSON"),
    "NaN": (record(json_value(value=float("nan")), key=KEY, headers=JSON), "t/0/0"),
    "wrong partition": (
        record(encode_batch(own_actions(1, 1), T0), key=b"%d" % own_actions(1, 1)["user"][0]),
        "a user of partition 0",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_record_is_a_dead_letter_and_its_neighbours_stay(name: str) -> None:
    bad, reason = MALFORMED[name]
    bad = record(bad.value, 1, key=bad.key, headers=bad.headers, topic="t")
    neighbours = batch_record(own_actions(4), T0, 0), batch_record(own_actions(5, seed=2), T0, 2)
    run, dead = decode_records([neighbours[0], bad, neighbours[1]], PARTITIONS)
    assert run.offset.tolist() == [0] * 4 + [2] * 5
    assert run.index.tolist() == [*range(4), *range(5)]
    (letter,) = dead
    assert letter.record is bad
    headers = letter.headers()
    assert reason.replace("t/0/0", "t/0/1") in headers[HEADER_REASON].decode()
    assert headers[HEADER_CODE] == b"action"
    assert headers[HEADER_SOURCE] == b"t/0/1"


def test_a_record_with_one_foreign_user_is_refused_as_a_whole() -> None:
    actions = np.concatenate([own_actions(2), own_actions(1, 1)])
    run, dead = decode_records([batch_record(actions, T0, 0)], PARTITIONS)
    assert len(run) == 0
    assert f"actions[2].user: needs a user of partition 0, got {actions['user'][2]}" in str(
        dead[0].error
    )


def test_dead_letters_keep_the_headers_of_the_message() -> None:
    bad = record(b"", 3, key=KEY, headers=[("trace", b"abc"), ("empty", None)])  # type: ignore[list-item]
    (letter,) = decode_records([bad], PARTITIONS)[1]
    assert letter.headers()["trace"] == b"abc"
    assert letter.headers()["empty"] == b""


def test_other_headers_do_not_matter() -> None:
    run, dead = decode_records([record(VALUE, key=KEY, headers=[("x", b"y")])], PARTITIONS)
    assert (len(run), dead) == (3, [])


@given(st.integers(0, len(VALUE) - 1), st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_changes_values_only(place: int, bit: int) -> None:
    """Kafka's checksum guards the wire; what reaches us never raises and never grows."""
    flipped = bytearray(VALUE)
    flipped[place] ^= 1 << bit
    run, dead = decode_records([record(bytes(flipped), key=KEY)], PARTITIONS)
    assert (len(run), len(dead)) in ((0, 1), *((n, 0) for n in range(1, len(GOOD) + 1)))
    assert (partitions_of(run.actions["user"], PARTITIONS) == 0).all()


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    run, dead = decode_records([record(data, key=KEY)], PARTITIONS)
    assert bool(len(run)) != bool(dead)


def test_runs_join_in_order() -> None:
    runs = [
        decode_records([batch_record(own_actions(2, p), T0 + p, 7, p)], PARTITIONS)[0]
        for p in range(PARTITIONS)
    ]
    run = join_runs(runs)
    assert run.partition.tolist() == [0, 0, 1, 1]
    assert run.sent_ms.tolist() == [T0, T0, T0 + 1, T0 + 1]
    assert run.actions.dtype == ACTION
    assert len(run.at(run.partition == 1)) == 2


def test_string_ids_are_hashed_at_the_edge_and_keyed_by_the_number() -> None:
    user = user_of(0)
    assert len(
        decode_records([record(json_value(user=user), key=b"%d" % user, headers=JSON)], 2)[0]
    )


FORMS = st.sampled_from(["batch", "one", "bare", "json", *MALFORMED])


@given(st.lists(FORMS, min_size=1, max_size=12))
def test_a_list_decodes_as_its_records_one_by_one(forms: list[str]) -> None:
    """Whatever forms come in one list, in whatever order."""
    records = [made(form, offset) for offset, form in enumerate(forms)]
    run, dead = decode_records(records, PARTITIONS)
    each = [decode_records([record], PARTITIONS) for record in records]
    alone = join_runs([one for one, _ in each])
    for name in ("offset", "index", "partition", "sent_ms"):
        assert getattr(run, name).tolist() == getattr(alone, name).tolist(), name
    assert plain(run.actions) == plain(alone.actions)
    assert [letter.headers() for letter in dead] == [
        letter.headers() for _, letters in each for letter in letters
    ]


def made(form: str, offset: int) -> Any:
    """A record of that form."""
    actions = own_actions(1 + offset % 3, seed=offset)
    key = b"%d" % int(actions["user"][0])
    if form == "batch":
        return batch_record(actions, T0 + offset, offset)
    if form == "one":
        return batch_record(actions[:1], T0 + offset, offset)
    if form == "bare":
        value = (T0 + offset).to_bytes(8, "little") + actions[:1].tobytes()
        return record(value, offset, key=key, headers=[(HEADER_CONTENT, b"action")])
    if form == "json":
        return record(json_value(value=offset), offset, key=KEY, headers=JSON)
    bad = MALFORMED[form][0]
    return record(bad.value, offset, key=bad.key, headers=bad.headers)
