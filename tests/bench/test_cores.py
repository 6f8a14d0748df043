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
from tests.streams.support import wait_until


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
                with again_and_again(server, tmp_path, "store") as took_s:
                    wait_until(lambda: bool(took_s))
            assert store.config_get(PERCENTAGE) == percentage
            assert store.info("persistence")["aof_last_rewrite_time_sec"] >= 0
    finally:
        server.child.kill()


def test_a_replica_rewrites_what_the_store_holds(tmp_path: Path) -> None:
    """It alone keeps a file meanwhile, and the store has one again afterwards."""
    (tmp_path / "load").mkdir()
    server = start_store(tmp_path)
    try:
        with Redis(port=server.port, decode_responses=True) as store:
            store.set("a", "b")
            with again_and_again(server, tmp_path / "load", "replica") as took_s:
                assert store.config_get("appendonly") == {"appendonly": "no"}
                own, others = store.execute_command("WAITAOF", 0, 1, 120_000)
                assert (own, others) == (0, 1)
                wait_until(lambda: bool(took_s))
            assert store.config_get("appendonly") == {"appendonly": "yes"}
    finally:
        server.child.kill()
