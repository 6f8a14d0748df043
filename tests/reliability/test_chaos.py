"""`bench chaos` in small: one of each event under load, then every row; and that it can fail."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from bench.chaos import crew_of, judge, run
from bench.chaos_check import unlogged
from bench.chaos_deck import CREW, deck, moves
from bench.chaos_events import LEFT, Crew
from bench.chaos_nursery import Nursery
from bench.chaos_world import T0, chaos_plan, draw_actions, patient, world
from bench.report import Options
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.row import empty_rows, encode_rows
from store.base import Write
from store.redis_store import RedisRowStore

pytestmark = pytest.mark.kill

WAIT_S = 120.0


def test_a_deck_holds_some_of_everything() -> None:
    events = Counter(deck(20, random.Random(1)))
    assert events == {
        "kill": 9,
        "stop": 5,
        "store": 2,
        "broker": 1,
        "rekeyed": 1,
        "cut": 1,
        "fill": 1,
    }
    assert Counter(deck(7, random.Random(1))) == dict.fromkeys(events, 1)
    assert deck(1, random.Random(1)) == ["store"]


def test_seeds_take_two_to_four_workers() -> None:
    crews = [Counter(crew_of(seed).values()) for seed in range(3)]
    assert crews == [{"worker": workers, "items": 2} for workers in (2, 3, 4)]


@pytest.mark.parametrize("kills", [4, 7, 20, 200])
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_as_many_join_as_leave_and_crews_keep_their_bounds(kills: int, workers: int) -> None:
    for seed in range(50):
        size = Counter(worker=workers, items=2)
        found = moves(kills, size, random.Random(seed))
        assert found == moves(kills, size, random.Random(seed))
        assert Counter(found.values()) == {
            (how, kind): max(1, kills // share)
            for how in ("join", "leave")
            for kind, share in (("worker", 12), ("items", 24))
        }
        assert sorted(found) == list(found)
        assert set(found) <= set(range(1, kills + 1))
        for how, kind in found.values():
            size[kind] += 1 if how == "join" else -1
            assert CREW[0] <= size[kind] <= CREW[1]


def test_few_events_leave_crews_as_they_are() -> None:
    assert moves(3, {"worker": 2, "items": 2}, random.Random(1)) == {}


def test_who_leaves_drains_or_is_killed_and_is_not_started_again(tmp_path: Path) -> None:
    with world(tmp_path) as made, Nursery(made.config) as nursery:
        crew = Crew(nursery, {"worker-1": "worker", "worker-2": "worker"})
        crew.start()
        crew.join("worker")
        assert sorted(crew.pids) == ["worker-1", "worker-2", "worker-3"]
        wait_for(lambda: all(_reads(tmp_path, name) for name in crew.pids), crew)
        crew.leave("worker", random.Random(1))
        assert (len(crew.kinds), len(crew.leaving)) == (2, 1)
        wait_for(lambda: not crew.leaving, crew)
        assert crew.ended == {f"{LEFT}exit 0": 1}
        crew.join("worker")
        assert "worker-4" in crew.pids  # nobody had that name
        crew.leave("worker", random.Random(2))
        (leaving,) = crew.leaving
        with suppress(ProcessLookupError):  # it did not listen yet, and SIGTERM ended it
            os.kill(leaving, signal.SIGKILL)
        wait_for(lambda: not crew.leaving, crew)
        assert sum(crew.ended.values()) == 2
        assert sorted(crew.pids) == sorted(crew.kinds)
        assert len(crew.kinds) == 2


def _reads(directory: Path, name: str) -> bool:
    """The process says that it reads: from then on it takes a SIGTERM for a drain."""
    log = directory / f"{name}.log"
    return log.exists() and ": reading " in log.read_text()


def wait_for(done: Callable[[], bool], crew: Crew) -> None:
    """Looking after the crew. Raises AssertionError after WAIT_S."""
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s
        crew.look_after()
        time.sleep(0.02)


@pytest.mark.slow
def test_every_row_survives_one_of_each() -> None:
    said: list[str] = []
    line = run(Options(True, said.append, kills=7, seed=7)).line
    assert (line["lost"], line["doubled"], line["unequal_rows"]) == (0, 0, 0), said
    assert (line["kills"], line["unlogged"], line["filled"]) == (7, 0, 1)
    assert (line["workers"], line["joined"], line["left"]) == (3, 2, 2)
    assert line["connections_cut"] > 0
    assert line["rows"] > 500


def test_what_is_missing_and_what_is_twice_is_found(tmp_path: Path) -> None:
    with world(tmp_path) as made:
        logged = [(draw_actions(np.random.default_rng(1), 200, T0), T0)]
        assert (unlogged(logged, []), unlogged(logged, logged)) == (200, 0)
        verdict = judge(made, logged)
        assert verdict.actions == 200
        assert verdict.unequal == verdict.rows > 100
        counted = verdict.lost
        assert counted > 300  # of 200 users' and 200 items' actions those that are in time
        totals = next(view for view in chaos_plan().views if view.name == "user_totals")
        _write_one_too_many(made.store_url, totals.name, int(logged[0][0]["user"][0]))
        again = judge(made, logged)
        assert again.doubled > 0


def _write_one_too_many(url: str, view: str, user: int) -> None:
    """A row that says the user did a thousand things."""
    layout = layout_of(next(each for each in chaos_plan().views if each.name == view))
    rows = empty_rows(layout, np.array([user], np.int64))
    rows.values["total_tiles"][0, 0], rows.lengths["total_tiles"][0] = 1_000, 1
    rows.present["total_tiles"][0] = True
    rows.epoch[:], rows.offset[:], rows.newest_ms[:] = 1, 5, T0
    value = encode_rows(layout, rows)[0]
    with RedisRowStore(patient(url)) as store:
        assert store.compare_and_set([Write(row_keys(view, 1, [user])[0], None, value)]) == [True]
