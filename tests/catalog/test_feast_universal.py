"""The behaviour that Feast's universal online-store tests ask of an online store.

Each test is named after the test of Feast's `sdk/python/tests` whose behaviour it asserts;
docs/feast.md lists those that have no counterpart here, and why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import FeatureStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_operations import apply_total_with_repo_instance

from catalog.lock import LOCK_NAME, require_lock
from catalog.repo import load_repo
from schemas.errors import PlanError
from schemas.names import row_key
from schemas.status import FieldStatus
from store.redis_store import RedisRowStore
from tests.encore.feast_world import client, fill, make_repo

pytestmark = [
    pytest.mark.filterwarnings("ignore:Stream feature views are experimental"),
    # Feast's materialize: a deprecated conversion inside it.
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]
NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory, valkey: str) -> Path:
    url = valkey.removesuffix("/0") + "/10"
    with RedisRowStore(url) as store:
        store._ask(("FLUSHDB",), "test")
    path = make_repo(tmp_path_factory.mktemp("universal") / "repo", url)
    fill(path, url)
    return path


@pytest.fixture
def feast(repo: Path) -> Iterator[FeatureStore]:
    with client(repo) as store:
        yield store


def videos(ids: list[int], times: list[datetime], **given: Any) -> pd.DataFrame:
    """Rows of the view, null where nothing is given."""
    names = ("flag", "small", "author_id", "ratio", "duration", "kind")
    lists = ("tag", "flags", "smalls", "embedding", "moments")
    nulls = {name: [None] * len(ids) for name in (*names, *lists)}
    return pd.DataFrame({"video_id": ids, "event_timestamp": times, **nulls, **given})


def read(feast: FeatureStore, features: Any, rows: list[dict[str, Any]], **more: Any) -> Any:
    return feast.get_online_features(features=features, entity_rows=rows, **more)


def kinds(feast: FeatureStore, ids: list[int]) -> list[str | None]:
    rows = [{"video_id": each} for each in ids]
    found: list[str | None] = read(feast, ["videos:kind"], rows).to_dict()["kind"]
    return found


# --- test_universal_online.py ---------------------------------------------------------------


def test_write_to_online_store(feast: FeatureStore) -> None:
    given: dict[str, Any] = {"small": [14], "ratio": [0.85], "duration": [0.91]}
    feast.write_to_online_store("videos", videos([123], [NOW], **given))
    got = read(feast, [f"videos:{name}" for name in given], [{"video_id": 123}]).to_df()
    assert got["small"].iloc[0] == 14
    assert got["ratio"].iloc[0] == pytest.approx(0.85, abs=1e-6)
    assert got["duration"].iloc[0] == pytest.approx(0.91, abs=1e-6)


def test_write_to_online_store_event_check(feast: FeatureStore, repo: Path) -> None:
    """A row stays until a newer one comes, from a write or from materialize."""
    feast.write_to_online_store("videos", videos([201], [NOW], kind=["song"]))
    late = videos([201, 202], [NOW - HOUR] * 2, kind=["dance", "dance"])
    feast.write_to_online_store("videos", late)
    assert kinds(feast, [201, 202]) == ["song", "dance"]
    ahead = videos([201], [NOW + timedelta(seconds=1)], kind=["dance"])
    feast.write_to_online_store("videos", ahead)
    assert kinds(feast, [201, 202]) == ["dance", "dance"]
    feast.write_to_online_store("videos", videos([1], [NOW - 9 * HOUR], kind=["song"]))
    assert kinds(feast, [1]) == ["dance"]


def test_entity_ttl_online_store(feast: FeatureStore) -> None:
    """The TTL is the view's and counts from the event; what is beyond it is null and says so."""
    frame = pd.DataFrame(
        {"video_id": [301, 302], "event_timestamp": [NOW, NOW - 2 * HOUR], "duration": [1, 2]}
    )
    feast.write_to_online_store("fresh", frame)
    got = read(feast, ["fresh:duration"], [{"video_id": 301}, {"video_id": 302}])
    assert got.to_dict()["duration"] == [1, None]
    statuses = list(got.proto.results[-1].statuses)
    assert statuses == [FieldStatus.PRESENT, FieldStatus.OUTSIDE_MAX_AGE]


def test_online_retrieval_with_shared_batch_source(feast: FeatureStore) -> None:
    """Views keep apart though they share an entity; a feature of the other is unknown."""
    rows = [{"video_id": 2}]
    features = ["videos:duration", "fresh:duration"]
    got = read(feast, features, rows, full_feature_names=True).to_dict()
    assert (got["videos__duration"], got["fresh__duration"]) == ([None], [20])
    with pytest.raises(KeyError):
        read(feast, ["fresh:kind"], rows)


def event_times(frame: pd.DataFrame, name: str) -> list[int]:
    return [int(each) for each in frame[f"{name}__ts"]]


MOMENTS = [datetime.fromtimestamp(seconds, UTC) for seconds in (1_646_263_500, 1_646_263_600)]


def test_online_retrieval_with_event_timestamps(feast: FeatureStore) -> None:
    feast.write_to_online_store("videos", videos([401, 402], MOMENTS, small=[4, 5]))
    names = ["videos:small", "videos:ratio"]
    got = read(feast, names, [{"video_id": 401}, {"video_id": 402}]).to_df(True)
    assert list(got["video_id"]) == [401, 402]
    for name in ("small", "ratio"):
        assert event_times(got, name) == [1_646_263_500, 1_646_263_600]


def test_async_online_retrieval_with_event_timestamps(feast: FeatureStore) -> None:
    async def retrieve() -> pd.DataFrame:
        await feast.initialize()
        await feast.write_to_online_store_async("videos", videos([411, 412], MOMENTS, small=[4, 5]))
        response = await feast.get_online_features_async(
            ["videos:small", "activity:clicks_1h"],
            [{"video_id": 412, "user_id": 7}, {"video_id": 411, "user_id": 404}],
        )
        await feast.close()
        return response.to_df(True)

    got = asyncio.run(retrieve())
    assert event_times(got, "small") == [1_646_263_600, 1_646_263_500]
    assert list(got["clicks_1h"]) == [2, 0]


def test_online_list_retrieval(feast: FeatureStore) -> None:
    assert {view.name for view in feast.list_feature_views()} == {
        "videos",
        "cities",
        "taste",
        "fresh",
    }
    assert [view.name for view in feast.list_stream_feature_views()] == ["activity"]


def test_online_retrieval_success(feast: FeatureStore) -> None:
    """Views of several entities, in one request, with entities in any order and repeated."""
    features = ["videos:kind", "cities:size", "taste:liking", "activity:clicks_1h"]
    rows = [
        {"user_id": 7, "city_name": "Oslo", "video_id": 1},
        {"user_id": 7, "city_name": "Bergen", "video_id": 404},
        {"user_id": 7, "city_name": "Oslo", "video_id": 1},
        {"user_id": 8, "city_name": "Rome", "video_id": 1},
    ]
    got = read(feast, features, rows).to_dict()
    assert got["kind"] == ["dance", None, "dance", "dance"]
    assert got["size"] == [7, 3, 7, None]
    assert got["liking"] == [0.75, 0.5, 0.75, None]
    assert got["clicks_1h"] == [2, 2, 2, 0]


def test_all_views_of_a_request_take_one_round_trip(
    feast: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    plain = RedisRowStore.read

    def counted(self: RedisRowStore, keys: Any) -> Any:
        reads.append(len(keys))
        return plain(self, keys)

    monkeypatch.setattr(RedisRowStore, "read", counted)
    read(feast, ["videos:kind", "fresh:duration"], [{"video_id": 1}, {"video_id": 2}])
    assert reads == [4]


# --- test_universal_online_types.py ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("flag", True, bool),
        ("small", -(1 << 31), int),
        ("author_id", (1 << 63) - 1, int),
        ("ratio", 0.5, float),
        ("duration", 1e300, float),
        ("kind", "song", str),
        ("tag", [-1, 1 << 62], int),
        ("flags", [True, False], bool),
        ("smalls", [7, 8], int),
        ("embedding", [0.5, 0.25], float),
        ("moments", [0.1], float),
        ("flags", [], bool),
        ("smalls", [], int),
        ("embedding", [], float),
        ("moments", [], float),
    ],
)
def test_feature_get_online_features_types_match(
    feast: FeatureStore, name: str, value: Any, kind: type
) -> None:
    """Written through Feast, read as what was declared; then null, of which the type is known."""
    features, rows = [f"videos:{name}"], [{"video_id": 501}]
    times = feast_times()
    feast.write_to_online_store("videos", videos([501], [next(times)], **{name: [value]}))
    (got,) = read(feast, features, rows).to_dict()[name]
    assert got == value
    assert all(type(each) is kind for each in (got if isinstance(value, list) else [got]))
    other: dict[str, Any] = {"small": [1]} if name != "small" else {"kind": ["song"]}
    feast.write_to_online_store("videos", videos([501], [next(times)], **other))
    response = read(feast, features, rows)
    assert response.to_dict()[name] == [None]
    assert list(response.proto.results[-1].statuses) == [FieldStatus.NULL_VALUE]


_CLOCK = iter(NOW + timedelta(seconds=each) for each in range(1, 1_000))


def feast_times() -> Iterator[datetime]:
    """Later at each call: a row replaces none that is newer."""
    return _CLOCK


# --- test_push_features_to_online_store.py --------------------------------------------------


def test_push_features_and_read(feast: FeatureStore) -> None:
    frame = videos([601], [NOW], kind=["song"])
    feast.push("videos_push", frame)
    assert kinds(feast, [601]) == ["song"]


def test_push_features_and_read_async(feast: FeatureStore) -> None:
    async def push() -> list[Any]:
        await feast.push_async("videos_push", videos([602], [NOW], kind=["dance"]))
        response = await feast.get_online_features_async(["videos:kind"], [{"video_id": 602}])
        found: list[Any] = response.to_dict()["kind"]
        return found

    assert asyncio.run(push()) == ["dance"]


# --- test_universal_e2e.py ------------------------------------------------------------------


def test_e2e_consistency(feast: FeatureStore, repo: Path) -> None:
    """materialize, then materialize_incremental; online and offline agree at each end."""
    source = pd.DataFrame(
        {
            "video_id": [701, 703, 703],
            "event_timestamp": [NOW - 3 * HOUR, NOW - 4 * HOUR, NOW - 1 * HOUR],
            "duration": [3, 4, 5],
        }
    )
    source["event_timestamp"] = source["event_timestamp"].astype("datetime64[ms, UTC]")
    source.to_parquet(repo / "sources" / "fresh.parquet")
    split, ids = NOW - 2 * HOUR, [701, 702, 703]
    feast.config.online_store.now_ms = int((NOW - 3 * HOUR).timestamp() * 1_000)
    feast.materialize(NOW - 5 * HOUR, split, feature_views=["fresh"])
    assert online(feast, ids) == offline(feast, ids, split) == [3, None, 4]
    feast.materialize_incremental(NOW, feature_views=["fresh"])
    intervals = feast.registry.get_feature_view("fresh", feast.project).materialization_intervals
    assert [(start, end) for start, end in intervals][-2:] == [
        (NOW - 5 * HOUR, split),
        (split, NOW),
    ]
    assert online(feast, ids) == offline(feast, ids, NOW) == [3, None, 5]


def online(feast: FeatureStore, ids: list[int]) -> list[int | None]:
    rows = [{"video_id": each} for each in ids]
    found: list[int | None] = read(feast, ["fresh:duration"], rows).to_dict()["duration"]
    return found


def offline(feast: FeatureStore, ids: list[int], at: datetime) -> list[int | None]:
    """What Feast's offline store has; the TTL aside, which this moment's online clock sets."""
    frame = pd.read_parquet(feast.repo_path / "sources" / "fresh.parquet")
    found: list[int | None] = []
    for each in ids:
        known = frame[(frame["video_id"] == each) & (frame["event_timestamp"] <= at)]
        ordered = known.sort_values("event_timestamp")["duration"]
        found.append(None if ordered.empty else int(ordered.iloc[-1]))
    return found


# --- entity keys ----------------------------------------------------------------------------


def test_keys_are_written_under_the_documented_ids(feast: FeatureStore, valkey: str) -> None:
    """docs/feast.md: an integer as itself, a string as xxh3-64, several as xxh3-64 of their ids."""
    frame = pd.DataFrame(
        {"user_id": [9], "city_name": ["Rome"], "event_timestamp": [NOW], "liking": [0.125]}
    )
    feast.write_to_online_store("taste", frame)
    feast.write_to_online_store(
        "cities", pd.DataFrame({"city_name": ["Rome"], "event_timestamp": [NOW], "size": [9]})
    )
    rows = [{"city_name": "Rome", "user_id": 9}]
    got = read(feast, ["taste:liking", "cities:size"], rows).to_dict()
    assert (got["liking"], got["size"]) == ([0.125], [9])
    ids = {"taste": -8148994360328772762, "cities": 3247286455497517163}
    with RedisRowStore(valkey.removesuffix("/0") + "/10") as store:
        keys = [row_key(view, 1, entity_id) for view, entity_id in ids.items()]
        assert None not in store.read(keys)


def test_a_key_of_another_type_is_refused(feast: FeatureStore) -> None:
    """Feast's client turns what it can into the declared type; the store takes no other."""
    view, store = feast.get_feature_view("videos"), feast._get_provider().online_store
    for key, message in (
        (Value(string_val="one"), "videos.video_id: needs an integer id, got string_val"),
        (Value(), "videos.video_id: needs an integer id, got None"),
    ):
        keys = [EntityKey(join_keys=["video_id"], entity_values=[key])]
        with pytest.raises(PlanError, match=message):
            store.online_read(feast.config, view, keys)
    keys = [EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=1)])]
    with pytest.raises(PlanError, match=r"videos\.entities: needs a key of video_id, got user_id"):
        store.online_read(feast.config, view, keys)
    keys = [EntityKey(join_keys=["city_name"], entity_values=[Value(int64_val=1)])]
    with pytest.raises(PlanError, match=r"cities\.city_name: needs a string id, got int64_val"):
        store.online_read(feast.config, feast.get_feature_view("cities"), keys)


def test_a_streamed_view_cannot_be_pushed(feast: FeatureStore) -> None:
    frame = pd.DataFrame({"user_id": [7], "time_ms": [NOW], "clicks_1h": [5], "last_videos": [[1]]})
    with pytest.raises(PlanError, match="send actions to the topic 'actions'"):
        feast.write_to_online_store("activity", frame)


def test_feast_apply_of_these_views_changes_nothing(repo: Path, feast: FeatureStore) -> None:
    before = require_lock(repo / LOCK_NAME)
    contents = load_repo(repo, feast.project)
    apply_total_with_repo_instance(feast, feast.project, feast.registry, contents, True)
    assert require_lock(repo / LOCK_NAME) == before
