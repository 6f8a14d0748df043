"""A Faust agent that counts each user's actions in a windowed table: one process, one topic.

    python -m bench.peers.faust_table <<< '{"bootstrap": …, "topic": …, "total": …}'

As Faust's documentation sets it up: `Table(default=int).tumbling(hour)` keyed by user, windows by
event time, one update an event. What it offers to be fast is used: the table in memory, the
compiled stream loop of its wheel, no web server, raw values (two numbers are unpacked, no model is
built), and changelog records gathered for 50 ms before they are sent.

Prints `{}` once it has imported everything, and waits for its settings, a line of standard input.
Then prints a JSON line with the clock and its CPU seconds once `skip` messages are counted, and
another once all are, which carries the counts: [user, hour, count] each.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
import time
from typing import Any, Final

import faust
from yarl import URL

HOUR_S: Final = 3_600


def main(settings: dict[str, Any]) -> int:
    """Ends the process itself once `total` messages are counted."""
    app = faust.App(
        settings["group"],
        broker=URL(f"kafka://{settings['bootstrap']}"),
        store=URL("memory://"),
        datadir=settings["directory"],
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_partitions=settings["partitions"],
        broker_session_timeout=settings["session_s"],
        broker_heartbeat_interval=settings["session_s"] / 3,
        consumer_auto_offset_reset="earliest",
        producer_linger=0.05,
    )
    topic = app.topic(settings["topic"], value_type=bytes, value_serializer="raw")
    now_s = [0.0]  # event time of the action in hand: a raw value has no field to name
    table: Any = app.Table("counts", default=int, partitions=settings["partitions"])
    windows = table.tumbling(HOUR_S).relative_to(lambda event: now_s[0])
    unpack = struct.Struct("<q8xq").unpack_from  # user, time_ms
    skip, total, body_at = settings["skip"], settings["total"], settings["body_at"]

    async def agent(stream: Any) -> None:
        seen = 0
        async for value in stream:
            user, time_ms = unpack(value, body_at)
            now_s[0] = time_ms / 1000
            windows[user] += 1
            seen += 1
            if seen == skip:
                _say()
            elif seen == total:
                _say(counts=[[key, int(span[0]) // HOUR_S, n] for (key, span), n in table.items()])
                os._exit(0)

    app.agent(topic, concurrency=1)(agent)
    app.finalize()
    asyncio.run(_run(app))
    return 1


async def _run(app: Any) -> None:
    await app.start()
    await app.wait_until_stopped()


def _say(**more: Any) -> None:
    times = os.times()
    line = {"at_s": time.monotonic(), "cpu_s": times.user + times.system, **more}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    print("{}", flush=True)  # all is imported
    sys.exit(main(json.loads(sys.stdin.readline())))
