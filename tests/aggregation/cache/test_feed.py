"""The writer process against a real store: changes, lost connections, flushes, plans, kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aggregation.cache.feed import CacheConfig
from aggregation.cache.keeper import run_cache_writer
from aggregation.cache.memory import W_CHANGED, W_SYNCS, CacheMemory
from aggregation.cache.reader import ItemCache, cache_path
from aggregation.cache.record import ItemCodec
from aggregation.native.library import Kernels
from aggregation.program import ServiceProgram
from schemas.errors import LocalError
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY, row_key
from schemas.plan import Plan, dump_plan
from schemas.status import Status
from store.tracking import TrackedStore
from store.wire import StoreConfig
from tests.aggregation.cache.worlds import (
    DEMO,
    assert_as_stored,
    batch_rows,
    looked_up,
    reader_of,
    tombstone,
)
from tests.aggregation.plans import demo_plan
from tests.aggregation.strategies import T0
from tests.store.servers import OwnServer, own_server

IDS = np.arange(40, dtype=np.int64)
VIDEOS = DEMO.item_views[0]
PLAN = demo_plan()


class World:
    """A store, what is in it, and a reader."""

    def __init__(self, server: OwnServer, directory: Path) -> None:
        self.server, self.directory = server, directory
        self.stored: dict[str, bytes] = {}
        self.linger_s = 0.0
        self.cache = reader_of(directory)
        server.run("FLUSHALL")
        self.publish(PLAN, 1)

    @property
    def config(self) -> CacheConfig:
        return CacheConfig(
            "ranking",
            self.directory,
            capacity=1_000,
            beat_ms=5,
            linger_s=self.linger_s,
            room_s=0.0,
        )

    @property
    def source(self) -> TrackedStore:
        return TrackedStore(StoreConfig(self.server.url, timeout_ms=20_000))

    def publish(self, plan: Plan, version: int) -> None:
        self.server.run("SET", PLAN_KEY, dump_plan(plan))
        self.server.run("SET", PLAN_VERSION_KEY, version)

    def next_generation(self) -> tuple[Plan, ServiceProgram]:
        """A plan with another generation of a view, whose rows are there."""
        views = tuple(
            replace(view, generation=2) if view.name == "videos" else view for view in PLAN.views
        )
        plan = replace(PLAN, views=views, version=2)
        for item, row in zip(IDS.tolist(), batch_rows(VIDEOS, IDS, 9), strict=True):
            self.put(row_key("videos", 2, item), row)
        return plan, ServiceProgram(plan, "ranking")

    def write(self, seed: int, ids: list[int] | None = None) -> None:
        """Batch rows of some items, of all unless told."""
        some = IDS if ids is None else np.array(ids, np.int64)
        for item, row in zip(some.tolist(), batch_rows(VIDEOS, some, seed), strict=True):
            self.put(row_key("videos", VIDEOS.generation, item), row)

    def put(self, key: str, row: bytes | None) -> None:
        if row is None:
            self.server.run("DEL", key)
            self.stored.pop(key, None)
        else:
            self.server.run("SET", key, row)
            self.stored[key] = row

    def settled(self, program: ServiceProgram = DEMO, asked: np.ndarray | None = None) -> bool:
        """Whether the cache says what the store says, without asking it."""
        ids = IDS if asked is None else asked
        found = self.cache.look_up(program, ids, T0)
        if found is None or len(found.missing_ids()):
            return False
        try:
            side = looked_up(self.cache, program, self.stored, ids, T0)
            assert_as_stored(side, program, self.stored, ids, T0)
        except AssertionError:
            return False
        return True

    def memory(self) -> CacheMemory:
        codec = ItemCodec(DEMO)
        found = CacheMemory.open(cache_path(self.directory, codec), codec)
        assert found is not None
        return found


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.002)


@contextmanager
def keeping(world: World) -> Iterator[threading.Thread]:
    stop = threading.Event()
    thread = threading.Thread(target=run_cache_writer, args=(world.config, world.source, stop))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    with own_server(tmp_path_factory.mktemp("cached")) as own:
        yield own


@pytest.fixture
def world(server: OwnServer, tmp_path: Path) -> World:
    return World(server, tmp_path)


def test_changes_are_followed(world: World) -> None:
    world.write(1)
    with keeping(world):
        wait_until(world.settled)
        world.write(2, [3, 4])
        world.write(3, [500])  # new
        world.put(row_key("videos", 1, 7), None)
        world.put(row_key("video_activity", 1, 8), tombstone(DEMO.item_views[1], 8))
        world.put(row_key("videos", 1, 9), b"nonsense")
        world.server.run("SET", "videos@1:{nobody}", "x")
        asked = np.append(IDS, 500)
        wait_until(lambda: world.settled(asked=asked))
        side = looked_up(world.cache, DEMO, {}, np.array([9, 7, 8]), T0)
        assert side.block.status[:, 0].tolist() == [
            Status.CORRUPT,
            Status.NOT_FOUND,
            Status.PRESENT,
        ]
    assert world.cache.look_up(DEMO, IDS, T0) is None  # nobody keeps it any more


def test_a_flush_and_a_lost_connection_are_made_good(world: World) -> None:
    world.write(1)
    with keeping(world):
        wait_until(world.settled)
        world.stored.clear()
        world.server.run("FLUSHALL")
        world.publish(PLAN, 2)
        wait_until(world.settled)
        world.write(2)
        wait_until(world.settled)
        world.server.run("CLIENT", "KILL", "TYPE", "normal")
        world.write(3, [1, 2, 3])
        world.put(row_key("videos", 1, 5), None)
        wait_until(world.settled)
        assert int(world.memory().header[W_SYNCS]) >= 3


def test_only_what_changed_is_read_again_after_a_restart(world: World) -> None:
    world.write(1)
    with keeping(world):
        wait_until(world.settled)
    before = int(world.memory().header[W_CHANGED])
    world.write(2, [11])
    world.put(row_key("videos", 1, 12), None)
    world.put(row_key("videos", 1, 600), batch_rows(VIDEOS, np.array([600]), 4)[0])
    with keeping(world):
        wait_until(lambda: world.settled(asked=np.append(IDS, 600)))
        assert int(world.memory().header[W_CHANGED]) - before == 3


def test_a_store_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with own_server(tmp_path / "store") as server:
        world = World(server, tmp_path / "cache")
        world.write(1)
        with keeping(world):
            wait_until(world.settled)
            server.kill()
            wait_until(lambda: world.cache.look_up(DEMO, IDS, T0) is None)
            server.restart()
            world.stored.clear()  # whatever its disk had, the cache must say the same
            for item in IDS.tolist():
                key = row_key("videos", 1, item)
                row = server.run("GET", key)
                if isinstance(row, bytes):
                    world.stored[key] = row
            world.publish(PLAN, 1)
            wait_until(world.settled)


def test_another_generation_gets_a_cache_of_its_own(world: World) -> None:
    world.write(1)
    with keeping(world):
        wait_until(world.settled)
        first = cache_path(world.directory, ItemCodec(DEMO))
        plan, program = world.next_generation()
        world.publish(replace(PLAN, version=2), 2)  # nothing that the cache is about
        wait_until(world.settled)
        assert first.exists()
        world.publish(plan, 3)
        wait_until(lambda: world.settled(program))
        wait_until(lambda: not first.exists())
        assert not world.settled()
        world.server.run("SET", PLAN_KEY, "{}")
        world.server.run("SET", PLAN_VERSION_KEY, 4)
        world.put(row_key("videos", 2, 1), None)
        wait_until(lambda: world.settled(program))


def test_the_cache_of_the_plan_before_is_kept_until_that_of_the_next_has_served(
    world: World,
) -> None:
    world.write(1)
    world.linger_s = 1e6
    with keeping(world):
        wait_until(world.settled)
        plan, program = world.next_generation()
        world.publish(plan, 2)
        wait_until(lambda: world.settled(program))
        world.write(2, [3])
        world.put(row_key("videos", 2, 4), None)
        wait_until(lambda: world.settled() and world.settled(program))
        world.publish(PLAN, 3)  # taken back
        wait_until(lambda: not world.settled(program))
        wait_until(lambda: len(list(world.directory.glob("*.items"))) == 1)
        wait_until(world.settled)


def test_without_room_for_two_the_old_one_goes_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(1)
    reserve = CacheMemory.reserve

    def crowded(memory: CacheMemory, count: int) -> None:
        if len(list(world.directory.glob("*.items"))) > 1:
            raise LocalError("item cache", required="room", got="none")
        reserve(memory, count)

    monkeypatch.setattr(CacheMemory, "reserve", crowded)
    world.linger_s = 1e6
    with keeping(world):
        wait_until(world.settled)
        plan, program = world.next_generation()
        world.publish(plan, 2)
        wait_until(lambda: world.settled(program))
        assert not world.settled()


def test_what_had_no_room_is_cached_once_there_is_some(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full file system under a running writer; nobody starts it again."""
    world.write(1)
    reserve = os.posix_fallocate

    def no_records(file: int, start: int, length: int) -> None:
        if length > 1 << 17:  # header and index are smaller
            raise OSError(28, "No space left on device")
        reserve(file, start, length)

    def nothing_is_in() -> bool:
        found = world.cache.look_up(DEMO, IDS, T0)
        return found is not None and len(found.missing_ids()) == len(IDS)

    monkeypatch.setattr("os.posix_fallocate", no_records)
    with keeping(world):
        wait_until(nothing_is_in)
        syncs = int(world.memory().header[W_SYNCS])
        time.sleep(0.1)
        assert nothing_is_in()
        assert int(world.memory().header[W_SYNCS]) == syncs, "it does not walk in vain"
        monkeypatch.undo()
        wait_until(world.settled)


def test_what_ends_a_feed_ends_the_writer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise LocalError("item cache", required="room", got="none")

    monkeypatch.setattr(CacheMemory, "create", broken)
    with pytest.raises(LocalError, match="needs room"):
        run_cache_writer(world.config, world.source)


def test_a_plan_that_is_not_there_is_waited_for(world: World) -> None:
    world.server.run("DEL", PLAN_KEY)
    world.write(1)
    with keeping(world):
        time.sleep(0.05)
        assert world.cache.look_up(DEMO, IDS, T0) is None
        world.publish(PLAN, 5)
        wait_until(world.settled)


def test_there_is_one_writer(world: World) -> None:
    with keeping(world):
        wait_until(world.settled)
        with pytest.raises(LocalError, match="holds its lock"):
            run_cache_writer(world.config, world.source)


def test_a_directory_that_cannot_be_made_is_told(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = replace(world.config, directory=tmp_path / "file" / "cache")
    with pytest.raises(LocalError, match=r"ranking\.lock: needs room .* set item_cache_dir"):
        run_cache_writer(config, world.source)


def test_one_on_standby_takes_over(world: World) -> None:
    world.write(1)
    stop, config = threading.Event(), replace(world.config, standby=True)
    second = threading.Thread(target=run_cache_writer, args=(config, world.source, stop))
    with keeping(world):
        wait_until(world.settled)
        second.start()
    try:
        wait_until(world.settled)
    finally:
        stop.set()
        second.join(60)


def test_a_machine_that_cannot_do_it_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "sparc")
    with pytest.raises(LocalError, match="x86-64"):
        run_cache_writer(world.config, world.source)
    assert world.cache.look_up(DEMO, IDS, T0) is None


WRITER = """
import sys
from pathlib import Path
from aggregation.cache.feed import CacheConfig
from aggregation.cache.keeper import run_cache_writer
from store.tracking import TrackedStore
from store.wire import StoreConfig
config = CacheConfig("ranking", Path(sys.argv[2]), capacity=1_000, beat_ms=5)
run_cache_writer(config, TrackedStore(StoreConfig(sys.argv[1], timeout_ms=20_000)))
"""


def test_a_writer_that_is_killed_is_noticed_and_replaced(world: World) -> None:
    world.write(1)
    command = [sys.executable, "-c", WRITER, world.server.url, str(world.directory)]
    cache = ItemCache(world.directory, max_age_ms=300)

    def answers() -> bool:
        return cache.look_up(DEMO, IDS, T0) is not None

    for _ in range(2):
        process = subprocess.Popen(command)
        try:
            wait_until(answers)
            os.kill(process.pid, signal.SIGSTOP)
            wait_until(lambda: not answers())
            os.kill(process.pid, signal.SIGCONT)
            wait_until(answers)
            wait_until(world.settled)
        finally:
            process.kill()
            process.wait()
        wait_until(lambda: not answers())
        world.write(2, [1])


HAMMER = """
import sys
from pathlib import Path
import numpy as np
from aggregation.cache.memory import now_ns
from tests.aggregation.cache.test_feed import number_rows
from tests.aggregation.cache.worlds import DEMO, go_live, writer_in
writer = writer_in(Path(sys.argv[1]), DEMO, capacity=1_000)
number, ids = 1, np.arange(500)
while True:
    writer.put(ids, number_rows(ids, number), number)
    if number == 1:
        go_live(writer)
        print("ready", flush=True)
    writer.live(now_ns())
    number += 1
"""


def number_rows(ids: np.ndarray, number: int) -> list[bytes | None]:
    """Rows in which everything is one number, fences included."""
    from schemas.layout import layout_of
    from schemas.row import empty_rows, encode_rows

    rows = empty_rows(layout_of(VIDEOS), ids)
    for field in VIDEOS.fields:
        rows.values[field.name][:], rows.present[field.name][:] = number, True
    rows.offset[:], rows.newest_ms[:] = number, number
    return [*encode_rows(layout_of(VIDEOS), rows), *([None] * len(ids))]


@pytest.mark.parametrize("native", [False, True], ids=["numpy", "native"])
def test_no_row_is_ever_half_of_another(tmp_path: Path, built: Kernels, native: bool) -> None:
    """A process writes without a pause; every row that is read has one number throughout.

    Who does not look at the sequence numbers takes values of one row with the bytes of another.
    """
    program = ServiceProgram(DEMO.plan, "ranking", lambda: built if native else None)
    process = subprocess.Popen(
        [sys.executable, "-c", HAMMER, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        cache, ids = reader_of(tmp_path), np.arange(500)
        numbers: set[int] = set()
        mixed, codec = 0, ItemCodec(program)
        memory = CacheMemory.open(cache_path(tmp_path, codec), codec)
        assert memory is not None

        def unguarded() -> int:
            fences = memory.records["fences"]["offset"][:500, 0].copy()  # (500,)
            trailers = codec.trailers(memory.rows[:500].copy(), 0)  # (500, TRAILER_BYTES)
            offsets = np.ascontiguousarray(trailers[:, -20:-12]).view("<i8")[:, 0]
            return int(np.count_nonzero(offsets != fences))

        def hammered() -> bool:
            nonlocal mixed
            mixed += unguarded()
            found = cache.look_up(program, ids, T0)
            assert found is not None
            kept = np.setdiff1d(ids, found.missing)
            side = found.completed([None] * (2 * len(found.missing)))
            fences = side.block.fences["offset"][kept, 0]  # (k,)
            for name in ("video_id", "author_id", "video_type", "duration", "width"):
                values = side.block.values[f"videos__{name}"][kept]
                assert (values == fences).all()
            assert found.records["newest_ms"][kept].tolist() == fences.tolist()
            numbers.update(fences.tolist())
            return len(numbers) > 40 and cache.counts.retried > 0 and mixed > 0

        wait_until(hammered)
        assert cache.counts.hits > 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
