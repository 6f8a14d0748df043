"""A project as `encore init` writes it, changed three times under load on a real stack."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog.lock import LOCK_NAME, require_lock
from encore.cli import main
from encore.local import LocalStack, free_port
from encore.ranking import RankClient, RankReply, RankRequest
from encore.settings import Settings
from encore.stack import answers
from encore.starter import create_project
from encore.supervise import Supervisor
from schemas.actions import ACTION, ActionType, decode_batch
from schemas.names import ACTIONS_TOPIC, floors_keys, generation_group
from schemas.plan import Plan
from store.redis_store import AsyncRedisRowStore, RedisRowStore
from streams.generations import parse_floors
from streams.producer import ActionProducer
from streams.replay import find_mark, wait_stored
from tests.patience import WAIT_S
from tests.streams.support import T0, assert_rows_equal_oracle, patient, read_topic, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("stack")]

TICK_MS = 60_000
SONGS = (1, 2, 3, 4, 5, 6)
USERS = 12
VIEW = "user_activity"


@dataclass
class Load:
    """Ticks of requests and actions, one after the other, until told to stop."""

    settings: Settings
    url: str
    replies: list[RankReply] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)
    ticks: int = 0
    failure: BaseException | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            self.failure = error

    async def _run(self) -> None:
        settings, topic = self.settings, ACTIONS_TOPIC
        with ActionProducer(settings.bootstrap, topic, settings.partitions) as producer:
            async with (
                AsyncRedisRowStore(patient(settings.store_url)) as store,
                RankClient(self.url) as client,
            ):
                mark = await find_mark(store, settings.bootstrap, topic, settings.group)
                while not self.stop.is_set():
                    now_ms = T0 + self.ticks * TICK_MS
                    await wait_stored(mark, self.ends, WAIT_S)
                    asked = [request(user, now_ms) for user in range(1, USERS, 3)]
                    self.replies += await asyncio.gather(*map(client.rank, asked))
                    sent = actions(self.ticks, now_ms)
                    self.ends |= await asyncio.to_thread(producer.send, sent, now_ms + TICK_MS)
                    self.ticks += 1
                await wait_stored(mark, self.ends, WAIT_S)

    def go_on(self, ticks: int) -> None:
        """Return once so many more ticks are done."""
        target = self.ticks + ticks
        wait_until(lambda: self.ticks >= target or self.failure is not None, WAIT_S)
        assert self.failure is None, self.failure

    def wait_served(self, version: int) -> None:
        """Until a reply was made by this plan."""
        wait_until(
            lambda: (
                self.failure is not None
                or int(self.replies[-1].parameters["plan_version"]) == version
            ),
            WAIT_S,
        )


def request(user: int, now_ms: int) -> RankRequest:
    return RankRequest(uuid.uuid4(), user, SONGS, now_ms=now_ms, timeout_ms=10_000)


def actions(seed: int, start_ms: int) -> np.ndarray[Any, np.dtype[np.void]]:
    random = np.random.default_rng(seed)
    made = np.zeros(15, ACTION)
    made["user"] = random.integers(1, USERS, len(made))
    made["item"] = random.integers(1, 7, len(made))
    made["type"] = random.choice([ActionType.PLAY, ActionType.CLICK], len(made))
    made["value"] = random.integers(0, 60_000, len(made))
    made["time_ms"] = start_ms + np.sort(random.integers(0, TICK_MS, len(made)))
    return made


@dataclass
class Running:
    """The project, its stack, and commands in this process."""

    project: Path
    settings: Settings
    processes: Supervisor

    def json(self, *arguments: str) -> Any:
        with redirect_stdout(io.StringIO()) as printed:
            assert main([*arguments, "--json"]) == 0, arguments
        return json.loads(printed.getvalue())

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.project / "feature_repo" / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def served(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.settings.http_port}/v2/models/rank"
        with urllib.request.urlopen(url, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)["parameters"]
        return found


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    project = tmp_path / "songs"
    create_project(project)
    with ExitStack() as held:
        servers = held.enter_context(LocalStack(tmp_path / "run"))
        settings = Settings(
            bootstrap=servers.bootstrap,
            store_url=servers.store_url,
            data_dir=project / "data",
            repo=project / "feature_repo",
            http_port=free_port(),
            grpc_port=free_port(),
            allow_now_ms=True,
            partitions=2,
            timeout_ms=10_000,
            store_timeout_ms=10_000,
        )
        for name, value in settings.environment().items():
            monkeypatch.setenv(name, value)
        processes = held.enter_context(Supervisor(tmp_path / "run", settings.environment()))
        yield Running(project, settings, processes)


@contextmanager
def under_load(stack: Running) -> Iterator[Load]:
    load = Load(stack.settings, f"http://127.0.0.1:{stack.settings.http_port}")
    thread = threading.Thread(target=load.run)
    thread.start()
    try:
        yield load
    finally:
        load.stop.set()
        thread.join(WAIT_S)
    assert load.failure is None, load.failure


def added(stack: Running) -> None:
    stack.edit(
        "activity.py",
        '        last_n("last_songs"',
        '        count("plays_7d", "play", WEEK, COUNTS),\n        last_n("last_songs"',
    )
    stack.edit("activity.py", "streamed_view\n", "streamed_view, WEEK\n")


def changed(stack: Running) -> None:
    stack.edit("activity.py", '"plays_1h", "play", HOUR', '"plays_1h", "play", 2 * HOUR')
    stack.edit("songs.py", "hashed(256)", "hashed(128)")


def removed(stack: Running) -> None:
    stack.edit("activity.py", '        count("clicks_1d", "click", DAY, COUNTS),\n', "")


def test_a_feature_added_changed_and_removed_under_load(stack: Running) -> None:
    first = stack.json("apply")
    assert first["difference"]["before"] == 0
    stack.json("load")
    stack.processes.start("stream", ["stream"])
    stack.processes.start("serve", ["serve"], ready=lambda: answers(stack.settings))
    plans = [require_lock(stack.project / "feature_repo" / LOCK_NAME)]
    wanted = [
        (added, {"user_activity.plays_7d": "added"}, ["added"]),
        (changed, {"user_activity.plays_1h": "changed"}, ["changed"]),
        (removed, {"user_activity.clicks_1d": "removed"}, ["removed"]),
    ]
    with under_load(stack) as load:
        load.go_on(5)
        for change, features, slots in wanted:
            change(stack)
            beforehand = stack.json("plan")
            applied = stack.json("apply")
            assert applied["difference"] == beforehand
            plan = require_lock(stack.project / "feature_repo" / LOCK_NAME)
            load.wait_served(plan.version)
            wait_until(partial(folds, stack.settings, plan), WAIT_S)
            assert stack.served()["fingerprint"] == beforehand["services"][0]["after"]
            load.go_on(5)
            assert {each["name"]: each["what"] for each in beforehand["features"]} == features
            assert all(beforehand["services"][0][what] for what in slots)
            views = {each["name"]: each for each in beforehand["views"]}
            assert views[VIEW]["new_generation"]
            assert views[VIEW]["before"] == plans[-1].view(VIEW).generation
            assert views[VIEW]["after"] == plan.view(VIEW).generation
            plans.append(plan)
    assert stack.json("plan")["features"] == []
    check_replies(load.replies)
    assert stack.processes.stop("stream") == 0
    with RedisRowStore(patient(stack.settings.store_url)) as store:
        check_rows(store, stack.settings, plans, load.ends)


def folds(settings: Settings, plan: Plan) -> bool:
    """Whether the worker has taken this plan over: its generation has floors."""
    generation = plan.view(VIEW).generation
    key, _ = floors_keys(ACTIONS_TOPIC, settings.group, VIEW, generation)
    with RedisRowStore(patient(settings.store_url)) as store:
        return store.get_text(key) is not None


def check_replies(replies: list[RankReply]) -> None:
    """Every request was answered, under one plan after the other, and no row was misread."""
    versions = [int(reply.parameters["plan_version"]) for reply in replies]
    assert sorted(set(versions)) == [1, 2, 3, 4]
    assert {reply.degraded for reply in replies} == {"no_model"}
    statuses = {
        part.partition("=")[0] for r in replies for part in r.parameters["statuses"].split(",")
    }
    assert statuses <= {"PRESENT", "NOT_FOUND"}
    assert {tuple(reply.page_ids) for reply in replies} == {SONGS}


def check_rows(
    store: RedisRowStore, settings: Settings, plans: list[Any], ends: dict[int, int]
) -> None:
    """Each generation holds exactly the messages from its floor to its mark, by the slow oracle."""
    total = sum(ends.values())
    records = read_topic(settings.bootstrap, ACTIONS_TOPIC, settings.partitions, total)
    reached: dict[int, int] = dict.fromkeys(range(settings.partitions), 0)
    for plan in plans:
        view = plan.view(VIEW)
        key, _ = floors_keys(ACTIONS_TOPIC, settings.group, VIEW, view.generation)
        floors = {p: at for p, (_, at) in parse_floors(store.get_text(key), key).items()}
        assert floors == reached, "a generation begins where the one before it ended"
        group = generation_group(settings.group, VIEW, view.generation)
        marks = store.get_progress(ACTIONS_TOPIC, group)
        reached = {p: mark.next_offset for p, mark in marks.items()}
        sent = [
            (batch.actions, batch.sent_ms)
            for record in records
            if floors[record.partition] <= record.offset < reached[record.partition]
            for batch in [decode_batch(record.value)]
        ]
        assert len(sent) >= 5
        assert_rows_equal_oracle(store, view, sent)
    assert reached == ends
