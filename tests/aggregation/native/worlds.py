"""Services of every kind of slot over values that lie at the edges."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from aggregation.crosses import OPERATORS, misfit
from schemas.layout import NUMPY
from schemas.plan import (
    CrossPlan,
    Dtype,
    OperandPlan,
    Plan,
    Scope,
    SequenceSlotPlan,
    ServicePlan,
    SlotPlan,
    TransformPlan,
    ViewPlan,
)
from schemas.values import SIDES_OF, Block, null_mask, pack_nulls, value_names
from tests.aggregation.plans import batch_view

SCALARS: tuple[Dtype, ...] = tuple(each for each in get_args(Dtype) if each in NUMPY)
CAPACITIES = (1, 7, 64, 65, 130, 300)
EDGES = [0, 1, -1, 2, 3, 9, 10, 11, 254, 2**16, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1]
REALS = [np.nan, np.inf, -np.inf, -0.0, 0.0, 0.5, 1.0, 3.0, 10.5, 1e17, 1e30, -124.0, -7.25, 0.1]
TRANSFORMS = (
    TransformPlan("hash", 102, buckets=100, seed=5),
    TransformPlan("hash", 66, buckets=64, sentinels=(0.0, -1.0)),
    TransformPlan("vocab", 5, values=(7, -3, 2)),
    TransformPlan("vocab", 4, values=("low", "high")),
    TransformPlan("vocab", 2, values=()),
    TransformPlan("boundaries", 6, boundaries=(-1.0, 0.0, 10.5), sentinels=(-124.0,)),
    TransformPlan("boundaries", 6, boundaries=(0.5, 1.0, 10.5), sentinels=(0.1,)),
    TransformPlan("boundaries", 5, boundaries=(1.0, 1e17)),
    TransformPlan("boundaries", 4, boundaries=(-0.5,)),
    TransformPlan("boundaries", 3, boundaries=()),
    TransformPlan("boundaries", 103, boundaries=tuple(each / 7 - 3 for each in range(100))),
    TransformPlan("identity", 12, buckets=10, sentinels=(3.0,)),
    TransformPlan("stored", 9),
)


def views(rng: np.random.Generator) -> tuple[ViewPlan, ViewPlan]:
    """One view a side: a scalar and a vector of each dtype."""
    made = []
    for name in ("user", "item"):
        fields = [(f"s_{dtype}", dtype, 0) for dtype in SCALARS]
        vectors = [dtype for dtype in SCALARS if dtype != "bool"]
        fields += [(f"v_{dtype}", dtype, int(rng.choice(CAPACITIES))) for dtype in vectors]
        fields += [(f"w_{dtype}", dtype, 9) for dtype in vectors]
        order = rng.permutation(len(fields))
        made.append(batch_view(name, name, tuple(fields[at] for at in order)))
    return made[0], made[1]


def random_plan(rng: np.random.Generator) -> Plan:
    """Any slots, sequences and crosses over them."""
    user, item = views(rng)

    def transform() -> TransformPlan:
        return TRANSFORMS[rng.integers(len(TRANSFORMS))]

    def slots(view: ViewPlan) -> tuple[SlotPlan, ...]:
        scalars = [each.name for each in view.features if not each.capacity]
        chosen = rng.choice(scalars, rng.integers(1, 14))
        return tuple(
            SlotPlan(f"{view.name}{at}", view.name, str(name), transform(), f"{view.name}{at}")
            for at, name in enumerate(chosen)
        )

    vectors = [each for each in user.features if each.capacity]
    sequences = []
    for at in range(rng.integers(0, 5)):
        feature = vectors[rng.integers(len(vectors))]
        width = int(rng.integers(1, feature.capacity + 1))
        name = f"sequence{at}"
        sequences.append(
            SequenceSlotPlan(name, "user", feature.name, width, transform(), f"{name}")
        )
    service = ServicePlan(
        "ranking", slots(user), slots(item), tuple(sequences), "0" * 16, crosses(rng, user, item)
    )
    return Plan(1, 0, (user, item), (service,))


def crosses(rng: np.random.Generator, user: ViewPlan, item: ViewPlan) -> tuple[CrossPlan, ...]:
    """Some of all that fit, of one pair of operands often several."""
    found = []
    sides = {"user": user, "item": item}
    for at in range(rng.integers(0, 9)):
        scope: Scope = ("user", "item", "pair")[rng.integers(3)]
        names = sorted(SIDES_OF[scope])
        two = names * 2 if len(names) == 1 else [names[at] for at in rng.permutation(2)]
        left, right = sides[two[0]], sides[two[1]]
        operators = list(OPERATORS)
        fitting = [
            (operator, one.name, other.name)
            for operator, one, other in product(operators, left.features, right.features)
            if misfit(operator, one, other) is None
        ]
        chosen, one, other = fitting[rng.integers(len(fitting))]
        alike = [each for each, a, b in fitting if (a, b) == (one, other)]
        for operator in alike if rng.random() < 0.5 else [chosen]:
            operands = (
                OperandPlan(left.name, one, (2.0,) if rng.random() < 0.2 else ()),
                OperandPlan(right.name, other, (0.1, -1.0) if rng.random() < 0.2 else ()),
            )
            transform = TRANSFORMS[rng.integers(len(TRANSFORMS))]
            name = f"{operator}{at}"
            more = {"prior": 0.3, "weight": 2.0} if rng.random() < 0.5 else {}
            found.append(CrossPlan(name, scope, operator, operands, transform, name, **more))
    return tuple(found)


def values_of(dtype: np.dtype[Any], shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """Values of any shape, at the edges or close to each other."""
    if dtype.kind == "f":
        near = rng.integers(-9, 15, shape) / 4
        with np.errstate(over="ignore"):
            edges = np.array(REALS).astype(dtype)
        return np.where(rng.random(shape) < 0.3, rng.choice(edges, shape), near).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    edges = np.array([edge for edge in EDGES if low <= edge <= high], dtype)
    near = rng.integers(max(-3, low), 5, shape).astype(dtype)
    return np.where(rng.random(shape) < 0.2, rng.choice(edges, shape), near)


def random_block(dtype: np.dtype[np.void], n: int, rng: np.random.Generator) -> Block:
    """n records with nulls and vectors of any length. Zero where null and behind a length."""
    block = np.zeros(n, dtype)
    names = value_names(dtype)
    null = rng.random((n, len(names))) < 0.15  # (n, k)
    for at, name in enumerate(names):
        shape = block[name].shape
        values = values_of(dtype[name].base, shape, rng)
        if len(shape) == 1:
            block[name] = np.where(null[:, at], 0, values)
            continue
        lengths = np.where(null[:, at], 0, rng.integers(0, shape[1] + 1, n))
        block[name + "__len"] = lengths
        block[name] = np.where(np.arange(shape[1]) < lengths[:, None], values, 0)
    block["__null"] = pack_nulls(null)
    assert np.array_equal(null_mask(block), null)
    return block


def spaced(block: Block, between: int) -> Block:
    """The same records with bytes between them, as a cache hands them out."""
    wide = np.dtype([("record", block.dtype), ("rest", "V", between)])
    out: NDArray[np.void] = np.zeros(len(block), wide)
    out["record"] = block
    return out["record"]


def unaligned(numbers: NDArray[Any]) -> NDArray[Any]:
    """The same numbers at an address that is no multiple of anything."""
    data = b"x" + numbers.tobytes()
    moved = np.frombuffer(memoryview(data)[1:], numbers.dtype)
    assert not moved.flags.aligned or not len(moved)
    return moved
