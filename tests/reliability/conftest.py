"""Servers of one test alone, which it may stop, wipe and kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from encore.local import Server, start_broker, start_store


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "broker").mkdir()
    server = start_broker(tmp_path / "broker")
    yield server
    server.child.kill()


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "store").mkdir()
    server = start_store(tmp_path / "store")
    yield server
    server.child.kill()
