"""The shipper on the real broker; the spool written by hand or by the service's own writer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from predictor.spool import SpoolConfig, SpoolWriter
from schemas.errors import StreamError
from schemas.ids import partition_of
from schemas.names import HEADER_CODE, HEADER_SOURCE, dead_letter_topic
from schemas.ranklog import RankRecord, encode_record
from schemas.spool import frame, segment_name, worker_directory
from streams.admin import ensure_topics
from streams.ship import POSITION_NAME, Shipper
from tests.streams.ranks import random_record
from tests.streams.support import PARTITIONS, Stack, make_stack, read_topic, running, wait_until


@pytest.fixture
def stack(broker: str, valkey: str, tmp_path: Path) -> Stack:
    made = make_stack(broker, valkey, tmp_path / "data", spool_dir=tmp_path / "spool")
    ensure_topics(broker, made.config.topics)
    made.config.spool.mkdir()
    return made


@pytest.fixture
def shipper(stack: Stack) -> Iterator[Shipper]:
    with Shipper(stack.config) as made:
        yield made


RECORDS = [random_record(seed) for seed in range(12)]
FRAMES = [frame(encode_record(record)) for record in RECORDS]


def segment(stack: Stack, sequence: int) -> Path:
    return stack.config.spool / segment_name(sequence)


def shipped(stack: Stack, count: int) -> list[Any]:
    """The first `count` records of the rank topic, of all partitions."""
    return read_topic(stack.config.bootstrap, stack.config.rank_topic, PARTITIONS, count)


def values(records: list[RankRecord]) -> list[bytes]:
    return sorted(encode_record(record) for record in records)


def test_records_arrive_keyed_by_user(stack: Stack, shipper: Shipper) -> None:
    segment(stack, 0).write_bytes(b"".join(FRAMES))
    assert shipper.ship_available() == 12
    arrived = shipped(stack, 12)
    assert sorted(message.value for message in arrived) == values(RECORDS)
    users = {encode_record(record): record.user_id for record in RECORDS}
    for message in arrived:
        user = users[message.value]
        assert message.key == b"%d" % user
        assert message.partition == partition_of(user, PARTITIONS)


def test_a_growing_segment_is_followed_and_a_finished_one_deleted(
    stack: Stack, shipper: Shipper
) -> None:
    growing = segment(stack, 0)
    growing.write_bytes(FRAMES[0] + FRAMES[1][:20])
    assert shipper.ship_available() == 1
    with growing.open("ab") as file:
        file.write(FRAMES[1][20:])
    assert shipper.ship_available() == 1
    assert shipper.ship_available() == 0
    assert growing.exists()
    segment(stack, 1).write_bytes(FRAMES[2])
    assert shipper.ship_available() == 1
    assert not growing.exists()
    assert (stack.config.spool / POSITION_NAME).read_text() == f"1 {len(FRAMES[2])}\n"
    assert sorted(message.value for message in shipped(stack, 3)) == values(RECORDS[:3])


def test_several_serving_processes_have_spools_of_their_own(stack: Stack) -> None:
    """Below the spool; one that comes later is found, and each has a position of its own."""
    segment(stack, 0).write_bytes(b"".join(FRAMES[:4]))
    below = [worker_directory(stack.config.spool, number) for number in (0, 1)]
    below[0].mkdir()
    (below[0] / segment_name(0)).write_bytes(b"".join(FRAMES[4:6]))
    with Shipper(stack.config) as first:
        assert first.ship_available() == 6
        below[1].mkdir()
        (below[1] / segment_name(0)).write_bytes(b"".join(FRAMES[6:]))
        assert first.ship_available() == 6
        assert first.shipped == 12
    with Shipper(stack.config) as again:
        assert again.ship_available() == 0
    assert sorted(message.value for message in shipped(stack, 12)) == values(RECORDS)


def test_a_restart_goes_on_from_the_position(stack: Stack) -> None:
    segment(stack, 0).write_bytes(b"".join(FRAMES[:4]))
    with Shipper(stack.config) as first:
        assert first.ship_available() == 4
    segment(stack, 1).write_bytes(b"".join(FRAMES[4:]))
    with Shipper(stack.config) as second:
        assert second.ship_available() == 8
    assert sorted(message.value for message in shipped(stack, 12)) == values(RECORDS)


def test_a_crash_before_the_position_is_written_sends_again(stack: Stack) -> None:
    segment(stack, 0).write_bytes(b"".join(FRAMES[:3]))
    with Shipper(stack.config) as first:
        first.ship_available()
    (stack.config.spool / POSITION_NAME).unlink()
    with Shipper(stack.config) as second:
        assert second.ship_available() == 3
    arrived = [message.value for message in shipped(stack, 6)]
    assert sorted(set(arrived)) == values(RECORDS[:3])


def test_what_is_no_record_is_a_dead_letter(stack: Stack, shipper: Shipper) -> None:
    segment(stack, 0).write_bytes(FRAMES[0] + frame(b"no record at all") + FRAMES[1])
    assert shipper.ship_available() == 3
    assert sorted(message.value for message in shipped(stack, 2)) == values(RECORDS[:2])
    topic = dead_letter_topic(stack.config.rank_topic)
    (dead,) = read_topic(stack.config.bootstrap, topic, 1, 1)
    assert dead.value == b"no record at all"
    assert dict(dead.headers)[HEADER_CODE] == b"record"
    assert dict(dead.headers)[HEADER_SOURCE].decode() == segment_name(0)


def test_damage_ends_a_segment_and_is_kept(stack: Stack, shipper: Shipper) -> None:
    damaged = bytearray(FRAMES[1])
    damaged[30] ^= 1
    segment(stack, 0).write_bytes(FRAMES[0] + damaged + FRAMES[2])
    assert shipper.ship_available() == 1
    assert shipper.ship_available() == 0  # its writer may still be at it
    segment(stack, 1).write_bytes(FRAMES[3])
    assert shipper.ship_available() == 1
    assert segment(stack, 0).with_suffix(".damaged").exists()
    assert not segment(stack, 0).exists()


def test_a_torn_tail_of_a_finished_segment_is_kept(stack: Stack, shipper: Shipper) -> None:
    segment(stack, 0).write_bytes(FRAMES[0] + FRAMES[1][:-1])
    segment(stack, 1).write_bytes(FRAMES[2])
    assert shipper.ship_available() == 2
    assert segment(stack, 0).with_suffix(".damaged").exists()


def test_numbering_that_began_again_is_an_error(stack: Stack) -> None:
    (stack.config.spool / POSITION_NAME).write_text("7 0\n")
    segment(stack, 0).write_bytes(FRAMES[0])
    with (
        Shipper(stack.config) as shipper,
        pytest.raises(StreamError, match="needs a segment 7 or newer"),
    ):
        shipper.ship_available()


@pytest.mark.parametrize("text", ["", "7", "seven 0", "1 2 3"])
def test_a_broken_position_is_an_error(stack: Stack, text: str) -> None:
    (stack.config.spool / POSITION_NAME).write_text(text)
    with pytest.raises(StreamError, match="needs two numbers"):
        Shipper(stack.config)


def test_it_follows_the_services_own_writer(stack: Stack) -> None:
    config = SpoolConfig(stack.config.spool, segment_bytes=20_000)
    writer: SpoolWriter[RankRecord] = SpoolWriter(config, encode_record)
    stop = threading.Event()
    with Shipper(stack.config) as shipper:
        thread = threading.Thread(target=shipper.run, args=(stop,))
        thread.start()
        for record in RECORDS * 5:
            assert writer.reserve()
            writer.put(record)
            time.sleep(0.002)
        assert writer.flush(60)
        writer.close()
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
    assert shipper.shipped == 60
    assert len(list(stack.config.spool.glob("*.spool"))) == 1
    arrived = [message.value for message in shipped(stack, 60)]
    assert sorted(arrived) == sorted(values(RECORDS) * 5)


def test_the_process_ships_what_there_is_and_ends(stack: Stack) -> None:
    segment(stack, 0).write_bytes(b"".join(FRAMES))
    with running("ship", stack) as process:
        wait_until(lambda: (stack.config.spool / POSITION_NAME).exists())
        assert process.terminate() == 0
    assert len(shipped(stack, 12)) == 12


def test_a_broker_that_does_not_confirm_keeps_the_spool(
    stack: Stack, shipper: Shipper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent again by the next run: the position was not moved."""
    segment(stack, 0).write_bytes(FRAMES[0])
    with monkeypatch.context() as patched:
        patched.setattr("streams.ship.SEND_TIMEOUT_S", -1.0)
        with pytest.raises(StreamError, match=r"topic .*: needs confirmed rank records"):
            shipper.ship_available()
    assert segment(stack, 0).exists()
    assert shipper.ship_available() == 1
