"""Stored values as they came: one buffer, and where each value lies.

Rows of one view are all of one size, so in a store's reply, asked for view by view, they lie at
even distances: a few `Run`s describe thousands of values, and a run is a matrix already. Nothing
here looks inside a value.

Symbols: `n` values.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from schemas.names import row_keys

ABSENT: Final = -1


class RowKeys(NamedTuple):
    """The keys of one view's rows of some entities. entity_ids: (n,) i64."""

    view: str
    generation: int
    entity_ids: NDArray[np.int64]

    def names(self) -> list[str]:
        """The store keys, n of them."""
        return row_keys(self.view, self.generation, self.entity_ids.tolist())


class Run(NamedTuple):
    """Values first, first + 1, … of a reply, `many` of them.

    Each has `size` bytes, ABSENT where there is none; value i lies at start + i * stride of the
    buffer. The bytes between two values are the same throughout the run.
    """

    first: int
    many: int
    start: int
    stride: int
    size: int


_FIRST: Final = attrgetter("first")


class StoredRows(Sequence[bytes | None]):
    """n stored values; as a sequence, `bytes` made when they are asked for, None where absent.

    buffer: (b,) u1, not to be written to. runs: in order; together they are all n values.
    """

    __slots__ = ("_count", "buffer", "runs")

    def __init__(self, buffer: NDArray[np.uint8], runs: tuple[Run, ...]) -> None:
        self.buffer, self.runs = buffer, runs
        self._count = sum([run.many for run in runs])

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> StoredRows:
        """Values at hand, copied into one buffer."""
        buffer = np.frombuffer(b"".join([value or b"" for value in values]), np.uint8)
        runs: list[Run] = []
        first = start = 0
        for size, group in groupby(ABSENT if each is None else len(each) for each in values):
            count = sum(1 for _ in group)
            stride = max(size, 0)
            runs.append(Run(first, count, start, stride, size))
            first, start = first + count, start + count * stride
        return cls(buffer, tuple(runs))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes | None]:
        for run in self.runs:
            for index in range(run.many):
                yield self._value(run, index)

    @overload
    def __getitem__(self, index: int) -> bytes | None: ...

    @overload
    def __getitem__(self, index: slice) -> StoredRows: ...

    def __getitem__(self, index: int | slice) -> bytes | StoredRows | None:
        if isinstance(index, slice):
            return self._part(index)
        place = range(self._count)[index]  # IndexError beyond the ends
        run = self.runs[bisect_right(self.runs, place, key=_FIRST) - 1]
        return self._value(run, place - run.first)

    def _value(self, run: Run, index: int) -> bytes | None:
        if run.size == ABSENT:
            return None
        start = run.start + index * run.stride
        return self.buffer[start : start + run.size].tobytes()

    def _part(self, index: slice) -> StoredRows:
        """Values next to each other, over the same buffer."""
        first, end, step = index.indices(self._count)
        if step != 1:
            raise ValueError(f"stored rows: needs a slice of step 1, got {step}")
        if first == 0 and end == self._count:
            return self
        runs = []
        for run in self.runs:
            begin, stop = max(run.first, first), min(run.first + run.many, end)
            if begin < stop:
                start = run.start + (begin - run.first) * run.stride
                runs.append(Run(begin - first, stop - begin, start, run.stride, run.size))
        return StoredRows(self.buffer, tuple(runs))

    def matrix(self, run: Run) -> NDArray[np.uint8]:
        """The bytes of a run whose values are there: (many, size) u1, a view of the buffer."""
        shape, strides = (run.many, run.size), (run.stride, 1)
        held: NDArray[Any] = np.ndarray(shape, np.uint8, self.buffer, run.start, strides)
        return held
