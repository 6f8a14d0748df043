"""Slots: a value block → the columns of ids of its tensor.

    sheet = program.sheet(records)     values of all slots, by kernel
    sheet.put(column, values, null)    the crosses, which come last
    sheet.ids()                        (n, S) int32

Symbols: n records, k features of a block, S slots (crosses last), g columns of a kernel.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from aggregation.kernels import Ids, Kernel, kernel, together
from schemas.ids import MISSING
from schemas.plan import TransformPlan
from schemas.values import Block, null_mask, value_names

Array = NDArray[Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Records:
    """One side's block. values: (n,). null: (n, k) bool, the block's null bitmap unpacked."""

    values: Block
    null: Mask

    @classmethod
    def of(cls, values: Block, null: Mask | None = None) -> Self:
        """A block as it was logged. null: its bitmap, where it is unpacked already."""
        return cls(values, null_mask(values) if null is None else null)

    def part(self, records: slice) -> Records:
        """Some of them."""
        return Records(self.values[records], self.null[records])


@dataclass(frozen=True, slots=True)
class Column:
    """A slot of the tensor. dtype: of its values. field: of the block, None for a cross."""

    transform: TransformPlan
    dtype: np.dtype[Any]
    field: str | None = None


@dataclass(frozen=True, slots=True)
class _Group:
    """Slots of one kernel. columns: (g,) of the tensor."""

    kernel: Kernel
    columns: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class _Run:
    """Fields side by side in the block, of one dtype, that are rows [start, stop) of a group."""

    name: str
    group: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class _Careful:
    """A field of floats or with sentinels: what it has of them is missing.

    row: of its group, None where a run brings its values.
    """

    field: str
    column: int
    group: int
    row: int | None
    sentinels: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """The values of n records by kernel. values: (g, n) of each group. missing: (S, n)."""

    program: SlotProgram
    values: tuple[Array, ...]
    missing: Mask

    def put(self, column: int, values: Array, null: Mask) -> None:
        """A cross's values, and where they are missing: (n,) each, or (1,) for all alike."""
        group, row = self.program.place_of[column]
        for sentinel in self.program.sentinels[column]:
            null = null | (values == sentinel)
        if values.dtype.kind == "f":
            null = null | np.isnan(values)
            if self.values[group].dtype.kind != "f":
                values = np.where(null, 0, values)
        self.values[group][row] = values
        self.missing[column] = null

    def ids(self) -> Ids:
        """(n, S) int32; missing is 0."""
        out = np.empty(self.missing.shape, np.int32)  # (S, n)
        for group, values in zip(self.program.groups, self.values, strict=True):
            out[group.columns] = group.kernel(values)
        if self.missing.any():
            np.copyto(out, np.int32(MISSING), where=self.missing)
        return np.ascontiguousarray(out.T)


class SlotProgram:
    """The compiled slots of one side. Immutable; safe to share between threads.

    place_of: column -> (group, row in it). sentinels: of each column.
    """

    def __init__(self, columns: Sequence[Column], dtype: np.dtype[np.void]) -> None:
        offsets = {name: offset for name, (_, offset, *_) in (dtype.fields or {}).items()}
        members: dict[Hashable, list[int]] = {}
        for place, column in enumerate(columns):
            members.setdefault(together(column.transform, column.dtype), []).append(place)
        groups, place_of = [], {}
        for number, places in enumerate(members.values()):
            places.sort(key=lambda place: offsets.get(columns[place].field or "", 1 << 30))
            place_of.update({place: (number, row) for row, place in enumerate(places)})
            first = columns[places[0]].dtype
            shared = kernel([columns[place].transform for place in places], first)
            groups.append(_Group(shared, np.array(places, np.intp)))
        self.groups, self.place_of = tuple(groups), place_of
        self.sentinels = tuple(column.transform.sentinels for column in columns)
        self._careful = tuple(self._find_careful(columns))
        self._runs, self._run_dtype = self._find_runs(columns, dtype)
        names = value_names(dtype)
        fields = [names.index(column.field) for column in columns if column.field is not None]
        self._null_places = np.array(fields, np.intp)  # (slots that are no crosses,)

    def sheet(self, records: Records) -> Sheet:
        """The values of n records; the crosses' are still to be put."""
        block, n = records.values, len(records.values)
        values = tuple(
            np.empty((len(group.columns), n), group.kernel.dtype) for group in self.groups
        )
        missing = np.empty((len(self.sentinels), n), bool)  # (S, n)
        missing[: len(self._null_places)] = records.null.T[self._null_places]
        runs = block.view(self._run_dtype)
        for run in self._runs:
            values[run.group][run.start : run.stop] = runs[run.name].T
        for each in self._careful:
            self._take_careful(block[each.field], each, values, missing[each.column])
        return Sheet(self, values, missing)

    def _take_careful(
        self, found: Array, each: _Careful, values: tuple[Array, ...], missing: Mask
    ) -> None:
        if found.dtype.kind == "f":
            missing |= np.isnan(found)
        for sentinel in each.sentinels:
            missing |= found == sentinel
        if each.row is not None:
            values[each.group][each.row] = np.where(missing, 0, found)

    def _find_careful(self, columns: Sequence[Column]) -> list[_Careful]:
        careful = []
        for place, column in enumerate(columns):
            floating, sentinels = column.dtype.kind == "f", column.transform.sentinels
            if column.field is None or not (floating or sentinels):
                continue
            group, row = self.place_of[place]
            whole = self.groups[group].kernel.dtype.kind != "f"
            own = row if floating and whole else None
            careful.append(_Careful(column.field, place, group, own, sentinels))
        return careful

    def _find_runs(
        self, columns: Sequence[Column], dtype: np.dtype[np.void]
    ) -> tuple[tuple[_Run, ...], np.dtype[np.void]]:
        """Runs, and the block's dtype with a field for each."""
        own = {(each.group, each.row) for each in self._careful}
        fields: Any = dtype.fields or {}
        runs: list[_Run] = []
        formats: list[Any] = []
        offsets: list[int] = []
        for number, group in enumerate(self.groups):
            for row, place in enumerate(group.columns.tolist()):
                name = columns[place].field
                if name is None or (number, row) in own:
                    continue
                form, offset = fields[name][0], fields[name][1]
                last = runs[-1] if runs else None
                if (
                    last is not None
                    and (last.group, last.stop) == (number, row)
                    and formats[-1] == form
                    and offsets[-1] + (last.stop - last.start) * form.itemsize == offset
                ):
                    runs[-1] = _Run(last.name, number, last.start, row + 1)
                    continue
                runs.append(_Run(f"run{len(runs)}", number, row, row + 1))
                formats.append(form)
                offsets.append(offset)
        spec: Any = {
            "names": [run.name for run in runs],
            "formats": [
                (form, (run.stop - run.start,)) for run, form in zip(runs, formats, strict=True)
            ],
            "offsets": offsets,
            "itemsize": dtype.itemsize,
        }
        return tuple(runs), np.dtype(spec)
