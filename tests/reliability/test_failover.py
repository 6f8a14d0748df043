"""A store that keeps no file, a replica that does, and the failover from the one to the other."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from encore.local import Server, start_store
from store.wire import Disks
from streams.producer import ActionProducer
from tests.reliability.worlds import committed, messages, stack_in
from tests.streams.support import (
    PARTITIONS,
    assert_rows_equal_oracle,
    running,
    send_all,
    wait_stored,
    wait_until,
)

pytestmark = pytest.mark.kill

#: Some times the commit interval.
MOMENT_S = 1.5


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """A store without a file, and a replica of it with one."""
    servers = []
    for name in ("store", "replica"):
        (tmp_path / name).mkdir()
        servers.append(start_store(tmp_path / name))
    store, replica = servers
    with Redis(port=store.port) as client:
        client.config_set("appendonly", "no")
        client.config_set("repl-diskless-sync-delay", "0")
    with Redis(port=replica.port) as second, Redis(port=store.port) as client:
        second.replicaof("127.0.0.1", store.port)
        client.set("first", "")
        wait_until(lambda: client.execute_command("WAITAOF", 0, 1, 1_000)[1] == 1)
    yield store, replica
    for server in servers:
        server.child.kill()


def test_a_failover_to_the_replica_that_confirmed(
    broker: str, pair: tuple[Server, Server], tmp_path: Path
) -> None:
    """While the replica stands still rows are readable, and nothing more is committed. Afterwards
    it has all that was committed, and the rest is folded again."""
    own, replica = pair
    disks = Disks(own=False, replicas=1)
    first = stack_in(broker, own, tmp_path, disks=disks)
    config = first.config
    sent = messages(30)

    def committed_of() -> dict[int, int]:
        found = committed(first, config.group)
        return {partition: offset for (_, partition), offset in found.items()}

    with ActionProducer(broker, config.topic, PARTITIONS) as producer:
        with running("worker", first) as worker:
            ends = send_all(producer, sent[:10])
            wait_stored(first, ends)
            wait_until(lambda: committed_of() == ends)
            os.kill(replica.child.pid, signal.SIGSTOP)
            wait_stored(first, send_all(producer, sent[10:20]))
            time.sleep(MOMENT_S)
            assert committed_of() == ends
            own.child.kill()
            os.kill(replica.child.pid, signal.SIGCONT)
            worker.kill()
        url = f"redis://{replica.address}/0"
        alone = replace(config, store_url=url, disks=Disks())
        with Redis(port=replica.port) as client:
            client.replicaof("NO", "ONE")
        second = replace(first, config=alone)
        with second.store() as store:
            marks = store.get_progress(config.topic, config.group)
        assert all(marks[p].next_offset >= offset for p, offset in ends.items())
        with running("worker", second) as worker:
            wait_stored(second, send_all(producer, sent[20:]))
            assert worker.terminate() == 0
    with second.store() as store:
        assert_rows_equal_oracle(store, second.view, sent)
