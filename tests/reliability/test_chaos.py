"""`bench chaos` in small: one of each event under load, then every row; and that it can fail."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench.chaos import crew_of, judge, run
from bench.chaos_check import unlogged
from bench.chaos_events import deck
from bench.chaos_world import T0, chaos_plan, draw_actions, world
from bench.report import Options
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.row import empty_rows, encode_rows
from store.base import Write
from store.redis_store import RedisRowStore

pytestmark = pytest.mark.kill


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


@pytest.mark.slow
# kafka-python, closed while it connects anew, leaves that socket: without a peer, on loopback.
@pytest.mark.filterwarnings(
    r"ignore:unclosed <socket\.socket [^>]*laddr=\('127\.0\.0\.1', \d+\)>:ResourceWarning"
)
def test_every_row_survives_one_of_each() -> None:
    said: list[str] = []
    line = run(Options(True, said.append, kills=7, seed=7)).line
    assert (line["lost"], line["doubled"], line["unequal_rows"]) == (0, 0, 0), said
    assert (line["kills"], line["unlogged"], line["filled"]) == (7, 0, 1)
    assert line["workers"] == 3
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
    with RedisRowStore(url) as store:
        assert store.compare_and_set([Write(row_keys(view, 1, [user])[0], None, value)]) == [True]
