"""What the watcher makes of pointers and packages, without a server around it."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

from predictor.card import CURRENT, WEIGHTS
from predictor.generation import Generations
from predictor.package import publish_package
from predictor.watcher import WatchConfig, Watcher
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY
from schemas.plan import dump_plan
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


def test_a_plan_is_followed_whatever_its_version_in_a_new_store() -> None:
    """A new store counts publications from 1, whatever versions its plans have."""

    async def scenario() -> None:
        store = AsyncMemoryRowStore()
        first = replace(PLAN, version=2, parent=1)
        generations = Generations(first, "ranking")
        watcher = Watcher(generations, store, WatchConfig(None))
        await store.compare_and_set_text(PLAN_KEY, PLAN_VERSION_KEY, 0, dump_plan(first))
        await watcher.look()
        await watcher.look()
        assert generations.current.number == 1, "what serves already is not swapped in again"
        second = replace(first, version=3, parent=2)
        await store.compare_and_set_text(PLAN_KEY, PLAN_VERSION_KEY, 1, dump_plan(second))
        await watcher.look()
        assert generations.current.plan == second
        await watcher.look()
        assert generations.current.number == 2

    asyncio.run(scenario())
