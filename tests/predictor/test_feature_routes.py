"""Feast's routes on a real server over a real store: replies, writes, and every refusal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from aggregation.online import OnlineView
from predictor.features import parse_features
from predictor.limits import Limits
from predictor.push import Pushed, parse_push, write_pushed
from schemas.errors import RequestError, StoreError
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import FeaturePlan, FieldPlan, Plan, TransformPlan, ViewPlan, load_plan
from schemas.row import decode_rows
from schemas.status import FieldStatus, Status
from store.base import Write
from store.memory import AsyncMemoryRowStore
from store.redis_store import RedisRowStore
from tests.patience import patient
from tests.predictor.support import USERS, RunningServer, publish_plan, put_world, server

VOCAB = TransformPlan("vocab", 4, values=("song", "dance"))
FIELDS = (
    FieldPlan(0, "fans", "i64"),
    FieldPlan(1, "flag", "bool"),
    FieldPlan(2, "kind", "i32"),
    FieldPlan(3, "small", "i32"),
    FieldPlan(4, "tag_1", "i64"),
    FieldPlan(5, "tag_2", "i64"),
    FieldPlan(6, "weight", "f32"),
    FieldPlan(7, "embedding", "f64", 2),
)
FEATURES = tuple(FeaturePlan(f.name, f.dtype, "field", f.name, f.capacity) for f in FIELDS)
SONGS = ViewPlan(
    "songs",
    "item",
    "batch",
    1,
    FIELDS,
    FEATURES,
    "sources/songs.parquet",
    "event_timestamp",
    join_key="song_id",
    written={"kind": VOCAB},
    push_source="songs_push",
)
PAIRS = replace(
    SONGS,
    name="pairs",
    join_key="city_name,song_id",
    string_keys=("city_name",),
    push_source="",
)
ACTIVITY = ViewPlan(
    "listening", "user", "streamed", 1, (), (), "actions", "time_ms", join_key="user_id"
)
PLAN = Plan(1, 0, (SONGS, PAIRS, ACTIVITY), ())
TIME = "2026-01-01T00:00:00.250"
WRITTEN = {
    "song_id": [5, 6],
    "event_timestamp": [TIME, "2026-01-01T01:00:00+01:00"],
    "fans": [1 << 62, None],
    "flag": [True, None],
    "kind": ["dance", "opera"],
    "small": [-3, None],
    "tag": [[7, 8, 9], [None, 4]],
    "weight": [0.5, 2],
    "embedding": [[0.25], None],
    "created": [None, None],
}
NAMES = ("fans", "flag", "kind", "small", "tag", "weight", "embedding")
SEVEN = [f"songs:{name}" for name in NAMES]


@pytest.fixture(scope="module")
def running(
    predictor_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with RedisRowStore(patient(predictor_url)) as store:
        store._ask(("FLUSHDB",), "test")
        put_world(store)
        base = store.get_text("encore:plan")
        assert base is not None
        publish_plan(store, _with_views(base))
        options = {"limits": {"candidates": 3, "page": 20, "values": 21}}
        with server(tmp_path_factory.mktemp("feature_routes"), predictor_url, **options) as started:
            yield started


def _with_views(text: str) -> Plan:
    """The demo's plan and this file's views."""
    base = load_plan(text)
    return replace(base, views=(*base.views, *PLAN.views))


def ask(running: RunningServer, **body: Any) -> httpx.Response:
    return running.client.post("/get-online-features", json=body)


def push(running: RunningServer, df: Any, **more: Any) -> httpx.Response:
    return running.client.post("/push", json={"push_source_name": "songs_push", "df": df, **more})


def columns(reply: httpx.Response) -> dict[str, list[Any]]:
    assert reply.status_code == 200, reply.text
    data = reply.json()
    values = [vector["values"] for vector in data["results"]]
    return dict(zip(data["metadata"]["feature_names"], values, strict=True))


def test_what_is_pushed_is_read(running: RunningServer) -> None:
    assert push(running, WRITTEN).status_code == 200
    reply = ask(running, entities={"song_id": [5, 404, 6]}, features=SEVEN)
    assert columns(reply) == {
        "song_id": [5, 404, 6],
        "fans": [1 << 62, None, None],
        "flag": [True, None, None],
        "kind": ["dance", None, "id:1"],
        "small": [-3, None, None],
        "tag": [[7, 8], None, [4]],
        "weight": [0.5, None, 2.0],
        "embedding": [[0.25], None, None],
    }
    keys, fans = reply.json()["results"][:2]
    assert keys["statuses"] == ["PRESENT"] * 3
    assert fans["statuses"] == ["PRESENT", "NOT_FOUND", "NULL_VALUE"]
    assert fans["event_timestamps"] == [
        "2026-01-01T00:00:00.250Z",
        "1970-01-01T00:00:00Z",
        "2026-01-01T00:00:00Z",
    ]


def test_a_row_that_is_not_newer_stays_out(running: RunningServer) -> None:
    def write(fans: int, moment: str) -> list[Any]:
        df = {"song_id": [9], "event_timestamp": [moment], "fans": [fans]}
        body = {"feature_view_name": "songs", "df": df, "allow_registry_cache": False}
        assert running.client.post("/write-to-online-store", json=body).status_code == 200
        return columns(ask(running, entities={"song_id": [9]}, features=["songs:fans"]))["fans"]

    assert write(1, "2026-01-01T00:00:01") == [1]
    assert write(2, "2026-01-01T00:00:00") == [1]
    assert write(3, "2026-01-01T00:00:02") == [3]


def test_composite_and_string_keys(running: RunningServer) -> None:
    df = {"song_id": [5], "city_name": ["Oslo"], "event_timestamp": [TIME], "fans": [7]}
    assert push(running, df, push_source_name="pairs").status_code == 200
    entities = {"city_name": ["Oslo", "Rome"], "song_id": [5, 5], "user_id": [1, 1]}
    got = columns(ask(running, entities=entities, features=["pairs:fans"]))
    assert got == {"city_name": ["Oslo", "Rome"], "song_id": [5, 5], "fans": [7, None]}


def test_full_names_and_versions(running: RunningServer) -> None:
    reply = ask(
        running,
        entities={"song_id": [404]},
        features=["songs:fans"],
        full_feature_names=True,
        include_feature_view_version_metadata=True,
    )
    assert reply.json()["metadata"] == {
        "feature_names": ["song_id", "songs__fans"],
        "feature_view_metadata": [{"name": "songs", "version": 0}],
    }


def test_health(running: RunningServer) -> None:
    assert running.client.get("/health").status_code == 200


def test_rows_equal_those_of_the_columns(running: RunningServer, predictor_url: str) -> None:
    """All fields that were given are present, and only those."""
    assert push(running, {**WRITTEN, "song_id": [15, 16]}).status_code == 200
    with RedisRowStore(patient(predictor_url)) as store:
        raw = store.read(row_keys("songs", 1, [15, 16]))
    rows, status = decode_rows(layout_of(SONGS), raw, np.array([15, 16]))
    assert status.tolist() == [0, 0]
    assert {name: held.tolist() for name, held in rows.present.items()} == {
        "fans": [True, False],
        "flag": [True, False],
        "kind": [True, True],
        "small": [True, False],
        "tag_1": [True, False],
        "tag_2": [True, True],
        "weight": [True, True],
        "embedding": [True, False],
    }


ONE = {"entities": {"song_id": [1]}}
READS: list[tuple[dict[str, Any], str]] = [
    ({**ONE}, "features: needs features or a feature_service, got neither"),
    (
        {**ONE, "features": ["songs:fans"], "feature_service": "ranking"},
        "features: needs features or a feature_service, got both",
    ),
    ({**ONE, "features": ["fans"]}, "features[0]: needs \"view:feature\", got 'fans'"),
    ({**ONE, "features": [3]}, "features[0]: needs 1 to 128 characters, got an integer"),
    ({**ONE, "features": ["nowhere:fans"]}, "got 'nowhere'"),
    (
        {**ONE, "features": ["songs:nothing"]},
        "features: needs a feature of the plan, got songs.nothing, none of that name",
    ),
    (
        {**ONE, "features": ["songs:fan"]},
        "got songs.fan, none of that name; did you mean fans?",
    ),
    ({**ONE, "feature_service": "nothing"}, "feature_service: needs one of ranking, got 'nothing'"),
    (
        {**ONE, "features": ["songs:fans", "songs:fans"]},
        "features: needs each name once, got fans twice; set full_feature_names, or drop one",
    ),
    ({**ONE, "features": ["songs:fans"] * 21}, "features: needs at most 20, got 21"),
    ({"features": ["songs:fans"]}, "entities: needs an object of lists, got nothing"),
    ({"entities": {}, "features": ["songs:fans"]}, "entities: needs 1 to 3 rows, got none"),
    (
        {"entities": {"song_id": [1] * 4}, "features": ["songs:fans"]},
        "entities: needs 1 to 3 rows, got 4",
    ),
    (
        {
            "entities": {"song_id": [1, 2, 3], "city_name": ["Oslo"] * 3},
            "features": [*SEVEN, "pairs:fans"],
            "full_feature_names": True,
        },
        "entities: needs at most 21 values, rows times features, got 24; ask for fewer rows",
    ),
    (
        {"entities": {"song_id": [1], "user_id": [1, 2]}, "features": ["songs:fans"]},
        "entities: needs lists of one length, got 1, 2",
    ),
    (
        {"entities": {"user_id": [1]}, "features": ["songs:fans"]},
        "entities: needs song_id, which keys songs, got user_id",
    ),
    (
        {"entities": {"song_id": ["x"]}, "features": ["songs:fans"]},
        "entities.song_id: needs integers of 64 bits, got a string",
    ),
    (
        {"entities": {"song_id": [1 << 63]}, "features": ["songs:fans"]},
        "entities.song_id: needs integers of 64 bits, got 9223372036854775808",
    ),
    (
        {"entities": {"song_id": [1], "city_name": [2]}, "features": ["pairs:fans"]},
        "entities.city_name: needs strings, got an integer",
    ),
    ({"entities": {"nobody": [1]}, "features": ["songs:fans"]}, "got 'nobody'"),
    (
        {**ONE, "features": ["songs:fans"], "full_feature_names": 1},
        "full_feature_names: needs true or false, got an integer",
    ),
    ({**ONE, "feature": []}, "body: needs only entities, feature_service, features"),
]
ROW: dict[str, Any] = {"song_id": [1], "event_timestamp": [TIME]}
PUSHES: list[tuple[dict[str, Any], str]] = [
    ({"df": ROW, "to": "offline"}, "to: needs \"online\", got 'offline'; append to the view's"),
    ({"df": ROW, "push_source_name": "nobody"}, "songs_push, pairs, got 'nobody'"),
    (
        {"df": ROW, "push_source_name": "listening"},
        "listening: needs a batch view, got a windowed view, whose rows are folded from actions; "
        "send actions to the topic 'actions'",
    ),
    ({"df": ROW, "push_source_name": "actions"}, "send actions to the topic 'actions'"),
    ({"df": [1]}, "df: needs an object of lists, got a list"),
    ({"df": {**ROW, "song_id": 1}}, "df.song_id: needs a list, got an integer"),
    ({"df": {"song_id": [1]}}, "df: needs a column event_timestamp, got song_id"),
    ({"df": {"event_timestamp": [TIME]}}, "df: needs a column song_id, got event_timestamp"),
    ({"df": {**ROW, "fan": [1]}}, "df: needs features of songs, got 'fan'"),
    ({"df": {**ROW, "fans": []}}, "df: needs columns of one length, 1 to 3, got 0, 1"),
    ({"df": {**ROW, "song_id": [None]}}, "df.song_id: needs integers of 64 bits, got nothing"),
    (
        {"df": {**ROW, "event_timestamp": ["noon"]}},
        "df.event_timestamp: needs times since 1970 in ISO 8601, got 'noon'",
    ),
    ({"df": {**ROW, "event_timestamp": [7]}}, "needs times since 1970 in ISO 8601, got 7"),
    ({"df": {**ROW, "event_timestamp": ["1969-01-01"]}}, "needs times since 1970 in ISO 8601"),
    ({"df": {**ROW, "fans": [0.5]}}, "df.fans: needs integers, got a float"),
    ({"df": {**ROW, "fans": [True]}}, "df.fans: needs integers, got a boolean"),
    ({"df": {**ROW, "flag": [1]}}, "df.flag: needs true or false, got an integer"),
    ({"df": {**ROW, "weight": ["1"]}}, "df.weight: needs numbers, got a string"),
    ({"df": {**ROW, "kind": [1]}}, "df.kind: needs strings, got an integer"),
    ({"df": {**ROW, "tag": [1]}}, "df.tag: needs lists, got an integer"),
    ({"df": {**ROW, "tag": [["a"]]}}, "df.tag: needs integers, got a string"),
    ({"df": {**ROW, "embedding": [["a"]]}}, "df.embedding: needs numbers, got a string"),
    ({"df": {**ROW, "small": [1 << 40]}}, "df.small: needs values that fit the declared i32"),
    ({"df": {**ROW, "weight": [1e300]}}, "df.weight: needs values that fit the declared f32"),
    ({"df": ROW, "more": 1}, "body: needs only allow_registry_cache, df"),
]


@pytest.mark.parametrize(("body", "message"), READS, ids=[message for _, message in READS])
def test_refused_reads(running: RunningServer, body: dict[str, Any], message: str) -> None:
    _refused(ask(running, **body), message)


@pytest.mark.parametrize(("body", "message"), PUSHES, ids=[message for _, message in PUSHES])
def test_refused_pushes(running: RunningServer, body: dict[str, Any], message: str) -> None:
    _refused(running.client.post("/push", json={"push_source_name": "songs_push", **body}), message)


def _refused(reply: httpx.Response, message: str) -> None:
    assert reply.status_code == 400, reply.text
    parts = reply.json()
    assert set(parts) == {"error", "code", "where", "required", "got", "do"}
    assert message in parts["error"]


def test_refused_writes(running: RunningServer) -> None:
    for name, message in (("nobody", "feature_view_name: needs one of"), ("listening", "topic")):
        body = {"feature_view_name": name, "df": ROW}
        _refused(running.client.post("/write-to-online-store", json=body), message)


def test_a_service_by_name_names_no_features_of_an_old_plan(running: RunningServer) -> None:
    """The demo's plan here was made by hand: its service says nothing of features."""
    body = {"entities": {"user_id": [USERS[0]]}, "feature_service": "ranking"}
    _refused(ask(running, **body), "got a plan of an older version")


def test_the_name_of_a_view_is_a_push_source_too() -> None:
    (pushed,) = parse_push(
        b'{"push_source_name": "songs", "df": {"song_id": [1], "event_timestamp": ["2026-01-01"]}}',
        PLAN,
        Limits(),
    )
    (rows,) = pushed.parts()
    assert (pushed.view.name, rows.entity_ids.tolist()) == ("songs", [1])
    with pytest.raises(RequestError, match="needs a JSON object, got an empty body"):
        parse_push(b"", PLAN, Limits())


def test_a_large_push_gives_others_their_turn() -> None:
    """Of an entity's rows in several parts the newest rests, of equal times the last; where any row
    is wrong none is written."""
    n, days = 5_000, ("2026-01-01", "2026-01-03", "2026-01-02", "2026-01-03")
    df: dict[str, list[Any]] = {
        "song_id": [*range(n - 4), *[3] * 4],
        "event_timestamp": ["2026-01-02"] * (n - 4) + list(days),
        "fans": [*range(n)],
    }
    view = OnlineView(PLAN.view("songs"), ["fans"])
    keys = view.keys([3])

    async def go() -> None:
        store, turns = AsyncMemoryRowStore(), 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(other())
        wrong = {**df, "fans": [*range(n - 1), "many"]}
        with pytest.raises(RequestError, match=r"df\.fans: needs integers, got a string"):
            await write_pushed(store, _parsed(wrong), 60_000)
        assert not any(await store.read(keys))
        pushed = _parsed(df)
        assert turns > 3
        turns = 0
        await write_pushed(store, pushed, 60_000)
        beside.cancel()
        parts = len([*pushed[0].parts()])
        assert parts > 3
        assert turns >= parts
        rows = view.rows(await store.read(keys), [3], 0)
        assert rows.values["fans"] == [n - 1]
        assert sum(row is not None for row in await store.read(view.keys(range(n)))) == n - 4

    asyncio.run(go())


def _parsed(df: dict[str, Any]) -> list[Pushed]:
    body = json.dumps({"push_source_name": "songs", "df": df}).encode()
    return parse_push(body, PLAN, Limits())


class LosingStore(AsyncMemoryRowStore):
    """Another writer is always first; or the server is gone, or silent."""

    def __init__(self, ends_as: str) -> None:
        super().__init__()
        self.ends_as = ends_as

    async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
        if self.ends_as == "gone":
            raise StoreError("store", required="an answer", got="none")
        if self.ends_as == "silent":
            await asyncio.sleep(60)
        return [False] * len(writes)


@pytest.mark.parametrize(
    ("ends_as", "message"),
    [
        ("gone", "store: needs a confirmation of the rows, got store: needs an answer, got none"),
        ("silent", "store: needs a confirmation of the rows, got none in 50 ms; push again"),
        ("raced", "1 rows that other writers kept changing"),
    ],
)
def test_a_push_that_the_store_does_not_confirm(ends_as: str, message: str) -> None:
    df = {"song_id": [1], "event_timestamp": ["2026-01-01"]}
    body = json.dumps({"push_source_name": "songs", "df": df}).encode()
    pushed = parse_push(body, PLAN, Limits())
    timeout_ms = 50 if ends_as == "silent" else 60_000
    with pytest.raises(RequestError, match=message) as refused:
        asyncio.run(write_pushed(LosingStore(ends_as), pushed, timeout_ms))
    assert refused.value.status == 503


def test_a_store_that_fails_makes_a_read_invalid() -> None:
    query = parse_features(
        b'{"entities": {"song_id": [1, 2]}, "features": ["songs:fans"]}', PLAN, Limits()
    )
    rows = query.rows([], Status.TIMEOUT, 0)["songs"]
    assert rows.values["fans"] == [None, None]
    assert rows.statuses["fans"] == [FieldStatus.INVALID] * 2
