"""One side of a service as tables of plain numbers: the records of `rows.h`, compiled once.

A table holds the addresses of others, so what is made here keeps all of them alive. `tables` raises
NotCompiledError for what the kernel does not compute: then numpy does.

Symbols: V views of the side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.measures import decay_weights
from aggregation.native.library import address
from schemas.layout import NUMPY, TRAILER_BYTES, RowLayout, layout_of
from schemas.plan import Dtype, FeaturePlan, FieldPlan, SequencePlan, ViewPlan
from schemas.rows import TOMBSTONE_MS
from schemas.status import Status
from schemas.values import LENGTH_SUFFIX, NULL_FIELD, ValueFeature

Array = NDArray[Any]
Table = dict[str, Any]

#: Numbered as `enum type` and `enum kind` do it.
TYPES: Final[tuple[Dtype, ...]] = (
    *("bool", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f32", "f64"),
)
KINDS: Final = (
    *("field", "vector", "window", "sequence", "age", "last", "mean", "std"),
    *("min", "max", "distinct", "decayed_sum", "ratio"),
)
MOST_WINDOWS: Final = 64
MOST_SEQUENCES: Final = 16
MOST_KEPT: Final = 32
MOST_SOURCES: Final = 3
NOWHERE: Final = -1


def _numbers(*names: str) -> list[tuple[str, str]]:
    return [(name, "<i8") for name in names]


_SOURCE: Final = np.dtype(_numbers("at", "type", "window"))
WINDOW: Final = np.dtype(
    _numbers("head_at", "present_at", "present_mask", "hop_ms", "ring_tiles", "tiles")
)
SEQUENCE: Final = np.dtype(_numbers("times_at", "length_at", "capacity"))
OPERATION: Final = np.dtype(
    [
        *_numbers("kind", "place", "to", "type", "length_to", "length", "kept"),
        ("sources", _SOURCE, (MOST_SOURCES,)),
        *_numbers("present_at", "present_mask", "length_at", "sequence", "width"),
        *_numbers("within_ms", "of_time", "weights", "above", "below"),
        *[("smoothing", "<f8"), ("weight", "<f8")],
    ]
)
VECTOR: Final = np.dtype(_numbers("length_at", "capacity"))
VIEW: Final = np.dtype(
    [
        *_numbers("row_bytes", "layout_id", "entity_at", "trailer_at", "ttl_ms", "empty"),
        *_numbers("vector_count", "window_count", "sequence_count", "operation_count"),
        *_numbers("vectors", "windows", "sequences", "operations"),
    ]
)
SIDE: Final = np.dtype(
    [
        *_numbers("view_count", "record_bytes", "null_at", "null_count"),
        *_numbers("present", "not_found", "corrupt", "tombstone_ms", "views"),
    ]
)
RUN: Final = np.dtype(_numbers("first", "many", "start", "stride", "size"))
#: In the order of `rows_record_bytes`.
RECORDS: Final = (WINDOW, SEQUENCE, OPERATION, VECTOR, VIEW, SIDE, RUN)

# Rings are added up, weighed, compared or counted as these types only.
_COUNTED: Final = ("u8", "u16", "u32", "i64")
_RING_TYPES: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "window": (_COUNTED,),
    "mean": (_COUNTED, _COUNTED),
    "std": (("i64",), _COUNTED, _COUNTED),
    "min": (("u64",),),
    "max": (("u64",),),
    "distinct": (("u64",),),
    "decayed_sum": (_COUNTED,),
}
_WHOLE: Final = tuple(name for name in TYPES if name[0] != "f")
_FLOATS: Final = ("f32", "f64")


class NotCompiledError(Exception):
    """Something that the kernel does not compute."""


@dataclass(frozen=True, slots=True)
class SideTables:
    """side: (1,) of SIDE. held: all that it points to."""

    side: Array
    held: tuple[Array, ...]


def tables(
    views: Sequence[ViewPlan], features: Sequence[ValueFeature], dtype: np.dtype[np.void]
) -> SideTables:
    """The tables of a side. views: (V,). features, dtype: of its value block.

    Raises NotCompiledError.
    """
    held: list[Array] = []
    compiled = np.zeros(len(views), VIEW)  # (V,)
    for index, view in enumerate(views):
        compiled[index] = _View(view, features, dtype).record(held)
    side = _table(
        SIDE,
        [
            {
                "view_count": len(views),
                "record_bytes": dtype.itemsize,
                "null_at": _offset(dtype, NULL_FIELD),
                "null_count": len(features),
                "present": int(Status.PRESENT),
                "not_found": int(Status.NOT_FOUND),
                "corrupt": int(Status.CORRUPT),
                "tombstone_ms": TOMBSTONE_MS,
                "views": address(compiled),
            }
        ],
    )
    return SideTables(side, (compiled, *held))


def _table(dtype: np.dtype[np.void], records: Sequence[Table]) -> Array:
    """Records as rows of a table; what a record does not say is 0."""
    table = np.zeros(max(len(records), 1), dtype)
    for at, record in enumerate(records):
        for name, value in record.items():
            table[name][at] = value
    return table


def _offset(dtype: np.dtype[np.void], name: str) -> int:
    fields: Any = dtype.fields or {}
    return int(fields[name][1])


@dataclass(slots=True)
class _View:
    """One view on its way into tables."""

    view: ViewPlan
    features: Sequence[ValueFeature]
    dtype: np.dtype[np.void]
    layout: RowLayout = field(init=False)
    stored: dict[str, FieldPlan] = field(init=False)
    windows: list[tuple[str, int, int, int]] = field(default_factory=list)
    sequences: list[SequencePlan] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layout = layout_of(self.view)
        self.stored = {each.name: each for each in self.view.fields}

    def record(self, held: list[Array]) -> Array:
        """The view's record; appends to `held` what it points to."""
        operations = _table(OPERATION, self._operations(held))
        layout, record = self.layout, self.layout.record
        empty = np.frombuffer(layout.empty, np.uint8)
        lists = {
            "vectors": _table(VECTOR, [self._vector(each) for each in layout.vectors]),
            "windows": _table(WINDOW, [self._window(key) for key in self.windows]),
            "sequences": _table(SEQUENCE, [self._sequence(each) for each in self.sequences]),
            "operations": operations,
        }
        held += [empty, *lists.values()]
        made = _table(
            VIEW,
            [
                {
                    "row_bytes": layout.size,
                    "layout_id": layout.layout_id,
                    "entity_at": _offset(record, "entity_id"),
                    "trailer_at": layout.size - TRAILER_BYTES,
                    "ttl_ms": max(self.view.ttl_ms, 0),
                    "empty": address(empty),
                    "vector_count": len(layout.vectors),
                    "window_count": len(self.windows),
                    "sequence_count": len(self.sequences),
                    "operation_count": len(operations),
                    **{name: address(table) for name, table in lists.items()},
                }
            ],
        )
        record_made: Array = made[0]
        return record_made

    # --- tables of a view ---------------------------------------------------------------------

    def _present(self, name: str) -> Table:
        """Where a field's presence bit lies."""
        for group in self.layout.groups:
            if name in group.bits:
                start = _offset(self.layout.record, f"present.{group.number}")
                bit = group.bits[name]
                return {"present_at": start + bit // 8, "present_mask": 1 << bit % 8}
        raise NotCompiledError(name)

    def _at(self, name: str) -> int:
        if name not in self.stored:
            raise NotCompiledError(name)
        return _offset(self.layout.record, name)

    def _vector(self, each: FieldPlan) -> Table:
        return {"length_at": self._at(each.name) - 4, "capacity": each.capacity}

    def _window(self, key: tuple[str, int, int, int]) -> Table:
        head, hop_ms, ring_tiles, tiles = key
        here = {"head_at": self._at(head), "hop_ms": hop_ms}
        return {**here, **self._present(head), "ring_tiles": ring_tiles, "tiles": tiles}

    def _sequence(self, each: SequencePlan) -> Table:
        at = self._at(each.time_field)
        return {"times_at": at, "length_at": at - 4, "capacity": each.capacity}

    # --- features -----------------------------------------------------------------------------

    def _operations(self, held: list[Array]) -> list[Table]:
        """Ratios last, since they are of others."""
        places = {
            each.feature.name: (place, each.name)
            for place, each in enumerate(self.features)
            if each.view.name == self.view.name
        }
        wanted = [each for each in self.view.features if each.name in places]
        ratios = [each for each in wanted if each.kind == "ratio"]
        self.kept = list(dict.fromkeys(name for each in ratios for name in each.sources))
        if len(self.kept) > MOST_KEPT:
            raise NotCompiledError("ratios")
        known = {each.name: each for each in self.view.features}
        wanted += [known[name] for name in self.kept if name not in places]
        made = []
        for feature in sorted(wanted, key=lambda each: each.kind == "ratio"):
            place, name = places.get(feature.name, (NOWHERE, ""))
            made.append({**self._target(feature, place, name), **self._made_of(feature, held)})
        if len(self.windows) > MOST_WINDOWS or len(self.sequences) > MOST_SEQUENCES:
            raise NotCompiledError("windows")
        return made

    def _target(self, feature: FeaturePlan, place: int, name: str) -> Table:
        """Where a feature goes. place: its bit among the nulls. name: its field in the block."""
        kind = "vector" if feature.kind == "field" and feature.capacity else feature.kind
        made: Table = {
            "kind": KINDS.index(kind),
            "place": place,
            "type": TYPES.index(feature.dtype),
            "length": feature.capacity,
            "kept": self.kept.index(feature.name) if feature.name in self.kept else NOWHERE,
        }
        if place != NOWHERE:
            made["to"] = _offset(self.dtype, name)
            if feature.capacity:
                made["length_to"] = _offset(self.dtype, name + LENGTH_SUFFIX)
        return made

    def _made_of(self, feature: FeaturePlan, held: list[Array]) -> Table:
        if feature.kind == "field":
            return self._of_field(feature)
        if feature.kind in ("sequence", "age", "last"):
            return self._of_sequence(feature)
        if feature.kind == "ratio":
            above, below = (self.kept.index(name) for name in feature.sources)
            smoothing = feature.prior * feature.weight
            made = {"above": above, "below": below, "smoothing": smoothing}
            return {**made, "weight": feature.weight}
        return self._of_rings(feature, held)

    def _source(self, name: str, window: int = 0) -> tuple[int, int, int]:
        return self._at(name), TYPES.index(self.stored[name].dtype), window

    def _of_field(self, feature: FeaturePlan) -> Table:
        _same_or_whole(self.stored[feature.source].dtype, feature.dtype)
        made = {"sources": _sources([self._source(feature.source)])}
        length_at = self._at(feature.source) - 4 if feature.capacity else 0
        return {**made, **self._present(feature.source), "length_at": length_at}

    def _of_sequence(self, feature: FeaturePlan) -> Table:
        sequence = next(
            each
            for each in self.view.sequences
            if feature.source in (*each.fields, each.time_field)
        )
        if sequence not in self.sequences:
            self.sequences.append(sequence)
        stored = self.stored[feature.source].dtype
        if feature.kind == "sequence":
            _same_or_whole(stored, feature.dtype)
        elif stored not in _WHOLE or stored == "u64":
            raise NotCompiledError(stored)
        return {
            "sources": _sources([self._source(feature.source)]),
            "sequence": self.sequences.index(sequence),
            "within_ms": feature.within_ms,
            "of_time": feature.source == sequence.time_field,
        }

    def _of_rings(self, feature: FeaturePlan, held: list[Array]) -> Table:
        rings = {each.field: each for each in self.view.accumulators}
        sources, types = [], _RING_TYPES.get(feature.kind, ())
        if len(types) != len(feature.sources):
            raise NotCompiledError(feature.kind)
        for name, allowed in zip(feature.sources, types, strict=True):
            ring = rings[name]
            if self.stored[name].dtype not in allowed:
                raise NotCompiledError(self.stored[name].dtype)
            key = ring.head, ring.hop_ms, ring.tiles, feature.tiles
            if key not in self.windows:
                self.windows.append(key)
            sources.append(self._source(name, self.windows.index(key)))
        if feature.kind in ("mean", "std", "decayed_sum") and feature.dtype not in _FLOATS:
            raise NotCompiledError(feature.dtype)
        made: Table = {"sources": _sources(sources), "width": rings[feature.source].width}
        if feature.kind == "decayed_sum":
            weights = decay_weights(feature, rings[feature.source].hop_ms)  # (w,)
            held.append(weights)
            made["weights"] = address(weights)
        return made


def _sources(known: list[tuple[int, int, int]]) -> Array:
    """(MOST_SOURCES,) of which the rest is 0."""
    made = np.zeros(MOST_SOURCES, _SOURCE)
    made[: len(known)] = known
    return made


def _same_or_whole(stored: Dtype, dtype: Dtype) -> None:
    """Numbers are copied, or cast between whole ones."""
    if stored != dtype and (stored not in _WHOLE or dtype not in _WHOLE or dtype == "bool"):
        raise NotCompiledError(f"{stored} as {dtype}")
    if NUMPY[dtype].byteorder == ">":
        raise NotCompiledError(dtype)
