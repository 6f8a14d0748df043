"""The store's rewriting of its append-only file, as a condition of what is measured.

A child of the store writes all rows anew, which takes a core for seconds; the store does so by
itself whenever the file has doubled. What is measured beside it has to say so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from redis import Redis

from encore.local import HOST, Server, start_store
from schemas.errors import LocalError

#: The store looks ten times a second whether its child has ended.
LOOK_S: Final = 0.1
#: From the end of one to the next.
PAUSE_S: Final = 1.0
PATIENCE_S: Final = 180.0
PERCENTAGE: Final = "auto-aof-rewrite-percentage"


Rewriting = Literal["never", "store", "replica"]


@contextmanager
def held_off(server: Server) -> Iterator[None]:
    """No rewriting inside the block: one that is under way is waited for. Raises LocalError where
    it does not end."""
    with _open(server) as store:
        before = store.config_get(PERCENTAGE)[PERCENTAGE]
        store.config_set(PERCENTAGE, "0")
        try:
            _until(lambda: not _rewrites(store), f"{server.address} to have rewritten its file")
            yield
        finally:
            store.config_set(PERCENTAGE, before)


@contextmanager
def again_and_again(server: Server, run_dir: Path, who: Rewriting) -> Iterator[list[float]]:
    """One rewriting after the other, a second apart. Yields how long each took, s.

    who: the store itself, or a replica of it that alone keeps a file inside the block, with its
    files below run_dir; a store with `held_off`. Raises LocalError where the replica does not come.
    """
    if who == "never":
        yield []
    elif who == "store":
        with _rewriting(server) as took_s:
            yield took_s
    else:
        with _kept_by_a_replica(server, run_dir) as replica, _rewriting(replica) as took_s:
            yield took_s


@contextmanager
def _rewriting(server: Server) -> Iterator[list[float]]:
    took_s: list[float] = []
    over = threading.Event()
    thread = threading.Thread(target=_rewrite, args=(server, over, took_s))
    thread.start()
    try:
        yield took_s
    finally:
        over.set()
        thread.join()


@contextmanager
def _kept_by_a_replica(server: Server, run_dir: Path) -> Iterator[Server]:
    """A replica that has all and keeps a file, of a store that keeps none inside the block."""
    replica = start_store(run_dir / "replica")
    try:
        with _open(server) as store, _open(replica) as second:
            second.config_set(PERCENTAGE, "0")
            store.config_set("repl-diskless-sync-delay", "0")
            second.replicaof(HOST, server.port)
            _until(lambda: _holds_all(second), f"{replica.address} to have all that the store has")
            store.config_set("appendonly", "no")
            try:
                yield replica
            finally:
                store.config_set("appendonly", "yes")
                _until(lambda: not _rewrites(store), f"{server.address} to have written its file")
    finally:
        replica.child.kill()


def _rewrite(server: Server, over: threading.Event, took_s: list[float]) -> None:
    with _open(server) as store:
        while not over.is_set():
            store.bgrewriteaof()
            began_s = time.monotonic()
            over.wait(LOOK_S)
            while _rewrites(store) and not over.is_set():
                over.wait(LOOK_S)
            took_s.append(time.monotonic() - began_s)
            over.wait(PAUSE_S)


def _open(server: Server) -> Any:
    return Redis(host=HOST, port=server.port, decode_responses=True)


def _until(holds: Callable[[], bool], required: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise LocalError("bench.store", required=required, got=f"not within {PATIENCE_S:g} s")
        time.sleep(LOOK_S)


def _holds_all(replica: Any) -> bool:
    link = replica.info("replication")["master_link_status"] == "up"
    return link and not _rewrites(replica)


def _rewrites(store: Any) -> bool:
    found = store.info("persistence")
    return bool(found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"])
