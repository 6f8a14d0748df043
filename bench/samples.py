"""Real inputs: rows, sequences and requests drawn from the KuaiRand log in `examples/kuairand`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.errors import LocalError
from schemas.plan import Plan, load_plan

ROOT: Final = Path(__file__).resolve().parent.parent
KUAIRAND: Final = ROOT / "examples" / "kuairand"
LOCK: Final = ROOT / "feature_repo" / "plan.lock.json"
SEQUENCE: Final = 50

INTS: Final = (
    "follow_user_num", "fans_user_num", "friend_user_num", "register_days",
    "is_live_streamer", "is_video_author", "onehot_feat1", "onehot_feat2", "onehot_feat3",
    "onehot_feat7", "onehot_feat8", "onehot_feat9", "onehot_feat10", "onehot_feat11",
)  # fmt: skip
FLOATS: Final = (
    "onehot_feat4", "onehot_feat12", "onehot_feat13", "onehot_feat14", "onehot_feat15",
    "onehot_feat16",
)  # fmt: skip

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """n users' attributes and sequences.

    ids: (n,) i64. scalars: 20 columns (n,), int32 and float32. null: column -> (n,) bool.
    full: two columns (n, 50) i64, windows of 50 consecutive impressions of the log (video, author).
    own: the same two from each user's own newest impressions, with `own_lengths` (n,).
    """

    ids: NDArray[np.int64]
    scalars: dict[str, Array]
    null: dict[str, NDArray[np.bool_]]
    full: dict[str, NDArray[np.int64]]
    own: dict[str, NDArray[np.int64]]
    own_lengths: NDArray[np.int32]


def demo_plan() -> Plan:
    """The plan of the demo's feature repo. Raises LocalError, PlanError."""
    if not LOCK.exists():
        raise LocalError("bench.plan", required=str(LOCK), got="no such file", do="encore apply")
    return load_plan(LOCK.read_bytes())


def read_table(name: str, columns: list[str] | None = None) -> dict[str, Array]:
    """Columns of one KuaiRand table; nulls of a float column as NaN. Raises LocalError."""
    path = KUAIRAND / f"{name}.parquet"
    if not path.exists():
        raise LocalError("bench.data", required=str(path), got="no such file")
    read = pq.read_table(path, columns=columns)
    return {field: read[field].to_numpy() for field in read.column_names}


def sample_users(n: int, seed: int = 0) -> Sample:
    """n users who appear in the log, drawn without replacement."""
    draw = np.random.default_rng(seed)
    log = read_table("interactions", ["user_id", "video_id"])
    authors = read_table("videos", ["video_id", "author_id"])
    author_of = np.zeros(authors["video_id"].max() + 1, np.int64)
    author_of[authors["video_id"]] = authors["author_id"]
    active = np.unique(log["user_id"])
    ids = draw.choice(active, n, replace=False)  # (n,)
    users = read_table("users")
    row_of = np.zeros(users["user_id"].max() + 1, np.int64)
    row_of[users["user_id"]] = np.arange(len(users["user_id"]))
    picked = {name: users[name][row_of[ids]] for name in (*INTS, *FLOATS)}
    null = {name: np.isnan(column.astype(np.float64)) for name, column in picked.items()}
    scalars = {
        name: np.where(null[name], 0, column).astype(np.int32 if name in INTS else np.float32)
        for name, column in picked.items()
    }
    starts = draw.integers(SEQUENCE, len(log["video_id"]), n)  # (n,)
    windows = starts[:, None] - np.arange(1, SEQUENCE + 1)  # (n, 50), newest first
    own, lengths = _own_sequences(log, ids)
    return Sample(
        ids.astype(np.int64),
        scalars,
        null,
        _both(log["video_id"][windows], author_of),
        _both(own, author_of, np.arange(SEQUENCE) < lengths[:, None]),
        lengths,
    )


def _both(
    videos: Array, author_of: NDArray[np.int64], inside: Array | None = None
) -> dict[str, NDArray[np.int64]]:
    found = {"last_videos": videos, "last_authors": author_of[videos]}
    if inside is None:
        return {name: column.astype(np.int64) for name, column in found.items()}
    return {name: np.where(inside, column, 0) for name, column in found.items()}


def _own_sequences(
    log: dict[str, Array], ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Each user's newest videos, newest first. Returns (n, 50) and lengths (n,)."""
    videos = np.zeros((len(ids), SEQUENCE), np.int64)  # (n, 50)
    lengths = np.zeros(len(ids), np.int32)  # (n,)
    order = np.argsort(log["user_id"], kind="stable")
    users = log["user_id"][order]
    for place, user in enumerate(ids):
        first, last = np.searchsorted(users, [user, user + 1])
        newest = log["video_id"][order[first:last]][::-1][:SEQUENCE]
        videos[place, : len(newest)], lengths[place] = newest, len(newest)
    return videos, lengths
