"""The store's rewriting of its append-only file, as a condition of what is measured.

A child of the store writes all rows anew, which takes a core for seconds; the store does so by
itself whenever the file has doubled. What is measured beside it has to say so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from redis import Redis

from encore.local import Server

#: The store looks ten times a second whether its child has ended.
LOOK_S: Final = 0.1
#: From the end of one to the next.
PAUSE_S: Final = 1.0
PATIENCE_S: Final = 60.0
PERCENTAGE: Final = "auto-aof-rewrite-percentage"


@contextmanager
def held_off(server: Server) -> Iterator[None]:
    """No rewriting inside the block: one that is under way is waited for."""
    with Redis(host="127.0.0.1", port=server.port, decode_responses=True) as store:
        before = store.config_get(PERCENTAGE)[PERCENTAGE]
        store.config_set(PERCENTAGE, "0")
        try:
            deadline = time.monotonic() + PATIENCE_S
            while _rewrites(store):
                assert time.monotonic() < deadline, f"the store rewrites for {PATIENCE_S} s"
                time.sleep(LOOK_S)
            yield
        finally:
            store.config_set(PERCENTAGE, before)


@contextmanager
def again_and_again(server: Server) -> Iterator[list[float]]:
    """One rewriting after the other, a second apart. Yields how long each took, s."""
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
def nothing_rewritten(_server: Server) -> Iterator[list[float]]:
    """The other condition: yields that there was none."""
    yield []


def _rewrite(server: Server, over: threading.Event, took_s: list[float]) -> None:
    with Redis(host="127.0.0.1", port=server.port, decode_responses=True) as store:
        while not over.is_set():
            store.bgrewriteaof()
            began_s = time.monotonic()
            over.wait(LOOK_S)
            while _rewrites(store) and not over.is_set():
                over.wait(LOOK_S)
            took_s.append(time.monotonic() - began_s)
            over.wait(PAUSE_S)


def _rewrites(store: Any) -> bool:
    found = store.info("persistence")
    return bool(found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"])
