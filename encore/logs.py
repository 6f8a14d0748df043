"""Log lines of encore's long-running processes: to stderr, one line an event, times in UTC."""

from __future__ import annotations

import logging
import time
from typing import Final

FORMAT: Final = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%S"
#: Clients that tell of every connection: heard from `warning` on, unless all is asked for.
TALKATIVE: Final = ("aiokafka", "faust", "kafka", "mode")


def start_logging(level: str) -> None:
    """Send records of at least `level` (a name such as `info`) to stderr; warnings too."""
    formatter = logging.Formatter(FORMAT, TIME_FORMAT)
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)
