"""Stream processes that are there in a moment: forked by one that has imported everything.

`python -m bench.chaos_nursery CONFIG` reads lines `NAME KIND` (worker, items, fill), forks for
each a process that runs it as `encore stream`, `encore items` and `encore backfill` do, and writes
`started NAME PID`, later `ended NAME PID CODE`. A process killed at random is replaced in
milliseconds, where importing costs seconds of a core; what is killed is a whole process all the
same.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import queue
import select
import signal
import sys
import threading
from dataclasses import astuple, fields
from pathlib import Path
from typing import Final, Self

from bench import processes
from bench.chaos_filling import run_filling
from store.wire import Disks
from streams.config import StreamConfig
from streams.item_worker import run_item_worker
from streams.worker import run_worker

RUNS: Final = {"worker": run_worker, "items": run_item_worker, "fill": run_filling}
POLL_S: Final = 0.02
#: Of the forking process, which imports for seconds first, on a busy machine for many.
START_S: Final = 120.0
PR_SET_PDEATHSIG: Final = 1


def main(config_text: str) -> int:
    """Fork on demand until the input ends; then all children end, too."""
    die_with_parent()
    values = json.loads(config_text)
    typed = {"data_dir": Path(values["data_dir"]), "disks": Disks(*values["disks"])}
    config = StreamConfig(**values | typed)
    children: dict[int, str] = {}
    waiting = b""
    while True:
        if select.select([0], [], [], POLL_S)[0]:
            read = os.read(0, 4096)
            if not read:
                return 0
            *lines, waiting = (waiting + read).split(b"\n")
            for line in lines:
                name, kind = line.decode().split()
                pid = fork(config, name, kind)
                children[pid] = name
                print("started", name, pid, flush=True)
        for ended, code in reap():
            print("ended", children.pop(ended), ended, code, flush=True)


def fork(config: StreamConfig, name: str, kind: str) -> int:
    """The pid of a new process of that kind, which writes `<name>.log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        die_with_parent()
        log = os.open(config.data_dir / f"{name}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s")
        for library in ("kafka", "aiokafka", "faust", "mode"):
            logging.getLogger(library).setLevel("CRITICAL")
        logging.getLogger("aiokafka.consumer.group_coordinator").setLevel("INFO")
        code = RUNS[kind](config)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def reap() -> list[tuple[int, int]]:
    """(pid, exit code) of the children that ended."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, os.waitstatus_to_exitcode(status)))


def die_with_parent() -> None:
    """As `encore.guard`: the kernel kills this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Nursery:
    """The forking process, seen from outside. `with Nursery(config) as nursery: …`."""

    def __init__(self, config: StreamConfig) -> None:
        names = [field.name for field in fields(config)]
        values = {name: getattr(config, name) for name in names if name != "spool_dir"}
        values["disks"] = astuple(config.disks)
        command = [sys.executable, "-m", "bench.chaos_nursery", json.dumps(values, default=str)]
        self._process = processes.start(command)
        self._started: queue.Queue[int] = queue.Queue()
        self.ended: queue.Queue[tuple[str, int, int]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the forking process, and with it all that it forked."""
        processes.kill(self._process)
        self._reader.join()
        processes.close(self._process)

    def start(self, name: str, kind: str) -> int:
        """The pid of a new process."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {kind}\n")
        self._process.stdin.flush()
        return self._started.get(timeout=START_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            what, name, *numbers = line.split()
            if what == "started":
                self._started.put(int(numbers[0]))
            else:
                self.ended.put((name, int(numbers[0]), int(numbers[1])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
