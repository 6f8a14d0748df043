"""`encore serve --workers N`: N serving processes on the same ports, and the one that keeps them.

The supervisor holds both ports without listening on them; each process binds them again with
SO_REUSEPORT and listens, and the kernel spreads connections. A process that dies or hangs is
started again (`encore.keep`) while the others go on. Each has a spool directory of its own, which
`encore ship` finds below the spool.

A process that ends before any was ever ready ends it all: its settings are wrong, not its luck.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from encore.__main__ import INTERRUPTED
from encore.caching import cache_spec
from encore.keep import READY_PATH, Kept, KeptSpec, ask
from encore.serving_page import METRICS_PATH, Page, json_page, merged, serving_pages, text_page
from encore.settings import Settings
from schemas.errors import LocalError
from schemas.spool import worker_directory
from store.cores import core_of

log: Final = logging.getLogger(__name__)
LOOK_EVERY_S: Final = 0.1
GRACE_S: Final = 20.0
#: One that is told to end while it starts is interrupted, or killed by the signal.
_IN_ORDER: Final = (0, INTERRUPTED, -signal.SIGTERM)


class Workers:
    """The serving processes of one supervisor, and the one that keeps their item cache."""

    def __init__(self, settings: Settings, count: int, sockets: Path) -> None:
        """settings: with the ports that are held. sockets: a directory for their own sockets, and
        for the pulse of the one beside them."""
        self.kept = tuple(
            Kept(_spec(settings, number, sockets / f"{number}.sock")) for number in range(count)
        )
        cache = cache_spec(settings, sockets)
        self._beside = [] if cache is None else [Kept(cache)]
        self._told = False

    @property
    def ready(self) -> int:
        """How many are ready."""
        return sum(each.ready for each in self.kept)

    def look(self, now_s: float) -> None:
        """One look at each. Raises LocalError where one ended before any was ever ready."""
        for beside in self._beside:
            beside.look(now_s)
        for each in self.kept:
            each.look(now_s)
            if each.restarts and not any(other.was_ready for other in self.kept):
                raise LocalError(
                    f"serve.{each.spec.name}",
                    required="to come up",
                    got="its end",
                    do="see what it said before",
                )
        if not self._told and self.ready == len(self.kept):
            self._told = True
            log.info("all %d serving processes are ready", len(self.kept))

    def stop(self) -> int:
        """SIGTERM to all at once, then their grace. Returns how many did not end in order."""
        for each in (*self.kept, *self._beside):
            each.ask_to_end()
        deadline_s = time.monotonic() + GRACE_S
        codes = [each.end(max(deadline_s - time.monotonic(), 0)) for each in self.kept]
        for each in self._beside:
            each.end(max(deadline_s - time.monotonic(), 0))
        return sum(code not in _IN_ORDER for code in codes)

    def pages(self) -> dict[str, Callable[[], Page]]:
        """What the supervisor answers, by path."""
        return {
            METRICS_PATH: self._metrics,
            READY_PATH: self._health,
            "/v2/health/live": lambda: json_page({"live": True}),
        }

    def _metrics(self) -> Page:
        found = []
        up, restarts = (
            ["# TYPE encore_worker_up gauge"],
            ["# TYPE encore_worker_restarts_total counter"],
        )
        for number, each in enumerate(self.kept):
            assert each.spec.socket is not None
            answer = ask(each.spec.socket, METRICS_PATH)
            if answer is not None and answer[0] == http.client.OK:
                found.append((str(number), answer[1].decode()))
            up.append(f'encore_worker_up{{worker="{number}"}} {int(each.ready)}')
            restarts.append(f'encore_worker_restarts_total{{worker="{number}"}} {each.restarts}')
        lines = (*up, *restarts, *(line for each in self._beside for line in _beside_metrics(each)))
        return text_page(merged(found) + "".join(f"{line}\n" for line in lines))

    def _health(self) -> Page:
        workers = [
            {
                "name": each.spec.name,
                "ready": each.ready,
                "pid": each.pid,
                "restarts": each.restarts,
            }
            for each in self.kept
        ]
        is_ready = self.ready == len(self.kept)
        status = http.client.OK if is_ready else http.client.SERVICE_UNAVAILABLE
        return json_page({"ready": is_ready, "workers": workers}, status)


def _beside_metrics(writer: Kept) -> list[str]:
    """Of the process that keeps the item cache."""
    return [
        "# TYPE encore_cache_writer_up gauge",
        f"encore_cache_writer_up {int(writer.ready)}",
        "# TYPE encore_cache_writer_restarts_total counter",
        f"encore_cache_writer_restarts_total {writer.restarts}",
    ]


def _spec(settings: Settings, number: int, path: Path) -> KeptSpec:
    core = None if settings.cores is None else str(core_of(settings.cores, number))
    directory = worker_directory(settings.spool, number)
    own = settings.model_copy(update={"workers": 1, "cores": core, "spool_dir": directory})
    arguments = ["serve", "--socket", str(path)]
    return KeptSpec(f"worker-{number}", arguments, own.environment(), path)


def run_workers(settings: Settings, count: int, go_on: Callable[[], None]) -> int:
    """Keep `count` serving processes until `go_on` raises. Returns the exit code: 1 where one did
    not end in order.

    Raises LocalError where an address is taken, or the processes do not come up; SettingsError for
    cores that they may not use.
    """
    with ExitStack() as held:
        settings = settings.model_copy(
            update={
                "http_port": held.enter_context(held_port(settings.http_host, settings.http_port)),
                "grpc_port": held.enter_context(held_port(settings.http_host, settings.grpc)),
            }
        )
        sockets = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="encore-")))
        workers = Workers(settings, count, sockets)
        port = held.enter_context(
            serving_pages(settings.http_host, settings.metrics, workers.pages())
        )
        log.info(
            "%d serving processes on http://%s:%d and grpc://%s:%d; metrics on port %d",
            count,
            *(settings.http_host, settings.http_port),
            *(settings.http_host, settings.grpc_port),
            port,
        )
        try:
            while True:
                go_on()
                workers.look(time.monotonic())
                time.sleep(LOOK_EVERY_S)
        except KeyboardInterrupt:
            return int(workers.stop() > 0)
        finally:
            workers.stop()


@contextmanager
def held_port(host: str, port: int) -> Iterator[int]:
    """Hold a port that other processes of this user may listen on by SO_REUSEPORT; yields it.

    port: 0 takes a free one. Raises LocalError where somebody listens there already: the kernel
    would let a second service share the port without a word.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        try:
            if port:
                _require_free(family, host, port)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind((host, port))
        except OSError as error:
            raise LocalError(
                f"serve {host}:{port}",
                required="an address nobody listens on",
                got=error.strerror or type(error).__name__,
                do="choose another http_port or grpc_port, or stop the server that has it",
            ) from None
        yield holder.getsockname()[1]


def _require_free(family: socket.AddressFamily, host: str, port: int) -> None:
    """Raises OSError where a socket listens."""
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
