"""A service of the demo's size, its rows, models, and a server process, for this room's tests."""

from __future__ import annotations

import json
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from aggregation.fold import fold
from encore.children import ChildSpec, spawn
from encore.local import free_port
from predictor.networks import Inputs, build_network
from predictor.package import PackageDraft, publish_package, write_package
from predictor.spec import FineSpec, Kind, TowerSpec, input_spec
from schemas.actions import ACTION, KNOWN_AUTHOR, ActionType
from schemas.layout import layout_of
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY, row_keys
from schemas.plan import Plan, ViewPlan, dump_plan
from schemas.ranklog import TASKS
from schemas.row import Rows, empty_rows, encode_rows
from schemas.stored import RowKeys, StoredRows
from store.memory import AsyncMemoryRowStore
from store.redis_store import RedisRowStore
from tests.aggregation.plans import demo_plan
from tests.patience import WAIT_S
from tests.schemas.views import random_rows

PLAN = demo_plan()
SERVICE = PLAN.service("ranking")
NOW_MS = 1_651_000_000_000
USERS = (11, 12, -13)
ITEMS = tuple(range(1000, 1040))


# --- rows -----------------------------------------------------------------------------------


def rows_of(view: ViewPlan, ids: Sequence[int], seed: int = 0) -> Rows:
    """Random values of a batch view, folded random actions of a streamed one."""
    if view.kind == "batch":
        rows = random_rows(layout_of(view), seed, len(ids))
        rows.entity_ids[:] = ids
        return rows
    rows = empty_rows(layout_of(view), np.array(ids, np.int64))
    rng = np.random.default_rng(seed)
    count = 30 * len(ids)
    actions = np.zeros(count, ACTION)
    actions["item"] = rng.choice(ITEMS, count)
    actions["author"] = rng.integers(0, 9, count)
    actions["known"] = KNOWN_AUTHOR
    actions["time_ms"] = NOW_MS - rng.integers(0, 500_000, count)
    kinds = [ActionType.IMPRESSION, ActionType.PLAY, ActionType.CLICK, ActionType.LIKE]
    actions["type"] = rng.choice(kinds, count)
    actions["value"] = rng.integers(0, 60_000, count)
    fold(view, rows, rng.integers(0, len(ids), count), actions, np.full(count, NOW_MS))
    rows.epoch[:], rows.offset[:] = 1, rng.integers(0, 99, len(ids))
    return rows


def world(plan: Plan = PLAN, seed: int = 0) -> dict[str, bytes]:
    """The rows of USERS and ITEMS, by key."""
    stored: dict[str, bytes] = {}
    for view in plan.views:
        ids = list(USERS if view.entity == "user" else ITEMS)
        keys = row_keys(view.name, view.generation, ids)
        stored |= zip(keys, encode_rows(layout_of(view), rows_of(view, ids, seed)), strict=True)
    return stored


def put_world(store: RedisRowStore, plan: Plan = PLAN, seed: int = 0) -> None:
    """Rows and plan into a real store that holds nothing of value."""
    for key, value in world(plan, seed).items():
        put_raw(store, key, value)
    publish_plan(store, plan)


def put_raw(store: RedisRowStore, key: str, value: bytes) -> None:
    """Any bytes, past the fence."""
    store._ask(("SET", key, value), "test")


def publish_plan(store: RedisRowStore, plan: Plan) -> None:
    store.put_text(PLAN_KEY, dump_plan(plan))
    store.put_text(PLAN_VERSION_KEY, str(plan.version))


class DictStore(AsyncMemoryRowStore):
    """Rows of `world` under the async face, with what a test wants to happen before a read."""

    def __init__(self, rows: dict[str, bytes]) -> None:
        super().__init__()
        self.rows = rows
        self.before_read: Any = None

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        if self.before_read is not None:
            await self.before_read()
        return [self.rows.get(key) for key in keys]

    async def read_rows(self, keys: Sequence[RowKeys]) -> StoredRows:
        return StoredRows.of(await self.read([name for each in keys for name in each.names()]))


# --- models ---------------------------------------------------------------------------------


def random_inputs(n: int, seed: int = 0, plan: Plan = PLAN) -> Inputs:
    """One user's request of n candidates with ids from all of each table."""
    spec, rng = input_spec(plan.service("ranking")), np.random.default_rng(seed)
    sizes = [size for _, size in spec.tables]

    def ids(rows: int, tables: Sequence[int]) -> torch.Tensor:
        columns = [rng.integers(0, sizes[table], rows) for table in tables]
        return torch.from_numpy(np.stack(columns, 1).astype(np.int32))

    sequences = [ids(1, [each.table] * each.capacity) for each in spec.sequences]
    drawn = {
        each.group or each.name: int(rng.integers(0, each.capacity + 1)) for each in spec.sequences
    }
    lengths = [
        torch.tensor([drawn[each.group or each.name]], dtype=torch.int32) for each in spec.sequences
    ]
    return Inputs(
        ids(1, spec.user_slots), ids(n, spec.item_slots), tuple(sequences), tuple(lengths)
    )


def draft(kind: Kind, seed: int = 0, plan: Plan = PLAN) -> PackageDraft:
    """An untrained but lively model: its weights are large enough to make scores differ."""
    service = plan.service("ranking")
    torch.manual_seed(seed)
    inputs = input_spec(service)
    spec = TowerSpec(inputs) if kind == "two_tower" else FineSpec(inputs)
    network = build_network(spec)
    with torch.no_grad():
        network.embeddings.weight.mul_(20)
    return PackageDraft(
        network=network,
        service=service.name,
        fingerprint=service.fingerprint,
        requests=[random_inputs(21, seed, plan), random_inputs(3, seed + 1, plan)],
        trained_ms=NOW_MS,
        metrics={"auc": 0.5},
        score={} if kind == "two_tower" else dict(zip(TASKS, (1.0, 0.5, 0.25), strict=True)),
    )


def publish(root: Path, kind: Kind, seed: int = 0, plan: Plan = PLAN) -> Path:
    path = write_package(root, draft(kind, seed, plan))
    publish_package(path)
    return path


# --- a server process -----------------------------------------------------------------------

CONFIGURED = """
import json, logging, sys
from pathlib import Path
from predictor.cascade import CascadeConfig
from predictor.limits import Limits
from predictor.assembly import ServeConfig
from predictor.server import run_server
from predictor.spool import SpoolConfig
from store.wire import StoreConfig
logging.basicConfig(level="INFO", stream=sys.stderr)
def configured(given):
    return ServeConfig(
        store=StoreConfig(given.pop("store"), timeout_ms=given.pop("store_timeout_ms", 30_000)),
        service="ranking",
        packages=Path(given.pop("packages")),
        spool=SpoolConfig(Path(given.pop("spool")), **given.pop("spool_options", {})),
        cascade=CascadeConfig(**given.pop("cascade", {})),
        limits=Limits(**given.pop("limits", {})),
        **given,
    )
"""
_MAIN = CONFIGURED + "run_server(configured(json.loads(sys.argv[1])))"


@dataclass
class RunningServer:
    """A server process and a client of it."""

    child: Any
    client: httpx.Client
    packages: Path
    spool: Path
    grpc_address: str

    def infer(self, model: str = "rank", **changes: Any) -> httpx.Response:
        return self.client.post(f"/v2/models/{model}/infer", json=body(**changes))

    def ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return self.client.get("/v2/health/ready").status_code == 200
        return False


def settings_of(directory: Path, store_url: str, **options: Any) -> dict[str, Any]:
    """What `configured` makes a configuration of."""
    places = {name: str(directory / name) for name in ("packages", "spool")}
    ports = {"port": free_port(), "grpc_port": free_port()}
    return {"store": store_url, "poll_s": 0.05, "timeout_ms": 60_000, **places, **ports, **options}


@contextmanager
def server(directory: Path, store_url: str, **options: Any) -> Iterator[RunningServer]:
    """A server of its own on a free port, stopped by SIGTERM.

    It has a minute for a request unless told otherwise: a machine that stalls degrades none.
    """
    packages, spool = directory / "packages", directory / "spool"
    given = settings_of(directory, store_url, **options)
    port, grpc_port = given["port"], given["grpc_port"]
    command = [sys.executable, "-c", _MAIN, json.dumps(given)]
    child = spawn(ChildSpec("serve", command, directory / "serve.log"))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=90) as client:
            running = RunningServer(child, client, packages, spool, f"127.0.0.1:{grpc_port}")
            wait_until(lambda: running.ready() or not child.running, WAIT_S)
            assert child.running, (directory / "serve.log").read_text()
            yield running
    finally:
        with suppress(Exception):
            child.signal(signal.SIGCONT)
        child.stop(60)


def wait_until(condition: Any, timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def body(
    user: Any = USERS[0],
    candidates: Any = ITEMS[:21],
    outputs: Sequence[str] = (),
    parameters: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A well-formed request unless told otherwise."""
    request: dict[str, Any] = {
        "inputs": [
            {"name": "user_id", "shape": [1], "datatype": "INT64", "data": [user]},
            {
                "name": "candidate_ids",
                "shape": [len(candidates)],
                "datatype": "INT64",
                "data": list(candidates),
            },
        ]
    }
    if outputs:
        request["outputs"] = [{"name": name} for name in outputs]
    if parameters is not None:
        request["parameters"] = parameters
    return request | more


def outputs_of(reply: httpx.Response) -> dict[str, np.ndarray]:
    """The tensors of a reply; null is NaN."""
    assert reply.status_code == 200, reply.text
    kinds = {"INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "UINT8": np.uint8}
    return {
        each["name"]: np.array(each["data"], kinds[each["datatype"]]).reshape(each["shape"])
        for each in reply.json()["outputs"]
    }


def new_id() -> str:
    return str(uuid.uuid4())
