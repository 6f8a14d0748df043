from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.world import read_world, write_world
from training.dataset import Dataset


@pytest.fixture(scope="session")
def world_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the logs of `world`."""
    directory = tmp_path_factory.mktemp("world")
    write_world(directory)
    return directory


@pytest.fixture(scope="session")
def dataset(world_dir: Path) -> Dataset:
    return read_world(world_dir)
