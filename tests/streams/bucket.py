"""A broker whose log lies in files that a test can take away: Tansu over an object store.

Tansu's memory engine keeps no file and does not get over DeleteRecords; it has no retention either
(`cleanup.policy` is stored and not acted on). Its S3 engine is the same code over other objects, a
record batch each: `…/partitions/{partition}/records/{offset of its first record}.batch`. One that
is not there any more is skipped by a fetch, as a segment is that retention took. `Bucket` speaks as
much of that protocol as the broker uses, on loopback, and holds the objects in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self, cast
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from encore.children import Child, ChildSpec, spawn, wait_ready
from encore.local import HOST, broker_binary, free_port
from schemas.errors import LocalError, StreamError
from streams.clients import require_broker

BUCKET: Final = "tansu"
START_S: Final = 60.0
BEGAN: Final = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Held:
    """An object. number: of the write that made it; the broker tells old from new by its time."""

    content: bytes
    number: int

    @property
    def tag(self) -> str:
        return f'"{self.number}"'

    @property
    def changed(self) -> datetime:
        return BEGAN + timedelta(seconds=self.number)


class Bucket:
    """The objects, and the server that hands them out. Use as a context manager."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._writes = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer((HOST, 0), Requests)
        self._server.daemon_threads = True
        cast(Any, self._server).bucket = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._server.server_port}"

    def get(self, key: str) -> Held | None:
        with self._lock:
            return self._held.get(key)

    def put(self, key: str, content: bytes, absent: bool, tag: str | None) -> Held | None:
        """absent: only where there is none. tag: only where that is there. None: not written."""
        with self._lock:
            there = self._held.get(key)
            if (absent and there) or (tag is not None and (there is None or there.tag != tag)):
                return None
            self._writes += 1
            self._held[key] = Held(content, self._writes)
            return self._held[key]

    def below(self, prefix: str) -> list[tuple[str, Held]]:
        with self._lock:
            return sorted((key, held) for key, held in self._held.items() if key.startswith(prefix))

    def remove(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._held.pop(key, None)

    def drop(self, topic: str, partition: int, first: int, before: int) -> int:
        """Take away the batches that begin at these offsets, [first, before); how many."""
        place = f"clusters/encore/topics/{topic}/partitions/{partition:010}/records/"
        gone = [key for key, _ in self.below(place) if first <= offset_of(key) < before]
        self.remove(gone)
        return len(gone)


def offset_of(key: str) -> int:
    return int(key.rpartition("/")[2].partition(".")[0])


class Requests(BaseHTTPRequestHandler):
    """Get, put, list and delete, with the conditions that the broker gives."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    @property
    def bucket(self) -> Bucket:
        return cast(Bucket, cast(Any, self.server).bucket)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if asked.get("list-type") == "2":
            self._list(asked.get("prefix", ""))
            return
        held = self.bucket.get(key_of(parts.path))
        if held is None:
            self._answer(404)
        elif self.headers["If-None-Match"] == held.tag:
            self._answer(304, held)
        else:
            self._answer(200, held, held.content)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        absent, tag = self.headers["If-None-Match"] == "*", self.headers["If-Match"]
        held = self.bucket.put(key_of(urlsplit(self.path).path), content, absent, tag)
        self._answer(412 if held is None else 200, held)

    def do_POST(self) -> None:
        """Take away many objects: what deleting a topic asks for."""
        asked = ElementTree.fromstring(self.rfile.read(int(self.headers["Content-Length"])))
        keys = [each.text or "" for each in asked.iter() if each.tag.endswith("Key")]
        self.bucket.remove(keys)
        gone = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        self._answer(200, None, f"<DeleteResult>{gone}</DeleteResult>".encode())

    def _list(self, prefix: str) -> None:
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(held.content)}</Size>"
            f"<LastModified>{held.changed:%Y-%m-%dT%H:%M:%S}.000Z</LastModified>"
            f"<ETag>{escape(held.tag)}</ETag></Contents>"
            for key, held in self.bucket.below(prefix)
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        self._answer(200, None, text.encode())

    def _answer(self, status: int, held: Held | None = None, content: bytes = b"") -> None:
        self.send_response(status)
        if held is not None:
            self.send_header("ETag", held.tag)
            self.send_header("Last-Modified", format_datetime(held.changed, usegmt=True))
        if status != 304:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the broker says what it misses."""


def key_of(path: str) -> str:
    return unquote(path).removeprefix(f"/{BUCKET}/")


@contextmanager
def broker_over(bucket: Bucket, run_dir: Path) -> Iterator[str]:
    """Bootstrap address of a broker that keeps its log there. run_dir: gets its log file."""
    run_dir.mkdir(parents=True, exist_ok=True)
    child, address = started(bucket, run_dir / "broker.log")
    try:
        yield address
    finally:
        child.kill()


def started(bucket: Bucket, log: Path, attempts: int = 5) -> tuple[Child, str]:
    """The broker and its address; on another port where somebody was faster."""
    address = f"{HOST}:{free_port()}"
    command = (
        *(str(broker_binary()), "broker", "--cluster-id=encore"),
        *(f"--listener-url=tcp://{address}", f"--advertised-listener-url=tcp://{address}"),
        f"--storage-engine=s3://{BUCKET}/",
    )
    environment = {
        "AWS_ENDPOINT": bucket.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
    }
    child = spawn(ChildSpec("broker", command, log, environment=environment))
    try:
        wait_ready(child, lambda: accepts(address), START_S)
    except LocalError:
        if attempts == 1:
            raise
        return started(bucket, log, attempts - 1)
    return child, address


def accepts(address: str) -> bool:
    try:
        require_broker(address, 500)
    except StreamError:
        return False
    return True
