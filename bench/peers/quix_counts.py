"""quixstreams counting each user's actions in tumbling windows: one process, one topic.

    PYTHON bench/peers/quix_counts.py <<< '{"bootstrap": …, "topic": …, "total": …}'

It runs in an interpreter of its own, since its requirements and encore's exclude each other, and
imports nothing of encore. As its documentation sets it up: `tumbling_window(hour).count()`, keyed
by the message key, windows by event time taken from the message, results as they change
(`current`); state in RocksDB, which has no alternative there. Set to be fast: no changelog topic,
one commit a second.

Prints `{}` once it has imported everything, and waits for its settings, a line of standard input.
Then prints a JSON line with the clock and its CPU seconds once `skip` messages are counted, and
another once all are, which carries the counts: [user, hour, count] each.
"""

from __future__ import annotations

import importlib
import json
import os
import struct
import sys
import time
import warnings
from typing import Any

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def main(quixstreams: Any, settings: dict[str, Any]) -> int:
    """Ends the process itself once `total` messages are counted."""
    session_ms = round(settings["session_s"] * 1000)
    app = quixstreams.Application(
        broker_address=settings["bootstrap"],
        consumer_group=settings["group"],
        auto_offset_reset="earliest",
        state_dir=settings["state_dir"],
        loglevel="WARNING",
        use_changelog_topics=False,
        commit_interval=1.0,
        consumer_extra_config={
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": session_ms // 3,
        },
    )
    unpack = struct.Struct("<q8xq").unpack_from  # user, time_ms
    skip, total, body_at = settings["skip"], settings["total"], settings["body_at"]
    topic = app.topic(
        settings["topic"],
        value_deserializer="bytes",
        key_deserializer="bytes",
        timestamp_extractor=lambda value, headers, at_ms, kind: unpack(value, body_at)[1],
    )
    # The embedded broker does not tell a topic's retention, which quixstreams asks for.
    topic.broker_config.extra_config.setdefault("retention.ms", "-1")
    counts: dict[tuple[bytes, int], int] = {}
    seen = 0

    def counted(window: dict[str, int], key: bytes, at_ms: int, headers: object) -> None:
        nonlocal seen
        counts[key, window["start"]] = window["value"]
        seen += 1
        if seen == skip:
            _say()
        elif seen == total:
            _say(counts=[[int(user), at // HOUR_MS, n] for (user, at), n in counts.items()])
            os._exit(0)

    frame = app.dataframe(topic)
    frame = frame.tumbling_window(HOUR_MS, grace_ms=30 * DAY_MS).count().current()
    frame.update(counted, metadata=True)
    app.run()
    return 1


def _say(**more: Any) -> None:
    times = os.times()
    line = {"at_s": time.monotonic(), "cpu_s": times.user + times.system, **more}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = importlib.import_module("quixstreams")  # of this script's interpreter alone
    print("{}", flush=True)  # all is imported
    sys.exit(main(library, json.loads(sys.stdin.readline())))
