"""One torch thread, as in serving; a store of this room's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from store.redis_store import RedisRowStore
from tests.patience import patient
from tests.predictor.support import RunningServer, publish, put_world, server


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """The serving process's setting; two threads on two busy cores spin on each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def predictor_url(valkey: str) -> str:
    """URL of a database that no other room's tests write: the plan's key is one per database."""
    return valkey.removesuffix("/0") + "/7"


@pytest.fixture
def rows(predictor_url: str) -> Iterator[RedisRowStore]:
    """That database, empty before each test."""
    with RedisRowStore(patient(predictor_url)) as store:
        store._ask(("FLUSHDB",), "test")
        yield store


@pytest.fixture(scope="package")
def running_url(valkey: str) -> str:
    """URL of the database of `running`."""
    return valkey.removesuffix("/0") + "/8"


@pytest.fixture(scope="package")
def running(running_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with rows and both models, for the tests that only ask it."""
    directory = tmp_path_factory.mktemp("server")
    with RedisRowStore(patient(running_url)) as store:
        store._ask(("FLUSHDB",), "test")
        put_world(store)
        for kind in ("two_tower", "fine"):
            publish(directory / "packages", kind)
        options = {"allow_now_ms": True, "page_size": 6}
        with server(directory, running_url, **options) as started:
            yield started
        assert started.child.exit_code == 0
