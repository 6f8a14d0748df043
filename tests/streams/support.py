"""What the stream tests share: plans, actions, the topics of one test, processes of their own."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord
from numpy.typing import NDArray

from schemas.actions import ACTION, ActionType, encode_batch
from schemas.ids import partitions_of
from schemas.layout import layout_of
from schemas.names import CONTENT_ACTION, HEADER_CONTENT, PLAN_KEY, row_keys
from schemas.plan import Plan, ViewPlan, dump_plan
from schemas.row import TOMBSTONE_MS, decode_rows, encode_rows, read_fence
from store.base import RowStore
from store.redis_store import RedisRowStore
from streams.clients import KafkaProducer
from streams.config import StreamConfig
from streams.producer import ActionProducer, producer_settings
from tests.aggregation.plans import small_view
from tests.oracle.fold import as_dicts, rows_of, since_deletion, state_of
from tests.patience import WAIT_S
from tests.patience import patient as patient
from tests.streams import process as stream_process
from tests.streams.forked import Forked

T0 = 1_650_800_000_000
#: A process that is started anew imports for seconds, on a busy machine for many.
KILLED_S = 120.0
ATTEMPTS = 6
#: In what a watchdog says of a process that was given no partitions yet.
NOT_BEGUN = "standing still: group"
PARTITIONS = 2


def own_plan(topic: str) -> Plan:
    """The small view of the aggregation tests, fed from `topic`; its rows are the topic's own."""
    view = replace(small_view(), name=f"v_{topic.replace('-', '_')}", source=topic)
    return Plan(1, 0, (view,), ())


def some_actions(count: int, users: int, seed: int = 0, span_ms: int = 20_000) -> NDArray[np.void]:
    """(count,) ACTION by time, of `users` users, with everything the edge may know."""
    random = np.random.default_rng(seed)
    actions = np.zeros(count, ACTION)
    actions["user"] = random.integers(1, users + 1, count) * 7_919
    actions["item"] = random.integers(1, 50, count)
    actions["time_ms"] = T0 + np.sort(random.integers(0, span_ms, count))
    actions["value"] = random.integers(0, 1_000, count)
    actions["author"] = random.integers(1, 9, count)
    actions["tags"][:, 0] = random.integers(1, 5, count)
    actions["position"] = random.integers(0, 20, count)
    actions["request_hi"] = random.integers(0, 2**63, count, np.uint64)
    actions["request_lo"] = random.integers(0, 2**63, count, np.uint64)
    kinds = [kind for kind in ActionType if kind != ActionType.DELETE_USER]
    actions["type"] = random.choice(kinds, count)
    actions["known"] = random.integers(0, 16, count) | random.integers(0, 2, count) << 4
    return actions


def plain(actions: NDArray[np.void]) -> bytes:
    """Every field's bytes, without the padding between records."""
    return b"".join(actions[name].tobytes() for name in ACTION.names or ())


def user_of(partition: int, nth: int = 0, partitions: int = PARTITIONS) -> int:
    """The nth user id from 1 on that belongs to a partition."""
    ids = np.arange(1, 1_000)
    return int(ids[partitions_of(ids, partitions) == partition][nth])


def record(
    value: bytes | None,
    offset: int = 0,
    *,
    key: bytes | None = None,
    partition: int = 0,
    headers: Iterable[tuple[str, bytes]] = (),
    topic: str = "actions",
) -> ConsumerRecord:
    """A record as aiokafka hands it over."""
    return ConsumerRecord(topic, partition, offset, 0, 0, key, value, 0, 0, 0, tuple(headers))


def batch_record(actions: NDArray[np.void], sent_ms: int, offset: int, partition: int = 0) -> Any:
    key = b"%d" % int(actions["user"][0])
    return record(encode_batch(actions, sent_ms), offset, key=key, partition=partition)


# --- rows -----------------------------------------------------------------------------------


def oracle_states(view: ViewPlan, sent: Iterable[tuple[NDArray[np.void], int]]) -> dict[int, Any]:
    """user → state after exactly these (actions, sent_ms), by the slow oracle; of a deleted user
    without anything since: the newest time of a tombstone and no field."""
    by_user: dict[int, list[tuple[dict[str, Any], int]]] = {}
    for actions, sent_ms in sent:
        for action in as_dicts(actions):
            by_user.setdefault(action["user"], []).append((action, sent_ms))
    states = {user: state_of(view, since_deletion(each)) for user, each in by_user.items()}
    gone = {user: {"newest_ms": TOMBSTONE_MS} for user, each in by_user.items() if deleted(each)}
    return {user: state or gone.get(user) for user, state in states.items()}


def deleted(history: Iterable[tuple[dict[str, Any], int]]) -> bool:
    return any(action["type"] == ActionType.DELETE_USER for action, _ in history)


def assert_rows_equal_oracle(
    store: RowStore, view: ViewPlan, sent: Iterable[tuple[NDArray[np.void], int]]
) -> None:
    """Every user's stored row equals the oracle's to the last byte, but for the fence."""
    states = oracle_states(view, sent)
    users = sorted(states)
    raw = store.read(row_keys(view.name, view.generation, users))
    want = rows_of(view, users, [states[user] for user in users])
    assert [row is None for row in raw] == [states[user] is None for user in users]
    for index, row in enumerate(raw):
        if row is not None:
            fence = read_fence(row)
            assert fence is not None
            want.epoch[index], want.offset[index] = fence
    encoded = encode_rows(layout_of(view), want)
    wrong = [
        user
        for user, got, right in zip(users, raw, encoded, strict=True)
        if got not in (None, right)
    ]
    assert wrong == [], describe(view, raw[users.index(wrong[0])], states[wrong[0]])


def describe(view: ViewPlan, raw: bytes | None, state: Any) -> str:
    rows, _ = decode_rows(layout_of(view), [raw], np.zeros(1, np.int64))
    return f"got { ({k: v[0].tolist() for k, v in rows.values.items()}) }, want {state}"


# --- a stack of one test --------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """The shared broker and store, with topics and rows of this test alone."""

    config: StreamConfig
    plan: Plan

    @property
    def view(self) -> ViewPlan:
        return self.plan.views[0]

    def store(self) -> RedisRowStore:
        return RedisRowStore(patient(self.config.store_url))

    def but(self, **changes: Any) -> Stack:
        """The same with other settings."""
        return replace(self, config=replace(self.config, **changes))

    def publish(self) -> None:
        """All tests of a worker share one plan key: whoever starts a process publishes first."""
        with self.store() as store:
            store.put_text(PLAN_KEY, dump_plan(self.plan))


def make_stack(bootstrap: str, store_url: str, data_dir: Path, **overrides: Any) -> Stack:
    """Its processes outlast a machine that stalls: a store that does not answer a starting process
    or a rebalance in time ends it, and nobody starts it again here."""
    name = f"t{uuid.uuid4().hex[:10]}"
    config = StreamConfig(
        bootstrap,
        store_url,
        data_dir,
        group=f"g-{name}",
        topic=name,
        rank_topic=f"{name}-rank",
        partitions=PARTITIONS,
        session_timeout_s=2.0,
        commit_interval_s=0.2,
        store_timeout_ms=30_000,
        patience_ms=60_000,
        stand_still_ms=180_000,
    )
    return Stack(replace(config, **overrides), own_plan(name))


def with_item_view(stack: Stack) -> Stack:
    """The same with an item view. Its name is of this stack alone: rows lie under it, and tests
    share a store."""
    name = f"{stack.view.name}_of_item"
    view = replace(stack.view, name=name, entity="item", source=stack.config.item_topic)
    return replace(stack, plan=replace(stack.plan, views=(stack.view, view)))


@contextmanager
def raw_producer(bootstrap: str) -> Iterator[Any]:
    """kafka-python as it is, for messages that our own producer would not send."""
    producer = KafkaProducer(**producer_settings(bootstrap))
    try:
        yield producer
    finally:
        producer.close(timeout=1)


def send_bare(
    producer: Any, config: StreamConfig, actions: NDArray[np.void], sent_ms: int
) -> dict[int, int]:
    """A message for each action; {partition: the offset after the last}."""
    headers = [(HEADER_CONTENT, CONTENT_ACTION)]
    places = partitions_of(actions["user"], config.partitions).tolist()
    sent = [
        producer.send(
            config.topic,
            key=b"%d" % int(action["user"]),
            value=struct.pack("<q", sent_ms) + action.tobytes(),
            partition=partition,
            headers=headers,
        )
        for action, partition in zip(actions, places, strict=True)
    ]
    producer.flush(60)
    ends: dict[int, int] = {}
    for confirmed in (future.get(60) for future in sent):
        ends[confirmed.partition] = confirmed.offset + 1
    return ends


def read_topic(bootstrap: str, topic: str, partitions: int, count: int) -> list[Any]:
    """The first `count` records of a topic, in offset order within a partition."""
    return asyncio.run(asyncio.wait_for(_read_topic(bootstrap, topic, partitions, count), WAIT_S))


async def _read_topic(bootstrap: str, topic: str, partitions: int, count: int) -> list[Any]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        places = [TopicPartition(topic, partition) for partition in range(partitions)]
        consumer.assign(places)
        for place in places:
            consumer.seek(place, 0)
        return [await consumer.getone() for _ in range(count)]
    finally:
        await consumer.stop()


class Load:
    """Actions of sixty users from a thread, message after message. Use as a context manager.

    Every third time fifty messages of one action each, so that fetched lists hold many.

    sent: (actions, sent_ms) of each message. ends: {partition: the offset after the last}; complete
    once the load has ended.
    """

    def __init__(self, stack: Stack, pause_s: float) -> None:
        self.sent: list[tuple[NDArray[np.void], int]] = []
        self.ends: dict[int, int] = {}
        self._config, self._pause_s = stack.config, pause_s
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _run(self) -> None:
        config = self._config
        with (
            ActionProducer(config.bootstrap, config.topic, config.partitions) as producer,
            raw_producer(config.bootstrap) as raw,
        ):
            while not self._enough.wait(self._pause_s):
                part = some_actions(50, 60, len(self.sent))
                self.sent.append((part, int(part["time_ms"].max())))
                if len(self.sent) % 3:
                    self.ends |= producer.send(*self.sent[-1])
                else:
                    self.ends |= send_bare(raw, config, *self.sent[-1])


def send_all(
    producer: ActionProducer, parts: Iterable[tuple[NDArray[np.void], int]]
) -> dict[int, int]:
    """Send (actions, sent_ms) each; {partition: the offset after the last}."""
    ends: dict[int, int] = {}
    for part, sent_ms in parts:
        ends |= producer.send(part, sent_ms)
    return ends


# --- processes ------------------------------------------------------------------------------


@dataclass
class Process:
    """A stream process. Its log is a file, shown when a test fails."""

    popen: Forked
    log: Path

    def terminate(self, timeout_s: float = WAIT_S) -> int:
        """SIGTERM, then its exit code. A process that did not listen yet would be killed by it."""
        wait_until(lambda: self.popen.poll() is not None or hears(self.popen.pid, signal.SIGTERM))
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout_s)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(60)

    def wait(self, timeout_s: float = WAIT_S) -> int:
        return self.popen.wait(timeout_s)

    def text(self) -> str:
        return self.log.read_text()


def working_directory(stack: Stack) -> Path:
    """Where the stack's processes are started."""
    return stack.config.data_dir / "cwd"


def hears(pid: int, number: signal.Signals) -> bool:
    """The process has a handler for that signal, or has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return True
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@contextmanager
def running(kind: str, stack: Stack, fault: str = "") -> Iterator[Process]:
    """A worker, sink or shipper in a process of its own, gone at the end whatever happens."""
    process = start(kind, stack, fault)
    try:
        yield process
    except BaseException:
        print(process.text())
        raise
    finally:
        if process.popen.poll() is None:
            process.kill()


def ended_in_time(kind: str, stack: Stack, fault: str = "", early: str = NOT_BEGUN) -> str:
    """What a process said that ended by itself, with exit code 1, once it was under way.

    Where it may not stand still for long, a slow machine has it ended before that, and it says
    `early`, a pattern: it is started again, as whoever keeps it does, and has twice the time.
    """
    for attempt in range(ATTEMPTS):
        still_ms = stack.config.stand_still_ms << attempt
        with running(kind, stack.but(stand_still_ms=still_ms), fault) as process:
            assert process.wait() == 1
        if not re.search(early, process.text()):
            break
    return process.text()


def killed_under_load(stack: Stack, kind: str, stored: Callable[[Stack], int], kills: int) -> Load:
    """Kill a process with SIGKILL again and again, each time a little after `stored` has grown."""
    dice = random.Random(kills)
    with Load(stack, 0.01) as load:
        for _ in range(kills):
            with running(kind, stack) as process:
                reached = stored(stack)
                wait_until(partial(_grown, stored, stack, reached), KILLED_S)
                time.sleep(dice.uniform(0, 0.3))
                process.kill()
    return load


def _grown(stored: Callable[[Stack], int], stack: Stack, reached: int) -> bool:
    return stored(stack) > reached


def start(kind: str, stack: Stack, fault: str = "") -> Process:
    stack.publish()
    directory = working_directory(stack)
    directory.mkdir(parents=True, exist_ok=True)
    log = stack.config.data_dir / f"{kind}-{time.monotonic_ns()}.log"
    settings = {
        name: str(value)
        if isinstance(value, Path)
        else value
        if name != "disks"
        else astuple(value)
        for name in StreamConfig.__dataclass_fields__
        if (value := getattr(stack.config, name)) is not None
    }
    arguments = (kind, json.dumps(settings), fault)
    return Process(Forked(stream_process.main, arguments, directory, log), log)


def wait_until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def wait_stored(
    stack: Stack, ends: dict[int, int], group: str = "", timeout_s: float = WAIT_S
) -> None:
    """Until the progress marks reach these offsets."""
    with stack.store() as store:
        wait_until(
            lambda: all(
                mark is not None and mark.next_offset >= end
                for marks in [store.get_progress(stack.config.topic, group or stack.config.group)]
                for partition, end in ends.items()
                for mark in [marks.get(partition)]
            ),
            timeout_s,
        )
