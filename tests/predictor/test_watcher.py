"""What the watcher makes of pointers and packages, without a server around it."""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregation.cache.reader import ItemCache
from aggregation.program import ServiceProgram
from predictor.card import CURRENT, WEIGHTS, Expected
from predictor.generation import Generations
from predictor.package import publish_package, verify_package
from predictor.spec import KINDS
from predictor.verify import verify_in_process
from predictor.watcher import WatchConfig, Watcher
from schemas.errors import StoreError
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY
from schemas.plan import Plan, dump_plan
from store.memory import AsyncMemoryRowStore
from tests.aggregation.cache.worlds import go_live, reader_of, writer_in
from tests.predictor.support import ITEMS, NOW_MS, PLAN, publish

ANOTHER = np.array(ITEMS, np.int64)
#: Another item side, whose cache is another one.
NEXT = replace(
    PLAN,
    version=PLAN.version + 1,
    services=tuple(replace(each, item_slots=each.item_slots[:-1]) for each in PLAN.services),
)


async def check_here(path: Path, expected: Expected, *_: object) -> None:
    """As in a process of its own, whose import of torch takes seconds: see test_package.py."""
    await asyncio.to_thread(verify_package, path, expected)


def test_refused_repaired_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("predictor.watcher.verify_in_process", check_here)

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


def test_what_this_machine_could_not_load_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And what it could serves."""

    async def scenario() -> None:
        generations = Generations(PLAN, "ranking")
        watcher = Watcher(generations, AsyncMemoryRowStore(), WatchConfig(tmp_path, retry_s=0.0))
        names = {kind: publish(tmp_path, kind, seed=1).name for kind in KINDS}

        async def no_process(path: Path, *more: Any) -> None:
            if path.parent.name == "fine":
                raise OSError(errno.EAGAIN, "no process")
            await verify_in_process(path, *more)

        monkeypatch.setattr("predictor.watcher.verify_in_process", no_process)
        await watcher.look(polite=False)
        now = generations.current
        assert (now.fine, now.coarse and now.coarse.name) == (None, names["two_tower"])
        monkeypatch.undo()
        await watcher.look(polite=False)
        assert generations.current.fine is not None
        assert generations.current.fine.name == names["fine"]

    asyncio.run(scenario())
    assert "the fine model could not be loaded" in caplog.text


@pytest.mark.parametrize(
    "fault", [StoreError("store", required="a server", got="none"), KeyError("nobody foresaw this")]
)
def test_packages_are_followed_whatever_becomes_of_the_plan(
    tmp_path: Path, fault: Exception
) -> None:
    class Away(AsyncMemoryRowStore):
        async def get_text(self, key: str) -> str | None:
            raise fault

    async def scenario() -> None:
        generations = Generations(PLAN, "ranking")
        watcher = Watcher(generations, Away(), WatchConfig(tmp_path))
        name = publish(tmp_path, "fine", seed=1).name
        with pytest.raises(type(fault)):
            await watcher.look(polite=False)
        assert generations.current.fine is not None
        assert generations.current.fine.name == name

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


def test_a_plan_that_fails_is_not_compiled_at_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again after a pause, and another one at once."""
    compiled: list[int] = []
    program_of = Generations.program_of

    def fails(self: Generations, plan: Plan) -> ServiceProgram:
        compiled.append(plan.version)
        if plan.version == 2:
            raise ZeroDivisionError("of this machine, now")
        return program_of(self, plan)

    monkeypatch.setattr(Generations, "program_of", fails)
    second, third = (replace(PLAN, version=version) for version in (2, 3))

    async def scenario() -> None:
        store, generations = AsyncMemoryRowStore(), Generations(replace(PLAN, version=1), "ranking")
        for retry_s, looks in ((1e6, 1), (0.0, 3)):
            watcher = Watcher(generations, store, WatchConfig(None, retry_s=retry_s))
            await store.put_text(PLAN_KEY, dump_plan(second))
            await store.put_text(PLAN_VERSION_KEY, "2")
            compiled.clear()
            for _ in range(3):
                with suppress(ZeroDivisionError):
                    await watcher.look()
            assert compiled == [2] * looks
            assert watcher.refusals == {"plan": "ZeroDivisionError: of this machine, now"}
            assert watcher.refused == 1
            assert generations.current.plan.version != 2
            await store.put_text(PLAN_KEY, dump_plan(third))
            await store.put_text(PLAN_VERSION_KEY, "3")
            await watcher.look()
            assert generations.current.plan == third
            assert not watcher.refusals

    asyncio.run(scenario())


async def _published(store: AsyncMemoryRowStore, items: ItemCache | None, wait_s: float) -> Watcher:
    """A watcher of PLAN, behind whose back NEXT was published."""
    generations = Generations(PLAN, "ranking")
    if items is not None:
        assert items.look_up(generations.current.program, ANOTHER, NOW_MS) is not None
    watcher = Watcher(generations, store, WatchConfig(None, items_wait_s=wait_s), items)
    await store.compare_and_set_text(PLAN_KEY, PLAN_VERSION_KEY, 0, dump_plan(PLAN))
    await watcher.look()
    await store.compare_and_set_text(PLAN_KEY, PLAN_VERSION_KEY, 1, dump_plan(NEXT))
    return watcher


def test_a_plan_waits_for_its_items_as_long_as_they_come(tmp_path: Path) -> None:
    """However long that takes: here longer than the wait for a cache that nobody fills, 0 s."""

    async def scenario() -> None:
        go_live(writer_in(tmp_path, ServiceProgram(PLAN, "ranking")))
        items = reader_of(tmp_path)
        watcher = await _published(AsyncMemoryRowStore(), items, 0.0)
        program = ServiceProgram(NEXT, "ranking")
        filling = writer_in(tmp_path, program)
        for place in range(5):
            ids = ANOTHER[place : place + 1]
            filling.put(ids, [None] * len(program.item_keys(ids)), NOW_MS)
            filling.walked(1)
            await asyncio.sleep(0.3)  # a file that was not fresh is opened again after a while
            await watcher.look()
            assert watcher.generations.current.plan == PLAN
            assert f"plan {NEXT.version} waits" in watcher.news()["waiting"]
        go_live(filling)
        while watcher.generations.current.plan == PLAN:
            filling.walked(1)
            await asyncio.sleep(0.05)
            await watcher.look()
        assert watcher.news() == {}
        assert items.look_up(watcher.generations.current.program, ANOTHER, NOW_MS) is not None
        assert items.counts.unusable == 0
        items.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("begun", [False, True])
def test_a_plan_whose_items_nobody_loads_serves(
    begun: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        go_live(writer_in(tmp_path, ServiceProgram(PLAN, "ranking")))
        items = reader_of(tmp_path)
        watcher = await _published(AsyncMemoryRowStore(), items, 0.2)
        if begun:
            writer_in(tmp_path, ServiceProgram(NEXT, "ranking")).walked(7)
        await watcher.look()
        assert watcher.generations.current.plan == PLAN
        while watcher.generations.current.plan == PLAN:
            await asyncio.sleep(0.1)
            await watcher.look()
        assert watcher.news() == {}
        items.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert "serves before its items are cached" in caplog.text


def test_a_plan_waits_for_no_items_where_none_were_cached(tmp_path: Path) -> None:
    async def scenario() -> None:
        watcher = await _published(AsyncMemoryRowStore(), None, 1e9)
        await watcher.look()
        assert watcher.generations.current.plan == NEXT
        writer = writer_in(tmp_path, ServiceProgram(PLAN, "ranking"))
        go_live(writer)
        items = reader_of(tmp_path)
        watcher = await _published(AsyncMemoryRowStore(), items, 1e9)
        writer.retire()  # there was no room for both
        await watcher.look()
        assert watcher.generations.current.plan == NEXT
        items.close()

    asyncio.run(scenario())


def test_a_plan_that_waits_gives_way_to_the_one_after_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        go_live(writer_in(tmp_path, ServiceProgram(PLAN, "ranking")))
        items, store = reader_of(tmp_path), AsyncMemoryRowStore()
        watcher = await _published(store, items, 1e9)
        await watcher.look()
        assert watcher.waiting
        last = replace(PLAN, version=NEXT.version + 1)
        await store.compare_and_set_text(PLAN_KEY, PLAN_VERSION_KEY, 2, dump_plan(last))
        await watcher.look()
        assert watcher.generations.current.plan == last
        assert watcher.news() == {}
        items.close()

    asyncio.run(scenario())
