"""Action messages: round trips, golden bytes, `flatc`, JSON, and every kind of damage."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.actions import (
    ACTION,
    ActionType,
    decode_action,
    decode_batch,
    decode_json,
    decode_message,
    encode_batch,
    split_request_id,
)
from schemas.errors import ActionError
from schemas.ids import string_id
from schemas.names import CONTENT_ACTION, CONTENT_JSON, HEADER_CONTENT
from tests.schemas.test_row import FLATC

GOLDEN = Path(__file__).parents[1] / "golden"
SCHEMA = Path(__file__).parents[2] / "schemas" / "fbs" / "action.fbs"


def sample(n: int = 3) -> NDArray[np.void]:
    """n valid actions with a different number in each column."""
    actions = np.zeros(n, ACTION)
    for column, name in enumerate(("user", "item", "request_hi", "request_lo", "author", "music")):
        actions[name] = 100 * column + np.arange(n)
    actions["time_ms"] = 1_650_812_741_436 + np.arange(n)
    actions["value"] = 61_802
    actions["tags"] = [39, -1, 0]
    actions["scene"], actions["position"] = 14, 2
    actions["type"] = 1 + np.arange(n) % 12
    actions["known"] = 15 + (2 << 4)
    return actions


@given(st.integers(1, 50), st.integers(1, (1 << 48) - 1))
def test_round_trip(n: int, sent_ms: int) -> None:
    batch = decode_batch(encode_batch(sample(n), sent_ms))
    assert batch.sent_ms == sent_ms
    np.testing.assert_array_equal(batch.actions, sample(n))


def test_golden_bytes_are_what_flatc_writes(tmp_path: Path) -> None:
    """The committed message decodes to the committed values, by us and by `flatc`."""
    raw = (GOLDEN / "action_batch.bin").read_bytes()
    assert encode_batch(sample(), 1_650_812_741_500) == raw
    options = ("--json", "--raw-binary", "--strict-json", "--defaults-json", "-o", str(tmp_path))
    message = GOLDEN / "action_batch.bin"
    subprocess.run(
        [FLATC, *options, str(SCHEMA), "--", str(message)], check=True, capture_output=True
    )
    tree = json.loads((tmp_path / "action_batch.json").read_text())
    assert tree["sent_ms"] == 1_650_812_741_500
    assert [action["music"] for action in tree["actions"]] == [500, 501, 502]
    assert tree["actions"][0]["known"] == 47
    (tmp_path / "again.json").write_text(json.dumps(tree))
    command = [FLATC, "--binary", "-o", str(tmp_path), str(SCHEMA), str(tmp_path / "again.json")]
    subprocess.run(command, check=True, capture_output=True)
    batch = decode_batch((tmp_path / "again.bin").read_bytes())
    np.testing.assert_array_equal(batch.actions, sample())


def test_one_bare_action() -> None:
    raw = struct.pack("<q", 1_650_812_741_500) + sample(1).tobytes()
    batch = decode_message(raw, {HEADER_CONTENT: CONTENT_ACTION})
    np.testing.assert_array_equal(batch.actions, sample(1))
    with pytest.raises(ActionError, match="104 bytes for one action, got 103 bytes"):
        decode_action(raw[:-1])


# --- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "a FlatBuffer of 8 bytes or more, got 0 bytes"),
        (b"\0" * 7, "got 7 bytes"),
        (b"\0" * 64, "file identifier 'EACT'"),
        (b"\xff\xff\xff\xffEACT", "a root table inside the buffer"),
        (b"\x08\0\0\0EACT\xff\xff\xff\x7f" + b"\0" * 20, "a vtable inside the buffer"),
    ],
)
def test_damage_is_named(raw: bytes, message: str) -> None:
    with pytest.raises(ActionError, match=message):
        decode_batch(raw, "actions/0/17")


@given(st.data())
def test_no_bytes_crash_the_decoder(data: st.DataObject) -> None:
    raw = bytearray(encode_batch(sample(), 1_650_812_741_500))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    try:
        batch = decode_batch(bytes(raw[:cut]))
    except ActionError as error:
        assert error.where and error.required and error.got
    else:
        assert batch.actions["type"].max() <= 12


def test_every_truncation_is_refused() -> None:
    raw = encode_batch(sample(), 1_650_812_741_500)
    for cut in range(len(raw)):
        with pytest.raises(ActionError):
            decode_batch(raw[:cut])


def test_a_giant_length_is_refused() -> None:
    raw = bytearray(encode_batch(sample(), 1_650_812_741_500))
    at = raw.rindex(struct.pack("<I", 3), 0, len(raw) - 3 * 96)
    for count in (100_001, 0xFFFF_FFFF, 4):
        raw[at : at + 4] = struct.pack("<I", count)
        with pytest.raises(ActionError, match="a vector inside the buffer"):
            decode_batch(bytes(raw))


@pytest.mark.parametrize(
    ("column", "value", "required"),
    [
        ("type", 0, "1 to 12"),
        ("type", 13, "1 to 12"),
        ("time_ms", 0, r"\(0, "),
        ("time_ms", -5, r"\(0, "),
        ("time_ms", 1 << 48, r"\(0, "),
        ("value", -1, r"\[0, "),
        ("value", 1 << 40, r"\[0, "),
        ("known", 4 << 4, "at most 3 tags"),
        ("position", -1, "0 or more"),
    ],
)
def test_values_that_must_not_be_folded(column: str, value: int, required: str) -> None:
    actions = sample()
    actions[column][1] = value
    with pytest.raises(ActionError, match=rf"t/0/5\.actions\[1\]\.{column}: needs .*{required}"):
        decode_batch(encode_batch(actions, 1_650_812_741_500), "t/0/5")


def test_messages_without_actions_value_or_time_are_refused() -> None:
    with pytest.raises(ActionError, match="at least one action"):
        decode_batch(encode_batch(sample(0), 1_650_812_741_500))
    with pytest.raises(ActionError, match="sent_ms"):
        decode_batch(encode_batch(sample(), 0))
    with pytest.raises(ActionError, match="needs a value, got null"):
        decode_message(None, {})
    with pytest.raises(ActionError, match="one of action-batch, action, action-json"):
        decode_message(b"x", {HEADER_CONTENT: b"avro"})


# --- JSON -----------------------------------------------------------------------------------


def _json(**changes: object) -> bytes:
    action: dict[str, object] = {
        "user": 7,
        "item": "video-9",
        "type": "long_view",
        "time_ms": 1_650_812_741_436,
        "value": 5,
        "request_id": "00000000-0000-0001-0000-000000000002",
        "author": 3,
        "tags": ["pop", 4],
        "scene": 1,
        "position": 0,
    } | changes
    return json.dumps({"sent_ms": 1_650_812_741_500, "actions": [action]}).encode()


def test_json_becomes_the_same_struct() -> None:
    batch = decode_message(_json(), {HEADER_CONTENT: CONTENT_JSON})
    action = batch.actions[0]
    assert (action["user"], action["item"]) == (7, string_id("video-9"))
    assert action["type"] == ActionType.LONG_VIEW
    assert (action["request_hi"], action["request_lo"]) == (1, 2)
    assert action["tags"].tolist() == [string_id("pop"), 4, 0]
    assert action["known"] == 1 + 4 + 8 + (2 << 4)
    np.testing.assert_array_equal(
        decode_batch(encode_batch(batch.actions, batch.sent_ms)).actions, batch.actions
    )


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"", "t"),
        (b"[]", "t"),
        (b"{}", "t.sent_ms"),
        (b'{"sent_ms": NaN, "actions": []}', "t"),
        (_json(user=1.5), "t.actions.0.user"),
        (_json(user=1 << 63), "t.actions.0.user"),
        (_json(user=None), "t.actions.0.user"),
        (_json(user=True), "t.actions.0.user"),
        (_json(time_ms="now"), "t.actions.0.time_ms"),
        (_json(value=float("nan")), "t.actions.0.value"),
        (_json(type="clik"), "t.actions[0].type"),
        (_json(request_id="7"), "t.actions[0].request_id"),
        (_json(tags=[1, 2, 3, 4]), "t.actions.0.tags"),
        (_json(position=-1), "t.actions.0.position"),
        (_json(colour="red"), "t.actions.0.colour"),
    ],
)
def test_json_refusals_name_the_place(raw: bytes, where: str) -> None:
    with pytest.raises(ActionError) as caught:
        decode_json(raw, "t")
    assert caught.value.where.startswith(where)


@given(st.uuids())
def test_request_ids_are_split_big_endian(request_id: UUID) -> None:
    high, low = split_request_id(str(request_id))
    assert high.to_bytes(8, "big") + low.to_bytes(8, "big") == request_id.bytes
