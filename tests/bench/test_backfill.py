"""The backfill benchmark compares before it times, and would see a row that differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.backfill import compare, write_archive
from bench.samples import KUAIRAND, demo_plan
from encore.kuairand import load_timeline
from store.memory import MemoryRowStore


def test_filled_rows_are_the_streamed_ones(tmp_path: Path) -> None:
    actions = load_timeline(KUAIRAND, 0.0, 0.0).actions[:12_000]
    archive = write_archive(tmp_path / "whole", actions)
    plan = demo_plan()
    for name in ("user_activity", "video_activity"):
        view = plan.view(name)
        entities = len(np.unique(actions[view.entity]))
        assert compare(view, archive, actions, MemoryRowStore()) == (entities, 0)
        less = replace(archive, ends={p: end - 100 for p, end in archive.ends.items()})
        assert compare(view, less, actions, MemoryRowStore())[1] > 10
