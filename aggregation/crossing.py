"""The crosses of a service: value blocks → the crossed columns of its tensors.

Symbols: U users (1 in a request), N candidates, n rows of a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.crosses import Operand, Pair, evaluate, misfit, ratios
from aggregation.slots import Records, Sheet
from schemas.errors import PlanError
from schemas.plan import CrossPlan, OperandPlan, Plan, Scope, ServicePlan, Side
from schemas.values import LENGTH_SUFFIX, value_name, value_names

Array = NDArray[Any]
Mask = NDArray[np.bool_]

SCOPES: Final[tuple[Scope, ...]] = ("user", "item", "pair")
_OF_A_SIDE: Final[tuple[Scope, ...]] = ("user", "item")


Blocks = Mapping[Side, Records]


@dataclass(frozen=True, slots=True)
class _Source:
    """Where an operand lies. field: of the block. null: place in the null bitmap."""

    side: Side
    field: str
    null: int
    vector: bool
    sentinels: tuple[float, ...]

    def read(self, blocks: Blocks, user_of: Array | None) -> Operand:
        """The operand of every record of its side; of each candidate's user where user_of, (N,),
        says which that is."""
        operand = self._of_side(blocks)
        return operand if user_of is None or self.side == "item" else operand.take(user_of)

    def _of_side(self, blocks: Blocks) -> Operand:
        records = blocks[self.side]
        values, null = records.values[self.field], records.null[:, self.null]
        if self.vector:
            return Operand(values, records.values[self.field + LENGTH_SUFFIX], null)
        if values.dtype.kind == "f":
            null = null | np.isnan(values)
        for sentinel in self.sentinels:
            null = null | (values == sentinel)
        return Operand(values, None, null)


@dataclass(frozen=True, slots=True)
class _Group:
    """Crosses of the same two operands. members: (column of the tensor, cross)."""

    left: _Source
    right: _Source
    members: tuple[tuple[int, CrossPlan], ...]


@dataclass(frozen=True, slots=True)
class _Ratios:
    """Ratios of one side, k of them. columns: of the tensor. above: (k, 1) prior times weight, as
    each cross has it; weight: (k, 1)."""

    columns: tuple[int, ...]
    lefts: tuple[_Source, ...]
    rights: tuple[_Source, ...]
    above: Array
    weight: Array

    def fill(self, blocks: Blocks, out: Sheet) -> None:
        """Puts them into the sheet of n records."""
        lefts = [each.read(blocks, None) for each in self.lefts]
        rights = [each.read(blocks, None) for each in self.rights]
        left, right = (
            np.array([each.values for each in side], np.float64) for side in (lefts, rights)
        )  # (k, n) each
        values, null = ratios(left, right, self.above, self.weight)  # (k, n) each
        for side in (lefts, rights):
            null |= np.array([each.null for each in side])
        for place, column in enumerate(self.columns):
            out.put(column, values[place], null[place])


class CrossProgram:
    """The compiled crosses of one service. Immutable; safe to share between threads.

    Raises PlanError for a cross whose operands do not fit its operator.
    """

    def __init__(
        self, plan: Plan, service: ServicePlan, dtypes: Mapping[Side, np.dtype[np.void]]
    ) -> None:
        for cross in service.crosses:
            _check(plan, service, cross)
        first: dict[Scope, int] = {
            "user": len(service.user_slots),
            "item": len(service.item_slots),
            "pair": len(service.item_slots) + len(service.crosses_of("item")),
        }
        placed = {
            scope: list(enumerate(service.crosses_of(scope), first[scope])) for scope in SCOPES
        }
        self._ratios: dict[Scope, tuple[_Ratios, ...]] = {}
        for scope in _OF_A_SIDE:
            alike = [each for each in placed[scope] if each[1].operator == "ratio"]
            self._ratios[scope] = _ratios(plan, alike, dtypes)
            placed[scope] = [each for each in placed[scope] if each not in alike]
        self._groups = {scope: tuple(_grouped(plan, placed[scope], dtypes)) for scope in SCOPES}

    def fill_user(self, user: Records, out: Sheet) -> None:
        """Puts the user's crosses into the sheet of U records."""
        _fill(self._groups["user"], {"user": user}, None, out)
        for group in self._ratios["user"]:
            group.fill({"user": user}, out)

    def fill_item(self, item: Records, out: Sheet) -> None:
        """Puts the crosses of N candidates with themselves into their sheet."""
        _fill(self._groups["item"], {"item": item}, None, out)
        for group in self._ratios["item"]:
            group.fill({"item": item}, out)

    def fill_pairs(
        self, user: Records, item: Records, user_of: Array | None, out: Sheet, shift: int = 0
    ) -> None:
        """Puts the candidates' crosses with their users into the sheet of N records.

        user_of: (N,) record of each candidate's user, None where there is one user. shift: column
        of the tensor that is the sheet's first. Raises ValueError where user_of is needed and not
        there.
        """
        pairs = self._groups["pair"]
        if not pairs:
            return
        blocks: Blocks = {"user": user, "item": item}
        if len(user.values) == 1:
            _fill(pairs, blocks, None, out, shift)
        elif user_of is None:
            raise ValueError(
                f"tensors: needs user_of for crosses of {len(user.values)} users, got none"
            )
        else:
            _fill(pairs, blocks, user_of, out, shift)


def _fill(
    groups: tuple[_Group, ...],
    blocks: Blocks,
    user_of: Array | None,
    out: Sheet,
    shift: int = 0,
) -> None:
    for group in groups:
        left, right = (each.read(blocks, user_of) for each in (group.left, group.right))
        pair = Pair(left, right)
        for column, cross in group.members:
            out.put(column - shift, *evaluate(pair, cross))


def _check(plan: Plan, service: ServicePlan, cross: CrossPlan) -> None:
    left, right = (plan.view(each.view).feature(each.feature) for each in cross.operands)
    found = misfit(cross.operator, left, right)
    if found is not None:
        where = f"{service.name}.{cross.name}.{cross.operator}"
        raise PlanError(where, required=found.required, got=found.got, do="run `encore apply`")


def _grouped(
    plan: Plan,
    placed: list[tuple[int, CrossPlan]],
    dtypes: Mapping[Side, np.dtype[np.void]],
) -> Iterator[_Group]:
    """Crosses by their operands. placed: (column, cross)."""
    members: dict[tuple[OperandPlan, OperandPlan], list[tuple[int, CrossPlan]]] = {}
    for column, cross in placed:
        members.setdefault(cross.operands, []).append((column, cross))
    for (left, right), group in members.items():
        yield _Group(_source(plan, left, dtypes), _source(plan, right, dtypes), tuple(group))


def _ratios(
    plan: Plan,
    placed: list[tuple[int, CrossPlan]],
    dtypes: Mapping[Side, np.dtype[np.void]],
) -> tuple[_Ratios, ...]:
    """All together, where there are any. placed: (column, cross)."""
    if not placed:
        return ()
    crosses = [cross for _, cross in placed]
    lefts, rights = zip(*(cross.operands for cross in crosses), strict=True)
    return (
        _Ratios(
            tuple(column for column, _ in placed),
            tuple(_source(plan, each, dtypes) for each in lefts),
            tuple(_source(plan, each, dtypes) for each in rights),
            np.array([cross.prior * cross.weight for cross in crosses])[:, None],
            np.array([cross.weight for cross in crosses], np.float64)[:, None],
        ),
    )


def _source(plan: Plan, operand: OperandPlan, dtypes: Mapping[Side, np.dtype[np.void]]) -> _Source:
    view = plan.view(operand.view)
    field = value_name(operand.view, operand.feature)
    return _Source(
        side=view.entity,
        field=field,
        null=value_names(dtypes[view.entity]).index(field),
        vector=view.feature(operand.feature).capacity > 0,
        sentinels=operand.sentinels,
    )
