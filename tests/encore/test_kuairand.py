"""KuaiRand's conversion against a row-at-a-time oracle, on the shipped files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

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


def test_every_row_is_kept_once_and_duplicates_are_counted(timeline: Timeline) -> None:
    rows = pq.read_table(DATA / "interactions.parquet").to_pylist()
    distinct = {tuple(row.values()) for row in rows}
    assert timeline.rows == len(distinct)
    assert timeline.duplicates == len(rows) - len(distinct) == 5066


def test_actions_are_what_the_rows_say(timeline: Timeline) -> None:
    """Counted by (user, video, type, time, value): the definition, one row at a time."""
    expected: Counter[tuple[int, ...]] = Counter()
    rows = pq.read_table(DATA / "interactions.parquet").to_pylist()
    for row in {tuple(row.items()) for row in rows}:
        r = dict(row)
        at, play = r["time_ms"], r["play_time_ms"]
        finished = r["duration_ms"] > 0 and play >= 0.95 * r["duration_ms"]
        found = {
            ActionType.IMPRESSION: (True, at, 0),
            ActionType.PLAY: (play > 0, at + play, play),
            ActionType.FINISH: (finished, at + play, 0),
            ActionType.LONG_VIEW: (r["long_view"], at + play, 0),
            ActionType.CLICK: (r["is_click"], at, 0),
            ActionType.LIKE: (r["is_like"], at, 0),
            ActionType.FOLLOW: (r["is_follow"], at, 0),
            ActionType.COMMENT: (r["is_comment"], at, 0),
            ActionType.SHARE: (r["is_forward"], at, 0),
            ActionType.DISLIKE: (r["is_hate"], at, 0),
            ActionType.PROFILE: (r["is_profile_enter"], at, 0),
        }
        for kind, (there, time_ms, value) in found.items():
            if there:
                expected[(r["user_id"], r["video_id"], int(kind), time_ms, value)] += 1
    names = ["user", "item", "type", "time_ms", "value"]
    got = Counter(zip(*(timeline.actions[name].tolist() for name in names), strict=True))
    assert got == expected


def test_actions_are_in_order_and_fit_the_wire(timeline: Timeline) -> None:
    actions = timeline.actions
    assert (np.diff(actions["time_ms"]) >= 0).all()
    assert (actions["known"] & KNOWN_REQUEST).all()
    batch = decode_batch(encode_batch(actions[:50_000], int(actions["time_ms"][-1])))
    np.testing.assert_array_equal(batch.actions, actions[:50_000])


def test_pages_are_an_hour_of_one_user_from_the_first_impression(timeline: Timeline) -> None:
    shown = timeline.actions[timeline.actions["type"] == ActionType.IMPRESSION]
    pages: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for action in shown:
        key = int(action["request_hi"]), int(action["request_lo"])
        pages.setdefault(key, []).append((int(action["user"]), int(action["time_ms"])))
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
    for action in shown:
        item = int(action["item"])
        first_seen.setdefault(item, int(action["time_ms"]))
        of_page.setdefault((int(action["request_hi"]), int(action["request_lo"])), set()).add(item)
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
