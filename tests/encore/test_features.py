"""`encore features list | show | get | watch` and `encore init`, with a plan in a real store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aggregation.fold import fold
from catalog.apply import apply
from encore.cli import main
from encore.describe import all_features, describe, describe_cross
from encore.load import load_views
from encore.settings import Settings
from encore.starter import create_project
from encore.watching import watch
from schemas.actions import ACTION, KNOWN_AUTHOR, ActionType
from schemas.errors import PlanError, SettingsError
from schemas.layout import layout_of
from schemas.names import PLAN_KEY, row_key
from schemas.plan import Plan, dump_plan, load_plan
from schemas.row import empty_rows, encode_rows
from store.base import Write
from store.memory import MemoryRowStore
from store.redis_store import RedisRowStore
from tests.aggregation.plans import demo_plan, small_view
from tests.patience import patient


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `encore init` writes, applied."""
    directory = tmp_path_factory.mktemp("init") / "songs"
    create_project(directory)
    apply(directory / "feature_repo")
    return directory


@pytest.fixture(scope="module")
def plan(project: Path) -> Plan:
    return load_plan((project / "feature_repo" / "plan.lock.json").read_text())


@pytest.fixture
def connected(
    valkey: str, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A store, and no broker."""
    monkeypatch.setenv("ENCORE_STORE_URL", valkey)
    monkeypatch.setenv("ENCORE_DATA_DIR", str(tmp_path))
    with RedisRowStore(patient(valkey)) as store:
        store.put_text(PLAN_KEY, dump_plan(plan))
    yield


def test_a_new_project_compiles_and_its_source_loads(project: Path, plan: Plan) -> None:
    assert [f"{view.name}@{view.generation}" for view in plan.views] == [
        "songs@1",
        "user_activity@1",
    ]
    store = MemoryRowStore()
    store.put_text(PLAN_KEY, dump_plan(plan))
    settings = Settings(data_dir=project / "data", repo=project / "feature_repo")
    (done,) = load_views(settings, store)
    assert (done.view, done.read, done.written) == ("songs", 6, 6)


def test_init_writes_into_new_or_empty_directories_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "new")]) == 0
    written = capsys.readouterr().out.splitlines()
    assert all(Path(line).is_file() for line in written)
    assert len(written) == 8
    assert main(["init", str(tmp_path / "new")]) == 1
    error = capsys.readouterr().err
    assert "needs a directory that is new or empty, got one that holds something" in error
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="new or empty, got a file; name another"):
        create_project(tmp_path / "file")


def test_list_names_every_feature(connected: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "list", "--json"]) == 0
    found = {
        f"{each['view']}.{each['feature']}": each for each in json.loads(capsys.readouterr().out)
    }
    assert found["user_activity.plays_1h"]["of"] == "count of play, 1 h in hops of 5 min"
    assert found["user_activity.last_songs"]["of"] == "newest 20 of play.item"
    assert found["songs.artist_id"]["services"] == ["ranking"]
    assert main(["features", "list", "--view", "songs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["feature", "rows", "type", "services", "of"]
    assert all(line.startswith("songs.") for line in lines[1:])


def test_show_tells_where_a_feature_rests_and_who_uses_it(
    connected: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["features", "show", "last_songs"]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["feature"] == "user_activity.last_songs"
    assert facts["rows"].startswith("user_activity@1:{user_id}, of the user")
    assert "table songs__song_id" in facts["slot"]
    assert main(["features", "show", "user_activity.plays_1h", "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["slots"][0]["side"] == "user"
    assert len(page["stored"]) == 2, "the ring and its head"


def test_show_tells_of_crosses(
    valkey: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = demo_plan()
    monkeypatch.setenv("ENCORE_STORE_URL", valkey)
    monkeypatch.setenv("ENCORE_BOOTSTRAP", "127.0.0.1:9")
    with RedisRowStore(patient(valkey)) as store:
        store.put_text(PLAN_KEY, dump_plan(plan))
    assert main(["features", "show", "videos_item"]) == 0
    told = capsys.readouterr().out
    assert "watched_at  position(user_activity:videos_item, videos:video_id)" in told
    assert main(["features", "show", "ranking.click_rate"]) == 0
    told = capsys.readouterr().out
    assert "user_activity:impression_7d, prior=0.3, weight=10)" in told
    assert "of the user: boundaries of 6 ids, table click_rate" in told
    assert main(["features", "show", "watched", "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert (page["service"], page["scope"]) == ("ranking", "pair")
    twice = replace(plan, services=(*plan.services, replace(plan.services[0], name="again")))
    with pytest.raises(PlanError, match=r"needs one of ranking\.watched, again\.watched.*service"):
        describe_cross(twice, "watched")
    read_by_crosses_alone = next(each for each in all_features(plan) if each.feature == "friends")
    assert read_by_crosses_alone.services == ("ranking",)


def test_a_recent_is_shown_by_its_columns() -> None:
    """Its name is declared, but no feature has it."""
    columns = r"user_activity\.videos_item, "
    for name in ("videos", "user_activity.videos"):
        with pytest.raises(PlanError, match=f"needs one of its columns, {columns}.*got '{name}'"):
            describe(demo_plan(), name)


def test_what_is_not_known_is_refused(plan: Plan) -> None:
    with pytest.raises(
        PlanError, match=r"features\.show: needs a published feature, got 'nothing'; see"
    ):
        describe(plan, "nothing")
    twice = replace(plan, views=(*plan.views, replace(plan.views[0], name="again")), services=())
    with pytest.raises(PlanError, match=r"needs one of songs\.genre, again\.genre.*view\.feature"):
        describe(twice, "genre")
    with pytest.raises(PlanError, match=r"plan\.views: needs one of songs, user_activity"):
        all_features(plan, "nothing")


@pytest.mark.parametrize("words", [["get", "user_id=77"], ["user_id=77"], ["--json", "user_id=77"]])
def test_get_may_be_left_out(
    connected: None, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["features", *words]) == 0
    assert "plays_1h" in capsys.readouterr().out


def test_what_the_edge_did_not_know_is_shown_as_unknown(
    valkey: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    view = small_view()
    clicks = np.zeros(2, ACTION)
    clicks["type"], clicks["user"], clicks["item"] = ActionType.CLICK, 5, (8, 9)
    clicks["time_ms"] = 1_650_800_000_000 + np.array([0, 1])
    clicks["author"][0], clicks["known"][0] = 70, KNOWN_AUTHOR
    rows = empty_rows(layout_of(view), np.array([5]))
    fold(view, rows, np.zeros(2, np.intp), clicks, clicks["time_ms"])
    monkeypatch.setenv("ENCORE_STORE_URL", valkey)
    monkeypatch.setenv("ENCORE_BOOTSTRAP", "127.0.0.1:9")
    with RedisRowStore(patient(valkey)) as store:
        store.put_text(PLAN_KEY, dump_plan(Plan(1, 0, (view,), ())))
        store.compare_and_set(
            [Write(row_key(view.name, 1, 5), None, encode_rows(layout_of(view), rows)[0])]
        )
    words = ["features", "get", f"{view.join_keys[0]}=5", "--now-ms", "1650800000500"]
    assert main([*words, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["views"][0]["values"]
    assert values["clicks_item"] == [9, 8]
    assert values["clicks_author"] == [None, 70]
    assert values["clicks_tag"] == [None, None]
    assert main(words) == 0
    table = capsys.readouterr().out.splitlines()
    assert any(
        line.split() == ["small", "clicks_author", "[-,", "70]", "PRESENT"] for line in table
    )


def test_watch_shows_all_then_what_changes(plan: Plan) -> None:
    store = MemoryRowStore()
    store.put_text(PLAN_KEY, dump_plan(plan))
    times = iter((1_000, 2_000, 3_000, 4_000))
    looks = watch(store, {"song_id": 3}, None, lambda: next(times))
    assert {each.feature for each in next(looks)} == {
        f"songs.{feature.name}" for feature in plan.view("songs").features
    }
    assert next(looks) == []
    view = plan.view("songs")
    rows = empty_rows(layout_of(view), np.array([3]))
    rows.values["artist_id"][0] = 12
    rows.present["artist_id"][0] = True
    store.compare_and_set(
        [Write(row_key("songs", 1, 3), None, encode_rows(layout_of(view), rows)[0])]
    )
    (found,) = next(looks)
    assert (found.time_ms, found.feature) == (3_000, "songs.artist_id")
    assert (found.before, found.after) == (None, 12)


def test_watch_ends_after_its_looks(connected: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["watch", "user_id=77", "--looks", "2", "--every", "0.05"]
    assert main(["features", *words, "--json"]) == 0
    seen = [json.loads(line)["feature"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(seen) == [
        f"user_activity.{name}" for name in ("clicks_1d", "last_songs", "plays_1h")
    ], "nothing changed at the second look"
    assert main(["features", *words]) == 0
    assert "  user_activity.plays_1h  0" in capsys.readouterr().out
