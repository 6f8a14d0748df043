"""What every kind of view shares: its entity, TTL, names, dtypes, and a Field as a slot."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, cast, get_args

from feast import Entity, FeatureView, Field, ValueType
from feast.types import Array, FeastType, PrimitiveFeastType

from catalog import tags
from catalog.drafts import SlotDraft
from catalog.durations import DAY_MS, text, to_ms
from catalog.transforms import STRING, compile_transform, offer, parse_transform
from schemas.errors import DeclarationError
from schemas.plan import Dtype, Side, TransformPlan

MAX_TTL_MS: Final = 3_650 * DAY_MS
MAX_CAPACITY: Final = 1_024
RESERVED: Final = frozenset(("entity_id", "trailer", "present", "length"))

_DTYPES: Final[dict[PrimitiveFeastType, Dtype]] = {
    PrimitiveFeastType.BOOL: "bool",
    PrimitiveFeastType.INT32: "i32",
    PrimitiveFeastType.INT64: "i64",
    PrimitiveFeastType.FLOAT32: "f32",
    PrimitiveFeastType.FLOAT64: "f64",
}
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


def check_name(name: str, where: str) -> None:
    """A name must fit a FlatBuffers field, a Parquet column and a tensor.

    Raises DeclarationError; two underscores in a row part view from feature elsewhere.
    """
    if not _NAME.fullmatch(name) or "__" in name or name.endswith("_") or name in RESERVED:
        raise DeclarationError(
            where,
            required="a name of a-z, 0-9 and single underscores that starts with a letter",
            got=repr(name),
        )


def check_unique(found: Iterable[str], where: str, what: str) -> None:
    """Raises DeclarationError for the first name that comes twice."""
    seen: set[str] = set()
    for name in found:
        if name in seen:
            raise DeclarationError(
                f"{where}.{name}", required=f"one {what} of a name", got="two", do="rename one"
            )
        seen.add(name)


@dataclass(frozen=True)
class ViewKey:
    """What keys a view's rows. side: of its one entity; of several that of the first join key.

    join_key: of several entities all of their join keys, sorted, commas between. string_keys: the
    join keys whose values are strings.
    """

    side: Side
    join_key: str
    string_keys: tuple[str, ...]


def key_of(view: FeatureView, entities: Mapping[str, Entity]) -> ViewKey:
    """The key of a batch view: of one entity, or of several. Raises DeclarationError."""
    check_unique(view.entities, f"{view.name}.entities", "entity")
    if len(view.entities) < 2:
        entity, side = entity_of(view, entities)
        return ViewKey(side, entity.join_key, string_keys_of(entity))
    found = [entity_of(view, entities, name) for name in view.entities]
    found.sort(key=lambda each: each[0].join_key)  # Feast refuses two of one join key
    join_keys = [entity.join_key for entity, _ in found]
    strings = [key for entity, _ in found for key in string_keys_of(entity)]
    return ViewKey(found[0][1], ",".join(join_keys), tuple(strings))


def string_keys_of(entity: Entity) -> tuple[str, ...]:
    """The entity's join key where its values are strings."""
    return (entity.join_key,) if entity.value_type == ValueType.STRING else ()


def entity_of(
    view: FeatureView, entities: Mapping[str, Entity], name: str | None = None
) -> tuple[Entity, Side]:
    """The one entity that keys the view, or the named one of several, and its side.

    Raises DeclarationError.
    """
    names = view.entities if name is None else [name]
    if len(names) != 1 or names[0] not in entities:
        raise DeclarationError(
            f"{view.name}.entities",
            required="one entity of the repo",
            got=", ".join(names) or "none",
            do="declare user_entity(…) or item_entity(…) and pass it",
        )
    entity = entities[names[0]]
    tags.check_known(entity.tags, tags.ENTITY_TAGS, entity.name)
    side = entity.tags.get(tags.SIDE, "")
    if side not in get_args(Side):
        raise DeclarationError(
            f"{entity.name}.side",
            required="user or item",
            got=repr(side) if side else "none",
            do="declare it with user_entity(…) or item_entity(…)",
        )
    return entity, cast(Side, side)


def ttl_of(view: FeatureView, longest_ms: int = 0) -> int:
    """The TTL in ms, 0 for none. longest_ms: the longest window, which a TTL must not cut.

    Raises DeclarationError for one that does, or outside of a second to ten years.
    """
    ttl = view.ttl or timedelta(0)
    ttl_ms = to_ms(ttl)
    where = f"{view.name}.ttl"
    if ttl < timedelta(0) or timedelta(0) < ttl < timedelta(seconds=1) or ttl_ms > MAX_TTL_MS:
        raise DeclarationError(
            where,
            required="0 for none, or 1 s to 10 years",
            got=f"{ttl.total_seconds():g} s",
        )
    if 0 < ttl_ms < longest_ms:
        raise DeclarationError(
            where,
            required=f"at least the longest window, {text(longest_ms)}",
            got=text(ttl_ms),
            do=f"use {text(longest_ms)} or more, or 0 for none",
        )
    return ttl_ms


def type_name(dtype: FeastType) -> str:
    """As a declaration spells it: `String`, `Array(Int64)`, `Map`."""
    if isinstance(dtype, Array):
        return f"Array({type_name(dtype.base_type)})"
    if isinstance(dtype, PrimitiveFeastType):
        return "".join(part.capitalize() for part in dtype.name.split("_"))
    return type(dtype).__name__


def scalar_dtype(field: Field, where: str) -> str:
    """Dtype of the values, or of an Array's elements; "string" for a String with a transform.

    Raises DeclarationError for what an online row cannot hold.
    """
    dtype = field.dtype.base_type if isinstance(field.dtype, Array) else field.dtype
    if dtype == PrimitiveFeastType.STRING and not isinstance(field.dtype, Array):
        if tags.TRANSFORM in field.tags:
            return STRING
        raise DeclarationError(
            where,
            required="an ID transform for a String in an online view",
            got="none",
            do=f"declare {offer(STRING)}",
        )
    if isinstance(dtype, PrimitiveFeastType) and dtype in _DTYPES:
        return _DTYPES[dtype]
    raise DeclarationError(
        where,
        required="Bool, Int32, Int64, Float32, Float64 or an Array of them in an online view",
        got=type_name(field.dtype),
        do=_instead(field.dtype),
    )


def _instead(dtype: FeastType) -> str:
    name = type_name(dtype)
    if name in ("Map", "Json", "ScalarMap", "Struct"):
        return (
            "declare a column for each key that is used, a String one with "
            f"{offer(STRING)}, a number with {offer('i64')}"
        )
    if name == "Array(String)":
        return (
            "write ids instead of strings into the source and declare Array(Int64) with a transform"
        )
    if "Timestamp" in name:
        return "write milliseconds since 1970 and declare Int64"
    return "write numbers into the source, or declare the view with online=False"


def capacity_of(field: Field, where: str) -> int:
    """An Array's declared capacity; 0 for a scalar. Raises DeclarationError."""
    if not isinstance(field.dtype, Array):
        if tags.CAPACITY in field.tags:
            raise DeclarationError(
                f"{where}.capacity",
                required="no capacity for a scalar",
                got=field.tags[tags.CAPACITY],
                do=f"declare Array({type_name(field.dtype)})",
            )
        return 0
    if tags.CAPACITY not in field.tags:
        raise DeclarationError(
            f"{where}.capacity",
            required="the most elements an Array holds",
            got="none",
            do="declare capacity=…",
        )
    capacity = tags.integer(field.tags, tags.CAPACITY, where, low=1, default=0)
    if capacity > MAX_CAPACITY:
        raise DeclarationError(
            f"{where}.capacity", required=f"1 to {MAX_CAPACITY}", got=str(capacity)
        )
    return capacity


def slot_of(field: Field, dtype: str, where: str) -> SlotDraft | None:
    """The Field as a slot, None where it declares neither a transform nor what it shares."""
    tags.check_known(field.tags, tags.FIELD_TAGS, where)
    shared = field.tags.get(tags.SHARES)
    declared = field.tags.get(tags.TRANSFORM)
    if shared is None and declared is None:
        return None
    ids: TransformPlan | None = None
    if declared is not None:
        place = f"{where}.transform"
        ids = compile_transform(parse_transform(declared, place), cast(Dtype, dtype), place)
    return SlotDraft(field.name, field.name, dtype, ids, shares=_shares(shared, where))


def _shares(reference: str | None, where: str) -> tuple[str, str] | None:
    if reference is None:
        return None
    view, colon, name = reference.partition(":")
    if not (view and colon and name):
        raise DeclarationError(f"{where}.shares", required='"view:feature"', got=repr(reference))
    return view, name
