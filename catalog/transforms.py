"""ID transforms as they are declared, and as the plan holds them.

A transform rests as JSON in a Feast Field's tag `encore.transform`:

    {"kind": "hashed", "buckets": 4096, "seed": 0}
    {"kind": "vocab", "values": ["day_new", "full_active"]}
    {"kind": "boundaries", "boundaries": [0, 10, 100]}
    {"kind": "log_buckets", "buckets": 16, "low": 1, "high": 10000}
    {"kind": "identity", "buckets": 8192}

each with `"sentinels": [-124]` where some values mean "missing". Ids: 0 missing, 1 out of
vocabulary or range, then 2…: see `schemas.plan.TransformPlan`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, get_args

from catalog.arguments import not_a_number
from schemas.errors import DeclarationError
from schemas.ids import log_boundaries, transform_size
from schemas.plan import Dtype, TransformPlan

Kind = Literal["hashed", "vocab", "boundaries", "log_buckets", "identity"]

MAX_TABLE: Final = 1 << 26  # ids of one embedding table
INTEGERS: Final = frozenset(("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"))
FLOATS: Final = frozenset(("f32", "f64"))
STRING: Final = "string"

#: What a transform takes; the first entry of `_OFFER` that fits is what a refusal proposes.
_TAKES: Final[dict[str, frozenset[str]]] = {
    "hashed": INTEGERS | {STRING},
    "vocab": INTEGERS | {STRING},
    "boundaries": INTEGERS | FLOATS,
    "log_buckets": INTEGERS | FLOATS,
    "identity": INTEGERS | FLOATS | {"bool"},
}
_OFFER: Final[dict[str, str]] = {
    STRING: 'vocab(["…"]) for a known list, or hashed(buckets)',
    "bool": "identity(2)",
    "f32": "boundaries([…]) or log_buckets(n)",
    "f64": "boundaries([…]) or log_buckets(n)",
}
_OFFER_INTEGER: Final = "hashed(buckets), vocab([1, 2]), log_buckets(n) or identity(n)"


@dataclass(frozen=True)
class Transform:
    """A declared transform. Make one with `hashed`, `vocab`, `boundaries`, `log_buckets`,
    `identity`.
    """

    kind: Kind
    buckets: int = 0
    seed: int = 0
    values: tuple[int, ...] | tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 0.0
    sentinels: tuple[float, ...] = ()

    def to_json(self, where: str) -> str:
        """The tag's text: only what differs from the defaults, keys sorted.

        Raises DeclarationError for a parameter that is neither number nor text.
        """

        def refuse(value: object) -> None:
            raise not_a_number(value, f"{where}.{self.kind}")

        default = asdict(Transform(self.kind))
        held = {key: value for key, value in asdict(self).items() if value != default[key]}
        tag = {"kind": self.kind, **held}
        return json.dumps(tag, sort_keys=True, ensure_ascii=False, default=refuse)

    def __str__(self) -> str:
        """As it is declared, long lists cut: `hashed(4096)`, `vocab(9 values)`."""
        match self.kind:
            case "vocab":
                return f"vocab({len(self.values)} values)"
            case "boundaries":
                return f"boundaries({len(self.boundaries)} numbers)"
            case _:
                return f"{self.kind}({self.buckets})"


def hashed(buckets: int, *, seed: int = 0, sentinels: Sequence[float] = ()) -> Transform:
    """2 + xxh3-64 of the id mod `buckets`. For ids and strings of many values."""
    return Transform("hashed", buckets, seed, sentinels=tuple(sentinels))


def vocab(values: Sequence[int] | Sequence[str], *, sentinels: Sequence[float] = ()) -> Transform:
    """2 + position in `values`; any other value is 1. Append new values at the end."""
    held: Any = tuple(values)
    return Transform("vocab", values=held, sentinels=tuple(sentinels))


def boundaries(numbers: Sequence[float], *, sentinels: Sequence[float] = ()) -> Transform:
    """2 + how many of the ascending `numbers` are <= the value."""
    return Transform("boundaries", boundaries=tuple(numbers), sentinels=tuple(sentinels))


def log_buckets(
    buckets: int, *, low: float, high: float, sentinels: Sequence[float] = ()
) -> Transform:
    """`buckets` ranges whose boundaries are spaced evenly in the logarithm from low to high.

    The first range is everything below `low`, the last everything from `high` on.
    """
    return Transform("log_buckets", buckets, low=low, high=high, sentinels=tuple(sentinels))


def identity(values: int, *, sentinels: Sequence[float] = ()) -> Transform:
    """2 + value for 0 <= value < `values`, else 1. A float's fraction is dropped."""
    return Transform("identity", values, sentinels=tuple(sentinels))


def parse_transform(text: str, where: str) -> Transform:
    """The inverse of `Transform.to_json`, for tags of any origin. Raises DeclarationError."""
    try:
        held = json.loads(text)
        kind = held.pop("kind")
        for key in ("values", "boundaries", "sentinels"):
            if key in held:
                held[key] = tuple(held[key])
        transform = Transform(kind, **held)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DeclarationError(
            where,
            required="the JSON of an ID transform",
            got=f"{text[:60]!r} ({type(error).__name__}: {error})",
            do="use hashed, vocab, boundaries, log_buckets or identity of catalog.declare",
        ) from None
    if transform.kind not in get_args(Kind):
        raise DeclarationError(
            where, required=f"one of {', '.join(get_args(Kind))}", got=repr(transform.kind)
        )
    _check(transform, where)
    return transform


def _check(transform: Transform, where: str) -> None:
    """Refuse parameters that no id could come from."""

    def refuse(required: str, got: object, do: str = "") -> DeclarationError:
        return DeclarationError(f"{where}.{transform.kind}", required=required, got=str(got), do=do)

    _check_types(transform, refuse)
    match transform.kind:
        case "hashed" | "identity" if not 0 < transform.buckets <= MAX_TABLE:
            raise refuse(f"1 to {MAX_TABLE} values", transform.buckets)
        case "vocab":
            if not transform.values:
                raise refuse("at least one value", "an empty list")
            if len({type(value) for value in transform.values}) > 1:
                raise refuse("values of one type", transform.values)
            repeated = [v for v in transform.values if transform.values.count(v) > 1]
            if repeated:
                raise refuse("each value once", f"{repeated[0]!r} twice", "remove one")
        case "boundaries":
            numbers = transform.boundaries
            if not numbers or list(numbers) != sorted(set(numbers)):
                raise refuse("ascending numbers, each once", list(numbers)[:8])
        case "log_buckets":
            if not 0 < transform.low < transform.high:
                raise refuse("0 < low < high", f"low={transform.low:g}, high={transform.high:g}")
            if not 3 <= transform.buckets <= 1024:
                raise refuse("3 to 1024 buckets", transform.buckets)


def _check_types(transform: Transform, refuse: Callable[..., DeclarationError]) -> None:
    """A tag's JSON may hold anything."""
    held: dict[str, Any] = asdict(transform)
    for name in ("buckets", "seed"):
        if type(held[name]) is not int:
            raise refuse(f"an integer for {name}", repr(held[name]))
    for number in (*held["boundaries"], *held["sentinels"], held["low"], held["high"]):
        if type(number) not in (int, float) or not math.isfinite(number):
            raise refuse("finite numbers", repr(number))
    for value in held["values"]:
        if type(value) not in (int, str):
            raise refuse("integers or strings", repr(value))


def compile_transform(
    transform: Transform, dtype: Dtype | Literal["string"], where: str
) -> TransformPlan:
    """A declared transform → its plan, over values of `dtype`. Raises DeclarationError.

    A string's plan is what is applied when a row is written; see `stored_transform` for the slot.
    """
    _check_dtype(transform, dtype, where)
    kinds: dict[str, Any] = {"hashed": "hash", "log_buckets": "boundaries"}
    numbers = transform.boundaries
    if transform.kind == "log_buckets":
        numbers = log_boundaries(transform.buckets - 1, transform.low, transform.high)
    counted = transform.kind in ("hashed", "identity")
    plan = TransformPlan(
        kind=kinds.get(transform.kind, transform.kind),
        size=0,
        buckets=transform.buckets if counted else 0,
        seed=transform.seed,
        values=transform.values,
        boundaries=tuple(float(number) for number in numbers),
        sentinels=tuple(float(number) for number in transform.sentinels),
    )
    return sized(plan)


def sized(plan: TransformPlan) -> TransformPlan:
    """The same with `size` as `schemas.ids.transform_size` counts it."""
    return replace(plan, size=transform_size(plan))


def stored_transform(written: TransformPlan) -> TransformPlan:
    """The slot's transform where the row already holds the id."""
    return TransformPlan(kind="stored", size=written.size)


def same_ids(first: TransformPlan, second: TransformPlan) -> bool:
    """Whether two transforms give equal ids to equal values, apart from what is missing."""
    return all(
        getattr(first, name) == getattr(second, name)
        for name in ("kind", "size", "buckets", "seed", "values", "boundaries")
    )


def offer(dtype: str) -> str:
    """The transforms that fit values of this dtype, for refusals."""
    return _OFFER.get(dtype, _OFFER_INTEGER)


def _check_dtype(transform: Transform, dtype: str, where: str) -> None:
    takes = _TAKES[transform.kind]
    fits = dtype in takes
    of_strings = bool(transform.values) and isinstance(transform.values[0], str)
    if transform.kind == "vocab" and fits:
        fits = of_strings == (dtype == STRING)
    if not fits:
        kind = f"{transform} of strings" if of_strings else str(transform)
        shown = "String" if dtype == STRING else dtype
        raise DeclarationError(
            where,
            required=f"a transform that takes {shown} values",
            got=kind,
            do=f"declare {offer(dtype)}",
        )
    if dtype == STRING and transform.sentinels:
        raise DeclarationError(
            where,
            required="no sentinels for strings",
            got=str(list(transform.sentinels)),
            do="leave the string out of the vocabulary, or write null in the source",
        )
