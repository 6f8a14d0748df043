"""`encore serve --workers`: processes kept running on shared ports, and their page."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

import predictor.grpc_messages as messages
from encore.local import free_port
from encore.serving import held_port, run_workers
from encore.serving_page import merged, serving_pages
from encore.settings import Settings
from predictor.http_client import Asked, HttpRankingClient, Reply
from schemas.errors import LocalError
from schemas.ranklog import decode_record
from schemas.spool import read_frames
from store.cores import core_of
from store.redis_store import RedisRowStore
from tests.patience import patient
from tests.predictor.support import ITEMS, PLAN, USERS, new_id, put_world, wait_until
from tests.predictor.support import body as rank_body

ROOT = Path(__file__).parents[2]
COMMAND = "import sys\nfrom encore.cli import main\nsys.exit(main())"

# --- their page -----------------------------------------------------------------------------


def test_merged_metrics_have_each_family_once() -> None:
    head = "# HELP a_total What\n# TYPE a_total counter\n"
    one = f'{head}a_total{{model="rank"}} 1.0\na_created 5\n'
    two = f"{head}a_total 2.0\n# TYPE b gauge\nb 3\n"
    text = merged([("0", one), ("1", two)])
    assert text.splitlines() == [
        "# HELP a_total What",
        "# TYPE a_total counter",
        'a_total{worker="0",model="rank"} 1.0',
        'a_total{worker="1"} 2.0',
        "# TYPE b gauge",
        'b{worker="1"} 3',
        'a_created{worker="0"} 5',
    ]


def test_a_taken_metrics_port_is_refused() -> None:
    with serving_pages("127.0.0.1", 0, {}) as port:
        with pytest.raises(LocalError, match=r"metrics 127\.0\.0\.1:\d+: needs an address nobody"):
            serving_pages("127.0.0.1", port, {}).__enter__()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/other", timeout=30)


def test_who_asks_the_page_nothing_takes_no_files_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encore.serving_page._Handler.timeout", 0.5)
    with serving_pages("127.0.0.1", 0, {"/a": lambda: (200, "text/plain", b"x")}) as port:
        before = len(os.listdir("/proc/self/fd"))
        silent = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(100)]
        assert len(os.listdir("/proc/self/fd")) < before + 150, "100 are this test's own"
        for each in silent:
            with suppress(ConnectionResetError):
                assert each.recv(1) == b"", "it is not waited for"
            each.close()
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/a", timeout=60) as reply:
            assert reply.read() == b"x"


def test_a_page_takes_head_without_its_body() -> None:
    with serving_pages("127.0.0.1", 0, {"/a": lambda: (200, "text/plain", b"x")}) as port:
        for path, status in (("/a", 200), ("/b", 404)):
            line = f"HEAD {path} HTTP/1.0\r\n\r\n".encode()
            with socket.create_connection(("127.0.0.1", port), timeout=60) as caller:
                caller.sendall(line)
                reply = caller.makefile("rb").read()
            assert reply.startswith(b"HTTP/1.0 %d " % status)
            assert reply.endswith(b"\r\n\r\n"), "no body"


# --- ports ----------------------------------------------------------------------------------


def test_a_held_port_is_shared_with_ours_and_refused_to_others() -> None:
    with held_port("127.0.0.1", 0) as port, socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("127.0.0.1", port))
        ours.listen()
        with pytest.raises(LocalError, match="needs an address nobody listens on"):
            held_port("127.0.0.1", port).__enter__()


def test_workers_that_never_come_up_end_it(tmp_path: Path) -> None:
    """No local stack runs there: the processes say so, and the supervisor ends."""
    settings = Settings(data_dir=tmp_path, http_port=0)
    with pytest.raises(LocalError, match=r"serve\.worker-\d: needs to come up"):
        run_workers(settings, 2, lambda: None)


# --- the whole ------------------------------------------------------------------------------


@dataclass
class Serving:
    """A supervisor in a process of its own, and where it and its workers answer."""

    process: subprocess.Popen[bytes]
    port: int
    grpc_port: int
    metrics_port: int
    spool: Path
    store_url: str
    unusable: float = 0.0  # of the requests before the cache was read first
    said: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Take down what it and its processes log, until the last of them has ended."""
        assert self.process.stderr is not None
        with self.process.stderr as told:
            for line in told:
                self.said.append(line.decode())
                print(self.said[-1], end="")

    def page(self, path: str) -> tuple[int, bytes]:
        """Of the supervisor."""
        url = f"http://127.0.0.1:{self.metrics_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=30) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def metric(self, name: str) -> float:
        """The sum of a series over the processes."""
        text = self.page("/metrics")[1].decode()
        return sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if re.match(rf"{name}[ {{]", line)
        )

    def cache_writer(self) -> int:
        """The pid of its child that keeps the item cache; 0 where there is none."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in children.read_text().split():
            if "--standby" in command_of(pid):
                return int(pid)
        return 0

    def cached(self) -> bool:
        """Whether a request finds its items in the cache."""
        before = self.metric("encore_cache_asked_total"), self.metric("encore_cache_unusable_total")
        self.rank(new_id())
        after = self.metric("encore_cache_asked_total"), self.metric("encore_cache_unusable_total")
        self.unusable = after[1]
        return (after[0] - before[0], after[1] - before[1]) == (1, 0)

    def workers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.page("/v2/health/ready")[1])["workers"]
        return found

    def all_ready(self) -> bool:
        assert self.process.poll() is None
        return self.page("/v2/health/ready")[0] == 200

    def rank(self, request_id: str) -> None:
        """One request on a connection of its own, by HTTP; asked again where its worker dies."""
        data = json.dumps(rank_body(id=request_id)).encode()
        url = f"http://127.0.0.1:{self.port}/v2/models/rank/infer"
        for _ in range(20):
            with suppress(OSError), urllib.request.urlopen(url, data, timeout=30) as reply:
                assert reply.status == 200
                return
        raise AssertionError("no answer")

    def rank_by_grpc(self, request_id: str) -> None:
        request = messages.ModelInferRequest(model_name="rank", id=request_id)
        for name, ids in (("user_id", USERS[:1]), ("candidate_ids", ITEMS[:9])):
            tensor = request.inputs.add(name=name, datatype="INT64", shape=[len(ids)])
            tensor.contents.int64_contents.extend(ids)
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            stub = channel.unary_unary(
                f"/{messages.SERVICE}/ModelInfer",
                request_serializer=messages.ModelInferRequest.SerializeToString,
                response_deserializer=messages.ModelInferResponse.FromString,
            )
            assert stub(request, timeout=60).id == request_id


@contextmanager
def served(
    store_url: str,
    directory: Path,
    workers: int,
    impatient: str = "",
    **changes: Any,
) -> Iterator[Serving]:
    """So many processes over a store that holds nothing else. impatient: what the supervisor's
    program begins with. changes: of the settings."""
    with RedisRowStore(patient(store_url)) as store:
        store._ask(("FLUSHDB",), "test")
        put_world(store)
    ports = [free_port() for _ in range(3)]
    given: dict[str, Any] = {
        "data_dir": directory,
        "bootstrap": "127.0.0.1:9",
        "store_url": store_url,
        "http_port": ports[0],
        "grpc_port": ports[1],
        "metrics_port": ports[2],
        "timeout_ms": 10_000,
        "store_timeout_ms": 10_000,
    }
    settings = Settings(**given | changes)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("ENCORE_")}
    process = subprocess.Popen(
        [sys.executable, "-c", impatient + COMMAND, "serve", "--workers", str(workers)],
        cwd=ROOT,
        env=inherited | settings.environment(),
        stderr=subprocess.PIPE,
    )
    found = Serving(process, ports[0], ports[1], ports[2], settings.spool, store_url)
    listening = threading.Thread(target=found.listen)
    listening.start()
    try:
        yield found
    finally:
        process.kill()
        process.wait()
        listening.join(60)


@pytest.fixture(params=[(2, 1_000)])
def serving(request: pytest.FixtureRequest, valkey: str, tmp_path: Path) -> Iterator[Serving]:
    """With so many serving processes, which read a cache that is known to be whole so lately, and
    a supervisor that waits so long, in s, for the beat of who writes it."""
    workers, item_cache_max_age_ms, *silence_s = request.param
    impatient = f"import encore.keep\nencore.keep.SILENCE_S = {silence_s}[0]\n" if silence_s else ""
    with served(
        valkey.removesuffix("/0") + "/9",
        tmp_path,
        workers,
        impatient,
        store_timeout_ms=1_000 if silence_s else 10_000,
        cores="auto",
        item_cache_max_age_ms=item_cache_max_age_ms,
    ) as found:
        yield found


def command_of(pid: str) -> list[str]:
    """Its program and arguments, none of one that ended. Between two programs, and as a zombie, it
    has none for a moment."""
    for _ in range(100):
        with suppress(OSError):
            if command := Path(f"/proc/{pid}/cmdline").read_text():
                return command.split("\0")
            time.sleep(0.01)
    return []


def run_on(pid: int, cores: set[int]) -> bool:
    """Whether these are where each of a process's threads may run."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):  # it has ended
            found.append(os.sched_getaffinity(int(thread)))
    return bool(found) and all(each == cores for each in found)


def logged(spool: Path, number: int) -> set[str]:
    """Request ids in a worker's spool."""
    return {
        str(decode_record(payload).request_id)
        for path in (spool / f"worker-{number}").glob("*.spool")
        for payload in read_frames(path.read_bytes())[0]
    }


@pytest.mark.slow
@pytest.mark.parametrize("serving", [(1, 60_000)], indirect=True)
def test_plans_are_swapped_under_load_without_a_failed_request(serving: Serving) -> None:
    """One that only serving sees, then a new generation of an item view, whose rows are cached
    before the first request reads them."""
    wait_until(serving.all_ready)
    wait_until(serving.cached)
    videos = replace(PLAN.view("videos"), generation=2)
    others = tuple(view for view in PLAN.views if view.name != videos.name)
    second = replace(PLAN, version=2, parent=1)
    third = replace(PLAN, version=3, parent=2, views=(*others, videos))
    replies: list[Reply] = []
    over = threading.Event()

    def load(number: int) -> None:
        with HttpRankingClient(f"127.0.0.1:{serving.port}") as client:
            while not over.wait(0.01):
                reply = client.rank(USERS[number], ITEMS, Asked(timeout_ms=10_000))
                replies.append(reply)

    with ThreadPoolExecutor(3) as pool:
        loads = [pool.submit(load, number) for number in range(3)]
        try:
            for plan in (second, third):
                with RedisRowStore(patient(serving.store_url)) as store:
                    put_world(store, plan)
                version = plan.version
                wait_until(
                    lambda v=version: replies and replies[-1].parameters["plan_version"] == v
                )
            done = len(replies)
            wait_until(lambda: len(replies) > done + 20)
        finally:
            over.set()
        for each in loads:
            each.result()
    assert {reply.degraded for reply in replies} == {("no_model",)}
    assert {reply.parameters["plan_version"] for reply in replies} == {1, 2, 3}
    assert serving.metric("encore_cache_unusable_total") == serving.unusable


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize("serving", [(1, 1_000)], indirect=True)
def test_one_process_starts_the_writer_of_its_cache_again(serving: Serving) -> None:
    """And serves meanwhile."""
    wait_until(serving.all_ready)
    wait_until(serving.cached)
    before = serving.cache_writer()
    os.kill(before, signal.SIGKILL)
    serving.rank(new_id())
    wait_until(lambda: serving.cache_writer() not in (0, before))
    wait_until(serving.cached)
    after = serving.cache_writer()
    assert before > 0 < after
    every = os.sched_getaffinity(0)
    # The service's main thread may run anywhere while it starts a process.
    wait_until(lambda: run_on(serving.process.pid, {max(every)}))
    assert run_on(after, every), "it is not the service"
    serving.process.terminate()
    assert serving.process.wait(60) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(after, 0)


@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize("serving", [(2, 1_000, 3.0)], indirect=True)
def test_a_writer_of_the_cache_that_stands_still_is_started_again(serving: Serving) -> None:
    """Requests are answered meanwhile, from the store, and the metrics say so."""
    wait_until(serving.all_ready)
    wait_until(serving.cached)
    before = serving.cache_writer()
    assert serving.metric("encore_cache_writer_up") == 1
    restarts = serving.metric("encore_cache_writer_restarts_total")
    os.kill(before, signal.SIGSTOP)
    wait_until(lambda: not serving.cached())
    wait_until(lambda: serving.cache_writer() not in (0, before))
    wait_until(serving.cached)
    assert serving.metric("encore_cache_writer_restarts_total") > restarts
    wait_until(lambda: serving.metric("encore_cache_writer_up") == 1)
    serving.process.terminate()
    assert serving.process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.kill
def test_two_workers_share_ports_and_one_that_is_killed_comes_back(serving: Serving) -> None:
    wait_until(serving.all_ready)
    writer = serving.cache_writer()
    os.kill(writer, signal.SIGKILL)
    asked = [new_id() for _ in range(60)]
    for request_id in asked[:20]:
        serving.rank(request_id)
        with suppress(IndexError):
            serving.rank_by_grpc(asked[20 + asked.index(request_id)])
    text = serving.page("/metrics")[1].decode()
    for number in (0, 1):
        assert f'encore_in_flight{{worker="{number}"}} 0' in text
        assert f'encore_worker_up{{worker="{number}"}} 1' in text
    assert text.count("# TYPE encore_request_seconds histogram") == 1
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{serving.port}/metrics", timeout=30)

    before = serving.workers()
    for number, worker in enumerate(before):
        assert run_on(worker["pid"], {core_of("auto", number)})
    os.kill(before[0]["pid"], signal.SIGKILL)
    for request_id in asked[40:]:
        serving.rank(request_id)
    wait_until(lambda: serving.all_ready() and serving.workers()[0]["restarts"] == 1)
    after = serving.workers()
    assert after[0]["pid"] != before[0]["pid"]
    assert after[1] == before[1]
    wait_until(lambda: serving.cache_writer() not in (0, writer))

    serving.process.terminate()
    assert serving.process.wait(60) == 0
    of_each = [logged(serving.spool, number) for number in (0, 1)]
    assert all(of_each), "the kernel spreads connections"
    assert of_each[1] >= set(asked[40:]) - of_each[0]
    with pytest.raises(ProcessLookupError):
        os.kill(after[1]["pid"], 0)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", serving.port), timeout=60)
