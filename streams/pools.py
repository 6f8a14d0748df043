"""Where the tasks of a backfill run: in this process, on local cores, or on a Dask cluster.

A task is plain data, and opens the store and the files itself: both must be reachable by the same
URL and the same paths from wherever it runs.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from typing import Any, Final

from schemas.errors import EncoreError, SettingsError, StreamError
from store.base import RowStore
from streams.filling import FillCounts, FillTask, fill
from streams.servers import open_rows

LOOK_S: Final = 0.2
#: How long a cluster may take to answer.
CLUSTER_S: Final = 10

#: Told how many actions are done, every so often: what it raises ends all tasks.
Done = Callable[[int], None]

#: In a process of a pool: what all processes of it count up together.
_counter: list[Any] = []


def run_tasks(
    tasks: Sequence[FillTask],
    store_url: str,
    cores: int,
    dask: str,
    done: Done,
    opened: Callable[[str], RowStore] = open_rows,
) -> FillCounts:
    """Run all tasks. Blocking.

    cores: local processes; 1 runs them in this one, with the store that `opened` opens. dask:
    address of a scheduler, "" for none.
    Raises what a task or `done` raised; local processes are killed then, and a cluster goes on with
    what it has begun. SettingsError without Dask; HistoryError where the store is in another
    history than a task's.
    """
    counts = FillCounts()
    if dask or cores > 1:
        with _executor(cores, dask) as (executor, counter):
            for each in _completed(executor, tasks, store_url, counter, done):
                counts.add(each)
        return counts
    total = 0

    def note(actions: int) -> None:
        nonlocal total
        total += actions
        done(total)

    for task in tasks:
        counts.add(_run(task, opened(store_url), note))
    return counts


def check_cluster(dask: str) -> None:
    """Raises SettingsError without Dask, StreamError where the cluster cannot be used."""
    with _executor(1, dask):
        return


def _run(task: FillTask, store: RowStore, note: Done) -> FillCounts:
    try:
        return fill(task, store, note)
    finally:
        store.close()


def _completed(
    executor: Executor, tasks: Sequence[FillTask], store_url: str, counter: Any, done: Done
) -> Iterator[FillCounts]:
    """The tasks' counts as they end. Without a counter, progress is by whole tasks."""
    waiting: dict[Future[FillCounts], FillTask] = {}
    with _unheard():
        for task in tasks:
            done(0)  # to hand over many takes a while, too
            waiting[executor.submit(_in_pool, task, store_url)] = task
    finished = 0
    while waiting:
        ended, _ = wait(waiting, LOOK_S, FIRST_COMPLETED)
        finished += sum(waiting.pop(future).actions for future in ended)
        done(finished if counter is None else int(counter.value))
        yield from (_result(future) for future in ended)


@contextmanager
def _unheard() -> Iterator[None]:
    """Processes started within hear no Ctrl-C and no end of the terminal: both are sent to all that
    it started, and this process tells the others. The calling thread hears them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _result(future: Future[FillCounts]) -> FillCounts:
    """What a task counted. Raises what it raised, StreamError where its process is gone."""
    try:
        return future.result()
    except EncoreError:
        raise
    except Exception as error:
        raise StreamError(
            "a task of the backfill",
            required="a process that ends it",
            got=f"{type(error).__name__}: {error}",
            do="give it less with --cores or --memory-mb, then run it again: it goes on",
        ) from error


def _in_pool(task: FillTask, store_url: str) -> FillCounts:
    """In a process of a pool, whose counter is told, or of a cluster."""
    return _run(task, open_rows(store_url), _count_up)


def _count_up(actions: int) -> None:
    for counter in _counter:
        with counter.get_lock():
            counter.value += actions


def _begin(counter: Any) -> None:
    """In a new process of the pool. It ends with the process that made it, by whatever that ends:
    nobody else would give it an end."""
    _counter[:] = [counter]
    maker = multiprocessing.parent_process()
    assert maker is not None

    def end_with_it() -> None:
        maker.join()
        os._exit(1)

    threading.Thread(target=end_with_it, name="end with the maker", daemon=True).start()


@contextmanager
def _executor(cores: int, dask: str) -> Iterator[tuple[Executor, Any]]:
    """Runs tasks elsewhere; with local processes a counter that they share."""
    if not dask:
        context = multiprocessing.get_context("spawn")
        counter = context.Value("q", 0)
        others = set(multiprocessing.active_children())
        with ProcessPoolExecutor(cores, context, _begin, (counter,)) as pool:
            try:
                yield pool, counter
            except BaseException:
                # Not cancelled and waited for: one that starts is not told for seconds.
                for each in set(multiprocessing.active_children()) - others:
                    each.kill()
                raise
        return
    try:
        from distributed import Client
    except ImportError:
        raise SettingsError(
            "dask",
            required="the extra `dask`",
            got="no module distributed",
            do="pip install -e '.[dask]'",
        ) from None
    connect: Any = Client  # its package has no types
    try:
        client = connect(dask, timeout=CLUSTER_S)
    except (OSError, TimeoutError, ValueError) as error:
        raise _no_cluster(dask, "a scheduler that answers", error) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CLUSTER_S)
        except TimeoutError as error:
            raise _no_cluster(dask, "a scheduler that has workers", error) from error
        executor = client.get_executor(pure=False)
        try:
            yield executor, None
        except BaseException:
            with _silent("tornado.application"):  # who waits in its loop for what is cancelled
                executor.shutdown(wait=False)
                client.close()
            raise


@contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _no_cluster(dask: str, required: str, error: Exception) -> StreamError:
    return StreamError(
        f"dask {dask}",
        required=f"{required} within {CLUSTER_S} s",
        got=f"{type(error).__name__}: {error}",
        do="name the address that `dask scheduler` printed, such as tcp://host:8786, and start"
        " `dask worker` with it",
    )
