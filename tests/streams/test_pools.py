"""The same tasks here, in local processes and on a Dask cluster: the same rows, and progress."""

from __future__ import annotations

import multiprocessing
import os
import time
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from schemas.errors import HistoryError, SettingsError, StreamError
from store.base import Write
from store.redis_store import RedisRowStore
from streams import filling
from streams.filling import FillTask
from streams.pools import check_cluster, run_tasks
from tests.store.servers import own_server
from tests.streams.support import PARTITIONS, assert_rows_equal_oracle, patient, wait_until
from tests.streams.test_filling import VIEW, all_files, messages, task
from tests.streams.test_folding import Batch


def work(tmp_path: Path) -> tuple[list[FillTask], list[Batch]]:
    """Four tasks of a view that is this test's own, and what their rows are made of."""
    sent = messages(24)
    view = replace(VIEW, name=f"v{uuid.uuid4().hex[:8]}")
    whole = replace(
        task(all_files(tmp_path, sent), dict.fromkeys(range(PARTITIONS), 99)), view=view
    )
    made = [replace(whole, ways=4, way=way) for way in range(4)]
    return made, [batch for batches in sent for batch in batches]


@pytest.mark.parametrize("cores", [1, 2])
def test_local_cores(tmp_path: Path, valkey: str, cores: int) -> None:
    tasks, sent = work(tmp_path)
    seen: list[int] = []
    counts = run_tasks(tasks, valkey, cores, "", seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == sum(task.actions for task in tasks)
    with RedisRowStore(patient(valkey)) as store:
        assert_rows_equal_oracle(store, tasks[0].view, sent)
    again = run_tasks(tasks, valkey, 1, "", seen.append)
    assert (again.rows, again.there) == (0, counts.rows)


def test_what_a_task_raises_comes_back(tmp_path: Path, valkey: str) -> None:
    tasks, _ = work(tmp_path)
    Path(tasks[0].files[0].path).unlink()
    with pytest.raises(StreamError, match="a whole file of the archive") as caught:
        run_tasks(tasks, valkey, 2, "", lambda done: None)
    assert caught.value.parts()["where"] == tasks[0].files[0].path


@pytest.mark.parametrize("cores", [1, 2])
def test_nothing_is_written_in_another_history_of_the_store(
    tmp_path: Path, valkey: str, cores: int
) -> None:
    made, sent = work(tmp_path)
    with RedisRowStore(patient(valkey)) as store:
        begun = store.begin_history()
        elsewhere = [replace(each, store_history="another") for each in made]
        place = f"store of {made[0].view.name}@1, its history"
        where = f"{place}: needs another, in which it was staged, got {begun}"
        with pytest.raises(HistoryError, match=where):
            run_tasks(elsewhere, valkey, cores, "", lambda done: None)
        same = [replace(each, store_history=begun) for each in made]
        counts = run_tasks(same, valkey, cores, "", lambda done: None)
        assert counts.rows and counts.there == 0, "no row was there"
        assert_rows_equal_oracle(store, made[0].view, sent)


def test_a_wipe_while_rows_are_written_shows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLUSHALL breaks no connection; its number may be given again in what comes after."""
    monkeypatch.setattr(filling, "WRITE_ROWS", 3)
    made, _ = work(tmp_path)
    written: list[int] = []

    class Wiped(RedisRowStore):
        """Loses everything under the second batch."""

        def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
            landed = super().compare_and_set(writes)
            written.append(len(writes))
            if len(written) == 2:
                own.run("FLUSHALL")
            return landed

    with own_server(tmp_path) as own, RedisRowStore(patient(own.url)) as store:
        whole = replace(made[0], ways=1, way=0, store_history=store.begin_history())
        with pytest.raises(HistoryError, match="was wiped while the generation was filled"):
            run_tasks([whole], own.url, 1, "", lambda done: None, lambda url: Wiped(patient(url)))
    assert written == [3, 3]


@pytest.mark.parametrize("cores", [1, 2])
def test_what_is_raised_at_a_look_ends_all(tmp_path: Path, valkey: str, cores: int) -> None:
    """An interruption: nobody waits for what would take another hour."""
    tasks, _ = work(tmp_path)
    many, looks = tasks * 25, list[int]()

    def interrupted(done: int) -> None:
        looks.append(done)
        if len(looks) > len(many):  # all are handed over
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks(many, valkey, cores, "", interrupted)
    assert len(looks) == len(many) + 1
    assert not multiprocessing.active_children()


def test_processes_end_with_the_one_that_made_them(tmp_path: Path, valkey: str) -> None:
    tasks, _ = work(tmp_path)
    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()

    def look(done: int) -> None:
        if done:  # they have begun
            told.put([child.pid for child in multiprocessing.active_children()])
            time.sleep(60)

    maker = fork.Process(target=run_tasks, args=(tasks * 500, valkey, 2, "", look))
    maker.start()
    made = [psutil.Process(pid) for pid in told.get()]
    maker.kill()
    maker.join()
    assert made
    wait_until(lambda: not any(running(each) for each in made), 20)


def running(process: psutil.Process) -> bool:
    return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE


class EndsWhoeverReadsIt:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (1,)


def test_a_process_that_dies(tmp_path: Path, valkey: str) -> None:
    tasks, _ = work(tmp_path)
    deadly: Any = EndsWhoeverReadsIt()
    with pytest.raises(StreamError, match="a process that ends it, got BrokenProcessPool"):
        run_tasks([*tasks, replace(tasks[0], bounds=deadly)], valkey, 2, "", lambda done: None)


@pytest.mark.slow
def test_a_dask_cluster(tmp_path: Path, valkey: str) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")
    tasks, sent = work(tmp_path)
    seen: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of distributed's own event loop and ports
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster:
            check_cluster(cluster.scheduler_address)
            counts = run_tasks(tasks, valkey, 1, cluster.scheduler_address, seen.append)
    assert counts.rows > 10
    assert seen[-1] == sum(task.actions for task in tasks)
    with RedisRowStore(patient(valkey)) as store:
        assert_rows_equal_oracle(store, tasks[0].view, sent)


def test_a_cluster_that_is_not_there(tmp_path: Path, valkey: str) -> None:
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(StreamError, match="a scheduler that answers within 10 s"),
    ):
        run_tasks(work(tmp_path)[0], valkey, 1, "nonsense", lambda done: None)


def test_a_cluster_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")
    monkeypatch.setattr("streams.pools.CLUSTER_S", 2)
    with (
        warnings.catch_warnings(action="ignore"),
        distributed.LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as cluster,
        pytest.raises(
            StreamError, match="a scheduler that has workers within 2 s, got WorkerStart"
        ),
    ):
        check_cluster(cluster.scheduler_address)


def test_without_dask_the_extra_is_named(
    tmp_path: Path, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(SettingsError, match="the extra `dask`"):
        run_tasks(work(tmp_path)[0], valkey, 1, "tcp://127.0.0.1:1", lambda done: None)
