"""KuaiRand's conversion against a row-at-a-time oracle, on the shipped files."""

from __future__ import annotations

from collections import Counter, namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from encore.kuairand import PAGE_MS, Timeline, last_day_ms, load_timeline, write_sources
from schemas.actions import KNOWN_REQUEST, ActionType, decode_batch, encode_batch
from schemas.errors import CodecError

DATA = Path(__file__).parents[2] / "examples" / "kuairand"


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return load_timeline(DATA, share=0.02, last_day_share=0.04)


@pytest.fixture(scope="module")
def rows() -> list[Any]:
    """The interactions as named tuples, as they stand in the file."""
    table = pq.read_table(DATA / "interactions.parquet")
    row = namedtuple("row", table.column_names)  # type: ignore[misc]
    return [*map(row._make, zip(*(column.to_pylist() for column in table.columns), strict=True))]


def test_every_row_is_kept_once_and_duplicates_are_counted(
    timeline: Timeline, rows: list[Any]
) -> None:
    distinct = set(rows)
    assert timeline.rows == len(distinct)
    assert timeline.duplicates == len(rows) - len(distinct) == 5066


#: The flags whose actions come at the impression's time.
AT_ONCE = {
    "is_click": int(ActionType.CLICK),
    "is_like": int(ActionType.LIKE),
    "is_follow": int(ActionType.FOLLOW),
    "is_comment": int(ActionType.COMMENT),
    "is_forward": int(ActionType.SHARE),
    "is_hate": int(ActionType.DISLIKE),
    "is_profile_enter": int(ActionType.PROFILE),
}
IMPRESSION, PLAY = int(ActionType.IMPRESSION), int(ActionType.PLAY)
FINISH, LONG_VIEW = int(ActionType.FINISH), int(ActionType.LONG_VIEW)


def test_actions_are_what_the_rows_say(timeline: Timeline, rows: list[Any]) -> None:
    """Counted by (user, video, type, time, value): the definition, one row at a time."""
    expected: list[tuple[int, ...]] = []
    for r in set(rows):
        user, video, at, play = r.user_id, r.video_id, r.time_ms, r.play_time_ms
        expected.append((user, video, IMPRESSION, at, 0))
        if play > 0:
            expected.append((user, video, PLAY, at + play, play))
        if r.duration_ms > 0 and play >= 0.95 * r.duration_ms:
            expected.append((user, video, FINISH, at + play, 0))
        if r.long_view:
            expected.append((user, video, LONG_VIEW, at + play, 0))
        for flag, kind in AT_ONCE.items():
            if getattr(r, flag):
                expected.append((user, video, kind, at, 0))
    names = ["user", "item", "type", "time_ms", "value"]
    got = Counter(zip(*(timeline.actions[name].tolist() for name in names), strict=True))
    assert got == Counter(expected)


def columns(actions: np.ndarray, *names: str) -> Iterator[tuple[int, ...]]:
    """Some columns, row by row."""
    return zip(*(actions[name].tolist() for name in names), strict=True)


def test_actions_are_in_order_and_fit_the_wire(timeline: Timeline) -> None:
    actions = timeline.actions
    assert (np.diff(actions["time_ms"]) >= 0).all()
    assert (actions["known"] & KNOWN_REQUEST).all()
    batch = decode_batch(encode_batch(actions[:50_000], int(actions["time_ms"][-1])))
    np.testing.assert_array_equal(batch.actions, actions[:50_000])


def test_pages_are_an_hour_of_one_user_from_the_first_impression(timeline: Timeline) -> None:
    shown = timeline.actions[timeline.actions["type"] == ActionType.IMPRESSION]
    pages: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for hi, lo, user, time_ms in columns(shown, "request_hi", "request_lo", "user", "time_ms"):
        pages.setdefault((hi, lo), []).append((user, time_ms))
    assert len(pages) == timeline.all_pages
    last: dict[int, int] = {}
    for members in pages.values():
        assert len({user for user, _ in members}) == 1
        times = [time_ms for _, time_ms in members]
        assert max(times) - times[0] <= PAGE_MS
        user = members[0][0]
        assert times[0] - last.get(user, 0) > PAGE_MS
        last[user] = times[0]


def test_a_request_holds_its_videos_and_others_already_seen(timeline: Timeline) -> None:
    shown = timeline.actions[timeline.actions["type"] == ActionType.IMPRESSION]
    first_seen: dict[int, int] = {}
    of_page: dict[tuple[int, int], set[int]] = {}
    for hi, lo, item, time_ms in columns(shown, "request_hi", "request_lo", "item", "time_ms"):
        first_seen.setdefault(item, time_ms)
        of_page.setdefault((hi, lo), set()).add(item)
    times = [page.time_ms for page in timeline.pages]
    assert times == sorted(times)
    for page in timeline.pages:
        candidates = set(page.candidates.tolist())
        videos = of_page[(page.request_hi, page.request_lo)]
        assert len(candidates) == len(page.candidates)
        assert videos <= candidates
        assert len(candidates - videos) <= 20
        assert all(first_seen[item] < page.time_ms for item in candidates - videos)
    begin = last_day_ms(timeline.actions)
    settled = [page for page in timeline.pages if page.time_ms > times[0] + PAGE_MS]
    assert all(len(page.candidates) >= 21 for page in settled)
    assert sum(page.time_ms >= begin for page in timeline.pages) > 100


def test_the_share_is_of_users_and_is_stable(timeline: Timeline) -> None:
    again = load_timeline(DATA, share=0.02, last_day_share=0.02)
    assert {page.user_id for page in again.pages} <= {page.user_id for page in timeline.pages}
    begin = last_day_ms(timeline.actions)
    early = [(p.user_id, p.candidates.tolist()) for p in timeline.pages if p.time_ms < begin]
    assert early == [(p.user_id, p.candidates.tolist()) for p in again.pages if p.time_ms < begin]


def test_sources_are_ready_for_feast(tmp_path: Path) -> None:
    assert write_sources(DATA, tmp_path) == {"users": 27_285, "videos": 7_583}
    videos = pq.read_table(tmp_path / "videos.parquet")
    raw = pq.read_table(DATA / "videos.parquet")
    expected = [t and [int(x) for x in t.split(",")] for t in raw["tag"].to_pylist()]
    assert videos["tag"].to_pylist() == expected
    assert str(videos.schema.field("event_timestamp").type) == "timestamp[us, tz=UTC]"
    assert pq.read_table(tmp_path / "users.parquet").num_columns == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "needs a Parquet file"),
        (b"PAR1 but not really", "needs a Parquet file"),
        (None, "got no time_ms, play_time_ms, duration_ms, long_view, tab, is_click"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "interactions.parquet"
    if content is None:
        pq.write_table(pq.read_table(DATA / "interactions.parquet").select([0, 1]), file)
    else:
        file.write_bytes(content)
    with pytest.raises(CodecError, match=message) as refused:
        load_timeline(tmp_path, 0.1, 0.1)
    assert refused.value.where == str(file)
