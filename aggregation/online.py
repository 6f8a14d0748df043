"""Stored rows → plain values: what Feast's clients get, through its online store or over HTTP.

A feature is asked for by its declared name. A batch Array whose elements rest apart (`tag_1`,
`tag_2`, …) comes back as the list that was declared, and a String's id as the string where its
transform is a vocabulary; where the string cannot be told (a hash, or a value out of the
vocabulary) it reads "id:<n>".

Symbols: n rows, L capacity of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregation.finalise import Features, Finaliser
from schemas.elements import element_name
from schemas.errors import PlanError, nearest
from schemas.ids import FIRST_ID, MISSING
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import TransformPlan, ViewPlan
from schemas.row import decode_rows
from schemas.status import FAILED, FieldStatus, Status
from schemas.stored import RowKeys


@dataclass(frozen=True, slots=True)
class OnlineFeature:
    """A declared feature. sources: the plan's features it is read from, several where an Array's
    elements rest apart. listed: whether its values are lists. written: a String's transform.
    """

    name: str
    sources: tuple[str, ...]
    listed: bool
    written: TransformPlan | None


@dataclass(frozen=True, slots=True)
class OnlineRows:
    """n entities of one view. values, statuses: by feature, n each; None unless PRESENT.

    event_ms: of each row its newest event time, 0 where there is no row.
    """

    values: Mapping[str, list[Any]]
    statuses: Mapping[str, list[FieldStatus]]
    event_ms: list[int]


class OnlineView:
    """A view's read program for some of its features. Immutable; raises PlanError for an unknown
    name."""

    def __init__(self, view: ViewPlan, names: Sequence[str]) -> None:
        self.view = view
        self.features = tuple(online_feature(view, name) for name in names)
        sources = {source for feature in self.features for source in feature.sources}
        self._finaliser = Finaliser(view, sources)
        self._layout = layout_of(view)

    def keys(self, entity_ids: Sequence[int]) -> list[str]:
        """The store keys of the entities' rows."""
        return row_keys(self.view.name, self.view.generation, list(entity_ids))

    def row_keys(self, entity_ids: Sequence[int]) -> RowKeys:
        """The same for `read_rows`."""
        ids = np.array(entity_ids, np.int64)  # (n,)
        return RowKeys(self.view.name, self.view.generation, ids)

    def rows(
        self, raw: Sequence[bytes | None], entity_ids: Sequence[int], now_ms: int
    ) -> OnlineRows:
        """Stored rows as values at now_ms. raw: what `keys(entity_ids)` hold, in that order.

        A streamed view without a row has its empty state, which is PRESENT.
        """
        ids = np.array(entity_ids, np.int64)  # (n,)
        rows, status = decode_rows(self._layout, raw, ids)
        features = self._finaliser(rows, now_ms)
        row_status = self._row_status(status, features)
        values: dict[str, list[Any]] = {}
        statuses: dict[str, list[FieldStatus]] = {}
        for feature in self.features:
            held = _values(feature, features)
            found = [
                FieldStatus.NULL_VALUE if each is FieldStatus.PRESENT and value is None else each
                for each, value in zip(row_status, held, strict=True)
            ]
            statuses[feature.name] = found
            values[feature.name] = [
                value if each is FieldStatus.PRESENT else None
                for each, value in zip(found, held, strict=True)
            ]
        return OnlineRows(values, statuses, np.maximum(rows.newest_ms, 0).tolist())

    def unread(self, n: int) -> OnlineRows:
        """n rows that the store did not give: INVALID throughout."""
        names = [feature.name for feature in self.features]
        return OnlineRows(
            {name: [None] * n for name in names},
            {name: [FieldStatus.INVALID] * n for name in names},
            [0] * n,
        )

    def _row_status(self, status: NDArray[np.uint8], features: Features) -> list[FieldStatus]:
        """The status of each row's features that are not null. Returns n."""
        out = np.full(len(status), FieldStatus.PRESENT, np.uint8)  # (n,)
        if self.view.kind == "batch":
            out[features.expired] = FieldStatus.OUTSIDE_MAX_AGE
            out[status == Status.NOT_FOUND] = FieldStatus.NOT_FOUND
        out[np.isin(status, FAILED)] = FieldStatus.INVALID
        return [FieldStatus(each) for each in out.tolist()]


def online_feature(view: ViewPlan, name: str) -> OnlineFeature:
    """A declared feature as the plan holds it. Raises PlanError for an unknown one."""
    known = {feature.name: feature for feature in view.features}
    if name in known:
        return OnlineFeature(name, (name,), known[name].capacity > 0, view.written.get(name))
    elements: list[str] = []
    while (element := element_name(name, len(elements))) in known:
        elements.append(element)
    if not elements:
        raise PlanError(
            f"{view.name}.{name}",
            required="a feature of the plan",
            got="none of that name",
            do=nearest(name, known) or "run `encore apply`",
        )
    return OnlineFeature(name, tuple(elements), True, None)


def restored(written: TransformPlan, stored_id: int) -> str | None:
    """The string behind a stored id, as far as it can be told.

    None where it is missing; "id:<n>" for a hash, and for a value out of the vocabulary.
    """
    if stored_id == MISSING:
        return None
    place = stored_id - FIRST_ID
    if written.kind == "vocab" and 0 <= place < len(written.values):
        return str(written.values[place])
    return f"id:{stored_id}"


def _values(feature: OnlineFeature, features: Features) -> list[Any]:
    """One value a row, None for null. Returns n."""
    if feature.sources != (feature.name,):
        return _elements(feature, features)
    values, null = features.values[feature.name].tolist(), features.null[feature.name].tolist()
    if feature.listed:
        lengths = features.lengths[feature.name].tolist()
        values = [row[:length] for row, length in zip(values, lengths, strict=True)]
    elif feature.written is not None:
        values = [restored(feature.written, value) for value in values]
    return [None if absent else value for value, absent in zip(values, null, strict=True)]


def _elements(feature: OnlineFeature, features: Features) -> list[Any]:
    """Lists of the elements that are not null; None without any, since an empty list and a null
    one rest alike. Returns n."""
    values = np.stack([features.values[name] for name in feature.sources], axis=1)  # (n, L)
    held = np.stack([~features.null[name] for name in feature.sources], axis=1)  # (n, L)
    return [row[kept].tolist() or None for row, kept in zip(values, held, strict=True)]
