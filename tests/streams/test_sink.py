"""The sink as a process, on the real broker and store."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.blocks import block_of
from schemas.names import HEADER_CODE, PLAN_KEY, dead_letter_topic
from schemas.plan import dump_plan
from schemas.ranklog import RankRecord, encode_record
from streams.admin import ensure_topics
from streams.archive import list_files, next_offset
from streams.producer import ActionProducer
from tests.streams.ranks import PLAN, SERVICE, USER, random_record
from tests.streams.support import (
    PARTITIONS,
    T0,
    Process,
    Stack,
    make_stack,
    raw_producer,
    read_topic,
    running,
    some_actions,
    user_of,
    wait_stored,
    wait_until,
)


@pytest.fixture
def stack(broker: str, valkey: str, tmp_path: Path) -> Stack:
    made = replace(
        make_stack(broker, valkey, tmp_path / "data", roll_ms=200), plan=replace(PLAN, version=7)
    )
    ensure_topics(broker, made.config.topics)
    return made


def archive_of(stack: Stack, *parts: str) -> pa.Table:
    """All rows of a tree; checks that the files of each partition cover offsets without a hole."""
    root = stack.config.archive_dir.joinpath(*parts)
    directories = sorted(root.glob("topic_id=*/partition=*"))
    assert directories
    tables = []
    for directory in directories:
        files = list_files(directory)
        assert next_offset(files) is not None
        assert files[0].first == 0
        tables += [pq.ParquetFile(file.path).read() for file in files]
    return pa.concat_tables(tables, promote_options="default")


def send_records(stack: Stack, records: list[RankRecord]) -> dict[int, int]:
    """To partition user_id % 2; returns the ends."""
    ends: dict[int, int] = {}
    with raw_producer(stack.config.bootstrap) as producer:
        sent = [
            producer.send(
                stack.config.rank_topic,
                value=encode_record(record),
                key=b"%d" % record.user_id,
                partition=record.user_id % PARTITIONS,
            )
            for record in records
        ]
        for future in sent:
            place = future.get(60)
            ends[place.partition] = max(place.offset + 1, ends.get(place.partition, 0))
    return ends


def wait_archived(stack: Stack, ends: dict[int, int], topic: str = "") -> None:
    config = stack.config
    named = replace(stack, config=replace(config, topic=topic or config.topic))
    wait_stored(named, ends, config.archive_group)


def test_actions_and_rank_log_become_parquet(stack: Stack) -> None:
    config = stack.config
    actions = some_actions(2_000, 30)
    records = [random_record(seed) for seed in range(30)]
    with running("sink", stack) as sink:
        with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
            for part in np.array_split(actions, 10):
                ends = producer.send(part, T0 + 20_000)
        rank_ends = send_records(stack, records)
        wait_archived(stack, ends)
        wait_archived(stack, rank_ends, config.rank_topic)
        assert sink.terminate() == 0
    table = archive_of(stack, config.topic)
    (name,) = (config.archive_dir / config.topic).glob("topic_id=*/_topic")
    assert name.read_text() == config.topic
    assert sorted(table["time_ms"].to_pylist()) == actions["time_ms"].tolist()
    assert pa.compute.sum(table["value"]).as_py() == actions["value"].sum()
    requests = archive_of(stack, config.rank_topic, "requests")
    candidates = archive_of(stack, config.rank_topic, "candidates")
    assert sorted(requests["request_id"].to_pylist()) == sorted(str(r.request_id) for r in records)
    assert candidates.num_rows == 9 * 30
    by_id = {str(record.request_id): record for record in records}
    ordered = [by_id[request] for request in requests["request_id"].to_pylist()]
    assert block_of(requests, USER).tobytes() == b"".join(r.user_values for r in ordered)
    plan = config.archive_dir / config.rank_topic / "plans" / f"{SERVICE.fingerprint}.json"
    assert plan.read_text() == dump_plan(stack.plan)


def test_what_is_held_back_is_written_on_sigterm_and_not_before(stack: Stack) -> None:
    stack = replace(stack, config=replace(stack.config, roll_ms=600_000))
    config = stack.config
    actions = some_actions(100, 10)
    with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
        producer.send(actions, T0 + 20_000)
    for fetched_s in (0.5, 2.0, 8.0, 32.0):  # after it began to read, unless the machine stalls
        with running("sink", stack) as sink:
            wait_until(partial(is_reading, sink))
            time.sleep(fetched_s)
            assert sink.popen.poll() is None
            assert not list(config.archive_dir.rglob("*.parquet"))
            assert sink.terminate() == 0
        if list(config.archive_dir.rglob("*.parquet")):
            break
    assert archive_of(stack, config.topic).num_rows == 100


def test_a_full_buffer_is_written_at_once(stack: Stack) -> None:
    stack = replace(stack, config=replace(stack.config, roll_ms=600_000, roll_rows=50))
    config = stack.config
    user = user_of(0)
    with running("sink", stack) as sink:
        with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
            for seed in range(10):
                actions = some_actions(25, 1, seed)
                actions["user"] = user
                ends = producer.send(actions, T0 + 20_000)
        wait_archived(stack, ends)
        assert sink.terminate() == 0
    (directory,) = (config.archive_dir / config.topic).glob("topic_id=*/partition=0")
    assert next_offset(list_files(directory)) == 10
    assert archive_of(stack, config.topic).num_rows == 250


def test_records_that_cannot_be_read_are_dead_letters_and_offsets_stay_covered(
    stack: Stack,
) -> None:
    config = stack.config
    good = random_record(1)
    foreign = replace(good, service_fingerprint=0xABCDEF)
    bad: list[Any] = [b"", b"ERNK", None, encode_record(good)[:-60], encode_record(foreign)]
    with running("sink", stack) as sink, raw_producer(config.bootstrap) as producer:
        for value in [*bad[:2], encode_record(good), *bad[2:]]:
            last = producer.send(config.rank_topic, value=value, key=b"1", partition=0).get(60)
        wait_archived(stack, {0: last.offset + 1}, config.rank_topic)
        topic = dead_letter_topic(config.rank_topic)
        dead = read_topic(config.bootstrap, topic, 1, len(bad))
        assert sink.terminate() == 0
    assert [letter.value for letter in dead] == bad
    codes = [dict(letter.headers)[HEADER_CODE] for letter in dead]
    assert codes == [b"record"] * 4 + [b"plan"]
    requests = archive_of(stack, config.rank_topic, "requests")
    assert requests["request_id"].to_pylist() == [str(good.request_id)]


def test_refused_actions_are_not_archived_but_their_offsets_are_covered(stack: Stack) -> None:
    config = stack.config
    with running("sink", stack) as sink, raw_producer(config.bootstrap) as producer:
        for _ in range(3):
            last = producer.send(config.topic, value=b"?", key=b"1", partition=1).get(60)
        wait_archived(stack, {1: last.offset + 1})
        assert sink.terminate() == 0
    table = archive_of(stack, config.topic)
    assert (table.num_rows, "request_id" in table.column_names) == (0, True)


def test_after_a_kill_no_offset_is_missing_or_covered_twice(stack: Stack) -> None:
    """Killed at any moment, half-written files included, it goes on where its files end."""
    config, sent = stack.config, 0
    records = [random_record(seed) for seed in range(120)]
    with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
        for turn in range(4):
            with running("sink", stack) as sink:
                wait_until(partial(is_reading, sink))
                for seed in range(12):
                    ends = producer.send(some_actions(40, 30, sent + seed), T0 + 20_000)
                rank_ends = send_records(stack, records[turn * 30 : turn * 30 + 30])
                sent += 12
                if turn == 3:
                    wait_archived(stack, ends)
                    wait_archived(stack, rank_ends, config.rank_topic)
                    assert sink.terminate() == 0
                else:
                    wait_until(partial(has_files, stack, 3 * turn + 1))
                    sink.kill()
            if turn < 3:
                plant_leftovers(stack)
    table = archive_of(stack, config.topic)
    assert table.num_rows == 40 * sent
    for directory in (config.archive_dir / config.rank_topic / "requests").glob("*/partition=*"):
        twin = Path(str(directory).replace("requests", "candidates"))
        assert [file.path.name for file in list_files(directory)] == [
            file.path.name for file in list_files(twin)
        ]
    requests = archive_of(stack, config.rank_topic, "requests")
    assert sorted(requests["request_id"].to_pylist()) == sorted(str(r.request_id) for r in records)


def is_reading(sink: Process) -> bool:
    return "reading" in sink.text()


def has_files(stack: Stack, count: int) -> bool:
    return len(list(stack.config.archive_dir.rglob("*.parquet"))) >= count


def plant_leftovers(stack: Stack) -> None:
    """What a kill between two steps may leave: half a file, candidates without requests."""
    root = stack.config.archive_dir / stack.config.rank_topic
    for directory in root.glob("requests/topic_id=*/partition=*"):
        end = next_offset(list_files(directory)) or 0
        (directory / f"{end:020d}-{end + 5:020d}.parquet.unfinished").write_bytes(b"PAR1")
        twin = Path(str(directory).replace("requests", "candidates"))
        (twin / f"{end:020d}-{end + 5:020d}.parquet").write_bytes(b"PAR1")


def test_the_plan_of_earlier_records_is_remembered(stack: Stack) -> None:
    """Published plans come and go; a record's own plan types its columns as long as it exists."""
    config = stack.config
    with running("sink", stack) as sink:
        wait_archived(stack, send_records(stack, [random_record(1)]), config.rank_topic)
        assert sink.terminate() == 0
    later = replace(stack, plan=replace(PLAN, services=()))
    with running("sink", later) as sink:
        with stack.store() as store:
            assert store.get_text(PLAN_KEY) == dump_plan(later.plan)
        wait_archived(stack, send_records(stack, [random_record(2)]), config.rank_topic)
        assert sink.terminate() == 0
    assert archive_of(stack, config.rank_topic, "requests").num_rows == 2


def test_a_disk_that_takes_no_file_ends_the_sink_and_acknowledges_nothing(stack: Stack) -> None:
    stack = replace(stack, config=replace(stack.config, patience_ms=3_000))
    config = stack.config
    with running("sink", stack) as sink:
        wait_until(partial(is_reading, sink))
        shutil.rmtree(config.archive_dir, ignore_errors=True)
        config.archive_dir.write_text("no directory")
        with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
            producer.send(some_actions(100, 10), T0 + 20_000)
        assert sink.wait() == 1
        assert "needs a disk that takes a file" in sink.text()
    with stack.store() as store:
        assert store.get_progress(config.topic, config.archive_group) == {}
