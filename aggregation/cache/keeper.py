"""The process that keeps an item cache: a feed for the published plan, at times one for the next.

A plan whose item side is another one needs another file, and loading that takes seconds or minutes.
So the feed of the plan before goes on beside the one that loads. Servers begin with the new plan
once its file is live (`predictor.watcher`), and the old feed ends `linger_s` after that. Where
there is no room for both files the old one goes first, and the store serves meanwhile.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from aggregation.cache.feed import CacheConfig, ItemFeed
from aggregation.cache.memory import no_room, now_ns, usable_here
from aggregation.cache.pulse import Pulse
from schemas.errors import LocalError
from store.changes import ChangingRows

log: Final = logging.getLogger(__name__)
_STANDBY_S: Final = 0.25
_LOOK_S: Final = 0.05


def run_cache_writer(
    config: CacheConfig,
    source: ChangingRows,
    stop: threading.Event | None = None,
    pulse: Pulse | None = None,
) -> None:
    """Keep the cache of a service until `stop` is set, or for good. Blocks.

    source: not connected yet; closed at the end. A store that is away is waited for. pulse: beats
    while all threads move, also on standby and while the store is away. Raises
    LocalError where another process keeps this cache, the directory has no room, or the machine
    cannot do it.
    """
    if not usable_here():
        raise LocalError(
            "item cache",
            required="Linux on x86-64, whose processors keep the order of stores and loads",
            got="another machine",
            do="set item_cache to false: items are read from the store",
        )
    stop = stop or threading.Event()
    beat = pulse.beat if pulse is not None else _nobody_looks
    with _locked(config, stop, beat):
        keeper = _Keeper(config, source)
        try:
            while not stop.is_set():
                keeper.look(time.monotonic())
                beat(keeper.moved_ns)
                stop.wait(_LOOK_S)
        finally:
            keeper.close()


def _nobody_looks(moved_ns: int) -> None:
    """The beat of a process that was given no pulse."""


class _Running:
    """A feed, and the thread that runs it."""

    feed: ItemFeed

    def __init__(
        self, config: CacheConfig, source: ChangingRows, beside: _Running | None = None
    ) -> None:
        self._stop = threading.Event()
        spared = None if beside is None else beside.feed.path
        self.feed = ItemFeed(config, source, self._stop, spared=spared)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="item cache", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.feed.run()
        except BaseException as error:
            self.error = error

    def end(self, *, retire: bool) -> None:
        """Stop it and wait. retire: its file goes, too."""
        self._stop.set()
        self._thread.join()
        self.feed.close(retire=retire)


class _Keeper:
    """One or two feeds. Used by one thread, whose `look` is called again and again."""

    def __init__(self, config: CacheConfig, source: ChangingRows) -> None:
        self._config, self._source = config, source
        self._current = _Running(config, source)
        self._following: _Running | None = None
        self._live_s: float | None = None  # since when the following one is

    def look(self, now_s: float) -> None:
        """Begin, end or exchange feeds. now_s: a clock that never goes back. Raises what ended the
        current one."""
        current, following = self._current, self._following
        if current.error is not None:
            raise current.error
        if following is None:
            if current.feed.outdated:
                self._following = _Running(self._config, self._source.another(), current)
        elif following.feed.outdated or not current.feed.outdated:
            self._give_up(following)
        elif following.error is not None or (following.feed.full and not current.feed.full):
            log.warning("item cache: no room for that of the next plan beside; the old one goes")
            self._give_up(following)
            current.end(retire=True)
            self._current = _Running(self._config, self._source.another())
        elif not following.feed.live:
            self._live_s = None
        elif self._live_s is None:
            self._live_s = now_s
        elif now_s - self._live_s >= self._config.linger_s:
            current.end(retire=True)
            self._current, self._following, self._live_s = following, None, None

    @property
    def moved_ns(self) -> int:
        """When the thread that has not moved for longest did."""
        feeds = [each.feed for each in (self._current, self._following) if each is not None]
        return min(feed.moved_ns for feed in feeds)

    def close(self) -> None:
        """Nobody keeps the cache any more: readers turn to the store. The files stay."""
        for each in (self._current, self._following):
            if each is not None:
                each.end(retire=False)

    def _give_up(self, following: _Running) -> None:
        following.end(retire=True)
        self._following, self._live_s = None, None


@contextmanager
def _locked(
    config: CacheConfig, stop: threading.Event, beat: Callable[[int], None]
) -> Iterator[None]:
    """Be the only writer of a service's cache in a directory. On standby, wait for it."""
    path = config.directory / f"{config.service}.lock"
    try:
        config.directory.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise no_room(path, error) from None
    try:
        while not _taken(file) and not stop.is_set():
            if not config.standby:
                raise LocalError(
                    f"item cache {path}",
                    required="to be the only writer of this cache",
                    got="another process that holds its lock",
                    do="nothing: the cache is kept; or stop that process",
                )
            beat(now_ns())
            stop.wait(_STANDBY_S)
        yield
    finally:
        os.close(file)


def _taken(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
