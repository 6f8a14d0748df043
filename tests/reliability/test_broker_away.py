"""The broker is away for a moment and comes back with its log: all clients' connections are cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from bench.chaos_gate import Gate
from encore.local import start_broker
from schemas.ranklog import encode_record
from schemas.spool import segment_name
from streams.admin import ensure_topics
from streams.ends import read_ends
from streams.producer import ActionProducer
from streams.status import unshipped_bytes
from tests.streams.support import (
    PARTITIONS,
    T0,
    Process,
    make_stack,
    read_topic,
    running,
    some_actions,
    wait_until,
)
from tests.streams.test_ship import FRAMES, RECORDS
from tests.streams.test_sink import archive_of

pytestmark = pytest.mark.kill
AWAY_S = 1.5


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    (tmp_path / "broker").mkdir()
    with Gate() as made:
        server = start_broker(tmp_path / "broker", advertised=made.address)
        made.target = server.port
        yield made
        server.child.kill()


def test_the_gate_lets_in_and_cuts(gate: Gate) -> None:
    place = ("t", 0)
    ensure_topics(gate.address, {"t": 1})
    assert asyncio.run(read_ends(gate.address, {place: 0}, 60_000)) == {place: 0}
    with ActionProducer(gate.address, "t", 1) as producer:
        producer.send(some_actions(3, 2), T0)
        gate.cut()
        assert gate.counts.connections > 0
        with pytest.raises(ConnectionRefusedError):
            asyncio.run(connect(gate))
        gate.open()
    assert asyncio.run(read_ends(gate.address, {place: 0}, 60_000)) == {place: 1}, (
        "its log is as it was"
    )


async def connect(gate: Gate) -> None:
    await asyncio.open_connection("127.0.0.1", gate.port)


def test_archive_and_rank_log_go_on(gate: Gate, valkey: str, tmp_path: Path) -> None:
    """Nothing is lost; an action is archived once; who ends is started again."""
    stack = make_stack(gate.address, valkey, tmp_path / "data", roll_ms=200)
    config = stack.config
    ensure_topics(config.bootstrap, config.topics)
    config.spool.mkdir(parents=True)
    parts = np.array_split(some_actions(1_000, 30), 10)
    with ExitStack() as running_ones:
        processes: dict[str, Process] = {}

        def kept() -> None:
            for kind in ("sink", "ship"):
                if kind not in processes or processes[kind].popen.poll() is not None:
                    processes[kind] = running_ones.enter_context(running(kind, stack))

        def archived() -> int:
            kept()
            places = list(config.archive_dir.joinpath(config.topic).glob("*/partition=*"))
            whole = places and all(list(place.glob("*.parquet")) for place in places)
            return len(archive_of(stack, config.topic)) if whole else 0

        def shipped() -> bool:
            kept()
            return unshipped_bytes(config.spool) == 0

        def send(some: list[np.ndarray]) -> None:
            with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
                for part in some:
                    producer.send(part, T0 + 20_000)

        segment(config.spool, 0, FRAMES[:6])
        kept()
        send(parts[:5])
        wait_until(lambda: archived() > 0)
        gate.cut()
        segment(config.spool, 1, FRAMES[6:])
        time.sleep(AWAY_S)
        gate.open()
        send(parts[5:])
        wait_until(lambda: archived() == 1_000)
        wait_until(shipped)
    places = {(config.rank_topic, partition): 0 for partition in range(PARTITIONS)}
    count = sum(asyncio.run(read_ends(config.bootstrap, places, 60_000)).values())
    arrived = read_topic(config.bootstrap, config.rank_topic, PARTITIONS, count)
    assert {message.value for message in arrived} == set(map(encode_record, RECORDS))


def segment(spool: Path, sequence: int, frames: list[bytes]) -> None:
    (spool / segment_name(sequence)).write_bytes(b"".join(frames))
