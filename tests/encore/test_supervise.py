"""encore's own processes: started until ready, watched, stopped last one first."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from encore.supervise import Supervisor
from schemas.errors import LocalError


def supervisor(tmp_path: Path) -> Supervisor:
    return Supervisor(tmp_path, {"ENCORE_DATA_DIR": str(tmp_path)})


def test_a_command_that_ends_is_noticed(tmp_path: Path) -> None:
    with supervisor(tmp_path) as processes:
        child = processes.start("version", ["--version"])
        assert child.wait(60) == 0
        assert child.log_tail().startswith("encore ")
        with pytest.raises(LocalError, match=r"local\.version: needs to go on running, got exit"):
            processes.check()


def test_not_coming_up_tells_the_log(tmp_path: Path) -> None:
    with supervisor(tmp_path) as processes:
        with pytest.raises(LocalError, match=r"exit code 2: .*No such command 'sing'"):
            processes.start("sing", ["sing"], ready=lambda: False, timeout_s=60)
        assert processes.children == ()


def test_names_are_unique_and_known(tmp_path: Path) -> None:
    with supervisor(tmp_path) as processes:
        processes.start("doctor", ["doctor"])
        with pytest.raises(LocalError, match="not in use"):
            processes.start("doctor", ["doctor"])
        with pytest.raises(LocalError, match="one of doctor, got 'other'"):
            processes.stop("other")


def test_stopped_in_reverse_order_and_reaped(tmp_path: Path) -> None:
    with supervisor(tmp_path) as processes:
        children = [processes.start(name, ["doctor"]) for name in ("a", "b", "c")]
        assert list(processes.stop_all()) == ["c", "b", "a"]
    assert not any(psutil.pid_exists(child.pid) for child in children)


def test_an_error_stops_them_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), supervisor(tmp_path) as processes:
        child = processes.start("doctor", ["doctor"])
        raise ZeroDivisionError
    assert not psutil.pid_exists(child.pid)
    assert not [p for p in psutil.Process(os.getpid()).children() if p.pid == child.pid]


def test_watch_ends_when_one_ends(tmp_path: Path) -> None:
    with supervisor(tmp_path) as processes:
        processes.start("version", ["--version"])
        with pytest.raises(LocalError, match="exit code 0"):
            processes.watch(lambda: None, interval_s=0.01)
