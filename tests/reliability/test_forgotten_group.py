"""A broker that keeps its logs and forgets how far its groups are: the store knows.

Kafka drops the offsets of a group that was away for `offsets.retention.minutes`, and a coordinator
may lose its own log. Deleting the group does the same; the embedded broker does it to a group whose
members are there, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from streams.admin import ensure_topics
from streams.clients import KafkaAdminClient
from streams.producer import ActionProducer
from tests.reliability.worlds import Sent, committed, messages
from tests.streams.support import (
    KILLED_S,
    PARTITIONS,
    Stack,
    assert_rows_equal_oracle,
    make_stack,
    running,
    send_all,
    wait_stored,
    wait_until,
)
from tests.streams.test_item_worker import assert_item_rows, wait_items

pytestmark = [pytest.mark.kill, pytest.mark.timeout(300)]

#: The commit interval.
MOMENT_S = 0.2


def forget(stack: Stack, group: str) -> None:
    """Delete the group."""
    admin: Any = KafkaAdminClient(bootstrap_servers=stack.config.bootstrap)
    try:
        assert admin.delete_groups([group]) == {group: "OK"}
    finally:
        admin.close()


def fold_and_forget(
    stack: Stack, kind: str, group: str, wait: Callable[[dict[int, int]], None]
) -> list[Sent]:
    """The group is forgotten under its only member, and once more when it ended.

    Raises AssertionError where the successor folds anything again.
    """
    config, partitions = stack.config, PARTITIONS * (1 if kind == "worker" else 2)
    sent: list[Sent] = []
    with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:

        def send(count: int) -> None:
            parts = messages(count, len(sent))
            sent.extend(parts)
            wait(send_all(producer, parts))

        def all_committed() -> bool:
            """A member that was forgotten joins anew, and commits what comes from then on."""
            send(1)
            time.sleep(MOMENT_S)
            return len(committed(stack, group)) == partitions

        with running(kind, stack) as first:
            send(10)
            wait_until(all_committed, KILLED_S)
            forget(stack, group)
            send(10)
            wait_until(all_committed, KILLED_S)
            assert first.terminate() == 0
        forget(stack, group)
        with running(kind, stack) as successor:
            send(10)
            assert successor.terminate() == 0
        assert "repeated=0" in successor.text()
        assert "wiped" not in successor.text()
    return sent


def test_a_worker_goes_on_from_the_store(broker: str, valkey: str, tmp_path: Path) -> None:
    stack = make_stack(broker, valkey, tmp_path / "data")
    ensure_topics(broker, stack.config.topics)
    sent = fold_and_forget(stack, "worker", stack.config.group, partial(wait_stored, stack))
    with stack.store() as store:
        assert_rows_equal_oracle(store, stack.view, sent)


def test_an_item_worker_goes_on_from_the_store(broker: str, valkey: str, tmp_path: Path) -> None:
    """Neither its place in the source nor that in the re-keyed topic was the broker's to know."""
    made = make_stack(broker, valkey, tmp_path / "data")
    view = replace(made.view, entity="item", source=made.config.item_topic)
    stack = replace(made, plan=replace(made.plan, views=(view,)))
    ensure_topics(broker, stack.config.topics)
    sent = fold_and_forget(stack, "items", stack.config.item_group, partial(wait_items, stack))
    with stack.store() as store:
        assert_item_rows(store, view, sent)
