"""How fast one item worker re-keys a filled topic and folds it into rows of items.

The clock runs from the first pair of table and position that the worker saves to the last one: both
stages are under way by then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from bench.stream_log import PARTITIONS
from bench.stream_rates import PATIENCE_S, Cluster
from schemas.errors import LocalError
from schemas.names import by_item_topic, source_table_key
from schemas.plan import ViewPlan
from streams.source_table import lowest_reached, parse_pair

TOPIC: Final = "items-{}"
EPOCH: Final = 1  # of a topic that was made for the measurement
POLL_S: Final = 0.02


def item_views(view: ViewPlan, rounds: int) -> tuple[ViewPlan, ...]:
    """The view, of items, for each round's topic."""
    topics = [TOPIC.format(turn) for turn in range(rounds)]
    return tuple(
        replace(view, name=topic.replace("-", "_"), entity="item", source=by_item_topic(topic))
        for topic in topics
    )


def item_rate(running: Cluster, topic: str, ends: Mapping[int, int], actions: int) -> float:
    """Actions a second, re-keyed and in their rows. ends: partition of the source → messages.

    actions: in all of them. Raises LocalError where the worker does not get there in PATIENCE_S.
    """
    total = sum(ends.values())
    with running.worker(topic, "items"):
        first, began_s = _beyond(running, topic, ends, 0)
        _, ended_s = _beyond(running, topic, ends, total - 1)
    return actions * (total - first) / total / (ended_s - began_s)


def _beyond(
    running: Cluster, topic: str, ends: Mapping[int, int], messages: int
) -> tuple[int, float]:
    """Wait until more source messages than that are in the rows: how many, and when."""
    group = f"bench-{topic}.items"
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        running.check()
        pairs = {}
        for partition in range(PARTITIONS):
            key = source_table_key(by_item_topic(topic), group, partition)
            pairs[partition] = parse_pair(running.store.get_text(key), key)
        stored = sum(lowest_reached(pairs, partition, EPOCH) for partition in ends)
        now_s = time.monotonic()
        if stored > messages:
            return stored, now_s
        if now_s > deadline_s:
            got = f"{stored} after {PATIENCE_S} s"
            raise LocalError(f"bench.{topic}", required=f"{messages + 1} messages", got=got)
        time.sleep(POLL_S)
