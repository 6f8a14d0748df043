"""Benchmarks' conditions: who runs where, and what the store does meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from redis import Redis

from bench.cores import Cores
from bench.rewriting import PERCENTAGE, again_and_again, held_off
from encore.local import start_store


def test_others_leave_a_core_alone_and_come_back() -> None:
    before = os.sched_getaffinity(0)
    cores = Cores.here()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with cores.others([child.pid]):
            apart = {frozenset(os.sched_getaffinity(pid)) for pid in (0, child.pid)}
        assert apart == {cores.usable - {cores.service}}
        assert os.sched_getaffinity(0) == os.sched_getaffinity(child.pid) == before
    finally:
        child.communicate(b"\n")


def test_rewriting_is_held_off_and_asked_for(tmp_path: Path) -> None:
    server = start_store(tmp_path)
    try:
        with Redis(port=server.port, decode_responses=True) as store:
            percentage = store.config_get(PERCENTAGE)
            with held_off(server):
                assert store.config_get(PERCENTAGE) == {PERCENTAGE: "0"}
                with again_and_again(server) as took_s:
                    while not took_s:
                        os.sched_yield()
            assert store.config_get(PERCENTAGE) == percentage
            assert store.info("persistence")["aof_last_rewrite_time_sec"] >= 0
    finally:
        server.child.kill()
