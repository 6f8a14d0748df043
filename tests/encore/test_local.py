"""The embedded broker and store: loopback only, ready when they say so, gone when told."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from encore.local import LocalStack, free_port, start_broker, start_store
from schemas.errors import LocalError


def ask(port: int, *commands: str) -> bytes:
    """The store's raw replies."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall("".join(f"{command}\r\n" for command in commands).encode())
        connection.shutdown(socket.SHUT_WR)
        reply = b""
        while chunk := connection.recv(4096):
            reply += chunk
        return reply


def listeners(pid: int) -> set[str]:
    """Addresses on which a process listens."""
    connections = psutil.Process(pid).net_connections(kind="inet")
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}


def test_stack_up_and_down(tmp_path: Path) -> None:
    with LocalStack(tmp_path) as stack:
        children = stack.children
        assert [child.name for child in children] == ["store", "broker"]
        assert stack.bootstrap.startswith("127.0.0.1:")
        assert stack.store_url.startswith("redis://127.0.0.1:")
        for child in children:
            assert listeners(child.pid) == {"127.0.0.1"}
    assert [child.exit_code for child in children] == [0, 0]
    assert not any(psutil.pid_exists(child.pid) for child in children)
    assert {path.name for path in tmp_path.glob("*.log")} == {"store.log", "broker.log"}
    with pytest.raises(LocalError, match="stopped stack"):
        _ = stack.bootstrap


def test_the_store_never_evicts_and_keeps_its_rows(tmp_path: Path) -> None:
    first = start_store(tmp_path)
    assert b"noeviction" in ask(first.port, "CONFIG GET maxmemory-policy")
    assert b"yes" in ask(first.port, "CONFIG GET appendonly")
    ask(first.port, "SET k v")
    first.child.stop()
    second = start_store(tmp_path)
    assert ask(second.port, "GET k") == b"$1\r\nv\r\n"
    second.child.stop()


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for start in (start_broker, start_store):
            with pytest.raises(LocalError, match=f"free port, got 127.0.0.1:{port}"):
                start(tmp_path, port)


def test_a_given_port_is_taken(tmp_path: Path) -> None:
    port = free_port()
    server = start_broker(tmp_path, port)
    assert server.port == port
    server.child.stop()


def test_a_store_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "store" / "appendonlydir").mkdir(parents=True)
    (tmp_path / "store" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(
        LocalError, match=r"local\.store: .*exit code 1: .*Invalid AOF manifest.*read .*store\.log"
    ):
        start_store(tmp_path)


@pytest.mark.kill
def test_kill_9_of_the_owner_leaves_no_server(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from encore.local import LocalStack\n"
        f"with LocalStack(Path({str(tmp_path)!r})) as stack:\n"
        "    print(*(child.pid for child in stack.children), flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == 2
    assert all(psutil.pid_exists(pid) for pid in pids)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, "a server outlived its owner"
        time.sleep(0.01)
