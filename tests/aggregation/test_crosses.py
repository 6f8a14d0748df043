"""Crosses against their oracle: nulls, NaN, sentinels, empty sequences, zero denominators."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation import crosses
from aggregation import program as program_module
from aggregation.crosses import OPERATORS, Operand, Pair, evaluate, misfit
from aggregation.program import ServiceProgram
from schemas.errors import PlanError
from schemas.plan import (
    CrossOperator,
    CrossPlan,
    Dtype,
    FeaturePlan,
    OperandPlan,
    Plan,
    Side,
    SlotPlan,
)
from schemas.values import from_columns, to_columns, value_features
from tests.aggregation.plans import COUNTS, FLAG, RATES, batch_view, demo_plan
from tests.oracle.crosses import cross_value
from tests.oracle.ids import id_of

ROOT = Path(__file__).parents[2]
L = 5
IDS = st.one_of(st.none(), st.integers(-2, 4), st.sampled_from([2**63 - 1, -(2**63)]))
NUMBERS = st.one_of(st.none(), st.just(float("nan")), st.integers(-40, 40).map(lambda n: n / 8))
LISTS = st.one_of(st.none(), st.lists(st.integers(-2, 4), max_size=L))
FLOAT_LISTS = st.one_of(st.none(), st.lists(st.integers(-9, 9).map(lambda n: n / 4), max_size=L))
VALUES = {"scalar": IDS, "sequence": LISTS, "vector": FLOAT_LISTS}


def operand_of(values: list[Any], shape: str) -> Operand:
    """Python values as an operand; null is zero, as in a block."""
    null = np.array([value is None for value in values], bool)
    if shape == "scalar":
        floats = any(isinstance(value, float) for value in values)
        kept = np.array([value or 0 for value in values], np.float64 if floats else np.int64)
        return Operand(kept, None, null | np.isnan(kept))
    held = np.zeros((len(values), L), np.float64 if shape == "vector" else np.int64)
    lengths = np.array([len(value or []) for value in values], np.uint16)
    for row, value in enumerate(values):
        held[row, : lengths[row]] = value or []
    return Operand(held, lengths, null)


def cross_of(operator: CrossOperator, prior: float = 0.0, weight: float = 0.0) -> CrossPlan:
    operands = OperandPlan("a", "x"), OperandPlan("b", "y")
    return CrossPlan("c", "pair", operator, operands, RATES, "c", prior, weight)


def assert_oracle(cross: CrossPlan, lefts: list[Any], rights: list[Any]) -> None:
    """Row by row, and with the one left row against all rights, equal to the oracle."""
    shapes = OPERATORS[cross.operator].shapes
    right = operand_of(rights, shapes[1])
    for held in (lefts, lefts[:1]):
        values, null = evaluate(Pair(operand_of(held, shapes[0]), right), cross)
        full = np.broadcast_to(values, len(rights)), np.broadcast_to(null, len(rights))
        for row, wanted in enumerate(rights):
            expected = cross_value(cross, held[row % len(held)], wanted)
            found = None if full[1][row] else full[0][row].item()
            assert found == expected, (cross.operator, held[row % len(held)], wanted)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), operator=st.sampled_from(get_args(CrossOperator)))
def test_operators_equal_the_oracle(data: st.DataObject, operator: CrossOperator) -> None:
    n = data.draw(st.integers(1, 6))
    numbers = operator in ("ratio", "difference")

    def drawn(place: int) -> list[Any]:
        kind = NUMBERS if numbers else VALUES[OPERATORS[operator].shapes[place]]
        return data.draw(st.lists(kind, min_size=n, max_size=n))

    weight = data.draw(st.sampled_from([0.0, 0.5, 4.0])) if operator == "ratio" else 0.0
    assert_oracle(cross_of(operator, 0.25 if weight else 0.0, weight), drawn(0), drawn(1))


@pytest.mark.parametrize(
    ("operator", "left", "right", "value"),
    [
        ("contains", [], 3, False),
        ("contains", [4, 3], 3, True),
        ("contains", [0], 0, True),
        ("share", [], 3, 0.0),
        ("share", [3, 3, 1, 2], 3, 0.5),
        ("position", [], 3, -1),
        ("position", [4, 3, 3], 3, 1),
        ("position", [4], 3, -1),
        ("position", [4], 0, -1),  # zeros behind a length are no entries
        ("equals", 3, 3, True),
        ("difference", 3, 5, -2.0),
        ("ratio", 3, 0, None),
        ("ratio", 0, 0, None),
        ("ratio", 3, 4, 0.75),
        ("dot", [], [1.0, 2.0], 0.0),
        ("dot", [2.0], [3.0, 5.0], 6.0),
        ("dot", None, [3.0], None),
        ("contains", None, 3, None),
        ("contains", [3], None, None),
    ],
)
def test_defined_results(operator: CrossOperator, left: Any, right: Any, value: Any) -> None:
    assert cross_value(cross_of(operator), left, right) == value
    assert_oracle(cross_of(operator), [left], [right, right])


def test_a_smoothed_ratio_begins_at_its_prior() -> None:
    cross = cross_of("ratio", prior=0.25, weight=8)
    assert_oracle(cross, [0, 6], [0, 8])
    values, _ = evaluate(Pair(operand_of([0, 6], "scalar"), operand_of([0, 8], "scalar")), cross)
    assert values.tolist() == [0.25, 0.5]


def test_an_overflow_is_an_infinity_and_what_it_minus_itself_is_is_missing() -> None:
    huge = operand_of([1e308, 1e308], "scalar")
    values, null = evaluate(Pair(huge, operand_of([-1e308, 0.25], "scalar")), cross_of("ratio"))
    assert not null.any()
    more, _ = evaluate(Pair(huge, operand_of([-1e308] * 2, "scalar")), cross_of("difference"))
    assert np.isinf(more).all()
    assert values.tolist() == [-1.0, float("inf")]


# --- in a service ---------------------------------------------------------------------------

PLAN = demo_plan()
PROGRAM = ServiceProgram(PLAN, "ranking")


def small_plan(*crosses: CrossPlan) -> Plan:
    """Ids small enough to meet, and crosses that read features which are no slots."""
    user = batch_view("u", "user", (("a", "i64", 0), ("seen", "i64", L), ("v", "f32", 3)))
    item = batch_view("i", "item", (("a", "i64", 0), ("b", "f64", 0), ("v", "f32", 3)))
    slots = (SlotPlan("u__a", "u", "a", COUNTS, "ua"),), (SlotPlan("i__a", "i", "a", COUNTS, "ia"),)
    service = replace(
        PLAN.service("ranking"),
        user_slots=slots[0],
        item_slots=slots[1],
        sequences=(),
        crosses=crosses,
    )
    return Plan(1, 0, (user, item), (service,))


def made(
    operator: CrossOperator, left: str, right: str, scope: Any = "pair", **more: Any
) -> CrossPlan:
    operands = _operand(left), _operand(right)
    transform = FLAG if operator in ("contains", "equals") else RATES
    return CrossPlan(operator, scope, operator, operands, transform, operator, **more)


def _operand(reference: str) -> OperandPlan:
    view, _, name = reference.partition(":")
    return OperandPlan(view, name)


SMALL = small_plan(
    made("contains", "u:seen", "i:a"),
    made("position", "u:seen", "i:a"),
    made("share", "u:seen", "u:a", "user"),
    made("dot", "u:v", "i:v"),
    made("ratio", "i:a", "i:b", "item", prior=0.5, weight=2.0),
    made("difference", "i:b", "u:a"),
)


def small_blocks(program: ServiceProgram, users: int, items: int, seed: int) -> tuple[Any, Any]:
    """Random blocks with nulls, NaN and every length."""
    rng = np.random.default_rng(seed)
    blocks = []
    for dtype, n in ((program.user_dtype, users), (program.item_dtype, items)):
        columns = to_columns(np.zeros(n, dtype))
        for name, column in columns.items():
            values = rng.integers(-2, 4, column.values.shape).astype(column.values.dtype)
            if values.dtype.kind == "f" and values.ndim == 1:
                values[rng.random(n) < 0.2] = np.nan
            lengths = None if column.lengths is None else rng.integers(0, values.shape[1] + 1, n)
            columns[name] = replace(
                column, values=values, lengths=lengths, null=rng.random(n) < 0.2
            )
        blocks.append(from_columns(dtype, columns, n))
    return blocks[0], blocks[1]


def oracle_id(cross: CrossPlan, user: Any, item: Any) -> int:
    """A cross of one user's and one item's record."""
    sides = {"u": user, "i": item}
    values = []
    for operand in cross.operands:
        column = to_columns(sides[operand.view])[f"{operand.view}__{operand.feature}"]
        value = column.values[0]
        if column.lengths is not None:
            value = value[: column.lengths[0]]
        values.append(None if column.null[0] else value.tolist())
    return id_of(cross_value(cross, *values), cross.transform)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9), users=st.integers(1, 4), items=st.integers(0, 7))
def test_columns_equal_the_oracle_for_one_user_and_for_many(
    seed: int, users: int, items: int
) -> None:
    program = ServiceProgram(SMALL, "ranking")
    user, item = small_blocks(program, users, items, seed)
    user_of = np.random.default_rng(seed).integers(0, users, items)
    tensors = program.tensors(user, item, user_of)
    both: tuple[tuple[Side, Any], ...] = (
        ("user", tensors.user_slots),
        ("item", tensors.item_slots),
    )
    for side, slots in both:
        own = program.service.slots(side)
        assert slots.shape[1] == len(own)
        for column, cross in enumerate(own):
            if not isinstance(cross, CrossPlan):
                continue
            for row in range(len(slots)):
                owner = row if side == "user" else user_of[row]
                candidate = item[row : row + 1] if side == "item" else item[:0]
                wanted = oracle_id(cross, user[owner : owner + 1], candidate)
                assert slots[row, column] == wanted, cross
    for owner in range(users):
        mine = user_of == owner
        alone = program.tensors(user[owner : owner + 1], item[mine])
        assert np.array_equal(alone.item_slots, tensors.item_slots[mine])


def test_many_candidates_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    program = ServiceProgram(SMALL, "ranking", lambda: None)
    user, item = small_blocks(program, 9, 50, 3)
    user_of = np.random.default_rng(3).integers(0, 9, 50)
    whole = program.tensors(user, item, user_of)
    monkeypatch.setattr(program_module, "_PART", 7)
    assert np.array_equal(program.tensors(user, item, user_of).item_slots, whole.item_slots)


def test_crosses_come_last_and_their_operands_are_logged() -> None:
    program = ServiceProgram(SMALL, "ranking")
    service = program.service
    assert [slot.name for slot in service.slots("user")] == ["u__a", "share"]
    names = ["i__a", "ratio", "contains", "position", "dot", "difference"]
    assert [slot.name for slot in service.slots("item")] == names
    sides: tuple[Side, Side] = ("user", "item")
    logged = [[each.name for each in value_features(SMALL, service, side)] for side in sides]
    assert logged == [["u__a", "u__seen", "u__v"], ["i__a", "i__v", "i__b"]]


def test_a_sentinel_makes_the_cross_missing() -> None:
    cross = CrossPlan(
        "c",
        "pair",
        "contains",
        (OperandPlan("u", "seen"), OperandPlan("i", "a", (2.0,))),
        FLAG,
        "c",
    )
    program = ServiceProgram(small_plan(cross), "ranking")
    user, item = np.zeros(1, program.user_dtype), np.zeros(2, program.item_dtype)
    user["u__seen"][0, :2], user["u__seen__len"] = (2, 1), 2
    item["i__a"] = 2, 1
    assert program.tensors(user, item).item_slots[:, -1].tolist() == [0, 3]


def test_a_service_without_crosses_needs_no_user_of() -> None:
    program = ServiceProgram(small_plan(), "ranking")
    user, item = small_blocks(program, 3, 4, 1)
    assert program.tensors(user, item).item_slots.shape == (4, 1)


@pytest.mark.parametrize(
    ("cross", "message"),
    [
        (
            made("share", "u:a", "i:a"),
            r"ranking.share.share: needs \(sequence, scalar\), got a, a s",
        ),
        (made("equals", "u:seen", "i:a"), r"needs \(scalar, scalar\), got seen, a vector of 5"),
        (made("contains", "u:seen", "i:b"), "needs ids: integers, got b of f64"),
        (made("contains", "u:seen", "i:z"), "ranking.contains: needs one of a, b, v, got i.z"),
        (made("contains", "z:seen", "i:a"), "plan.views: needs one of u, i, got 'z'"),
        (made("contains", "u:seen", "u:a"), "needs operands keyed by item and user, got user"),
        (made("ratio", "i:a", "u:a", "item"), "needs operands keyed by item, got item and user"),
    ],
)
def test_a_cross_that_cannot_be_computed_is_refused(cross: CrossPlan, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ServiceProgram(small_plan(cross), "ranking")


def feature(name: str, dtype: Dtype, capacity: int = 0) -> FeaturePlan:
    return FeaturePlan(name, dtype, "field", name, capacity)


@pytest.mark.parametrize(
    ("operator", "left", "right", "refused"),
    [
        ("equals", feature("a", "bool"), feature("b", "bool"), None),
        ("equals", feature("a", "i32"), feature("b", "i64"), None),
        (
            "equals",
            feature("a", "bool"),
            feature("b", "i64"),
            ("operands of one kind", "bool and i64"),
        ),
        ("ratio", feature("a", "i64"), feature("b", "f32"), None),
        ("ratio", feature("a", "bool"), feature("b", "f32"), ("numbers", "a of bool")),
        ("dot", feature("a", "f32", 4), feature("b", "i64", 4), None),
        (
            "dot",
            feature("a", "f32", 4),
            feature("b", "f32", 3),
            ("vectors of one capacity", "4 and 3"),
        ),
        ("dot", feature("a", "f32", 4), feature("b", "f32"), ("(vector, vector)", "b, a scalar")),
        ("share", feature("a", "f32", 4), feature("b", "i64"), ("ids: integers", "a of f32")),
    ],
)
def test_misfits(
    operator: CrossOperator, left: FeaturePlan, right: FeaturePlan, refused: Any
) -> None:
    found = misfit(operator, left, right)
    assert (None if found is None else (found.required, found.got)) == refused


def test_one_table_in_code_and_docs() -> None:
    rows = re.findall(r"^\| `(\w+)\(.*$", crosses.__doc__ or "", re.MULTILINE)
    assert set(rows) == set(OPERATORS) == set(get_args(CrossOperator))
    page = (ROOT / "docs" / "features.md").read_text()
    for line in (crosses.__doc__ or "").splitlines():
        if line.startswith("|"):
            assert line in page, line
