"""How fast one worker puts a filled topic into rows, and what that costs each process.

The clock runs from the first progress mark that the worker stores to the one that covers the topic:
start, joining the group and the first fetch are not counted.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from bench.processes import Piped, piped
from bench.stream_log import PARTITIONS
from encore.local import Server
from schemas.errors import LocalError
from store.redis_store import RedisRowStore
from store.wire import OWN_DISK, Disks

POLL_S: Final = 0.01
PATIENCE_S: Final = 60.0
#: Ours and the peers'. The embedded broker lets a first member wait for about as long, and nothing
#: of that is counted: eight times in a round.
SESSION_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Rate:
    """One topic's way into rows. cpu_us: CPU time an action of worker, store and broker.
    rss_growth_mb: of the worker over the last two thirds of the actions. rows: written an action:
    actions of one user in a micro-batch are one write.
    """

    per_s: float
    cpu_us: dict[str, float]
    rss_growth_mb: float
    rows: float


@dataclass(slots=True)
class Cluster:
    """A broker, a store, and a process that is one worker after another."""

    broker: Server
    store_server: Server
    store: RedisRowStore
    directory: Path
    process: Piped

    @property
    def store_url(self) -> str:
        """Of the rows' database."""
        return f"redis://{self.store_server.address}/0"

    @contextmanager
    def worker(
        self, topic: str, of: str = "users", core: int | None = None, disks: Disks = OWN_DISK
    ) -> Iterator[None]:
        """A worker on one topic, drained when the block ends in order. of: users, or items: it
        re-keys and folds both. core: that it runs on. disks: that its commits wait for."""
        settings = {
            "of": of,
            "core": core,
            "disks": astuple(disks),
            "bootstrap": self.broker.address,
            "store_url": self.store_url,
            "data_dir": str(self.directory),
            "group": f"bench-{topic}",
            "topic": topic,
            "partitions": PARTITIONS,
            "session_timeout_s": SESSION_S,
        }
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(settings) + "\n")
        self.process.stdin.flush()
        yield
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.stdout.readline()

    def check(self) -> None:
        """Raises LocalError without a worker."""
        code = self.process.poll()
        if code is not None:
            log = (self.directory / "worker.log").read_text()
            got = f"exit code {code} behind {log[-500:]}"
            raise LocalError("bench.worker", required="a running worker", got=got)

    def stored(self, topic: str) -> dict[int, int]:
        """Partition → the next offset that is not stored. Raises LocalError without a worker."""
        self.check()
        marks = self.store.get_progress(topic, f"bench-{topic}")
        return {partition: mark.next_offset for partition, mark in marks.items()}

    def rate(self, topic: str, ends: Mapping[int, int], actions: int) -> Rate:
        """Run a worker over a filled topic. ends: partition → messages. actions: in all of them."""
        total = sum(ends.values())
        with self.worker(topic):
            done = self._wait(topic, 1)
            began_s, cpu = time.monotonic(), self.cpu_s()
            self._wait(topic, total // 3)
            rss = self._rss_mb()
            self._wait(topic, total)
            took_s = time.monotonic() - began_s
            timed = actions * (total - done) / total
            used = {name: value - cpu[name] for name, value in self.cpu_s().items()}
            grown = self._rss_mb() - rss
        per_action = {name: value / timed * 1e6 for name, value in used.items()}
        return Rate(timed / took_s, per_action, grown, self.rows_written() / actions)

    def rows_written(self) -> int:
        """By the worker that was drained last, as its last line tells."""
        log = (self.directory / "worker.log").read_text()
        return int(log.rpartition("rows_written=")[2].partition(",")[0])

    def _wait(self, topic: str, messages: int) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while (stored := sum(self.stored(topic).values())) < messages:
            if time.monotonic() > deadline:
                got = f"{stored} after {PATIENCE_S} s"
                raise LocalError(f"bench.{topic}", required=f"{messages} messages", got=got)
            time.sleep(POLL_S)
        return stored

    def cpu_s(self) -> dict[str, float]:
        """CPU time so far of worker, store and broker."""
        pids = {
            "worker": self.process.pid,
            "store": self.store_server.child.pid,
            "broker": self.broker.child.pid,
        }
        times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
        return {name: float(used.user + used.system) for name, used in times.items()}

    def _rss_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


@contextmanager
def worker_process(directory: Path) -> Iterator[Piped]:
    """`bench.stream_worker`, ended with the block; its log is `worker.log`."""
    command = [sys.executable, "-m", "bench.stream_worker"]
    with (directory / "worker.log").open("w") as log, piped(command, log) as process:
        yield process


def json_line(line: str | None, what: str) -> dict[str, Any]:
    """A process's line of JSON. Raises LocalError where it printed none."""
    if not line:
        raise LocalError(f"bench.{what}", required="a line of figures", got="the end of its output")
    found: dict[str, Any] = json.loads(line)
    return found
