"""Timelines: stages follow one another, and late work writes where nobody reads."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid

import numpy as np
import pytest

from predictor.generation import Generations
from predictor.rank import RankConfig, Ranker
from predictor.record import Query
from predictor.timeline import STAGES, Laps, Timeline, current, enter, leave
from schemas.ranklog import Degraded
from tests.predictor.support import ITEMS, NOW_MS, PLAN, USERS, DictStore, world


def test_stages_add_up_to_the_whole() -> None:
    began_s = time.perf_counter()
    timeline = Timeline("rank", "http")
    timeline.begin(uuid.UUID(int=1))
    laps = Laps()
    laps.lap("queue")
    laps.lap("assemble")
    timeline.take_back(laps)
    timeline.lap("reply")
    assert [stage for stage, _ in timeline.laps] == ["parse", "queue", "assemble", "reply"]
    assert 0 < timeline.total_s <= time.perf_counter() - began_s
    assert timeline.last_s <= time.perf_counter()


def test_a_restart_forgets_what_came_before() -> None:
    timeline = Timeline()
    timeline.lap("parse")
    began_ns = timeline.began_ns
    timeline.restart()
    assert timeline.laps == []
    assert timeline.began_ns >= began_ns


def test_outside_of_a_request_laps_go_nowhere() -> None:
    current().lap("store")
    assert current().laps == []
    timeline = Timeline("rank")
    token = enter(timeline)
    assert current() is timeline
    leave(token)
    assert current() is not timeline


async def served(method: str, timeout_ms: float, hold: threading.Event | None) -> Timeline:
    """A request's timeline; `hold` keeps the inference thread busy until it is set."""
    ranker = Ranker(DictStore(world()), Generations(PLAN, "ranking"), None, RankConfig())
    query = Query(uuid.uuid4(), USERS[0], ITEMS_ARRAY, NOW_MS, NOW_MS, 5, timeout_ms)
    timeline = Timeline("rank", "http")
    token = enter(timeline)
    try:
        if hold is not None:
            ranker._inference.submit(hold.wait, 60)
        await getattr(ranker, method)(query)
    finally:
        if hold is not None:
            hold.set()
        leave(token)
        ranker.close()
    assert timeline.request_id == query.request_id
    return timeline


ITEMS_ARRAY = np.array(ITEMS)


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("rank", ["parse", "store", "queue", "assemble"]),  # there is no model
        ("aggregate", ["parse", "store", "queue", "assemble"]),
    ],
)
def test_each_stage_of_a_request(method: str, stages: list[str]) -> None:
    timeline = asyncio.run(served(method, 60_000.0, None))
    assert [stage for stage, _ in timeline.laps] == stages
    assert set(stages) <= set(STAGES)
    assert timeline.served is not None
    assert timeline.served.now_ms == NOW_MS


def test_work_that_is_late_writes_into_nobodys_laps() -> None:
    timeline = asyncio.run(served("rank", 50.0, threading.Event()))
    stages = [stage for stage, _ in timeline.laps]
    assert stages[:3] == ["parse", "store", "abandoned"]
    assert "queue" not in stages
    assert timeline.served is not None
    assert Degraded.DEADLINE in timeline.served.degraded
