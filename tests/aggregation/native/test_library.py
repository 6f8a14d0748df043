"""The kernels are built from the sources that are here, or numpy computes."""

from __future__ import annotations

import ctypes
import logging
import subprocess
from pathlib import Path

import numpy as np
import pytest

from aggregation.native.build import build, sources, sources_digest
from aggregation.native.library import Kernels, address, load, plain
from tests.aggregation.native.worlds import unaligned


def test_a_library_says_which_sources_it_is_of(built: Kernels) -> None:
    assert built.kernel_sources() == sources_digest().encode()
    assert len(sources_digest()) == 16


def test_where_no_library_is_numpy_computes(tmp_path: Path) -> None:
    assert load(tmp_path / "kernels.so") is None


def test_a_library_of_other_sources_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kernels.so"
    build(path, ["-UKERNEL_SOURCES", '-DKERNEL_SOURCES="0123456789abcdef"'])
    with caplog.at_level(logging.WARNING):
        assert load(path) is None
    assert "make kernels" in caplog.text


def test_what_is_no_library_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "kernels.so"
    path.write_bytes(b"not a library")
    with caplog.at_level(logging.WARNING):
        assert load(path) is None
    assert "numpy" in caplog.text


def test_a_build_that_fails_says_why_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "kernels.so"
    path.write_bytes(b"before")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        build(path, ["-include", "no-such-header.h"])
    assert "no-such-header.h" in failed.value.stderr
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_address_is_that_of_the_first_element() -> None:
    values = np.arange(10, dtype=np.int32)[3:]
    assert ctypes.c_int32.from_address(address(values)).value == 3


def test_sources_stay_readable() -> None:
    assert sources()
    for path in sources():
        lines = path.read_text("utf-8").splitlines()
        assert len(lines) < 500, path.name
        assert max(map(len, lines), default=0) <= 100, path.name


def test_what_c_reads_is_in_one_piece_and_aligned() -> None:
    numbers = np.arange(12, dtype=np.int64)
    assert plain(numbers, np.int64) is numbers
    for odd in (numbers[::2], numbers.astype(np.int32), unaligned(numbers), numbers[::-1]):
        made = plain(odd, np.int64)
        assert made.flags.aligned
        assert made.flags.c_contiguous
        assert made.tolist() == odd.tolist()
