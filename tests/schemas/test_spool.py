"""Spool framing: whole frames come back, torn and damaged ones never do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import RecordError
from schemas.spool import HEADER, MAX_PAYLOAD_BYTES, frame, read_frames, segment_name

PAYLOADS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


@given(PAYLOADS)
def test_round_trip(payloads: list[bytes]) -> None:
    buffer = b"".join(map(frame, payloads))
    assert read_frames(buffer) == (payloads, len(buffer))


@given(PAYLOADS.filter(bool), st.data())
def test_a_torn_tail_is_left_alone(payloads: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(map(frame, payloads[:-1]))
    last = frame(payloads[-1])
    cut = data.draw(st.integers(0, len(last) - 1))
    assert read_frames(whole + last[:cut]) == (payloads[:-1], len(whole))


def test_damage_is_reported_after_what_precedes_it() -> None:
    good, bad = frame(b"good"), bytearray(frame(b"bad"))
    bad[-1] ^= 1
    payloads, consumed = read_frames(good + bytes(bad) + frame(b"later"))
    assert (payloads, consumed) == ([b"good"], len(good))
    with pytest.raises(RecordError, match="segment 3"):
        read_frames((good + bytes(bad))[consumed:], "segment 3")


@pytest.mark.parametrize(
    "tail", [bytes(64), HEADER.pack(MAX_PAYLOAD_BYTES + 1, 0), b"\xff" * 8], ids=str
)
def test_zeros_and_giant_lengths_are_damage(tail: bytes) -> None:
    with pytest.raises(RecordError):
        read_frames(tail)


@pytest.mark.parametrize("payload", [b""])
def test_an_empty_payload_is_refused(payload: bytes) -> None:
    with pytest.raises(RecordError):
        frame(payload)


def test_segment_names_sort() -> None:
    names = [segment_name(n) for n in (0, 9, 10, 2**40)]
    assert names == sorted(names)
