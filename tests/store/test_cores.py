"""Cores of serving and stream processes: which they get, and that what they start is free."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from schemas.errors import SettingsError
from store.cores import AUTO, core_of, pinned

USABLE = {1, 2, 3, 6}


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(USABLE))


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("cores", "turns"),
    [(AUTO, [6, 3, 2, 1, 6]), ("3,1-2", [3, 1, 2, 3]), ("2-6", [2, 3, 6, 2]), ("6", [6, 6])],
)
def test_processes_take_their_cores_in_turn(cores: str, turns: list[int]) -> None:
    """A range leaves out what may not be used between its ends."""
    assert [core_of(cores, number) for number in range(len(turns))] == turns


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("cores", ["0", "1-4", "1,7", "3-1", "1-999999999999"])
def test_other_cores_are_refused(cores: str) -> None:
    with pytest.raises(SettingsError, match=r"cores: needs cores of those .* 1, 2, 3, 6, got"):
        core_of(cores, 0)


def test_a_system_without_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    with pytest.raises(SettingsError, match="cores: needs Linux"):
        core_of(AUTO, 0)


def test_pinned_are_its_threads_and_not_what_it_starts() -> None:
    """And batch jobs. In a process of its own, since a process stays pinned."""
    code = """
import json, os, subprocess, sys, threading
from store.cores import core_of, pin, unpinned
SEEN = "[os.sched_getscheduler(%d), *sorted(os.sched_getaffinity(%d))]"
def seen(thread):
    return eval(SEEN % (thread, thread))
def child():
    command = [sys.executable, "-c", "import os; print(" + SEEN % (0, 0) + ")"]
    return json.loads(subprocess.check_output(command))
found = {"before": seen(0)}
with unpinned():
    found["never pinned"] = child()
over = threading.Event()
early = threading.Thread(target=over.wait, daemon=True)
early.start()
pin(core_of("auto", 0))
found["early"] = seen(early.native_id)
found["main"] = seen(0)
thread = threading.Thread(target=lambda: found.update(thread=seen(0)))
thread.start(), thread.join()
with unpinned():
    found["child"] = child()
found["after"] = seen(0)
print(json.dumps(found))
"""
    found = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    every, own = found["before"], [os.SCHED_BATCH, found["before"][-1]]
    assert every[0] == os.SCHED_OTHER
    assert found == {
        "before": every,
        "never pinned": every,
        "child": every,
        "early": own,
        "main": own,
        "thread": own,
        "after": own,
    }


@pytest.mark.parametrize("allowed", [True, False])
def test_a_policy_that_an_operator_chose_or_holds_fast_is_left_alone(allowed: bool) -> None:
    code = f"""
import os
from store.cores import core_of, pin
if {allowed}:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
else:
    def refuse(*_):
        raise PermissionError
    os.sched_setscheduler = refuse
pin(core_of("auto", 0))
print(os.sched_getscheduler(0), len(os.sched_getaffinity(0)))
"""
    found = subprocess.check_output([sys.executable, "-c", code]).split()
    assert [int(each) for each in found] == [os.SCHED_IDLE if allowed else os.SCHED_OTHER, 1]


def test_a_block_gives_back_what_the_process_had() -> None:
    code = """
import os, threading
from store.cores import pinned
def seen():
    return [os.sched_getscheduler(0), *sorted(os.sched_getaffinity(0))]
over, found = threading.Event(), []
thread = threading.Thread(target=lambda: (over.wait(), found.append(seen())))
before = seen()
with pinned(before[-1], "x"):
    thread.start()
    inside = seen()
with pinned(None, "x"):
    free = seen()
over.set(), thread.join()
assert inside == [os.SCHED_BATCH, before[-1]], inside
assert free == seen() == found[0] == before, (free, seen(), found)
with pinned(before[1], "x"):
    assert seen() == [os.SCHED_BATCH, before[1]], seen()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("four_cores")
def test_a_block_refuses_another_core() -> None:
    with (
        pytest.raises(SettingsError, match="stream_core: needs cores of those"),
        pinned(0, "stream_core"),
    ):
        pass
