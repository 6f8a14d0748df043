"""`encore serve` as a process of its own over real rows, and requests to it on both protocols.

The models have the demo's networks and were not trained: what a score costs does not depend on
its weights. Users and candidates are drawn by their shares of the KuaiRand log. Where items are to
come from the service's cache the log is moved so that it ends when the benchmark begins, and
requests go by the service's own clock, as in production; else they name the log's end.
"""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from bench.cores import Cores
from bench.open_loop import F64, Answer, Measured, http_request, over_http, precise_loop
from bench.open_loop_grpc import Call, call, over_grpc
from bench.server import own_store
from bench.workload import SERVICE, Request, Workload, load_workload
from encore.children import ChildSpec, spawn, wait_ready
from encore.local import free_port
from predictor.cascade import inputs_of
from predictor.grpc_messages import SERVICE as GRPC_SERVICE
from predictor.grpc_messages import ModelInferRequest, ModelInferResponse
from predictor.networks import build_network
from predictor.package import PackageDraft, publish_package, write_package
from predictor.protocol import JSON_LENGTH_HEADER
from predictor.spec import FineSpec, TowerSpec, input_spec
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY
from schemas.plan import dump_plan
from schemas.ranklog import TASKS
from store.redis_store import RedisRowStore
from store.wire import StoreConfig

CANDIDATES: Final = 500
USERS, ITEMS = 2_000, 5_000  # the most seen ones
READY_S: Final = 180.0  # importing takes seconds, on a busy machine many
HOST: Final = "127.0.0.1"
STAGES: Final = "encore_stage_seconds"

Protocol = Literal["grpc", "http"]
Model = Literal["aggregate", "rank"]
PROTOCOLS: Final[tuple[Protocol, ...]] = ("grpc", "http")


@dataclass(frozen=True, slots=True)
class Reply:
    """status: HTTP's or its equal. degraded: what the reply says of itself. bytes: of the reply."""

    status: int
    degraded: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """Requests of one kind, ready to be sent in turn."""

    protocol: Protocol
    model: Model
    send: Callable[[F64], Awaitable[Measured]]

    def drive(self, times_s: F64) -> Measured:
        """Send them at these times, (n,) seconds ascending."""

        found: list[Measured] = []

        async def go() -> None:  # a runner writes out what its task returned, and drops that
            found.append(await self.send(times_s))

        with _no_collector(), asyncio.Runner(loop_factory=precise_loop) as runner:
            runner.run(go())
        return found[0]


@contextmanager
def _no_collector() -> Iterator[None]:
    """A collection would keep what is to be sent, and the replies that came, waiting for a tenth of
    a second."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(slots=True)
class ServeWorld:
    """A running service. cached: its items come from its cache, and its clock is its own."""

    workload: Workload
    cached: bool
    pid: int
    ports: dict[Protocol, int]

    def prepare(
        self, protocol: Protocol, model: Model, requests: Sequence[Request], timeout_ms: float
    ) -> Prepared:
        """The requests encoded, each with that deadline."""
        address = (HOST, self.ports[protocol])
        now_ms = None if self.cached else self.workload.now_ms
        if protocol == "http":
            bodies = [_over_http(model, each, timeout_ms, now_ms) for each in requests]
            return Prepared(protocol, model, lambda times_s: over_http(address, bodies, times_s))
        calls = [_over_grpc(model, each, timeout_ms, now_ms) for each in requests]
        return Prepared(protocol, model, lambda times_s: over_grpc(address, calls, times_s))

    def cpu_s(self) -> float:
        """Seconds of the processor that the service has used."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def stage_ms(self, model: Model) -> dict[str, tuple[float, float]]:
        """(requests, milliseconds of all of them) by stage, so far."""
        found: dict[tuple[str, str], float] = {}
        for sample in _samples(self.ports["http"]):
            if sample.name.startswith(STAGES) and sample.labels["model"] == model:
                place = sample.name.removeprefix(STAGES), sample.labels["stage"]
                found[place] = found.get(place, 0.0) + sample.value
        return {
            stage: (found["_count", stage], seconds * 1e3)
            for (what, stage), seconds in found.items()
            if what == "_sum"
        }

    def is_ready(self) -> bool:
        """It serves, and its item cache answers, which a request has to find out."""
        try:
            if _get(self.ports["http"], "/v2/health/ready")[0] != http.client.OK:
                return False
        except OSError:
            return False
        if self.cached:
            request = self.workload.requests(1, 10, seed=0)
            self.prepare("http", "aggregate", request, 1_000).drive(np.zeros(1))
        return not self.cached or self.hit_share() > 0

    def hit_share(self) -> float:
        """Part of the candidates so far that came from the item cache."""
        found = {
            sample.labels["result"]: sample.value
            for sample in _samples(self.ports["http"])
            if sample.name == "encore_cache_items_total"
        }
        asked = sum(found.get(each, 0.0) for each in ("hit", "absent", "missed"))
        return found["hit"] / asked if asked else 0.0


@contextmanager
def serve_world(fine_limit: int) -> Iterator[ServeWorld]:
    """A store with the demo's rows and a service before it, which end with the block. The service
    has a core to itself where there are two, and this thread and the store have the others.

    Raises LocalError without the data, or where the service does not come up.
    """
    cores = Cores.here()
    with (
        cores.others(),
        own_store() as (_, port),
        world_over(port, port, fine_limit, cached=True, cores=cores) as world,
    ):
        yield world


@contextmanager
def world_over(
    store_port: int,
    served_port: int,
    fine_limit: int,
    *,
    cached: bool = False,
    cores: Cores | None = None,
) -> Iterator[ServeWorld]:
    """Fills an empty store and serves from it. served_port: where the service finds the store.
    cores: None runs the service anywhere.

    Raises as `serve_world`.
    """
    with (
        tempfile.TemporaryDirectory(prefix="bench") as directory,
        RedisRowStore(StoreConfig(f"redis://{HOST}:{store_port}/0")) as store,
        load_workload(store, USERS, ITEMS, _now_ms() if cached else None) as work,
    ):
        home = Path(directory)
        store.put_text(PLAN_KEY, dump_plan(work.program.plan))
        store.put_text(PLAN_VERSION_KEY, str(work.program.plan.version))
        _publish_models(home / "packages", store, work)
        ports: dict[Protocol, int] = {each: free_port() for each in PROTOCOLS}
        url = f"redis://{HOST}:{served_port}/0"
        environment = _environment(url, home, ports) | {
            "ENCORE_FINE_LIMIT": str(fine_limit),
            "ENCORE_ITEM_CACHE": str(cached),
            "ENCORE_ALLOW_NOW_MS": str(not cached),
        }
        if cores is not None and cores.service is not None:
            environment["ENCORE_CORES"] = str(cores.service)
        command = [sys.executable, "-m", "encore", "serve"]
        spec = ChildSpec("serve", command, home / "serve.log", home, environment)
        child = spawn(spec) if cores is None else cores.spawn(spec)
        try:
            world = ServeWorld(work, cached, child.pid, ports)
            wait_ready(child, world.is_ready, READY_S)
            yield world
        finally:
            child.stop()


def reply_of(protocol: Protocol, answer: Answer) -> Reply:
    """An answer, judged after the run."""
    if answer.status != 200:
        return Reply(answer.status, "", len(answer.body))
    if protocol == "http":
        parameters = json.JSONDecoder().raw_decode(answer.body.decode("latin-1"))[0]["parameters"]
        return Reply(200, parameters["degraded"], len(answer.body))
    reply = ModelInferResponse.FromString(answer.body)
    return Reply(200, reply.parameters["degraded"].string_param, len(answer.body))


# --- requests ---------------------------------------------------------------------------------


def _over_http(model: Model, request: Request, timeout_ms: float, now_ms: int | None) -> bytes:
    """Binary tensors both ways."""
    tensors = [np.array([request[0]], np.int64), np.asarray(request[1], np.int64)]
    clock = {} if now_ms is None else {"now_ms": now_ms}
    head = json.dumps(
        {
            "parameters": {"timeout": timeout_ms, "binary_data_output": True} | clock,
            "inputs": [
                {
                    "name": name,
                    "shape": [len(tensor)],
                    "datatype": "INT64",
                    "parameters": {"binary_data_size": tensor.nbytes},
                }
                for name, tensor in zip(("user_id", "candidate_ids"), tensors, strict=True)
            ],
        }
    ).encode()
    body = head + b"".join(tensor.tobytes() for tensor in tensors)
    lengths = {JSON_LENGTH_HEADER.replace("-", "_"): str(len(head))}
    path = f"/v2/models/{model}/infer"
    return http_request(path, body, HOST, "application/octet-stream", **lengths)


def _over_grpc(model: Model, request: Request, timeout_ms: float, now_ms: int | None) -> Call:
    tensors = [np.array([request[0]], np.int64), np.asarray(request[1], np.int64)]
    message = ModelInferRequest(model_name=model)
    if now_ms is not None:
        message.parameters["now_ms"].int64_param = now_ms
    for name, tensor in zip(("user_id", "candidate_ids"), tensors, strict=True):
        message.inputs.add(name=name, datatype="INT64", shape=[len(tensor)])
        message.raw_input_contents.append(tensor.tobytes())
    return call(f"{GRPC_SERVICE}/ModelInfer", message.SerializeToString(), HOST, timeout_ms)


# --- the service ------------------------------------------------------------------------------


def _publish_models(root: Path, store: RedisRowStore, workload: Workload) -> None:
    program, now_ms = workload.program, workload.now_ms
    spec = input_spec(program.service)
    for network_spec in (TowerSpec(spec), FineSpec(spec)):
        network = build_network(network_spec)
        requests = [
            inputs_of(
                program.assemble(store.read(program.keys(*each)), *each, now_ms).tensors,
                network.spec.inputs,
            )
            for each in workload.requests(2, 64, seed=1)
        ]
        is_fine = isinstance(network_spec, FineSpec)
        draft = PackageDraft(
            network=network,
            service=SERVICE,
            fingerprint=program.service.fingerprint,
            requests=requests,
            trained_ms=now_ms,
            score=dict.fromkeys(TASKS, 1.0) if is_fine else {},
        )
        publish_package(write_package(root, draft))


def _environment(url: str, home: Path, ports: dict[Protocol, int]) -> dict[str, str]:
    """The parent's variables without its settings, and the service's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ENCORE_")}
    root = str(Path(__file__).resolve().parent.parent)
    return kept | {
        "PYTHONPATH": root,
        "ENCORE_STORE_URL": url,
        "ENCORE_BOOTSTRAP": f"{HOST}:1",  # nothing of the service needs a broker
        "ENCORE_DATA_DIR": str(home),
        "ENCORE_HTTP_PORT": str(ports["http"]),
        "ENCORE_GRPC_PORT": str(ports["grpc"]),
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _samples(port: int) -> Iterator[Sample]:
    """Of the service's metrics."""
    text = _get(port, "/metrics")[1].decode()
    return (sample for each in text_string_to_metric_families(text) for sample in each.samples)


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=READY_S)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()
