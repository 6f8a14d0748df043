"""A benchmark that is told to end leaves no process, no file and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench.ending import ended_in_order
from bench.processes import piped
from bench.stream_peers import Peer, at_hand, wait_imported
from tests.encore.terminal import hear_interrupts

ROOT = Path(__file__).parents[2]
#: Of two benchmarks all kinds of processes: servers, a worker, peers; a gate and a nursery.
RUNS = {
    "stream": ("stream: filling topics", signal.SIGTERM, 143),
    "chaos": ("logs in", signal.SIGINT, 130),
}
END_S = 60.0
LITTERS = "import tempfile; print('{}'); print(tempfile.mkdtemp(), flush=True); input()"
PARENT = "import subprocess; subprocess.Popen(['sleep', '60']); print(1, flush=True); input()"


@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_left(name: str, tmp_path: Path) -> None:
    begun, number, code = RUNS[name]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", name, "--quick"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    try:
        assert process.stderr is not None
        assert begun in process.stderr.readline()
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, number)  # as a terminal does, to its whole foreground group
        out, errors = process.communicate(timeout=END_S)
    finally:
        process.kill()
        process.communicate()
    assert len(children) >= 2
    assert (process.returncode, out, errors) == (code, "", "")
    assert [child for child in children if _runs(child)] == []
    assert list(tmp_path.iterdir()) == []


def _runs(child: psutil.Process) -> bool:
    """A signal may strike while a process is being made: whoever inherits it reaps it then."""
    try:
        return bool(child.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_exit_code_tells_the_signal(number: signal.Signals, code: int) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGHUP, number)}
    try:
        hear_interrupts()

        def run() -> int:
            os.kill(os.getpid(), number)
            signal.pause()
            return 0

        assert ended_in_order(run) == code
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert ended_in_order(lambda: 7) == 7


def test_what_a_peer_leaves_goes_with_it() -> None:
    peer = Peer("a peer", (sys.executable, "-c", LITTERS), 1)
    with at_hand({"peer": peer}) as processes:
        wait_imported({"peer": peer}, processes)
        out = processes["peer"].stdout
        assert out is not None
        left = Path(out.readline().strip())
        assert left.is_dir()
    assert not left.exists()


def test_a_process_ends_with_its_group_at_the_end_of_the_block() -> None:
    with piped([sys.executable, "-c", PARENT]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        (below,) = psutil.Process(process.pid).children()
    assert process.returncode == -signal.SIGKILL
    below.wait(END_S)
    assert not _runs(below)
