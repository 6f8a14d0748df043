"""`encore up` and the commands beside it: declarations, rows, actions, pages, archive, and its end.

One stack serves the whole module; its tests run in order.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from aggregation.program import ServiceProgram
from audit.join import JoinQuery, LogPaths, join_log
from audit.rebuild import rebuild
from encore.demo_live import rank_during_swap, wait_archived
from encore.kuairand import Timeline, load_timeline
from encore.ranking import RankClient, RankReply, RankRequest
from encore.replay import first_ticks
from encore.settings import Settings
from encore.stack_file import StackFile, running_stack
from predictor.spec import Kind
from schemas.actions import ActionType
from schemas.errors import RequestError
from schemas.plan import load_plan
from tests.encore.terminal import hear_interrupts
from training.assess import load_models

ROOT = Path(__file__).parents[2]
KUAIRAND = ROOT / "examples" / "kuairand"
#: Seven processes import torch, Feast and Faust: seconds of an idle core, minutes of a busy one.
READY_S = 300.0
TICKS = 40

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("stack")]


class Up:
    """An `encore up` in a process of its own, and commands beside it.

    answered: rank requests sent so far. packages: what was trained.
    """

    packages: Mapping[Kind, Path]

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        given = {key: value for key, value in os.environ.items() if not key.startswith("ENCORE_")}
        settings = Settings(
            data_dir=data_dir,
            repo=ROOT / "feature_repo",
            http_port=0,
            allow_now_ms=True,
            timeout_ms=10_000,
            store_timeout_ms=10_000,
            sink_roll_ms=1_000,
        )
        self.settings = settings
        self.answered = 0
        self.environment = {**given, **settings.environment()}
        self.process = subprocess.Popen(
            self._command("up"),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=hear_interrupts,
        )

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "encore", *arguments]

    def wait(self, *, serving: bool) -> StackFile:
        """The stack file, once it is there (and names a service)."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            stack = running_stack(self.data_dir / "run")
            if stack is not None and (stack.url or not serving):
                return stack
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.02)
        raise AssertionError("encore up was not ready in time")

    def run(self, *arguments: str, code: int = 0) -> str:
        """What a command prints on stdout; it must end with `code`."""
        ended = subprocess.run(
            self._command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout if code == 0 else ended.stderr

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))

    def family(self) -> list[psutil.Process]:
        children: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return children

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    stack = Up(tmp_path_factory.mktemp("up") / "data")
    try:
        stack.wait(serving=True)
        yield stack
    finally:
        stack.close()


def rank(url: str, *requests: RankRequest) -> list[RankReply]:
    async def run() -> list[RankReply]:
        async with RankClient(url, concurrency=4) as client:
            return await asyncio.gather(*(client.rank(request) for request in requests))

    return asyncio.run(run())


def test_doctor_finds_everything_running(up: Up) -> None:
    checks = {check["name"]: check for check in up.json("doctor")}
    assert {name for name, check in checks.items() if check["state"] not in ("ok", "skip")} == set()
    assert up.wait(serving=True).url.endswith(checks["http port"]["found"].split()[0])
    assert checks["plan"]["state"] == checks["broker"]["state"] == checks["store"]["state"] == "ok"


def test_nothing_to_learn_from_is_said(up: Up) -> None:
    assert "needs Parquet files, got none" in up.run("train", "--no-publish", code=1)


def test_batch_rows_are_loaded_once(up: Up) -> None:
    first = {view["view"]: view for view in up.json("load", "--kuairand", str(KUAIRAND))}
    assert first["users"]["written"] == first["users"]["read"] > 27_000
    again = {view["view"]: view for view in up.json("load", "--view", "users")}
    assert list(again) == ["users"]
    assert (again["users"]["written"], again["users"]["equal"]) == (0, first["users"]["read"])


def test_replay_folds_ranks_and_logs(up: Up) -> None:
    file = str(KUAIRAND / "interactions.parquet")
    report = up.json("replay", file, "--ticks", str(TICKS), "--share", "0.2")
    assert report["actions"] > 1_000
    assert sum(report["replies"].values()) == report["requests"] > 50
    assert set(report["replies"]) == {"no_model"}, "no models yet, and nothing else is missing"
    up.answered += report["requests"]


def test_features_show_what_was_folded(up: Up) -> None:
    actions = pq.read_table(KUAIRAND / "interactions.parquet", columns=["user_id", "time_ms"])
    begin = actions["time_ms"].to_numpy().min()
    user = int(actions["user_id"].to_numpy()[actions["time_ms"].to_numpy().argmin()])
    ids, clock = f"user_id={user}", str(int(begin) + 1_000)
    views = up.json("features", ids, "--view", "user_activity", "--now-ms", clock)["views"]
    assert views[0]["status"] == "PRESENT"
    assert views[0]["values"]["impressions_1h"] >= 1
    later = str(int(begin) + 30 * 86_400_000)
    faded = up.json("features", ids, "--view", "user_activity", "--now-ms", later)["views"]
    assert faded[0]["values"]["impressions_1h"] == 0, "a window falls while nothing happens"


def test_a_videos_windows_hold_what_everybody_did(up: Up) -> None:
    actions = replayed().actions
    shown = actions["item"][actions["type"] == ActionType.IMPRESSION]
    videos, counts = np.unique(shown, return_counts=True)
    video, clock = int(videos[counts.argmax()]), str(int(actions["time_ms"].max()))
    views = up.json("features", f"video_id={video}", "--view", "video_activity", "--now-ms", clock)
    values = views["views"][0]["values"]
    assert values["impressions_7d"] == counts.max() > 1
    assert values["plays_7d"] <= values["impressions_7d"]


def test_the_service_answers_and_refuses(up: Up) -> None:
    url = up.wait(serving=True).url
    request = RankRequest(uuid.uuid4(), user_id=1, candidate_ids=(5, 6, 7), page_size=2)
    reply = rank(url, request)[0]
    up.answered += 1
    assert reply.request_id == request.request_id
    assert reply.page_ids == [5, 6], "the caller's order, without models"
    with pytest.raises(RequestError, match="each candidate once") as refused:
        rank(url, RankRequest(uuid.uuid4(), user_id=1, candidate_ids=(5, 5)))
    assert refused.value.status == 400


def test_candidates_come_from_the_item_cache(up: Up) -> None:
    """`encore serve` started the process that keeps it; aggregates are not logged."""
    url = up.wait(serving=True).url
    videos = tuple(np.unique(replayed().actions["item"])[:50].tolist())

    async def asked() -> int:
        async with RankClient(url) as client:
            await client.shapes(RankRequest(uuid.uuid4(), user_id=1, candidate_ids=videos))
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as page:
            lines = page.read().decode().splitlines()
        name = 'encore_cache_items_total{result="hit"} '
        return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))

    deadline = time.monotonic() + READY_S
    while asyncio.run(asked()) < len(videos):
        assert time.monotonic() < deadline, "no cache was live"
        time.sleep(0.05)


def test_what_is_learnt_from_the_log_serves_without_a_failed_request(up: Up) -> None:
    """The newest request has today's clock, so the hour that says when to stop holds nothing: the
    packages come without an AUC."""
    wait_archived(up.settings, up.answered, lambda _: None)
    trained = up.json("train", "--validation-ms", str(3_600_000))
    assert trained["examples"] > 50
    assert trained["requests"] == up.answered
    packages: dict[Kind, Path] = {kind: Path(path) for kind, path in trained["packages"].items()}
    pages = replayed().pages
    kinds: tuple[Kind, ...] = ("fine", "two_tower")
    wanted = {kind: packages[kind].name for kind in kinds}
    url = up.wait(serving=True).url
    swap = rank_during_swap(url, pages, wanted, lambda done, total: None)
    assert swap.answered >= 1
    page = pages[-1]
    again = RankRequest(
        uuid.uuid4(), page.user_id, tuple(page.candidates.tolist()), now_ms=page.time_ms
    )
    reply = rank(url, again)[0]
    assert reply.degraded == ""
    assert reply.outputs["page_scores"] == sorted(reply.outputs["page_scores"], reverse=True)
    up.answered += swap.answered + 1
    up.packages = packages


def test_one_stack_a_directory(up: Up) -> None:
    assert "where a stack is running" in up.run("up", code=1)


def test_unknown_entities_are_refused(up: Up) -> None:
    assert "needs one of user_id, video_id" in up.run("features", "song_id=1", code=1)


def test_interrupt_drains_everything_and_leaves_nothing(up: Up) -> None:
    family = up.family()
    assert len(family) >= 6
    up.process.send_signal(signal.SIGINT)
    output, _ = up.process.communicate(timeout=180)
    assert up.process.returncode == 0, output
    assert output.rstrip().endswith("stopped")
    assert not [process for process in family if process.is_running()]
    assert running_stack(up.data_dir / "run") is None


def test_the_archive_holds_every_action_and_request(up: Up) -> None:
    """After the drain: what the replay sent is in Parquet, once."""
    archive = up.data_dir / "archive"
    topics = [archive / name for name in ("actions", "actions.by-item")]
    held = [sum(pq.read_metadata(f).num_rows for f in t.rglob("*.parquet")) for t in topics]
    requests = pq.ParquetDataset(
        sorted((archive / "rank-log" / "requests").rglob("*.parquet"))
    ).read(columns=["request_id"])
    assert held == [len(replayed().actions)] * 2
    assert requests.num_rows == len(set(requests["request_id"].to_pylist())) == up.answered


def test_what_the_models_saw_is_rebuilt_from_the_archive(up: Up) -> None:
    """Tensors from logged values, scores from tensors: as served, for every request."""
    plan = load_plan((ROOT / "feature_repo" / "plan.lock.json").read_text())
    program = ServiceProgram(plan, "ranking")
    log = join_log(LogPaths.under(up.data_dir), JoinQuery("ranking", program.service.fingerprint))
    models = load_models(program, up.packages)
    report = rebuild(log, program, list(models.values()))
    assert report.requests == up.answered
    assert report.values > 0, "some requests were ranked by the packages"
    assert report.mismatches == ()


@cache
def replayed() -> Timeline:
    """The part of the log that the module replays."""
    return first_ticks(load_timeline(KUAIRAND, 0.2, 0.5), TICKS)


@pytest.mark.kill
def test_kill_9_leaves_no_process(tmp_path: Path) -> None:
    stack = Up(tmp_path / "data")
    try:
        stack.wait(serving=False)
        family = stack.family()
        assert len(family) >= 2
        stack.process.kill()
        stack.process.wait()
        deadline = time.monotonic() + 60
        while [process for process in family if process.is_running()]:
            assert time.monotonic() < deadline, "a process outlived `encore up`"
            time.sleep(0.02)
    finally:
        stack.close()
