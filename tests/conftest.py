"""Fixtures of the whole suite: a real broker and a real store, one of each per pytest worker.

Tests share them, so each test takes topic names and key prefixes of its own. Both are children that
die with their worker.
"""

from __future__ import annotations

import os

# A fork of a process in which gRPC is at work may die before its exec (grpc/grpc issue 43055).
# Before gRPC is imported; and no test goes on with gRPC in a fork.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from socket import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from aggregation.native.build import build
from aggregation.native.library import Kernels, load
from catalog import lazy_checks
from encore.local import start_broker, start_store
from tests import refusals

lazy_checks.install()  # before a test imports Feast

# The same examples every day, and time for them; others with `--hypothesis-profile=anew`.
settings.register_profile("anew", deadline=None, print_blob=True)
settings.register_profile(
    "encore",
    settings.get_profile("anew"),
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("encore")


def pytest_addoption(parser: pytest.Parser) -> None:
    refusals.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Every EncoreError that a test makes notes where it was made."""
    refusals.register(config)
    close_sockets_of_failed_attempts()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of the longest tests first, so that no worker begins one when the others are done.

    How long: by the time-outs that tests ask for, then by the marks of slow ones.
    """
    weights: defaultdict[Path, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for item in items:
        asked = item.get_closest_marker("timeout")
        seconds = float(asked.args[0]) if asked is not None and asked.args else 0.0
        is_slow = any(item.get_closest_marker(name) for name in ("slow", "kill"))
        most, slow = weights[item.path]
        weights[item.path] = max(most, seconds), max(slow, int(is_slow))
    items.sort(key=lambda item: weights[item.path], reverse=True)


def close_sockets_of_failed_attempts() -> None:
    """kafka-python drops the socket of an attempt to connect that fails, times out or is given up
    when its client is closed, and leaves it to the garbage collector, which warns of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `streams.clients`
        from kafka.net.inet import KafkaNetSocket

    connect = KafkaNetSocket.sock_connect

    async def closing(self: Any, net: Any, sock: socket, address: Any, **options: Any) -> Any:
        try:
            return await connect(self, net, sock, address, **options)
        except BaseException:  # given up: GeneratorExit
            sock.close()
            raise

    KafkaNetSocket.sock_connect = closing


def pytest_unconfigure() -> None:
    """Feast opens files for its metrics when it is imported, and never closes them."""
    warnings.simplefilter("ignore", ResourceWarning)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address `127.0.0.1:port` of a Tansu broker that starts empty."""
    server = start_broker(tmp_path_factory.mktemp("broker"))
    yield server.address
    server.child.kill()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL `redis://127.0.0.1:port/0` of a Valkey store that starts empty."""
    server = start_store(tmp_path_factory.mktemp("valkey"))
    yield f"redis://{server.address}/0"
    server.child.kill()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The kernels of these sources, whatever lies beside them; a warning fails the build."""
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    build(path, ["-Werror"])
    library = load(path)
    assert library is not None
    return library
