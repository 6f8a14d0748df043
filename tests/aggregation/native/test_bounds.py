"""No kernel reads or writes what it was not given, whatever the bytes: under the compiler's
sanitizers, in a process of its own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregation.cache import index
from aggregation.native.build import build
from aggregation.native.gather import CacheFile
from aggregation.native.library import Kernels, address, load
from aggregation.native.tensors import NativeTensors
from aggregation.program import ServiceProgram
from schemas.plan import Side
from tests.aggregation.native.test_rows import check_damaged
from tests.aggregation.native.worlds import random_plan, spaced
from tests.predictor.test_native import check_networks

ROUNDS = 25


def garbage(dtype: np.dtype[np.void], n: int, rng: np.random.Generator) -> NDArray[np.void]:
    """n records of any bytes, nothing behind them."""
    return np.frombuffer(rng.bytes(n * dtype.itemsize), dtype).copy()


def check_tensors(library: Kernels, seed: int) -> None:
    """Ids of any bytes, of any number of users and items."""
    rng = np.random.default_rng(seed)
    program = ServiceProgram(random_plan(rng), "ranking", lambda: None)
    dtypes: dict[Side, np.dtype[np.void]] = {"user": program.user_dtype, "item": program.item_dtype}
    native = NativeTensors(library, program.plan, program.service, dtypes)
    for n in (0, 1, 64, 71):
        items = garbage(program.item_dtype, n, rng)
        own = native.own_ids(items)
        assert native(garbage(program.user_dtype, 1, rng), items, None, own) is not None
        users = garbage(program.user_dtype, 3, rng)
        assert native(users, spaced(items, 9), rng.integers(0, 3, n)) is not None
        paired = bool(n and program.service.crosses_of("pair"))
        assert (native(users, items, rng.integers(3, 2**40, n)) is None) == paired


def check_gather(library: Kernels, seed: int) -> None:
    """An index and records of any bytes, slots beyond the capacity among them."""
    rng = np.random.default_rng(seed)
    level, capacity, words = 6, 50, 24
    records = np.frombuffer(rng.bytes(capacity * words * 8), np.uint64).copy()
    ids = rng.integers(-(2**63), 2**63 - 1, 90)
    buckets = rng.integers(0, capacity + 9, (1 << level, index.WORDS)).astype(np.uint32)
    at, tags = index.hashed(ids, level)
    buckets[at.astype(np.int64), rng.integers(0, index.PLACES, len(ids))] = tags
    entities = records.reshape(capacity, words)[:, 1].view(np.int64)
    asked = np.concatenate((ids, rng.choice(entities, 20)))
    out, places = np.empty((len(asked), words), np.uint64), np.empty(2 * len(asked) + 2, np.int64)
    cache = CacheFile(address(records), words, capacity)
    left = library.gather(
        ctypes.addressof(cache),
        address(buckets),
        level,
        address(asked),
        len(asked),
        0,
        address(out),
        address(places),
    )
    assert 0 <= left <= len(asked)


CHECKS = (check_damaged, check_tensors, check_gather, check_networks)


def test_nothing_is_read_or_written_out_of_bounds(tmp_path: Path) -> None:
    found = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    )
    runtime = Path(found.stdout.strip())
    if not runtime.is_absolute():
        pytest.skip("this compiler has no sanitizers")
    path = tmp_path / "kernels.so"
    build(path, ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
    told = subprocess.run(
        [sys.executable, "-m", "tests.aggregation.native.test_bounds", str(path)],
        env={**os.environ, "LD_PRELOAD": str(runtime), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-4_000:]
    assert told.stdout.split() == [check.__name__ for check in CHECKS]


def main(path: Path) -> None:
    """What the sanitizers watch."""
    library = load(path)
    assert library is not None
    for check in CHECKS:
        for seed in range(ROUNDS):
            check(library, seed)
        print(check.__name__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
