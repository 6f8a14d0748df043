"""`encore backfill` and `encore rebuild` on a real stack: a feature added and filled under load."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog.lock import LOCK_NAME, require_lock
from catalog.publish import staged
from catalog.staging import mark_filled, stage
from encore.backfilling import BackfillResult, Options, run_backfill
from encore.cli import main
from encore.settings import Settings
from encore.stack import answers
from encore.wiring import ensure_topics, stream_config
from schemas.actions import ACTION, ActionType, decode_batch
from schemas.errors import HistoryError, PlanError, StoreError
from schemas.names import ACTIONS_TOPIC, STAGED_KEY, row_keys
from schemas.plan import ViewPlan
from schemas.row import read_fence
from schemas.staged import Staged, load_staged
from store.redis_store import RedisRowStore
from streams.backfill import BackfillConfig
from streams.producer import ActionProducer
from tests.encore.test_evolution import TICK_MS, VIEW, Load, Running, actions, added, under_load
from tests.encore.test_evolution import stack as stack
from tests.patience import WAIT_S
from tests.store.servers import OwnServer, own_server
from tests.streams.support import (
    T0,
    assert_rows_equal_oracle,
    patient,
    read_topic,
    send_all,
    wait_until,
)
from tests.streams.test_item_worker import assert_item_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("stack")]

ITEM_VIEW = "song_activity"
ITEM_DECLARATION = f'''

{ITEM_VIEW} = streamed_view(
    "{ITEM_VIEW}",
    song,
    actions_by_item("actions"),
    [
        count("plays_1h", "play", HOUR, COUNTS),
        last_n("last_users", "click.user", 5),
    ],
)
'''


def declare_items(stack: Running) -> None:
    path = stack.project / "feature_repo" / "activity.py"
    path.write_text(path.read_text() + ITEM_DECLARATION)
    stack.edit("activity.py", "import user\n", "import song, user\n")
    stack.edit(
        "activity.py", "import DAY, HOUR, actions,", "import DAY, HOUR, actions, actions_by_item,"
    )
    stack.edit("services.py", "import user_activity", "import song_activity, user_activity")
    stack.edit(
        "services.py",
        "[user_activity, songs]",
        "[user_activity, songs, song_activity[['plays_1h']]]",
    )


def start(stack: Running) -> None:
    stack.json("apply")
    stack.json("load")
    for name in ("stream", "items", "sink"):
        stack.processes.start(name, [name])
    stack.processes.start("serve", ["serve"], ready=lambda: answers(stack.settings))


def wait_begun(stack: Running) -> None:
    """Until both workers have stored rows: what lies before a floor is then not nothing."""
    keys = {name: row_keys(name, 1, list(range(1, 90))) for name in (VIEW, ITEM_VIEW)}
    with RedisRowStore(patient(stack.settings.store_url)) as store:
        wait_until(lambda: all(any(store.read(each)) for each in keys.values()), WAIT_S)


def log_of(stack: Running, load: Load) -> list[tuple[Any, int]]:
    """All that was sent, as (actions, sent_ms)."""
    total = sum(load.ends.values())
    partitions = stack.settings.partitions
    records = read_topic(stack.settings.bootstrap, ACTIONS_TOPIC, partitions, total)
    batches = [decode_batch(record.value) for record in records]
    return [(batch.actions, batch.sent_ms) for batch in batches]


def plan_view(stack: Running, name: str) -> ViewPlan:
    return require_lock(stack.project / "feature_repo" / LOCK_NAME).view(name)


def caught_up(stack: Running, store: RedisRowStore, sent: Sequence[tuple[Any, int]]) -> None:
    """Until the rows hold all that was sent; then to the last byte, by the slow oracle."""

    def equal() -> bool:
        try:
            assert_rows_equal_oracle(store, plan_view(stack, VIEW), sent)
            assert_item_rows(store, plan_view(stack, ITEM_VIEW), sent)
        except AssertionError:
            return False
        return True

    wait_until(equal, WAIT_S)
    assert_rows_equal_oracle(store, plan_view(stack, VIEW), sent)
    assert_item_rows(store, plan_view(stack, ITEM_VIEW), sent)


def test_a_feature_added_and_filled_under_load(stack: Running) -> None:
    """Rows hold the whole history, backfilled and streamed; readers switch at once."""
    declare_items(stack)
    start(stack)
    with under_load(stack) as load:
        load.go_on(8)
        wait_begun(stack)
        added(stack)
        stack.edit(
            "activity.py",
            '"plays_1h", "play", HOUR, COUNTS),\n        last_n("last_users"',
            '"plays_1h", "play", 2 * HOUR, COUNTS),\n        last_n("last_users"',
        )
        done = stack.json("backfill", VIEW, ITEM_VIEW, "--cores", "2")
        load.wait_served(done["version"])
        load.go_on(3)
        rebuilt = stack.json("rebuild", ITEM_VIEW, VIEW, "--cores", "1")
        load.wait_served(rebuilt["version"])
        load.go_on(3)
    fills = {fill["view"]: fill for fill in done["fills"]}
    assert {name: fill["generation"] for name, fill in fills.items()} == {VIEW: 2, ITEM_VIEW: 2}
    assert all(fill["counts"]["rows"] > 0 and fill["missing"] == 0 for fill in fills.values())
    assert {plan_view(stack, name).generation for name in fills} == {3}
    assert {reply.degraded for reply in load.replies} == {"no_model"}
    statuses = {
        part.partition("=")[0]
        for reply in load.replies
        for part in reply.parameters["statuses"].split(",")
    }
    assert statuses <= {"PRESENT", "NOT_FOUND"}
    sent = log_of(stack, load)
    with RedisRowStore(patient(stack.settings.store_url)) as store:
        caught_up(stack, store, sent)
        assert stack.processes.stop("stream") == 0
        assert stack.processes.stop("items") == 0
    assert stack.json("plan")["features"] == []
    assert stack.json("backfill", "--cancel") == {"given_up": {}, "state": "none"}


def test_what_is_refused_and_given_up(stack: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """Without workers and without anything in the log: the staging alone."""
    stack.json("apply")
    assert main(["rebuild", "songs"]) == 1
    assert "needs a streamed view, one of user_activity, got 'songs'" in capsys.readouterr().err
    added(stack)
    assert main(["rebuild", VIEW]) == 1
    assert "declarations as they are published, got others" in capsys.readouterr().err
    with warnings.catch_warnings(action="ignore"):  # of distributed, which cannot connect
        assert main(["backfill", VIEW, "--dask", "nonsense"]) == 1
    assert "dask nonsense: needs a scheduler that answers" in capsys.readouterr().err
    bad = Path(stack.settings.data_dir) / "bad.jsonl"
    bad.write_text('{"user": 3, "item": 1, "type": "plaid", "time_ms": 5}')
    assert main(["backfill", VIEW, "--history", str(bad)]) == 1
    assert "bad.jsonl" in capsys.readouterr().err
    assert stack.json("backfill", "--cancel") == {"given_up": {}, "state": "none"}, "none staged"
    done = stack.json("backfill", VIEW, "--cores", "1")
    assert (done["version"], done["resumed"]) == (2, False)
    assert plan_view(stack, VIEW).generation == 2
    with RedisRowStore(patient(stack.settings.store_url)) as store:
        raw = store.read(row_keys(VIEW, 2, np.arange(5).tolist()))
    assert [read_fence(row) for row in raw] == [None] * 5
    old = Path(stack.settings.data_dir) / "old.jsonl"
    old.write_text(json.dumps({"user": 3, "item": 1, "type": "play", "time_ms": T0}))
    again = stack.json("rebuild", VIEW, "--history", str(old), "--before-ms", str(T0 + 1))
    assert [fill["foreign"]["taken"] for fill in again["fills"]] == [1]
    with RedisRowStore(patient(stack.settings.store_url)) as store:
        assert store.read(row_keys(VIEW, 3, [3])) != [None]
    capsys.readouterr()
    assert main(["rebuild", VIEW]) == 1
    assert f"{VIEW}.history: needs --history, which {VIEW}@3" in capsys.readouterr().err
    assert plan_view(stack, VIEW).generation == 3
    stack.json("rebuild", VIEW, "--without-history")
    with RedisRowStore(patient(stack.settings.store_url)) as store:
        assert store.read(row_keys(VIEW, 4, [3])) == [None]


class CrashError(Exception):
    """The process ends here, at no point of its own choosing."""


#: Nothing filled; some rows written; all written; marked filled; caught up; published.
CRASHES = (
    *("encore.backfilling.fill_view", "streams.filling._check_same"),
    *("encore.backfilling.mark_filled", "encore.backfilling.wait_caught_up"),
    *("encore.backfilling.switch", "catalog.staging.end"),
)


def test_two_at_once_on_one_machine(
    stack: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second changes nothing; the first goes on, and a later one is let in."""
    stack.json("apply")
    second: list[int] = []

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        second.append(main(["backfill", VIEW]))
        return stage(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr("encore.backfilling.stage", meanwhile)
        patched.setattr("encore.backfilling.wait_caught_up", crash)
        with pytest.raises(CrashError):
            main(["backfill", VIEW])
    assert second == [1]
    assert "needs one backfill at a time" in capsys.readouterr().err
    with RedisRowStore(patient(stack.settings.store_url)) as store:
        assert staged(store).views == {VIEW: 2}
    stack.json("backfill", "--cancel")


def crash(*_: Any, **__: Any) -> Any:
    raise CrashError


def test_interrupted_anywhere_it_goes_on_when_run_again(
    stack: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a worker beside it and history from before the log; each action counts once."""
    settings = stack.settings
    sent: list[tuple[Any, int]] = []
    stack.json("apply")
    ensure_topics(settings)
    stack.processes.start("stream", ["stream"])
    lines = [
        {"user": user, "item": 1, "type": kind, "time_ms": T0 - 60_000 + user}
        for user in range(1, 90)
        for kind in ("play", "click")
    ]
    lines.append({"user": 1, "item": 1, "type": "play", "time_ms": T0 + TICK_MS})
    (tmp_path / "old.jsonl").write_text("\n".join(map(json.dumps, lines)))
    added(stack)
    config = BackfillConfig(stream_config(settings), foreign=(tmp_path / "old.jsonl",))
    with ActionProducer(settings.bootstrap, ACTIONS_TOPIC, settings.partitions) as producer:

        def tick() -> dict[int, int]:
            sent.append(
                (actions(len(sent), T0 + len(sent) * TICK_MS), T0 + (len(sent) + 1) * TICK_MS)
            )
            return producer.send(*sent[-1])

        def run() -> BackfillResult:
            return run_backfill(settings, config, Options((VIEW,)), lambda *_: None)

        wait_folded(settings, [tick() for _ in range(6)][-1])
        for place in CRASHES:
            with monkeypatch.context() as patch:
                patch.setattr(place, crash)
                with pytest.raises(CrashError):
                    run()
            tick()
        for other in (replace(config, foreign=()), replace(config, before_ms=T0)):
            with pytest.raises(PlanError, match="the --history it was begun with: 1 file of"):
                run_backfill(settings, other, Options((VIEW,)), lambda *_: None)
        done = run()
        ends = tick()
    wait_folded(settings, ends)
    assert (done.resumed, done.fills) == (True, ())
    view = plan_view(stack, VIEW)
    assert view.generation == 2
    kinds = {"play": ActionType.PLAY, "click": ActionType.CLICK}
    old = np.zeros(len(lines) - 1, ACTION)
    for name in ("user", "item", "time_ms"):
        old[name] = [line[name] for line in lines[:-1]]
    old["type"] = [kinds[str(line["type"])] for line in lines[:-1]]
    with RedisRowStore(patient(settings.store_url)) as store:
        assert_rows_equal_oracle(store, view, [(old, T0), *sent])


def test_a_crash_that_takes_back_filled_is_no_wait_in_vain(
    stack: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store dies right after the staging was marked filled, and its disk never heard of it."""
    with own_server(tmp_path / "own") as own:
        settings = stack.settings.model_copy(update={"store_url": own.url})
        monkeypatch.setenv("ENCORE_STORE_URL", own.url)
        stack.json("apply")
        ensure_topics(settings)
        added(stack)
        sent = [(actions(seed, T0), T0 + TICK_MS) for seed in range(4)]
        with ActionProducer(settings.bootstrap, ACTIONS_TOPIC, settings.partitions) as producer:
            ends = send_all(producer, sent)
        marks = {partition: (1, end, 0) for partition, end in ends.items()}
        with RedisRowStore(patient(own.url)) as store:  # where a worker would stand
            store.put_progress(ACTIONS_TOPIC, settings.group, marks)
        config = BackfillConfig(stream_config(settings))

        def run() -> BackfillResult:
            return run_backfill(settings, config, Options((VIEW,)), lambda *_: None)

        with monkeypatch.context() as patch:
            patch.setattr("encore.backfilling.mark_filled", partial(marked_and_lost, own))
            with pytest.raises((HistoryError, StoreError)):
                run()
        with RedisRowStore(patient(own.url)) as store:
            assert load_staged(store.get_text(STAGED_KEY), "staged").state == "filling"
            done = run()
            assert done.resumed
            assert [(fill.counts.rows, fill.counts.there > 0) for fill in done.fills] == [(0, True)]
            assert_rows_equal_oracle(store, plan_view(stack, VIEW), sent)


def marked_and_lost(own: OwnServer, store: RedisRowStore, now: Staged) -> Staged:
    """As `mark_filled`, of which a loss of power leaves nothing in the store's file."""
    own.run("CONFIG", "SET", "appendfsync", "no")
    (file,) = own.directory.glob("store/appendonlydir/*.incr.aof")
    kept = file.stat().st_size
    filled = mark_filled(store, now)
    own.kill()
    os.truncate(file, kept)
    own.restart()
    return filled


def wait_folded(settings: Settings, ends: dict[int, int]) -> None:
    """Until the worker's marks reach these offsets."""

    def there() -> bool:
        marks = store.get_progress(ACTIONS_TOPIC, settings.group)
        return all(p in marks and marks[p].next_offset >= end for p, end in ends.items())

    with RedisRowStore(patient(settings.store_url)) as store:
        wait_until(there, WAIT_S)
