"""What the watcher makes of pointers and packages, without a server around it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from predictor.card import CURRENT, WEIGHTS
from predictor.generation import Generations
from predictor.package import publish_package
from predictor.watcher import WatchConfig, Watcher
from store.memory import AsyncMemoryRowStore
from tests.predictor.support import PLAN, publish


def test_refused_repaired_and_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        generations = Generations(PLAN, "ranking")
        config = WatchConfig(tmp_path, retry_s=0.0)
        watcher = Watcher(generations, AsyncMemoryRowStore(), config)
        await watcher.look(polite=False)  # nothing there
        assert generations.current.number == 1

        first = publish(tmp_path, "fine", seed=1)
        await watcher.look(polite=False)
        assert generations.current.fine is not None
        assert generations.current.fine.name == first.name

        second = publish(tmp_path, "fine", seed=2)
        shutil.copyfile(second / WEIGHTS, tmp_path / "good")
        (second / WEIGHTS).write_bytes(b"damage")
        await watcher.look(polite=False)
        assert "sha256" in watcher.refusals["fine"]
        await watcher.look(polite=False)  # looked at again, reported once
        assert (watcher.refused, generations.current.fine.name) == (1, first.name)

        (tmp_path / "fine" / CURRENT).write_text("elsewhere")
        await watcher.look(polite=False)
        assert "16 hex digits" in watcher.refusals["fine"]
        publish_package(first)
        await watcher.look(polite=False)
        assert watcher.refusals == {}
        assert generations.current.number == 2

        publish_package(second)
        await watcher.look(polite=False)
        assert "fine" in watcher.refusals
        shutil.copyfile(tmp_path / "good", second / WEIGHTS)  # repaired in place
        await watcher.look(polite=False)
        assert watcher.refusals == {}
        assert generations.current.fine.name == second.name

    asyncio.run(scenario())
