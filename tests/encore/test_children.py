"""A child never outlives its parent, whatever ends the parent; it is always reaped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from encore.children import Child, ChildSpec, spawn, wait_ready
from schemas.errors import LocalError

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
STUBBORN = [
    *(sys.executable, "-S", "-c"),
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); "
    "time.sleep(600)",
]
#: Starts a child that starts a grandchild, then waits for ever.
FAMILY = [
    *(sys.executable, "-S", "-c"),
    "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-S', '-c', "
    "'import time; time.sleep(600)']); print(p.pid, flush=True); time.sleep(600)",
]


def child_of(tmp_path: Path, command: list[str]) -> Child:
    return spawn(ChildSpec("it", command, tmp_path / "it.log"))


def wait_until(what: str, condition: object, timeout_s: float = 60.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_exit_code_and_log(tmp_path: Path) -> None:
    child = child_of(tmp_path, [sys.executable, "-c", "print('hello'); raise SystemExit(7)"])
    assert child.wait(60) == 7
    assert child.log_tail() == "hello"
    assert child.stop() == 7, "stopping what has ended tells its code"


def test_stop_is_polite_first(tmp_path: Path) -> None:
    child = child_of(tmp_path, SLEEP)
    assert child.running
    assert child.stop() == -signal.SIGTERM
    assert not psutil.pid_exists(child.pid), "reaped"


def test_stop_kills_what_does_not_listen(tmp_path: Path) -> None:
    child = child_of(tmp_path, STUBBORN)
    wait_until("started", lambda: child.log_tail() == "up")
    assert child.stop(grace_s=0.1) == -signal.SIGKILL


def test_a_stall_is_not_held_against_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at it comes half a minute after the last: it gets as many as its grace is for."""
    now_s, sleep = [0.0], time.sleep

    def stall(_: float) -> None:
        now_s[0] += 30.0
        sleep(0.02)

    clock = SimpleNamespace(monotonic=lambda: now_s[0], sleep=stall)
    monkeypatch.setattr("encore.children.time", clock)
    child = child_of(tmp_path, SLEEP)
    assert child.wait(1.0) is None
    assert now_s[0] >= 30.0 * 5
    assert child.stop(grace_s=600.0) == -signal.SIGTERM


def test_grandchildren_end_with_their_group(tmp_path: Path) -> None:
    child = child_of(tmp_path, FAMILY)
    wait_until("started", lambda: child.log_tail().isdigit())
    grandchild = int(child.log_tail())
    child.stop()
    wait_until("the grandchild is gone", lambda: gone(grandchild))


def test_grandchildren_end_when_the_child_ends_by_itself(tmp_path: Path) -> None:
    code = (
        FAMILY[-1]
        .replace("time.sleep(600)", "raise SystemExit(3)")
        .replace("'import time; raise SystemExit(3)'", "'import time; time.sleep(600)'")
    )
    child = child_of(tmp_path, [*FAMILY[:-1], code])
    assert child.wait(60) == 3
    grandchild = int(child.log_tail())
    wait_until("the grandchild is gone", lambda: gone(grandchild))


@pytest.mark.kill
def test_kill_9_of_the_parent_leaves_no_child(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from encore.children import *\n"
        f"child = spawn(ChildSpec('it', {SLEEP!r}, Path({str(tmp_path / 'it.log')!r})))\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until("the child is gone", lambda: gone(child))


def test_a_program_that_cannot_run(tmp_path: Path) -> None:
    child = child_of(tmp_path, [str(tmp_path / "absent")])
    with pytest.raises(LocalError, match=r"local\.it: .*exit code 127: .*absent: No such file"):
        wait_ready(child, lambda: False, 60)


def test_not_ready_in_time_is_killed(tmp_path: Path) -> None:
    child = child_of(tmp_path, SLEEP)
    with pytest.raises(LocalError, match=r"ready within 0\.05 s"):
        wait_ready(child, lambda: False, 0.05)
    assert not child.running


def test_ready_of_another_is_not_ours(tmp_path: Path) -> None:
    """The readiness question is answered by somebody else while our child has ended."""
    child = child_of(tmp_path, [sys.executable, "-S", "-c", "raise SystemExit(1)"])
    child.wait(60)
    with pytest.raises(LocalError, match="exit code 1"):
        wait_ready(child, lambda: True, 60)


def test_only_the_main_thread_starts_children(tmp_path: Path) -> None:
    errors: list[LocalError] = []

    def start() -> None:
        try:
            child_of(tmp_path, SLEEP)
        except LocalError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


def test_guard_refuses_an_orphan(tmp_path: Path) -> None:
    guard = Path(__file__).parents[2] / "encore" / "guard.py"
    not_my_parent = os.getpid() + 1
    ended = subprocess.run(
        [sys.executable, "-I", "-S", str(guard), str(not_my_parent), "true"], check=False
    )
    assert ended.returncode == 75
