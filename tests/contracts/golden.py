"""The golden files of `contracts/golden`: bytes, and what they say as JSON.

They are made from views that no plan changes, so they change only with a format. `python -m
tests.contracts.golden` writes them again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.actions import (
    ACTION,
    KNOWN_AUTHOR,
    KNOWN_MUSIC,
    KNOWN_POSITION,
    KNOWN_REQUEST,
    KNOWN_TAGS_SHIFT,
    ActionType,
    encode_batch,
    split_request_id,
)
from schemas.layout import RowLayout, layout_of
from schemas.plan import FieldPlan, ViewPlan
from schemas.ranklog import RankRecord, encode_record
from schemas.row import encode_rows
from schemas.rows import Rows, empty_rows
from tests.schemas.test_ranklog import example as rank_record_example

CONTRACTS = Path(__file__).parents[2] / "contracts"
GOLDEN = CONTRACTS / "golden"
SENT_MS = 1_650_812_741_500
TIME_MS = 1_650_812_741_436

#: State of a user: a ring of counts, one of sums, their newest tile, a sequence with times.
USER_VIEW = ViewPlan(
    "user_row",
    "user",
    "streamed",
    1,
    (
        FieldPlan(0, "head_1h", "i64"),
        FieldPlan(1, "count_click_1h", "u16", capacity=4),
        FieldPlan(2, "sum_play_value_1h", "i64", capacity=4),
        FieldPlan(3, "last_play_item", "i64", capacity=5),
        FieldPlan(4, "last_play_item_at_ms", "i64", capacity=5),
        FieldPlan(5, "last_like_author", "i64", capacity=3, group=1),
        FieldPlan(6, "followers", "u64", group=1),
    ),
    (),
    "actions",
)
#: Attributes of an item: every width, a null, a vector; nine fields, so two presence bytes.
BATCH_VIEW = ViewPlan(
    "batch_row",
    "item",
    "batch",
    1,
    (
        FieldPlan(0, "author_id", "i64"),
        FieldPlan(1, "music_type", "f64"),
        FieldPlan(2, "duration_s", "f32"),
        FieldPlan(3, "video_type", "i32"),
        FieldPlan(4, "width", "u16"),
        FieldPlan(5, "is_original", "bool"),
        FieldPlan(6, "rating", "i8"),
        FieldPlan(7, "tags", "i64", capacity=3),
        FieldPlan(8, "views", "u32"),
    ),
    (),
    "sources/videos.parquet",
)


def user_rows() -> Rows:
    """One row: a sequence that is not full, an empty one, a number beyond the doubles."""
    rows = empty_rows(layout_of(USER_VIEW), np.array([712], np.int64))
    rows.epoch[:], rows.offset[:], rows.newest_ms[:] = 3, 77, TIME_MS
    _set(rows, "head_1h", TIME_MS // 3_600_000)
    _set(rows, "count_click_1h", [0, 65_535, 2, 0])
    _set(rows, "sum_play_value_1h", [0, -1, 61_802, 1 << 62])
    _set(rows, "last_play_item", [5_239, -9_007_199_254_740_993])
    _set(rows, "last_play_item_at_ms", [TIME_MS, TIME_MS - 4])
    _set(rows, "last_like_author", [])
    _set(rows, "followers", (1 << 64) - 1)
    return rows


def batch_rows() -> Rows:
    """One row; `music_type` is null and `video_type` is a zero that is not."""
    rows = empty_rows(layout_of(BATCH_VIEW), np.array([-5], np.int64))
    rows.offset[:] = rows.newest_ms[:] = TIME_MS
    _set(rows, "author_id", -6_150_817_466_143_929_619)
    _set(rows, "duration_s", np.float32(0.1))
    _set(rows, "video_type", 0)
    _set(rows, "width", 65_535)
    _set(rows, "is_original", True)
    _set(rows, "rating", -128)
    _set(rows, "tags", [39, 0, 1 << 53])
    _set(rows, "views", (1 << 32) - 1)
    return rows


def _set(rows: Rows, name: str, value: Any) -> None:
    rows.present[name][0] = True
    if isinstance(value, list):
        rows.values[name][0, : len(value)] = value
        rows.lengths[name][0] = len(value)
    else:
        rows.values[name][0] = value


def actions() -> NDArray[np.void]:
    """The batch that both examples write: an impression, a play, and a click that knows little."""
    made = np.zeros(3, ACTION)
    made["user"] = 712
    made["time_ms"] = TIME_MS + np.array([0, 4, 14])
    made["type"] = [ActionType.IMPRESSION, ActionType.PLAY, ActionType.CLICK]
    shown = made[:2]
    high, low = split_request_id("1c1f6a10-3c3b-4f8e-9b43-6f7c0a2b9d11")
    shown["item"], shown["author"], shown["scene"] = 5_239, 7_349_781, 1
    shown["request_hi"], shown["request_lo"] = high, low
    made["value"][1], made["music"][1] = 61_802, -9_007_199_254_740_993
    made["tags"][0], made["tags"][1] = [39, 0, 0], [39, -1, (1 << 63) - 1]
    both = KNOWN_AUTHOR | KNOWN_REQUEST | KNOWN_POSITION
    made["known"][0] = both | 1 << KNOWN_TAGS_SHIFT
    made["known"][1] = both | KNOWN_MUSIC | 3 << KNOWN_TAGS_SHIFT
    return made


# --- as JSON: what a reader with nothing but the schema gets --------------------------------------


def row_json(layout: RowLayout, rows: Rows, index: int = 0) -> dict[str, Any]:
    """One row and its trailer; None where a field is null."""
    row: dict[str, Any] = {"entity_id": int(rows.entity_ids[index])}
    for plan in layout.fields:
        value = rows.values[plan.name][index]
        if not rows.present[plan.name][index]:
            row[plan.name] = None
        elif plan.capacity:
            row[plan.name] = value[: int(rows.lengths[plan.name][index])].tolist()
        else:
            row[plan.name] = value.item()
    return {
        "row": row,
        "trailer": {
            "layout": layout.layout_id,
            "epoch": int(rows.epoch[index]),
            "offset": int(rows.offset[index]),
            "newest_ms": int(rows.newest_ms[index]),
        },
    }


def actions_json() -> dict[str, Any]:
    """The batch by the members of action.fbs."""
    members: list[dict[str, Any]] = []
    for action in actions():
        member = {name: action[name].tolist() for name in ACTION.names or ()}
        for place, tag in enumerate(member.pop("tags")):
            member[f"tag_{place}"] = tag
        members.append(member)
    return {"sent_ms": SENT_MS, "actions": members}


def record_json(record: RankRecord) -> dict[str, Any]:
    """The record by the fields of rank_record.fbs; matrices row after row."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, str):
            value = value.encode()
        if isinstance(value, bytes):
            value = list(value)
        elif isinstance(value, np.ndarray) and value.dtype.names:
            value = [
                {"epoch": int(each["epoch"]), "offset": int(each["offset"])}
                for each in value.reshape(-1)
            ]
        elif isinstance(value, np.ndarray):
            value = [_plain(each) for each in value.reshape(-1).tolist()]
        found[field.name] = value
    found["item_views"] = record.item_status.shape[1]
    found["tasks"] = record.task_scores.shape[1]
    return found


def _plain(value: float) -> float | str:
    """NaN and infinities have no JSON form: they are strings, spelled as JavaScript does."""
    if isinstance(value, int) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def golden_files() -> dict[str, bytes]:
    """File name -> content."""
    files: dict[str, bytes] = {}
    for name, view, rows in (
        ("user_row", USER_VIEW, user_rows()),
        ("batch_row", BATCH_VIEW, batch_rows()),
    ):
        layout = layout_of(view)
        files[f"{name}.fbs"] = layout.fbs.encode()
        files[f"{name}.bin"] = encode_rows(layout, rows)[0]
        files[f"{name}.json"] = _text(row_json(layout, rows))
    files["action_batch.bin"] = encode_batch(actions(), SENT_MS)
    files["action_batch.json"] = _text(actions_json())
    files["rank_record.bin"] = encode_record(rank_record_example())
    files["rank_record.json"] = _text(record_json(rank_record_example()))
    return files


def _text(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=2, allow_nan=False) + "\n").encode()


if __name__ == "__main__":
    for name, content in golden_files().items():
        (GOLDEN / name).write_bytes(content)
