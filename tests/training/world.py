"""A small world whose clicks have causes: active users click more, good videos are clicked more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from aggregation.program import ServiceProgram
from audit.join import JoinQuery, LogPaths, join_log
from schemas.ranklog import RankRecord
from schemas.values import Block
from tests.aggregation.plans import demo_plan
from tests.audit.logs import (
    CLICK,
    IMPRESSION,
    LIKE,
    LONG_VIEW,
    Act,
    record,
    write_actions,
    write_records,
)
from training.dataset import Dataset, dataset_of

PLAN = demo_plan()
PROGRAM = ServiceProgram(PLAN, "ranking")
FINGERPRINT = PROGRAM.service.fingerprint
DAY_MS = 86_400_000
START_MS = 1_651_000_000_000
DAYS, REQUESTS_A_DAY, CANDIDATES, SHOWN = 4, 150, 8, 4
USERS, ITEMS = 50, 40
TEST_MS = START_MS + (DAYS - 1) * DAY_MS
END_MS = START_MS + DAYS * DAY_MS


def user_block(user: int, rng: np.random.Generator) -> Block:
    """Active users (even ids) have clicked; each has a history of any length."""
    block = np.zeros(1, PROGRAM.user_dtype)
    block["users__user_id"] = user
    block["user_activity__impression_7d"] = rng.integers(20, 60)
    block["user_activity__click_7d"] = rng.integers(15, 20) if user % 2 == 0 else rng.integers(3)
    length = rng.integers(0, 51)
    played = rng.integers(0, ITEMS, length)
    ages = np.sort(rng.integers(0, DAY_MS, length))
    for column, values in (("videos_item", played), ("videos_author", played % 7)):
        block[f"user_activity__{column}"][0, :length] = values
    block["user_activity__video_ages"][0, :length] = ages
    for column in ("videos_item", "videos_author", "video_ages"):
        block[f"user_activity__{column}__len"] = length
    return block


def item_block(items: list[int]) -> Block:
    block = np.zeros(len(items), PROGRAM.item_dtype)
    block["videos__video_id"] = items
    block["videos__author_id"] = [item % 7 for item in items]
    block["videos__duration"] = [1_000.0 * (item + 1) for item in items]
    return block


def write_world(
    data_dir: Path, seed: int = 0, clicked: Callable[[int, bool], bool] | None = None
) -> None:
    """DAYS days of requests and actions. clicked: (now_ms, click) → the click that is written."""
    rng = np.random.default_rng(seed)
    records: list[RankRecord] = []
    acts: list[Act] = []
    for number in range(DAYS * REQUESTS_A_DAY):
        now_ms = START_MS + number * DAY_MS // REQUESTS_A_DAY
        user = int(rng.integers(0, USERS))
        items = rng.choice(ITEMS, CANDIDATES, replace=False).tolist()
        blocks = user_block(user, rng), item_block(items)
        records.append(record(PROGRAM, items, number, now_ms, user, blocks))
        for item in items[:SHOWN]:
            logit = (1.5 if user % 2 == 0 else -1.5) + (1.0 if item < ITEMS // 2 else -1.0)
            click = bool(rng.random() < 1 / (1 + np.exp(-logit)))
            click = clicked(now_ms, click) if clicked else click
            kinds = [IMPRESSION, *([CLICK] if click else [])]
            kinds += [LONG_VIEW] if click and rng.random() < 0.7 else []
            kinds += [LIKE] if rng.random() < 0.05 else []
            acts += [Act(records[-1].request_id, item, kind, now_ms + 1) for kind in kinds]
    half = len(records) // 2
    write_records(data_dir, PROGRAM, records[:half])
    write_records(data_dir, PROGRAM, records[half:], first=half)
    write_actions(data_dir, acts)


def read_world(data_dir: Path) -> Dataset:
    log = join_log(LogPaths.under(data_dir), JoinQuery("ranking", FINGERPRINT))
    return dataset_of(log, PROGRAM)
