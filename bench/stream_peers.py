"""The same counts by others: each runs as a process of its own, over the same messages.

A round's processes are started together (`at_hand`): each imports what it needs and then waits for
its settings, while nothing is measured. That is not counted anyway, and takes less time so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.processes import Piped, piped
from bench.stream_log import PARTITIONS, Actions
from bench.stream_rates import SESSION_S, Cluster, json_line
from schemas.actions import ACTION, encode_batch
from schemas.errors import LocalError
from schemas.plan import Side

PEERS: Final = Path(__file__).parent / "peers"
#: Where an interpreter with quixstreams is kept between runs.
QUIX_HOME: Final = Path(__file__).parent.parent / ".encore" / "bench" / "quixstreams"
HOUR_MS: Final = 3_600_000
PATIENCE_S: Final = 120.0

#: (user, hour) → count.
Counts = dict[tuple[int, int], int]


@dataclass(frozen=True, slots=True)
class Peer:
    """How to run one. messages: how many it gets; settings: its own."""

    title: str
    command: tuple[str, ...]
    messages: int
    newest_only: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PeerRate:
    """equal: its counts are those of the actions it read."""

    per_s: float
    cpu_us: float
    equal: bool


def peers(quick: bool) -> dict[str, Peer]:
    """The peers that can run here. quixstreams gets an interpreter of its own on the first run."""
    few, many = (8_000, 20_000) if quick else (50_000, 100_000)
    python = (sys.executable, "-W", "ignore", "-m")
    feast = (*python, "bench.peers.feast_push")
    pushed = {"batch": 1_000, "memory": False}
    found = {
        "faust_table": Peer("Faust, windowed table", (*python, "bench.peers.faust_table"), few),
        "feast_push": Peer("Feast push, counts read back", feast, many, True, pushed),
    }
    if not quick:
        forgetful = pushed | {"memory": True}
        title = "Feast push, counts in a dictionary"
        found["feast_push_memory"] = Peer(title, feast, many, True, forgetful)
    interpreter = quix_interpreter()
    if interpreter is not None:
        script = (str(interpreter), str(PEERS / "quix_counts.py"))
        found["quix"] = Peer("quixstreams, tumbling window", script, many)
    return found


def quix_interpreter() -> Path | None:
    """A Python with quixstreams, made here once; None where it cannot be installed.

    Its pins exclude ours, so it is no extra of this project.
    """
    python = QUIX_HOME / "bin" / "python"
    done = QUIX_HOME / "installed"
    if not done.exists():
        QUIX_HOME.parent.mkdir(parents=True, exist_ok=True)
        install = ("-m", "pip", "install", "-qq", "quixstreams>=3.28,<4")
        steps = ((sys.executable, "-m", "venv", str(QUIX_HOME)), (str(python), *install))
        for step in steps:
            if subprocess.run(step, capture_output=True).returncode:
                return None
        done.touch()
    return python


def message_layout() -> tuple[int, int]:
    """Where a one-action message's struct begins, and its bytes in all."""
    size = len(encode_batch(np.zeros(1, ACTION), 1))
    return size - ACTION.itemsize, size


@contextmanager
def at_hand(contenders: Mapping[str, Peer]) -> Iterator[dict[str, Piped]]:
    """A process of each, to be given its settings; those that are left end with the block, and what
    they wrote into the directory for temporary files."""
    with tempfile.TemporaryDirectory(prefix="bench") as directory, ExitStack() as stack:
        environment = {**os.environ, "TMPDIR": directory}
        yield {
            name: stack.enter_context(piped(peer.command, subprocess.PIPE, environment))
            for name, peer in contenders.items()
        }


def wait_imported(contenders: Mapping[str, Peer], processes: Mapping[str, Piped]) -> None:
    """Until every process says that it waits for its settings. Raises LocalError."""
    for name, peer in contenders.items():
        out = processes[name].stdout
        assert out is not None
        if not out.readline():
            raise _silent(peer, processes[name].communicate()[1])


def run_peer(
    peer: Peer, process: Piped, topic: str, cluster: Cluster, actions: Actions
) -> PeerRate:
    """Run it over a topic of one-action messages. Raises LocalError.

    process: one that has imported what it needs. actions: those of the topic.
    """
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        settings = {
            "bootstrap": cluster.broker.address,
            "store": cluster.store_server.address,
            "topic": topic,
            "group": Path(directory).name,
            "partitions": PARTITIONS,
            "session_s": SESSION_S,
            "body_at": message_layout()[0],
            "skip": len(actions) // 5,
            "total": len(actions),
            "directory": directory,
            "state_dir": directory,
            **peer.settings,
        }
        lines = _output(peer, process, settings)
    begun, ended, counted = (json_line(lines[at], peer.title) for at in (0, 1, -1))
    timed = len(actions) - int(begun.get("seen", settings["skip"]))
    took_s, cpu_s = ended["at_s"] - begun["at_s"], ended["cpu_s"] - begun["cpu_s"]
    found = {(user, hour): count for user, hour, count in counted["counts"] if count}
    want = hourly_counts(actions)
    if peer.newest_only:
        want = newest_hours(want)
    return PeerRate(timed / took_s, cpu_s / timed * 1e6, found == want)


def _output(peer: Peer, process: Piped, settings: dict[str, Any]) -> list[str]:
    """The lines that it printed, two at least."""
    try:
        out, errors = process.communicate(json.dumps(settings) + "\n", timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        where = f"bench.{peer.title}"
        raise LocalError(where, required=f"an end in {PATIENCE_S} s", got="none") from None
    lines = out.splitlines()
    if len(lines) < 2:
        raise _silent(peer, errors)
    return lines


def _silent(peer: Peer, errors: str) -> LocalError:
    return LocalError(f"bench.{peer.title}", required="figures", got=errors[-300:] or "nothing")


def hourly_cells(actions: Actions, side: Side = "user") -> NDArray[np.int64]:
    """(3, n) entity, hour, how many actions; by entity and hour. What all counts are held to."""
    entities, hours = actions[side], actions["time_ms"] // HOUR_MS  # (a,)
    order = np.lexsort((hours, entities))
    entities, hours = entities[order], hours[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (entities[1:] != entities[:-1]) | (hours[1:] != hours[:-1])
    at = np.flatnonzero(first)  # (n,)
    return np.stack((entities[at], hours[at], np.diff(at, append=len(order)))).astype(np.int64)


def hourly_counts(actions: Actions) -> Counts:
    """Of users, as a dictionary."""
    users, hours, counts = hourly_cells(actions).tolist()
    return dict(zip(zip(users, hours, strict=True), counts, strict=True))


def newest_hours(counts: Counts) -> Counts:
    """Of each user the newest hour alone."""
    newest: dict[int, int] = {}
    for user, hour in counts:
        newest[user] = max(hour, newest.get(user, hour))
    return {(user, hour): counts[user, hour] for user, hour in newest.items()}
