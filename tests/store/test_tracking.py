"""A store that tells of changes: every one, in order with what is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import StoreError
from schemas.stored import RowKeys
from store.tracking import TrackedStore
from store.wire import StoreConfig
from tests.store.servers import OwnServer, own_server

WAIT_S = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    with own_server(tmp_path_factory.mktemp("tracked")) as own:
        yield own


@pytest.fixture
def tracked(server: OwnServer) -> Iterator[TrackedStore]:
    with TrackedStore(StoreConfig(server.url, timeout_ms=20_000)) as store:
        store.connect()
        store.track(["rows@1:{", "told"])
        yield store


def told(store: TrackedStore, count: int) -> set[bytes]:
    """The keys of so many changes."""
    keys: set[bytes] = set()
    while len(keys) < count:
        changes = store.changes(WAIT_S)
        assert changes.keys
        keys |= changes.keys
    return keys


def wait_told(store: TrackedStore, key: bytes) -> None:
    while key not in told(store, 1):
        pass


def test_changes_below_the_prefixes_are_told(server: OwnServer, tracked: TrackedStore) -> None:
    assert not tracked.changes(0.0)
    server.run("SET", "rows@10:{1}", "other")
    for key in ("rows@1:{1}", "rows@1:{2}"):
        server.run("SET", key, "1")
    server.run("DEL", "rows@1:{1}")
    server.run("SET", "told", "1")
    assert told(tracked, 3) == {b"rows@1:{1}", b"rows@1:{2}", b"told"}


def test_a_row_that_expires_is_told(server: OwnServer, tracked: TrackedStore) -> None:
    for life_ms in (50, 1_000, 20_000):  # on a machine that stalls both are told at once
        key = f"rows@1:{{{life_ms}}}"
        server.run("SET", key, "1", "PX", life_ms)
        wait_told(tracked, key.encode())
        if server.run("EXISTS", key):
            wait_told(tracked, key.encode())
            assert not server.run("EXISTS", key)
            return
    pytest.fail("it never outlived the word of it")


def test_changes_are_kept_while_something_is_read(server: OwnServer, tracked: TrackedStore) -> None:
    server.run("SET", "rows@1:{4}", "before")
    tracked.ping()
    keys = RowKeys("rows", 1, np.array([4, 5]))
    assert list(tracked.read_rows([keys])) == [b"before", None]
    assert told(tracked, 1) == {b"rows@1:{4}"}
    server.run("FLUSHALL")
    assert tracked.changes(WAIT_S).everything


def test_scans_find_all_keys_below_a_prefix(server: OwnServer, tracked: TrackedStore) -> None:
    value = b"x" * 100
    keys = [f"rows@1:{{{each}}}" for each in range(50)]
    for key in keys:
        server.run("SET", key, value)
    server.run("SET", "rows@2:{1}", value)
    server.run("SET", "short", "x")
    found = {key.decode() for some in tracked.scan("rows@1:{") for key in some}
    assert found == set(keys)
    assert tracked.get_text("short") == "x"


def test_a_lost_connection_is_an_error_until_there_is_another(server: OwnServer) -> None:
    with TrackedStore(StoreConfig(server.url, timeout_ms=20_000)) as store:
        with pytest.raises(StoreError, match="connect again"):
            store.ping()
        store.connect()
        store.track(["rows@1:{"])
        server.run("CLIENT", "KILL", "TYPE", "normal")
        with pytest.raises(StoreError):
            store.ping()
        with pytest.raises(StoreError, match="connect again"):
            store.changes(0.0)
        store.connect()
        store.track(["rows@1:{"])
        store.ping()
        with pytest.raises(StoreError, match="overlaps"):
            store.track(["rows@1:{1"])


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(StoreError, match="redis://"):
        TrackedStore(StoreConfig("nonsense"))


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a connection"):
        TrackedStore(StoreConfig(f"unix://{tmp_path}/none.sock")).connect()
