"""A process that is one stream worker after another: the real one, as `encore worker` runs it.

Each line of standard input is a StreamConfig as JSON, and `of`: users or items. SIGTERM drains the
worker, and the next line starts another in the same process, so that interpreter and imports are
paid once.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Final

from store.wire import Disks
from streams.config import StreamConfig
from streams.item_worker import run_item_worker
from streams.worker import run_worker

WORKERS: Final = {"users": run_worker, "items": run_item_worker}


def main() -> int:
    """Exit code 0 at the end of the input, else that of the worker that failed."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for library in ("kafka", "aiokafka", "faust", "mode"):
        logging.getLogger(library).setLevel("ERROR")
    for line in sys.stdin:
        values = json.loads(line)
        values["data_dir"] = Path(values["data_dir"])
        values["disks"] = Disks(*values["disks"])
        run = WORKERS[values.pop("of")]
        code = run(StreamConfig(**values))
        print(json.dumps({"ended": code}), flush=True)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
