"""Re-keyed messages: round trips, golden bytes, `flatc`, older and newer readers, every refusal."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.actions import ACTION, decode_batch, encode_batch
from schemas.errors import ActionError
from schemas.rekeyed import SOURCE, SOURCE_RANGE, RekeyedBatch, decode_rekeyed, encode_rekeyed
from tests.schemas.test_actions import GOLDEN, SCHEMA, sample
from tests.schemas.test_row import FLATC

SENT_MS = 1_650_812_741_500


def batch(n: int = 3) -> RekeyedBatch:
    """n actions of two source partitions, which it covers from 90 to 200 and at 7."""
    sources = np.zeros(n, SOURCE)
    sources["offset"] = np.where(np.arange(n) == 0, 7, 100 + np.arange(n))
    sources["sent_ms"], sources["epoch"] = SENT_MS - np.arange(n), 3
    sources["partition"], sources["index"] = np.arange(n) > 0, 40 + np.arange(n)
    covers = np.zeros(2, SOURCE_RANGE)
    covers["first"], covers["next"] = [90, 7], [200, 8]
    covers["epoch"], covers["partition"] = 3, [1, 0]
    return RekeyedBatch(SENT_MS, sample(n), sources, covers)


def assert_equal(got: RekeyedBatch, want: RekeyedBatch) -> None:
    assert got.sent_ms == want.sent_ms
    for name in ("actions", "sources", "covers"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


@given(st.integers(0, 50))
def test_round_trip(n: int) -> None:
    assert_equal(decode_rekeyed(encode_rekeyed(batch(n))), batch(n))


def test_golden_bytes_are_what_flatc_reads_and_writes(tmp_path: Path) -> None:
    golden = GOLDEN / "rekeyed_batch.bin"
    assert encode_rekeyed(batch()) == golden.read_bytes()
    options = ("--json", "--raw-binary", "--strict-json", "--defaults-json", "-o", str(tmp_path))
    command = [FLATC, *options, str(SCHEMA), "--", str(golden)]
    subprocess.run(command, check=True, capture_output=True)
    tree = json.loads((tmp_path / "rekeyed_batch.json").read_text())
    assert [source["offset"] for source in tree["sources"]] == [7, 101, 102]
    assert tree["covers"][0] == {"first": 90, "next": 200, "epoch": 3, "partition": 1}
    (tmp_path / "again.json").write_text(json.dumps(tree))
    command = [FLATC, "--binary", "-o", str(tmp_path), str(SCHEMA), str(tmp_path / "again.json")]
    subprocess.run(command, check=True, capture_output=True)
    assert_equal(decode_rekeyed((tmp_path / "again.bin").read_bytes()), batch())


def test_readers_of_plain_batches_read_the_extended_form() -> None:
    plain = decode_batch((GOLDEN / "rekeyed_batch.bin").read_bytes())
    assert plain.sent_ms == SENT_MS
    np.testing.assert_array_equal(plain.actions, sample())


def test_equal_batches_have_equal_bytes_whatever_lies_in_the_padding() -> None:
    dirty = batch()
    dirty.sources.view(np.uint8).reshape(-1, SOURCE.itemsize)[:, 28:] = 0xFF
    assert encode_rekeyed(dirty) == encode_rekeyed(batch())


def _changed(part: str, column: str, place: int, value: int) -> bytes:
    made = batch()
    getattr(made, part)[column][place] = value
    return encode_rekeyed(made)


REFUSALS: list[tuple[str, Callable[[], bytes | None], str]] = [
    ("null", lambda: None, "t/0/5: needs a value, got null"),
    (
        "a plain batch",
        lambda: encode_batch(sample(), SENT_MS),
        "t/0/5: needs a re-keyed batch, with sources and the ranges it covers, got a batch without",
    ),
    (
        "no ranges",
        lambda: encode_rekeyed(
            RekeyedBatch(SENT_MS, sample(), batch().sources, batch().covers[:0])
        ),
        "a batch without",
    ),
    (
        "a source too few",
        lambda: encode_rekeyed(
            RekeyedBatch(SENT_MS, sample(), batch().sources[:2], batch().covers)
        ),
        "t/0/5.sources: needs 3, one an action, got 2",
    ),
    (
        "a negative sent_ms",
        lambda: encode_rekeyed(RekeyedBatch(-1, sample(), batch().sources, batch().covers)),
        "t/0/5.sent_ms: needs ms since 1970",
    ),
    ("a bad action", lambda: _changed("actions", "type", 1, 0), "t/0/5.actions[1].type: needs 1"),
    (
        "an empty range",
        lambda: _changed("covers", "next", 0, 90),
        "t/0/5.covers[0]: needs offsets [first, next) of a partition, at least one, got [90, 90)",
    ),
    ("a negative offset", lambda: _changed("covers", "first", 1, -1), "got [-1, 8) of 0"),
    ("a negative partition", lambda: _changed("covers", "partition", 0, -1), "got [90, 200) of -1"),
    (
        "two ranges of one partition",
        lambda: _changed("covers", "partition", 0, 0),
        "t/0/5.covers: needs one range a source partition, got two of one",
    ),
    (
        "a source after its range",
        lambda: _changed("sources", "offset", 1, 200),
        "t/0/5.sources[1].offset: needs an offset of a range that the message covers, got 200",
    ),
    ("a source before it", lambda: _changed("sources", "offset", 1, 89), "got 89"),
    ("a source of another log", lambda: _changed("sources", "epoch", 2, 2), "sources[2].offset"),
    ("a source of no range", lambda: _changed("sources", "partition", 2, 9), "sources[2].offset"),
    ("never sent", lambda: _changed("sources", "sent_ms", 0, 0), "t/0/5.sources[0].sent_ms: needs"),
]


@pytest.mark.parametrize(
    ("made", "message"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
def test_refused(made: Callable[[], bytes | None], message: str) -> None:
    with pytest.raises(ActionError) as caught:
        decode_rekeyed(made(), "t/0/5")
    assert message in str(caught.value)


@given(st.data())
def test_no_bytes_crash_the_decoder(data: st.DataObject) -> None:
    raw = bytearray(encode_rekeyed(batch()))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    try:
        made = decode_rekeyed(bytes(raw[:cut]))
    except ActionError as error:
        assert error.where and error.required and error.got
    else:
        assert len(made.actions) == len(made.sources)
        assert made.actions.dtype == ACTION
