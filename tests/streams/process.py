"""`python -m tests.streams.process KIND SETTINGS FAULT`: one stream process of a test.

FAULT names a defect to run with: the point of the tests that use one is that nothing is lost by it.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from streams.app import run_app
from streams.config import StreamConfig
from streams.item_worker import run_item_worker
from streams.ship import run_shipper
from streams.sink import run_sink
from streams.worker import Worker, run_worker


class RaisingWorker(Worker):
    """Raises what nobody foresaw in its third call, after it has stored some."""

    calls = 0

    async def handle(self, lists: Any) -> None:
        self.calls += 1
        if self.calls == 3:
            raise ZeroDivisionError("nobody foresaw this")
        await super().handle(lists)


def main(kind: str, settings: str, fault: str) -> int:
    values = json.loads(settings)
    for name in ("data_dir", "spool_dir"):
        if name in values:
            values[name] = Path(values[name])
    config = StreamConfig(**values)
    logging.basicConfig(level="INFO", format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for library in ("kafka", "aiokafka", "faust", "mode"):
        logging.getLogger(library).setLevel("ERROR")
    if fault == "raise":
        return run_app(config, config.group, [config.topic], RaisingWorker(config))
    runs = {
        "worker": run_worker,
        "items": run_item_worker,
        "sink": run_sink,
        "ship": run_shipper,
    }
    return runs[kind](config)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
