"""String-keyed ids: `slot=value` tokens, hashed or looked up one by one.

Set up as well as the way allows: hash functions in C, prefixes formatted once, one list
comprehension a column, no class in the inner loop. Numbers are put into buckets by `bisect` first.

Symbols: N candidates, Su and Si slots of a side.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import mmh3
import numpy as np
import xxhash
from numpy.typing import NDArray

from schemas.ids import transform_size
from schemas.plan import ServicePlan, SlotPlan
from schemas.values import Block, to_columns, value_name

#: Columns of scikit-learn's table: its default.
HASHER_COLUMNS: Final = 1 << 20

Ids = NDArray[np.int32]
Value = int | float | None
Columns = list[list[Value]]
_Hash = Callable[[list[str], int], list[int]]


@dataclass(frozen=True, slots=True)
class StringRequest:
    """user: Su values. items: Si columns of N values. None is null."""

    user: list[Value]
    items: Columns


def values_of(slots: Sequence[SlotPlan], block: Block) -> Any:
    """The values of a block as Python objects: Si columns of N values, or Su values of one user.

    block: (n,) of a side. Returns a list of columns; for the one record of a user the first item is
    the list of its values.
    """
    columns = to_columns(block)
    found = []
    for slot in slots:
        column = columns[value_name(slot.view, slot.feature)]
        pairs = zip(column.values.tolist(), column.null.tolist(), strict=True)
        found.append([None if null or value != value else value for value, null in pairs])
    return found if len(block) > 1 else [[column[0] for column in found]]


class StringSlots:
    """The slots of a service as string pipelines see them. Immutable."""

    def __init__(self, service: ServicePlan) -> None:
        self._user = [_Tokens.of(slot) for slot in service.user_slots]
        self._items = [_Tokens.of(slot) for slot in service.item_slots]

    def tokens(self, request: StringRequest) -> tuple[list[str], list[list[str]]]:
        """(Su tokens, Si columns of N tokens)."""
        user = [way([value])[0] for way, value in self._with(self._user, request.user)]
        return user, [way(column) for way, column in self._with(self._items, request.items)]

    def _with(self, tokens: list[_Tokens], values: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
        return zip((each.of_column for each in tokens), values, strict=True)

    def xxhash_ids(self, request: StringRequest) -> Ids:
        """Each candidate an example of its own with all Su + Si tokens, one xxh3-64 each, modulo
        its slot's size. Returns (N, Su + Si) int32.
        """
        return self._hashed(self.whole(request), _xxhash)

    def murmur_ids(self, request: StringRequest) -> Ids:
        """As `xxhash_ids`, by murmur3-32."""
        return self._hashed(self.whole(request), _murmur)

    def split_ids(self, request: StringRequest) -> Ids:
        """As `murmur_ids`, but the user's tokens are made and hashed once, for all candidates."""
        user, items = self.tokens(request)
        return _expanded(
            [_murmur([token], each.size)[0] for token, each in zip(user, self._user, strict=True)],
            [_murmur(column, each.size) for column, each in zip(items, self._items, strict=True)],
        )

    def whole(self, request: StringRequest) -> list[list[str]]:
        """Su + Si columns of N tokens: the user's are made again for every candidate."""
        user = [[value] * len(request.items[0]) for value in request.user]
        slots = self._with(self._user + self._items, user + request.items)
        return [way(column) for way, column in slots]

    def _hashed(self, columns: list[list[str]], hashed: _Hash) -> Ids:
        slots = zip(columns, self._user + self._items, strict=True)
        return _expanded([], [hashed(column, each.size) for column, each in slots])

    def learn(self, known: dict[str, int], request: StringRequest, ids: Ids) -> None:
        """Enters the ids of a request's tokens. ids: (N, Su + Si)."""
        user, items = self.tokens(request)
        known.update(zip(user, ids[0, : len(user)].tolist(), strict=True))
        for column, of_slot in zip(items, ids[:, len(user) :].T.tolist(), strict=True):
            known.update(zip(column, of_slot, strict=True))

    def known_ids(self, known: dict[str, int], request: StringRequest) -> Ids:
        """A dictionary's id of each token. Returns (N, Su + Si) int32."""
        user, items = self.tokens(request)
        return _expanded(
            [known[token] for token in user], [[known[token] for token in col] for col in items]
        )


@dataclass(frozen=True, slots=True)
class _Tokens:
    """How the values of one slot become tokens."""

    prefix: str
    size: int
    boundaries: tuple[float, ...]
    sentinels: frozenset[float]

    @classmethod
    def of(cls, slot: SlotPlan) -> Self:
        """For the slot's transform."""
        transform = slot.transform
        boundaries = transform.boundaries if transform.kind == "boundaries" else ()
        size = transform_size(transform)
        return cls(f"{slot.name}=", size, boundaries, frozenset(transform.sentinels))

    def of_column(self, values: list[Value]) -> list[str]:
        """One token a value; nulls and sentinels share one."""
        prefix, boundaries, missing = self.prefix, self.boundaries, self.sentinels
        null = prefix + "null"
        if boundaries:
            return [
                null
                if value is None or value in missing
                else f"{prefix}{bisect_right(boundaries, value)}"
                for value in values
            ]
        if missing:
            return [
                null if value is None or value in missing else f"{prefix}{value}"
                for value in values
            ]
        return [null if value is None else f"{prefix}{value}" for value in values]


def _xxhash(column: list[str], size: int) -> list[int]:
    digest = xxhash.xxh3_64_intdigest
    return [digest(token.encode()) % size for token in column]


def _murmur(column: list[str], size: int) -> list[int]:
    digest = mmh3.hash
    return [digest(token) % size for token in column]


def _expanded(user: list[int], items: list[list[int]]) -> Ids:
    """The user's ids in front of each candidate's. Returns (N, Su + Si) int32."""
    n, su = len(items[0]), len(user)
    wide = np.empty((n, su + len(items)), np.int32)  # (N, S)
    wide[:, :su] = user
    for place, column in enumerate(items, start=su):
        wide[:, place] = column
    return wide


class Hasher:
    """scikit-learn's `FeatureHasher` on the same tokens, one row a candidate."""

    def __init__(self, hasher: Any, version: str) -> None:
        self._hasher = hasher
        self.version = version

    def ids(self, slots: StringSlots, request: StringRequest) -> Any:
        """The columns that are set, at most Su + Si of each row, one row after the other."""
        return self._hasher.transform(zip(*slots.whole(request), strict=True)).indices

    def agrees(self, slots: StringSlots, request: StringRequest) -> bool:
        """Whether its columns are |murmur3| modulo the table, as its documentation says; tokens of
        one row that share a column are one entry.
        """
        rows = list(zip(*slots.whole(request), strict=True))
        found = self._hasher.transform(rows)
        places = np.split(found.indices, found.indptr[1:-1])
        return all(
            {abs(mmh3.hash(token)) % HASHER_COLUMNS for token in row} == set(place.tolist())
            for row, place in zip(rows, places, strict=True)
        )


def feature_hasher() -> Hasher | None:
    """The peer, None where scikit-learn is not installed."""
    try:
        import sklearn
        from sklearn.feature_extraction import FeatureHasher
    except ImportError:
        return None
    hasher = FeatureHasher(HASHER_COLUMNS, input_type="string", alternate_sign=False)
    return Hasher(hasher, sklearn.__version__)
