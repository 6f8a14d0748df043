"""Feast's entity keys → the ids of rows. What an id is made of stands at `schemas.ids.key_id`."""

from __future__ import annotations

from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from schemas.errors import PlanError
from schemas.ids import key_id
from schemas.plan import ViewPlan


def entity_id(view: ViewPlan, key: EntityKey) -> int:
    """The id of a key, in whatever order it gives its join keys. Raises PlanError for other join
    keys than the view's, and for values that are neither integers nor strings, as declared."""
    given = dict(zip(key.join_keys, key.entity_values, strict=True))
    if given.keys() != set(view.join_keys):
        raise PlanError(
            f"{view.name}.entities",
            required=f"a key of {' and '.join(view.join_keys)}",
            got=" and ".join(sorted(given)) or "none",
            do="run `encore apply`, or pass these entities",
        )
    return key_id([_value(view, name, given[name]) for name in view.join_keys])


def _value(view: ViewPlan, name: str, value: Value) -> int | str:
    kind = value.WhichOneof("val")
    is_string = name in view.string_keys
    if is_string and kind == "string_val":
        return str(value.string_val)
    if not is_string and kind in ("int64_val", "int32_val"):
        return int(getattr(value, kind))
    required = "a string id" if is_string else "an integer id"
    raise PlanError(f"{view.name}.{name}", required=required, got=str(kind))
