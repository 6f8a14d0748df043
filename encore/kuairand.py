"""KuaiRand's tables → batch sources, actions and ranking requests.

One row of the interactions is one impression. It becomes: an impression; a click, like, follow,
comment, share (forward), dislike (hate) or profile where its flag is 1, all at `time_ms`; a play
(value = play ms) where `play_time_ms > 0`, a finish where at least 95 % of a known duration was
played, a long view where its flag is 1, all three at `time_ms + play_time_ms`. Exact duplicate rows
are dropped and counted.

The log has no requests, so they are formed: a *page* is one user's impressions within 60 minutes of
the page's first. Its request carries the time of that first impression, and as candidates the
page's videos plus 20 recent ones that the page did not show (drawn from the 2,000 impressions
before it), in random order. The page's actions carry the request's id. A request comes before its
page's actions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.actions import (
    ACTION,
    KNOWN_AUTHOR,
    KNOWN_MUSIC,
    KNOWN_POSITION,
    KNOWN_REQUEST,
    KNOWN_TAGS_SHIFT,
    MAX_TAGS,
    ActionType,
)
from schemas.errors import CodecError
from schemas.ids import hash64

PAGE_MS: Final = 60 * 60_000
DAY_MS: Final = 86_400_000
UNEXPOSED: Final = 20
RECENT_IMPRESSIONS: Final = 2_000
FINISHED: Final = 0.95
UNKNOWN_MUSIC: Final = 0
SHARE_PARTS: Final = 10_000
FLAGS: Final[dict[str, ActionType]] = {
    "is_click": ActionType.CLICK,
    "is_like": ActionType.LIKE,
    "is_follow": ActionType.FOLLOW,
    "is_comment": ActionType.COMMENT,
    "is_forward": ActionType.SHARE,
    "is_hate": ActionType.DISLIKE,
    "is_profile_enter": ActionType.PROFILE,
}
INTERACTION_COLUMNS: Final = (
    *("user_id", "video_id", "time_ms", "play_time_ms", "duration_ms", "long_view", "tab"),
    *FLAGS,
)
VIDEO_COLUMNS: Final = ("video_id", "author_id", "music_id", "tag")
SOURCE_COLUMNS: Final = {"users": ("user_id",), "videos": VIDEO_COLUMNS}
BEFORE_THE_LOG: Final = datetime(2022, 4, 24, tzinfo=UTC)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Page:
    """One ranking request. candidates: (N,) i64 video ids, no duplicates, in no meaningful
    order.
    """

    request_hi: int
    request_lo: int
    user_id: int
    time_ms: int
    candidates: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Timeline:
    """A log to replay. actions: (a,) of dtype ACTION by time. pages: the asked share, by time.

    rows: impressions kept; duplicates: rows dropped; all_pages: pages before the share was taken.
    """

    actions: NDArray[np.void]
    pages: list[Page]
    rows: int
    duplicates: int
    all_pages: int


def write_sources(data: Path, out: Path) -> dict[str, int]:
    """Write `users.parquet` and `videos.parquet` as Feast batch sources. Returns rows of each.

    Adds `event_timestamp` (the day before the log begins) and turns a video's `tag` into a list.
    """
    out.mkdir(parents=True, exist_ok=True)
    begin = pa.scalar(BEFORE_THE_LOG, pa.timestamp("us", "UTC"))
    counts: dict[str, int] = {}
    for name in ("users", "videos"):
        table = _read(data / f"{name}.parquet", SOURCE_COLUMNS[name])
        if name == "videos":
            tags = pa.array(_tag_lists(table["tag"]), pa.list_(pa.int64()))
            table = table.set_column(table.column_names.index("tag"), "tag", tags)
        stamps = pa.repeat(begin, table.num_rows)
        pq.write_table(table.append_column("event_timestamp", stamps), out / f"{name}.parquet")
        counts[name] = table.num_rows
    return counts


def _read(path: Path, columns: Collection[str]) -> pa.Table:
    """A whole table that has at least these columns. Raises CodecError."""
    try:
        table = pq.read_table(path).replace_schema_metadata(None)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise CodecError(str(path), required="a Parquet file", got=reason) from None
    if missing := [name for name in columns if name not in table.column_names]:
        raise CodecError(
            str(path),
            required=f"KuaiRand's columns {', '.join(columns)}",
            got=f"no {', '.join(missing)}",
            do="name the file that examples/kuairand/README.md describes",
        )
    return table


def _tag_lists(column: pa.ChunkedArray) -> list[list[int] | None]:
    """ "39,1" → [39, 1]; null stays null."""
    return [
        None if text is None else [int(part) for part in text.split(",") if part]
        for text in column.to_pylist()
    ]


def load_timeline(data: Path, share: float, last_day_share: float) -> Timeline:
    """All actions of the log, and the pages of a hashed share of the users.

    share: part of the users whose pages become requests, by hash64(user_id) mod 10,000.
    last_day_share: the same for pages that begin on the log's last day, where models are judged.
    """
    table, duplicates = _interactions(data)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    columns |= _video_columns(data, columns["video_id"])
    page, position = _pages(columns["user_id"], columns["time_ms"])
    request = hash64(columns["user_id"], 1), hash64(columns["time_ms"][page], 2)
    columns["request_hi"] = request[0] ^ hash64(page, 3)
    columns["request_lo"] = request[1] ^ hash64(page, 4)
    columns["position"] = position
    actions = _actions(columns)
    part = hash64(columns["user_id"]) % np.uint64(SHARE_PARTS)
    last_day = columns["time_ms"][page] >= last_day_ms(actions)
    wanted = part < np.where(last_day, last_day_share, share) * SHARE_PARTS
    pages = _requests(columns, page, wanted)
    return Timeline(actions, pages, table.num_rows, duplicates, len(np.unique(page)))


def _interactions(data: Path) -> tuple[pa.Table, int]:
    """Impressions by (time, user, video), exact duplicates dropped, and how many those were."""
    table = _read(data / "interactions.parquet", INTERACTION_COLUMNS)
    kept = table.group_by(table.column_names).aggregate([])
    order = [("time_ms", "ascending"), ("user_id", "ascending"), ("video_id", "ascending")]
    rest = [(name, "ascending") for name in table.column_names if name not in dict(order)]
    kept = kept.sort_by(order + rest)
    return kept, table.num_rows - kept.num_rows


def _video_columns(data: Path, video_ids: Array) -> dict[str, Array]:
    """What the edge knows of each row's video: author, music, tags, and how many tags."""
    videos = _read(data / "videos.parquet", VIDEO_COLUMNS)
    ids = videos["video_id"].to_numpy()
    order = np.argsort(ids)
    place = order[np.minimum(np.searchsorted(ids, video_ids, sorter=order), len(ids) - 1)]
    found = ids[place] == video_ids
    lists = _tag_lists(videos["tag"])
    tags = np.zeros((len(ids), MAX_TAGS), np.int64)
    tag_count = np.zeros(len(ids), np.int64)
    for index, values in enumerate(lists):
        head = (values or [])[:MAX_TAGS]
        tags[index, : len(head)] = head
        tag_count[index] = len(head)
    return {
        "known_video": found,
        "author": np.where(found, videos["author_id"].to_numpy()[place], 0),
        "music": np.where(found, videos["music_id"].to_numpy()[place], UNKNOWN_MUSIC),
        "tags": np.where(found[:, None], tags[place], 0),
        "tag_count": np.where(found, tag_count[place], 0),
    }


def _pages(users: Array, times: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each impression, by time: the row of its page's first impression, and its place there."""
    page = np.empty(len(users), np.int64)
    position = np.empty(len(users), np.int64)
    open_pages: dict[int, tuple[int, int, int]] = {}
    for row, (user, time_ms) in enumerate(zip(users.tolist(), times.tolist(), strict=True)):
        first, began, count = open_pages.get(user, (row, time_ms, 0))
        if time_ms - began > PAGE_MS:
            first, began, count = row, time_ms, 0
        page[row], position[row] = first, count
        open_pages[user] = (first, began, count + 1)
    return page, position


def _actions(columns: dict[str, Array]) -> NDArray[np.void]:
    """All actions by (time, impression row, type). Returns (a,) of dtype ACTION."""
    time_ms, play_ms = columns["time_ms"], columns["play_time_ms"]
    ended = time_ms + play_ms
    duration = columns["duration_ms"]
    every = np.ones(len(time_ms), bool)
    finished = (duration > 0) & (play_ms >= FINISHED * duration)
    kinds: tuple[tuple[ActionType, Array, Array], ...] = (
        (ActionType.IMPRESSION, every, time_ms),
        (ActionType.PLAY, play_ms > 0, ended),
        (ActionType.FINISH, finished, ended),
        (ActionType.LONG_VIEW, columns["long_view"] == 1, ended),
        *((kind, columns[name] == 1, time_ms) for name, kind in FLAGS.items()),
    )
    parts = [_of_type(columns, kind, np.flatnonzero(mask), when) for kind, mask, when in kinds]
    rows = np.concatenate([np.flatnonzero(mask) for _, mask, _ in kinds])
    actions = np.concatenate(parts)
    return actions[np.lexsort((actions["type"], rows, actions["time_ms"]))]


def _of_type(
    columns: dict[str, Array], kind: ActionType, rows: Array, when: Array
) -> NDArray[np.void]:
    actions = np.zeros(len(rows), ACTION)
    actions["user"], actions["item"] = columns["user_id"][rows], columns["video_id"][rows]
    actions["time_ms"] = when[rows]
    if kind is ActionType.PLAY:
        actions["value"] = columns["play_time_ms"][rows]
    for name in ("request_hi", "request_lo", "author", "music", "tags"):
        actions[name] = columns[name][rows]
    actions["scene"], actions["position"] = columns["tab"][rows], columns["position"][rows]
    actions["type"] = kind
    known = KNOWN_REQUEST | KNOWN_POSITION | (columns["tag_count"][rows] << KNOWN_TAGS_SHIFT)
    known = known | KNOWN_AUTHOR * columns["known_video"][rows]
    actions["known"] = known | KNOWN_MUSIC * (columns["music"][rows] != UNKNOWN_MUSIC)
    return actions


def _requests(columns: dict[str, Array], page: Array, wanted: Array) -> list[Page]:
    """The wanted pages in order of time, each with its videos and up to 20 others."""
    videos, times = columns["video_id"], columns["time_ms"]
    before = np.searchsorted(times, times, side="left")  # impressions strictly earlier
    members = np.flatnonzero(wanted)
    members = members[np.argsort(page[members], kind="stable")]
    starts = np.flatnonzero(np.diff(page[members], prepend=-1))
    rng = np.random.default_rng(20220424)
    pages: list[Page] = []
    for group in np.split(members, starts[1:]):
        if len(group) == 0:
            continue
        first = int(page[group[0]])
        shown = np.unique(videos[group])
        recent = videos[max(0, int(before[first]) - RECENT_IMPRESSIONS) : before[first]]
        drawn = recent[rng.integers(0, len(recent), 4 * UNEXPOSED)] if len(recent) else recent
        others = np.array(list(dict.fromkeys(drawn.tolist())), np.int64)
        others = others[~np.isin(others, shown)][:UNEXPOSED]
        candidates = rng.permutation(np.concatenate([shown, others]))
        request = int(columns["request_hi"][first]), int(columns["request_lo"][first])
        user = int(columns["user_id"][first])
        pages.append(Page(*request, user, int(times[first]), candidates))
    return pages


def last_day_ms(actions: NDArray[np.void]) -> int:
    """Midnight UTC that begins the day of the last impression (plays end after it)."""
    shown = actions["time_ms"][actions["type"] == ActionType.IMPRESSION]
    return int(shown.max()) // DAY_MS * DAY_MS
