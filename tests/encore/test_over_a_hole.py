"""A broker drops what nobody read: everything an operator does then, at the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encore.children import Child
from encore.cli import main
from encore.local import start_store
from encore.settings import Settings
from encore.starter import create_project
from encore.supervise import Supervisor
from encore.wiring import ensure_topics, stream_config
from schemas.ids import partitions_of
from schemas.names import ACTIONS_TOPIC
from store.redis_store import RedisRowStore
from streams.archive import list_files, next_offset
from streams.producer import ActionProducer
from streams.rekey import rekey_group
from tests.encore.test_backfill import ITEM_VIEW, caught_up, declare_items
from tests.encore.test_evolution import TICK_MS, VIEW, Running, actions
from tests.patience import WAIT_S
from tests.streams.bucket import Bucket, broker_over
from tests.streams.support import T0, patient, wait_until
from tests.streams.test_moving import reached

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420), pytest.mark.xdist_group("stack")]

STREAMS = ("stream", "items", "sink")


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with Bucket() as made:
        yield made


@pytest.fixture
def stack(tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """The project of `encore init` with an item view, and nothing running yet."""
    project = tmp_path / "songs"
    create_project(project)
    with ExitStack() as held:
        bootstrap = held.enter_context(broker_over(bucket, tmp_path / "broker"))
        (tmp_path / "run").mkdir()
        store = start_store(tmp_path / "run")
        held.callback(store.child.kill)
        settings = Settings(
            bootstrap=bootstrap,
            store_url=f"redis://{store.address}/0",
            data_dir=project / "data",
            repo=project / "feature_repo",
            partitions=2,
            sink_roll_ms=300,
            store_timeout_ms=10_000,
        )
        for name, value in settings.environment().items():
            monkeypatch.setenv(name, value)
        processes = held.enter_context(Supervisor(tmp_path / "run", settings.environment()))
        made = Running(project, settings, processes)
        declare_items(made)
        made.json("apply")
        ensure_topics(settings)
        yield made


class Sent:
    """What was sent, tick after tick: a message for each partition that has users in it.

    messages: (partition, offset, actions, sent_ms). ends: {partition: the offset after the last}.
    """

    def __init__(self, stack: Running) -> None:
        self._settings, self._ticks = stack.settings, 0
        self.messages: list[tuple[int, int, NDArray[np.void], int]] = []
        self.ends: dict[int, int] = {}

    def send(self, ticks: int) -> dict[int, int]:
        partitions = self._settings.partitions
        with ActionProducer(self._settings.bootstrap, ACTIONS_TOPIC, partitions) as producer:
            for _ in range(ticks):
                start_ms = T0 + self._ticks * TICK_MS
                made, sent_ms = actions(self._ticks, start_ms), start_ms + TICK_MS
                of = partitions_of(made["user"], partitions)
                for partition, end in producer.send(made, sent_ms).items():
                    assert end == self.ends.get(partition, 0) + 1, "a message each"
                    self.messages.append((partition, end - 1, made[of == partition], sent_ms))
                    self.ends[partition] = end
                self._ticks += 1
        return dict(self.ends)

    def but(self, first: dict[int, int], before: dict[int, int]) -> list[tuple[Any, int]]:
        """(actions, sent_ms) of what lies outside of these spans."""
        return [
            (made, sent_ms)
            for partition, offset, made, sent_ms in self.messages
            if not first[partition] <= offset < before[partition]
        ]


def archived(stack: Running) -> dict[int, int]:
    """Partition → up to where the actions are in the archive."""
    root = stack.settings.data_dir / "archive" / ACTIONS_TOPIC
    places = root.glob("topic_id=*/partition=*")
    return {int(at.name.partition("=")[2]): next_offset(list_files(at)) or 0 for at in places}


def folded(stack: Running, group: str) -> dict[int, int]:
    with RedisRowStore(patient(stack.settings.store_url)) as store:
        marks = store.get_progress(ACTIONS_TOPIC, group)
    return {partition: mark.next_offset for partition, mark in marks.items()}


def wait_at(where: Callable[[], dict[int, int]], ends: dict[int, int]) -> None:
    wait_until(lambda: all(where().get(p, 0) >= at for p, at in ends.items()), WAIT_S)


def read_log(child: Child) -> str:
    assert child.spec.log is not None
    return child.spec.log.read_text()


def end_with(stack: Running, says: dict[str, str]) -> None:
    """Processes end by themselves, and their logs say why and what to do."""
    children = {name: stack.processes.start(name, [name]) for name in says}
    for name, child in children.items():
        assert child.wait(WAIT_S) == 1
        text = read_log(child)
        assert "messages are missing" in text and says[name] in text, text
        stack.processes.stop(name)


def run_beside_items(stack: Running, *arguments: str) -> tuple[int | None, str]:
    """Exit code of a command that fills, and the last that it said, while an item worker is started
    again as often as it ends, from when there is something to catch up."""
    command, filled = stack.processes.start("command", arguments), f"fill {ITEM_VIEW}"
    wait_until(lambda: not command.running or filled in read_log(command), WAIT_S)
    while command.running:
        stack.processes.start("items", ["items"])
        wait_until(lambda: not (command.running and stack.processes.children[-1].running), WAIT_S)
        stack.processes.stop("items")
    stack.processes.stop("command")
    return command.exit_code, command.log_tail()


def test_an_operator_gets_over_it(
    stack: Running, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what is missing a part is in the archive; another part nobody has, and that is accepted:
    rows are the oracle's over what somebody holds, and `encore stream status` counts the rest."""
    settings, config, sent = stack.settings, stream_config(stack.settings), Sent(stack)
    for name in STREAMS:
        stack.processes.start(name, [name])
    first = sent.send(4)
    for group in (config.group, rekey_group(config.item_group, 1)):
        wait_at(partial(folded, stack, group), first)
    wait_until(lambda: reached(config) >= sum(first.values()), WAIT_S)
    wait_at(partial(archived, stack), first)
    assert [stack.processes.stop(name) for name in ("stream", "items")] == [0, 0]
    second = sent.send(3)
    wait_at(partial(archived, stack), second)
    assert stack.processes.stop("sink") == 0
    third = sent.send(3)
    sent.send(2)
    for partition, before in third.items():
        gone = bucket.drop(ACTIONS_TOPIC, partition, first[partition], before)
        assert gone == before - first[partition]

    end_with(
        stack,
        {
            "stream": "`encore rebuild` of all user views",
            "items": "`encore rebuild` of all item views",
            "sink": "`encore sink --accept-loss` goes on",
        },
    )
    stack.processes.start("sink", ["sink", "--accept-loss"])
    wait_at(partial(archived, stack), sent.ends)
    assert stack.processes.stop("sink") == 0
    rebuild = "rebuild", VIEW, ITEM_VIEW, "--cores", "1"
    assert main([*rebuild]) == 1
    assert "with --accept-loss" in capsys.readouterr().err
    code, says = run_beside_items(stack, *rebuild, "--accept-loss")
    assert code == 0, says

    for name in STREAMS:
        stack.processes.start(name, [name])
    sent.send(2)
    with RedisRowStore(patient(settings.store_url)) as store:
        caught_up(stack, store, sent.but(second, third))
    wait_at(partial(archived, stack), sent.ends)
    told = stack.json("stream", "status")["accepted"]
    assert {(each["whose"], each["partition"]): each["messages"] for each in told} == {
        (whose, partition): third[partition] - second[partition]
        for whose in (f"{VIEW}@2", f"{ITEM_VIEW}@2", "the archive")
        for partition in third
    }
    assert [stack.processes.stop(name) for name in STREAMS] == [0, 0, 0]
