"""Feast's own client with its `remote` online store, against a running ranking service."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import FeatureStore
from feast.data_source import PushMode
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from schemas.status import FieldStatus
from store.redis_store import RedisRowStore
from tests.encore.feast_world import client, fill, make_repo, remote_repo
from tests.patience import patient
from tests.predictor.support import RunningServer, server

pytestmark = [
    pytest.mark.filterwarnings("ignore:Stream feature views are experimental"),
]
SCALARS = ("flag", "small", "author_id", "ratio", "duration", "kind")
LISTS = ("tag", "flags", "smalls", "embedding", "moments")
VIDEOS = [f"videos:{name}" for name in (*SCALARS, *LISTS)]
ACTIVITY = ["activity:clicks_1h", "activity:last_videos"]
NO_EMPTY = [each for each in VIDEOS if each != "videos:smalls"]
IDS = (1, 404)
ROWS = [{"video_id": each} for each in (1, 2, 404)]


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, valkey: str
) -> Iterator[tuple[Path, RunningServer]]:
    """A filled repo and the service over it."""
    directory, url = tmp_path_factory.mktemp("remote"), valkey.removesuffix("/0") + "/9"
    with RedisRowStore(patient(url)) as store:
        store._ask(("FLUSHDB",), "test")
    repo = make_repo(directory / "repo", url)
    fill(repo, url)
    with server(directory, url) as running:
        yield repo, running


@pytest.fixture(scope="module")
def direct(served: tuple[Path, RunningServer]) -> Iterator[FeatureStore]:
    """The client that reads the store through our adapter."""
    with client(served[0]) as store:
        yield store


@pytest.fixture(scope="module")
def remote(
    served: tuple[Path, RunningServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FeatureStore]:
    """The client that knows nothing of encore but the service's URL."""
    repo, running = served
    path = tmp_path_factory.mktemp("client") / "repo"
    registry = repo / ".encore" / "registry.db"
    with client(remote_repo(path, registry, str(running.client.base_url))) as store:
        yield store


def read(store: FeatureStore, features: Any, rows: list[dict[str, Any]], **more: Any) -> Any:
    return store.get_online_features(features=features, entity_rows=rows, **more)


def statuses(response: Any) -> dict[str, list[int]]:
    names = response.proto.metadata.feature_names.val
    pairs = zip(names, response.proto.results, strict=True)
    return {name: list(vector.statuses) for name, vector in pairs}


@pytest.mark.parametrize(
    ("features", "rows"),
    [
        (NO_EMPTY, ROWS),
        (["videos:kind"], [{"video_id": 1}, {"video_id": 1}]),
        (ACTIVITY, [{"user_id": 7}]),
        (["cities:size"], [{"city_name": "Oslo"}, {"city_name": "Rome"}]),
        (["taste:liking"], [{"user_id": 7, "city_name": "Oslo"}]),
        (["fresh:duration"], [{"video_id": 2}]),
    ],
)
def test_the_same_as_through_the_adapter(
    direct: FeatureStore, remote: FeatureStore, features: list[str], rows: list[dict[str, Any]]
) -> None:
    mine, theirs = read(direct, features, rows), read(remote, features, rows)
    assert theirs.to_dict() == mine.to_dict()
    assert statuses(theirs) == statuses(mine)


def test_an_empty_list_is_null_for_the_remote_client(
    direct: FeatureStore, remote: FeatureStore
) -> None:
    """Feast cannot infer the type of an empty list in JSON, and fails on one."""
    for features, rows in ((["videos:smalls"], [{"video_id": 2}]), (ACTIVITY, [{"user_id": 404}])):
        mine, theirs = read(direct, features, rows), read(remote, features, rows)
        name = features[-1].partition(":")[2]
        assert (mine.to_dict()[name], theirs.to_dict()[name]) == ([[]], [None])
        assert statuses(theirs)[name] == [FieldStatus.NULL_VALUE]
    assert theirs.to_dict()["clicks_1h"] == [0]


def test_full_names_and_equal_ones(direct: FeatureStore, remote: FeatureStore) -> None:
    features = ["videos:duration", "fresh:duration"]
    for store in (direct, remote):
        got = read(store, features, [{"video_id": 2}], full_feature_names=True).to_dict()
        assert got == {"video_id": [2], "videos__duration": [None], "fresh__duration": [20]}
    with pytest.raises(RuntimeError, match="each name once, got duration twice"):
        read(remote, features, [{"video_id": 2}])


def test_a_service_by_name(direct: FeatureStore, remote: FeatureStore) -> None:
    service = remote.get_feature_service("ranking")
    rows = [{"user_id": 7, "video_id": 1}]
    got = read(remote, service, rows).to_dict()
    assert got == read(direct, service, rows).to_dict()
    assert (got["clicks_1h"], got["last_videos"], got["tag"]) == ([2], [[2, 1]], [[5, 6]])


def test_the_store_hook_reads_one_view(direct: FeatureStore, remote: FeatureStore) -> None:
    """`online_read`: what Feast's remote store does of its own where it is not asked as a whole."""
    names = ["small", "kind", "tag"]
    values = [Value(int64_val=each) for each in IDS]
    keys = [EntityKey(join_keys=["video_id"], entity_values=[value]) for value in values]
    table = remote.get_feature_view("videos")
    found, absent = [
        store._get_provider().online_store.online_read(store.config, table, [key], names)[0]
        for store, key in ((remote, keys[0]), (remote, keys[1]))
    ]
    mine = direct._get_provider().online_store.online_read(direct.config, table, keys, names)
    assert found == mine[0]
    assert absent[1] == dict.fromkeys(names, Value())
    assert mine[1] == (None, None)


def test_event_times_travel(served: tuple[Path, RunningServer], direct: FeatureStore) -> None:
    body = {"entities": {"video_id": [1, 404]}, "features": ["videos:kind"]}
    _, vector = served[1].client.post("/get-online-features", json=body).json()["results"]
    mine = read(direct, ["videos:kind"], [{"video_id": 1}]).to_dict(include_event_timestamps=True)
    first = datetime.fromisoformat(vector["event_timestamps"][0])
    assert [int(first.timestamp())] == mine["kind__ts"]
    assert vector["event_timestamps"][1] == "1970-01-01T00:00:00Z"


def frame(video_id: int, author_id: int, at: datetime) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "video_id": [video_id],
            "event_timestamp": [at],
            "flag": [True],
            "small": [5],
            "author_id": [author_id],
            "ratio": [0.5],
            "duration": [4.0],
            "kind": ["song"],
            "tag": [[9]],
            "flags": [[False]],
            "smalls": [[8]],
            "embedding": [[0.5]],
            "moments": [[0.25]],
        }
    )


def test_a_push_through_the_service_is_read_by_both(
    direct: FeatureStore, remote: FeatureStore
) -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    remote.push("videos_push", frame(60, 1, at), to=PushMode.ONLINE)
    remote.write_to_online_store("videos", df=frame(60, 2, datetime(2026, 1, 1, tzinfo=UTC)))
    rows = [{"video_id": 60}]
    got = read(remote, VIDEOS, rows).to_dict()
    assert got == read(direct, VIDEOS, rows).to_dict()
    assert (got["author_id"], got["kind"], got["tag"]) == ([1], ["song"], [[9]])


def test_the_service_and_the_adapter_write_the_same_bytes(
    served: tuple[Path, RunningServer], direct: FeatureStore, remote: FeatureStore, valkey: str
) -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    remote.push("videos_push", frame(61, 1, at), to=PushMode.ONLINE)
    with RedisRowStore(patient(valkey.removesuffix("/0") + "/9")) as store:
        (pushed,) = store.read(["videos@1:{61}"])
        store._ask(("DEL", "videos@1:{61}"), "test")
        direct.push("videos_push", frame(61, 1, at), to=PushMode.ONLINE)
        assert store.read(["videos@1:{61}"]) == [pushed]
    assert pushed is not None


def test_a_push_to_a_windowed_view_names_its_topic(remote: FeatureStore) -> None:
    rows = pd.DataFrame(
        {
            "user_id": [7],
            "time_ms": [datetime(2026, 1, 2, tzinfo=UTC)],
            "clicks_1h": [5],
            "last_videos": [[1]],
        }
    )
    with pytest.raises(RuntimeError, match="send actions to the topic 'actions'"):
        remote.write_to_online_store("activity", df=rows)
