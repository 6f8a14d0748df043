"""The whole local stack: broker, store, and encore's own processes, started and stopped in order.

Start: store, broker, plan published, then worker, sink, item worker, shipper, service. Stop: the
other way round, so that the last log records of the service reach the spool, the spool Kafka, and
Kafka, re-keyed actions included, the archive.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from catalog.publish import named, staged
from encore.local import LocalStack, free_port
from encore.settings import Settings
from encore.stack_file import announce, owned
from encore.supervise import Supervisor
from schemas.errors import LocalError
from store.redis_store import RedisRowStore

APPLY_TIMEOUT_S: Final = 300.0
_READY_PATH: Final = "/v2/health/ready"

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunningStack:
    """A stack that is up. settings: with every address filled in."""

    settings: Settings
    processes: Supervisor

    @property
    def url(self) -> str:
        """Where the ranking service answers."""
        return f"http://{self.settings.http_host}:{self.settings.http_port}"


@contextmanager
def servers(settings: Settings) -> Iterator[Settings]:
    """Broker and store alone. Yields the settings with their addresses.

    Holds `<data_dir>/run` meanwhile; raises LocalError when another stack does, or when a server
    does not come up.
    """
    with (
        owned(settings.runs),
        LocalStack(
            settings.runs, broker_port=settings.broker_port, store_port=settings.store_port
        ) as local,
    ):
        announce(settings.runs, bootstrap=local.bootstrap, store_url=local.store_url)
        yield settings.model_copy(
            update={"bootstrap": local.bootstrap, "store_url": local.store_url}
        )


@contextmanager
def running(settings: Settings, note: Note) -> Iterator[RunningStack]:
    """Everything. Yields once the service is ready; stops all of it on leaving.

    note: told each step. Raises LocalError when a part does not come up.
    """
    with servers(settings) as connected:
        ports = {
            "http_port": connected.http_port or free_port(),
            "grpc_port": connected.grpc or free_port(),
        }
        connected = connected.model_copy(update=ports)
        note(f"broker    {connected.bootstrap}")
        note(f"store     {connected.store_url}")
        with Supervisor(connected.runs, connected.environment()) as processes:
            note(f"plan      {publish_plan(connected, processes)}")
            for name in ("stream", "sink", "items", "ship"):
                processes.start(name, [name])
            processes.start("serve", ["serve"], ready=lambda: answers(connected))
            stack = RunningStack(connected, processes)
            note(f"service   {stack.url}")
            note(f"grpc      {connected.http_host}:{connected.grpc_port}")
            announce(
                connected.runs,
                bootstrap=connected.bootstrap,
                store_url=connected.store_url,
                url=stack.url,
            )
            yield stack


def answers(settings: Settings, timeout_s: float = 0.5) -> bool:
    """Whether the ranking service says that it is ready."""
    connection = http.client.HTTPConnection(
        settings.http_host, settings.http_port, timeout=timeout_s
    )
    try:
        connection.request("GET", _READY_PATH)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def publish_plan(settings: Settings, processes: Supervisor) -> str:
    """Publish what is declared, unless a backfill was interrupted: what it was to publish lacks
    rows. Returns what was done, for people. Raises LocalError."""
    with RedisRowStore(settings.store_url) as store:
        now = staged(store)
    if now.active:
        return f"as before: the backfill of {named(now)} was interrupted; run it again"
    _apply(processes)
    return f"applied from {settings.repo}"


def _apply(processes: Supervisor) -> None:
    """Publish the plan from a process of its own: Feast's 350 MB go with it."""
    child = processes.start("apply", ["apply"])
    code = child.wait(APPLY_TIMEOUT_S)
    processes.stop("apply")
    if code != 0:
        raise LocalError(
            "local.apply",
            required=f"to end within {APPLY_TIMEOUT_S:g} s with exit code 0",
            got=f"exit code {code}: {child.log_tail() or 'nothing in its log'}",
            do=f"read {child.spec.log}",
        )
