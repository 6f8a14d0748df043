from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.actions import ACTION, MAX_TIME_MS, encode_batch
from schemas.bulk_actions import SAME, decode_many
from schemas.names import CONTENT_ACTION, CONTENT_BATCH, CONTENT_JSON
from tests.streams.support import T0, plain, some_actions


def bare(action: np.ndarray, sent_ms: int) -> bytes:
    return struct.pack("<q", sent_ms) + action.tobytes()


@pytest.mark.parametrize("count", [1, 2, 500])
def test_the_front_is_what_the_encoder_writes(count: int) -> None:
    front = encode_batch(some_actions(count, 5), T0)[: -96 * count]
    assert front == SAME + struct.pack("<qII", T0, 0, count)


def test_batches_and_bare_actions() -> None:
    parts = [some_actions(count, 5, count) for count in (3, 1, 7)]
    bulk = decode_many([encode_batch(part, T0 + i) for i, part in enumerate(parts)], CONTENT_BATCH)
    assert bulk.at.tolist() == [0, 1, 2]
    assert bulk.sent_ms.tolist() == [T0, T0 + 1, T0 + 2]
    assert (bulk.sizes.tolist(), bulk.starts.tolist()) == ([3, 1, 7], [0, 3, 4])
    assert plain(bulk.actions) == plain(np.concatenate(parts))
    singles = [bare(part[:1], T0 + i) for i, part in enumerate(parts)]
    bulk = decode_many(singles, CONTENT_ACTION)
    assert (bulk.sizes.tolist(), bulk.sent_ms.tolist()) == ([1] * 3, [T0, T0 + 1, T0 + 2])
    assert decode_many([b"{}"], CONTENT_JSON).at.tolist() == []


VALUE = encode_batch(some_actions(4, 5), T0)
FUTURE = some_actions(4, 5)
FUTURE["time_ms"][2] = MAX_TIME_MS
OTHERS = {
    "empty": b"",
    "short": VALUE[:39],
    "no actions": encode_batch(some_actions(0, 5), T0),
    "cut": VALUE[:-1],
    "an action short": VALUE[:-96],
    "an action more": VALUE + bytes(96),
    "another count": VALUE[:36] + struct.pack("<I", 3) + VALUE[40:],
    "another file id": VALUE[:4] + b"ERNK" + VALUE[8:],
    "another vtable": VALUE[:8] + b"\x0a" + VALUE[9:],
    "padding": VALUE[:32] + b"\x01" + VALUE[33:],
    "no time": encode_batch(some_actions(4, 5), 0),
    "a far time": encode_batch(some_actions(4, 5), MAX_TIME_MS),
    "an action to refuse": encode_batch(FUTURE, T0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_taken_leaves_its_neighbours(name: str) -> None:
    bulk = decode_many([VALUE, OTHERS[name], VALUE], CONTENT_BATCH)
    assert bulk.at.tolist() == [0, 2]
    assert bulk.sizes.tolist() == [4, 4]
    assert plain(bulk.actions) == plain(np.frombuffer(VALUE[40:] * 2, ACTION))
    assert decode_many([OTHERS[name]], CONTENT_BATCH).at.tolist() == []


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_nothing_that_comes_raises(values: list[bytes]) -> None:
    for content in (CONTENT_BATCH, CONTENT_ACTION):
        bulk = decode_many(values, content)
        assert bulk.sizes.sum() == len(bulk.actions)
        assert bulk.actions.dtype == ACTION
