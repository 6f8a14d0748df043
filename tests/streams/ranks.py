"""Rank records of the demo plan with random values, for the sink and the shipper."""

from __future__ import annotations

from typing import Any

import numpy as np

from schemas.ranklog import FENCE, TASKS, RankRecord
from schemas.values import Block, ValueColumn, from_columns, value_dtype, value_names
from tests.aggregation.plans import demo_plan

PLAN = demo_plan()
SERVICE = PLAN.service("ranking")
USER = value_dtype(PLAN, SERVICE, "user")
ITEM = value_dtype(PLAN, SERVICE, "item")
T0 = 1_650_800_000_000


def random_block(dtype: np.dtype[np.void], n: int, random: np.random.Generator) -> Block:
    """n records with nulls, short vectors and numbers of every size."""
    columns = {}
    for name in value_names(dtype):
        base, shape = dtype[name].base, dtype[name].shape
        raw = random.bytes(n * int(np.prod(shape, dtype=int)) * base.itemsize)
        values = np.frombuffer(raw, base).reshape(n, *shape)
        if base.kind == "f":
            values = np.nan_to_num(values)
        if base.kind == "b":
            values = np.frombuffer(raw, np.uint8).reshape(n, *shape) % 2 == 1
        lengths = random.integers(0, shape[0] + 1, n) if shape else None
        columns[name] = ValueColumn(values, lengths, random.random(n) < 0.2)
    return from_columns(dtype, columns, n)


def random_record(seed: int, fine: int = 6, coarse: int = 3, tasks: int = len(TASKS)) -> RankRecord:
    random = np.random.default_rng(seed)
    user_views, item_views = 2, 2

    def floats(*shape: int) -> Any:
        return random.random(shape, np.float32)

    def fences(*shape: int) -> Any:
        made = np.zeros(shape, FENCE)
        made["epoch"] = random.integers(0, 4, shape)
        made["offset"] = random.integers(-1, 1 << 40, shape)
        return made

    return RankRecord(
        request_hi=int(random.integers(0, 2**63)),
        request_lo=int(random.integers(0, 2**63)),
        user_id=int(random.integers(1, 1_000)),
        now_ms=T0 + seed,
        received_ms=T0 + seed + 1,
        service_fingerprint=int(SERVICE.fingerprint, 16),
        plan_version=1,
        serving_generation=2,
        coarse_version=int(random.integers(0, 2**63)) * 2,
        fine_version=0,
        degraded=0,
        user_values=random_block(USER, 1, random).tobytes(),
        user_status=np.zeros(user_views, np.uint8),
        user_fences=fences(user_views),
        fine_ids=random.permutation(10_000)[:fine].astype(np.int64),
        item_values=random_block(ITEM, fine, random).tobytes(),
        item_status=random.integers(0, 6, (fine, item_views)).astype(np.uint8),
        item_fences=fences(fine, item_views),
        coarse_scores=floats(fine),
        task_scores=floats(fine, tasks),
        final_scores=floats(fine) if tasks else np.full(fine, np.nan, np.float32),
        positions=(np.arange(fine) - 1).astype(np.int16),
        draw_probability=np.ones(fine, np.float32),
        coarse_only_ids=random.integers(10_000, 20_000, coarse),
        coarse_only_scores=floats(coarse),
    )
