"""What a process that looks after others tells on a port of its own; the supervisor of many
serving processes all their metrics, and how they are.

GET /metrics            of all of them, each sample with its `worker`
GET /v2/health/ready    200 while all are ready: how many there are and were started again
GET /v2/health/live     200

HEAD is answered as GET, without the body.
"""

from __future__ import annotations

import http.client
import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from schemas.errors import LocalError

log: Final = logging.getLogger(__name__)
METRICS_PATH: Final = "/metrics"
#: Who says nothing for so long is not waited for; and how many are listened to at once. Whoever
#: serves these pages looks after processes: it must not run out of files.
_PATIENCE_S: Final = 5.0
_AT_ONCE: Final = 32
_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
#: Status, content type, body.
Page = tuple[int, str, bytes]
Pages = Mapping[str, Callable[[], Page]]


def json_page(data: object, status: int = http.client.OK) -> Page:
    """A page of JSON."""
    return status, "application/json", json.dumps(data).encode()


def text_page(text: str) -> Page:
    """A page in Prometheus' text format."""
    return http.client.OK, _TEXT, text.encode()


def merged(expositions: Sequence[tuple[str, str]]) -> str:
    """Several processes' metrics as one text. expositions: (worker, its own text).

    Each sample gets the label `worker`; what a family is said to be comes once, before all of its
    samples.

    >>> print(merged([("0", "# TYPE a counter\\na 1\\n"), ("1", 'a{b="c"} 2\\n')]), end="")
    # TYPE a counter
    a{worker="0"} 1
    a{worker="1",b="c"} 2
    """
    heads: dict[str, list[str]] = {}  # family -> its lines that are no samples
    samples: dict[str, list[str]] = {}
    for worker, text in expositions:
        family = ""
        for line in text.splitlines():
            if line.startswith("# "):
                family = line.split(" ", 3)[2]
                known = heads.setdefault(family, [])
                if line not in known:
                    known.append(line)
            elif line:
                name = line.partition(" ")[0].partition("{")[0]
                if not (family and name.startswith(family)):
                    family = name
                samples.setdefault(family, []).append(_labelled(line, name, worker))
    families = dict.fromkeys([*heads, *samples])
    lines = [line for each in families for line in (*heads.get(each, ()), *samples.get(each, ()))]
    return "".join(f"{line}\n" for line in lines)


def _labelled(line: str, name: str, worker: str) -> str:
    rest = line[len(name) :]
    label = f'worker="{worker}"'
    return f"{name}{{{label},{rest[1:]}" if rest.startswith("{") else f"{name}{{{label}}}{rest}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = _AT_ONCE

    def __init__(self, address: tuple[str, int], pages: Pages) -> None:
        self.pages = pages
        self._free = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own; one too many is hung up on."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be made
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What that thread does."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller who leaves is no defect; whatever else goes wrong is."""
        if not isinstance(sys.exception(), OSError):
            log.exception("a page could not be told")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _PATIENCE_S

    def do_GET(self) -> None:
        """A page, or 404."""
        self._answer()

    def do_HEAD(self) -> None:
        """The same without its body."""
        self._answer()

    def _answer(self) -> None:
        page = self.server.pages.get(self.path)
        status, kind, body = (
            json_page({"error": "no such page"}, http.client.NOT_FOUND) if page is None else page()
        )
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Scrapes are not logged."""


@contextmanager
def serving_pages(host: str, port: int, pages: Pages, setting: str = "metrics_port") -> Any:
    """Serve the pages from a thread while inside. Yields the port; 0 takes a free one.

    setting: the port's name, for messages.

    Raises LocalError where the address is taken.
    """
    try:
        server = _Server((host, port), pages)
    except OSError as error:
        raise LocalError(
            f"{setting.removesuffix('_port').replace('_', ' ')} {host}:{port}",
            required="an address nobody listens on",
            got=error.strerror or type(error).__name__,
            do=f"choose another {setting}",
        ) from None
    thread = threading.Thread(target=server.serve_forever, name="pages", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
