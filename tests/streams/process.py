"""One stream process of a test, by `main(KIND, SETTINGS, FAULT)`.

FAULT names a defect to run with: the point of the tests that use one is that nothing is lost by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from store.base import Write
from store.redis_store import AsyncRedisRowStore
from store.wire import Disks
from streams.app import run_app
from streams.config import StreamConfig
from streams.item_worker import ItemWorker, run_item_worker
from streams.leaving import ending
from streams.servers import Servers
from streams.ship import run_shipper
from streams.sink import run_sink
from streams.worker import Worker, run_worker

#: No defect: whoever is idle looks at the store every LOOK_S.
WATCHFUL = "watchful"
LOOK_S = 0.2


class RaisingWorker(Worker):
    """Raises what nobody foresaw in its third call, after it has stored some."""

    calls = 0

    async def handle(self, lists: Any) -> None:
        self.calls += 1
        if self.calls == 3:
            raise ZeroDivisionError("nobody foresaw this")
        await super().handle(lists)


class StubbornWorker(Worker):
    """Fails, and leaves a task behind that does not take its cancellation."""

    async def handle(self, lists: Any) -> None:
        self.task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        raise ZeroDivisionError("nobody foresaw this")


async def stubborn() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


class WaitingWorker(Worker):
    """Waits for what never happens, once it has been given something."""

    async def handle(self, lists: Any) -> None:
        await asyncio.Event().wait()


class BlockingWorker(Worker):
    """Holds the event loop, once it has been given something."""

    async def handle(self, lists: Any) -> None:
        time.sleep(600)


class UnsavedItemWorker(ItemWorker):
    """Writes rows, and dies before it saves what they hold."""

    async def _save(self, upto: Any) -> None:
        await asyncio.Event().wait()


class SlowStore(AsyncRedisRowStore):
    """Each write takes a tenth of a second more."""

    async def compare_and_set(self, writes: Sequence[Write]) -> list[bool]:
        await asyncio.sleep(0.1)
        return await super().compare_and_set(writes)


def slow_store(config: StreamConfig) -> SlowStore:
    return SlowStore(config.store_url)


FAULTS: dict[str, Callable[[StreamConfig], Worker]] = {
    "raise": RaisingWorker,
    "stubborn": StubbornWorker,
    "wait": WaitingWorker,
    "block": BlockingWorker,
    "slow": lambda config: Worker(config, Servers(open_store=slow_store)),
}


def main(kind: str, settings: str, fault: str) -> int:
    values = json.loads(settings)
    for name in ("data_dir", "spool_dir"):
        if name in values:
            values[name] = Path(values[name])
    config = StreamConfig(**values | {"disks": Disks(*values["disks"])})
    logging.basicConfig(level="INFO", format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for library in ("kafka", "aiokafka", "faust", "mode"):
        logging.getLogger(library).setLevel("ERROR")
    if fault == "unsaved":
        topics = config.topic, config.item_topic
        handler = UnsavedItemWorker(config)
        return ending(run_app(config, config.item_group, topics, handler))
    if fault and fault != WATCHFUL:
        with patch("streams.leaving.LEAVE_S", 3.0):
            return ending(run_app(config, config.group, [config.topic], FAULTS[fault](config)))
    runs = {
        "worker": run_worker,
        "items": run_item_worker,
        "sink": run_sink,
        "ship": run_shipper,
    }
    with (
        patch("streams.holding.WATCH_S", LOOK_S) if fault == WATCHFUL else contextlib.nullcontext()
    ):
        return ending(runs[kind](config))
