"""Crosses as they are declared, and as a Feast FeatureService holds them.

    feature_service("ranking", [users, user_activity, videos], crosses=[
        cross("author_in_liked", contains("user_activity:liked_authors", "videos:author_id"),
              identity(2)),
        cross("click_rate_7d", ratio("user_activity:clicks_7d", "user_activity:impressions_7d",
                                     prior=0.3, weight=10), boundaries([0.1, 0.3, 0.6])),
    ])

They rest in the service's tag `encore.crosses`, a JSON list in the declared order:

    [{"name": "author_in_liked", "operator": "contains",
      "of": ["user_activity:liked_authors", "videos:author_id"],
      "transform": {"kind": "identity", "buckets": 2}}, …]

and a ratio's `"prior"` and `"weight"`. The operators' operands and results are in
`aggregation.crosses`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aggregation.crosses import OPERATORS
from catalog.fields import check_name, check_unique
from catalog.tags import CROSSES
from catalog.transforms import Transform, compile_transform, parse_transform
from schemas.errors import DeclarationError
from schemas.plan import CrossOperator

MAX_CROSSES: Final = 256
_KEYS: Final = frozenset(("name", "operator", "of", "transform", "prior", "weight"))


@dataclass(frozen=True)
class Operation:
    """An operator on two features, "view:feature" each. Make one with `contains`, `ratio`, …"""

    operator: CrossOperator
    left: str
    right: str
    prior: float = 0.0
    weight: float = 0.0


@dataclass(frozen=True)
class Cross:
    """A declared cross. Make one with `cross`."""

    name: str
    operation: Operation
    transform: Transform

    def to_data(self) -> dict[str, Any]:
        """Its entry in the tag's JSON."""
        operation = self.operation
        held: dict[str, Any] = {
            "name": self.name,
            "operator": operation.operator,
            "of": [operation.left, operation.right],
            "transform": json.loads(self.transform.to_json(f"{self.name}.transform")),
        }
        if operation.operator == "ratio":
            held |= {"prior": operation.prior, "weight": operation.weight}
        return held


def cross(name: str, operation: Operation, transform: Transform) -> Cross:
    """A slot computed from two features; it may use features that are no slots themselves.

    Two features of the user make a slot of the user; with one of the candidate it is the
    candidate's, behind its other slots. The transform takes the operator's result: `identity(2)`
    for `contains` and `equals`, `boundaries` or `log_buckets` for numbers.
    """
    return Cross(name, operation, transform)


def contains(sequence: str, scalar: str) -> Operation:
    """Whether the scalar is an entry of the sequence."""
    return Operation("contains", sequence, scalar)


def share(sequence: str, scalar: str) -> Operation:
    """Entries of the sequence that equal the scalar / all its entries; 0 of an empty one."""
    return Operation("share", sequence, scalar)


def position(sequence: str, scalar: str) -> Operation:
    """Place of the newest entry that equals the scalar, from 0; -1 where there is none."""
    return Operation("position", sequence, scalar)


def equals(left: str, right: str) -> Operation:
    """Whether two ids are the same."""
    return Operation("equals", left, right)


def difference(left: str, right: str) -> Operation:
    """left - right."""
    return Operation("difference", left, right)


def ratio(left: str, right: str, *, prior: float = 0.0, weight: float = 0.0) -> Operation:
    """(left + prior * weight) / (right + weight).

    prior: the rate that is assumed where there is nothing yet. weight: how many observations that
    assumption is worth; without one, a right of 0 is missing.
    """
    return Operation("ratio", left, right, float(prior), float(weight))


def dot(left: str, right: str) -> Operation:
    """Sum of products of two vectors of one capacity."""
    return Operation("dot", left, right)


def crosses_tag(crosses: Sequence[Cross]) -> str:
    """The tag's text."""
    return json.dumps([each.to_data() for each in crosses], sort_keys=True, ensure_ascii=False)


def declared_crosses(tags: Mapping[str, str], service: str) -> tuple[Cross, ...]:
    """The crosses in a service's tags, each name once. Raises DeclarationError."""
    where = f"{service}.crosses"
    found = parse_crosses(tags.get(CROSSES, "[]"), where)
    check_unique((each.name for each in found), where, "cross")
    for each in found:
        check_name(each.name, f"{where}.{each.name}")
        result = OPERATORS[each.operation.operator].result
        compile_transform(each.transform, result, f"{where}.{each.name}.transform")
    return found


def parse_crosses(text: str, where: str) -> tuple[Cross, ...]:
    """The inverse of `crosses_tag`, for tags of any origin. Raises DeclarationError."""
    try:
        held = json.loads(text)
    except ValueError:
        held = None
    if not isinstance(held, list) or not all(isinstance(entry, dict) for entry in held):
        raise DeclarationError(
            where,
            required="the JSON of a list of crosses",
            got=repr(text[:60]),
            do="declare crosses=[cross(…)] of catalog.declare",
        )
    if len(held) > MAX_CROSSES:
        raise DeclarationError(where, required=f"at most {MAX_CROSSES}", got=str(len(held)))
    return tuple(_parse(entry, f"{where}.{entry.get('name')}") for entry in held)


def _parse(entry: dict[str, Any], where: str) -> Cross:
    missing = sorted({"name", "operator", "of", "transform"} - entry.keys())
    unknown = sorted(entry.keys() - _KEYS)
    if missing or unknown:
        got = f"none of {missing[0]}" if missing else repr(unknown[0])
        raise DeclarationError(where, required="name, operator, of and transform", got=got)
    operator, operands = entry["operator"], entry["of"]
    if not isinstance(operator, str) or operator not in OPERATORS:
        required = f"one of {', '.join(OPERATORS)}"
        raise DeclarationError(f"{where}.operator", required=required, got=repr(operator))
    if (
        not isinstance(operands, list)
        or len(operands) != 2
        or not all(isinstance(each, str) for each in operands)
    ):
        raise DeclarationError(f"{where}.of", required="two features", got=repr(operands)[:80])
    left, right = operands
    smoothing = {key: _number(entry, key, where) for key in ("prior", "weight")}
    operation = Operation(operator, left, right, **smoothing)
    _check_smoothing(operation, where)
    transform = parse_transform(json.dumps(entry["transform"]), f"{where}.transform")
    return Cross(str(entry["name"]), operation, transform)


def _number(entry: dict[str, Any], key: str, where: str) -> float:
    value = entry.get(key, 0.0)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise DeclarationError(f"{where}.{key}", required="a finite number", got=repr(value))
    return float(value)


def _check_smoothing(operation: Operation, where: str) -> None:
    if operation.operator != "ratio" and (operation.prior or operation.weight):
        raise DeclarationError(
            where, required="prior and weight of a ratio only", got=operation.operator
        )
    if operation.weight < 0 or (operation.prior != 0 and operation.weight == 0):
        raise DeclarationError(
            f"{where}.weight",
            required="a weight above 0 where there is a prior",
            got=f"{operation.weight:g}",
            do="say how many observations the prior is worth, or drop it",
        )
