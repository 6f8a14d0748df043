"""A batch feature view → stored values, one field a feature.

A String becomes the id of its transform when the row is written. An Array with a transform is
stored as `capacity` nullable scalars `name_1`…, each a slot; an Array without one as a vector that
can only be read. The join key is stored as a field where the view declares it with `entity_id(…)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, cast

from feast import Entity, FeatureView, Field, FileSource, PushSource

from catalog import tags
from catalog.drafts import FieldDraft, SlotDraft, ViewDraft
from catalog.fields import (
    ViewKey,
    capacity_of,
    check_name,
    check_unique,
    key_of,
    scalar_dtype,
    slot_of,
    ttl_of,
)
from catalog.transforms import STRING
from schemas.elements import element_name
from schemas.errors import DeclarationError
from schemas.plan import Dtype, FeaturePlan, TransformPlan

STORED_ID: Final[Dtype] = "i32"  # what a String rests as


@dataclass
class _Columns:
    """What the Fields seen so far add up to."""

    fields: list[FieldDraft] = field(default_factory=list)
    features: list[FeaturePlan] = field(default_factory=list)
    slots: dict[str, tuple[SlotDraft, ...]] = field(default_factory=dict)
    written: dict[str, TransformPlan] = field(default_factory=dict)

    def add(self, name: str, dtype: Dtype, capacity: int = 0) -> None:
        """A stored field and the feature that reads it."""
        self.fields.append(FieldDraft(name, dtype, capacity))
        self.features.append(FeaturePlan(name, dtype, "field", name, capacity))


def compile_batch(view: FeatureView, entities: Mapping[str, Entity]) -> ViewDraft:
    """A batch view's draft. Raises DeclarationError."""
    check_name(view.name, view.name)
    _refuse_code(view)
    tags.check_known(view.tags, (), view.name)
    keyed = key_of(view, entities)
    columns = _Columns()
    for declared in view.features:
        _add_column(columns, declared, f"{view.name}.{declared.name}")
    key = _key(view, keyed, columns)
    check_unique((each.name for each in columns.fields), view.name, "feature")
    path, timestamp_field = _source(view)
    return ViewDraft(
        name=view.name,
        entity=keyed.side,
        join_key=keyed.join_key,
        source=path,
        ttl_ms=ttl_of(view),
        streamed=False,
        fields=tuple(columns.fields),
        features=tuple(sorted(columns.features, key=lambda feature: feature.name)),
        declared=tuple(each.name for each in view.features),
        slots=columns.slots,
        key=key,
        timestamp_field=timestamp_field,
        written=columns.written,
        string_keys=keyed.string_keys,
        push_source=_push_source(view),
    )


def _add_column(columns: _Columns, declared: Field, where: str) -> None:
    check_name(declared.name, where)
    dtype = scalar_dtype(declared, where)
    capacity = capacity_of(declared, where)
    slot = slot_of(declared, dtype, where)
    if dtype == STRING:
        assert slot is not None and slot.ids is not None  # else `scalar_dtype` had refused it
        columns.add(declared.name, STORED_ID)
        columns.written[declared.name] = slot.ids
        columns.slots[declared.name] = (replace(slot, stored=True),)
    elif capacity and slot is not None:
        names = [element_name(declared.name, index) for index in range(capacity)]
        for name in names:
            columns.add(name, cast(Dtype, dtype))
        columns.slots[declared.name] = tuple(replace(slot, feature=name) for name in names)
    else:
        columns.add(declared.name, cast(Dtype, dtype), capacity)
        if slot is not None:
            columns.slots[declared.name] = (slot,)


def _key(view: FeatureView, keyed: ViewKey, columns: _Columns) -> SlotDraft | None:
    """The join key as a stored field and slot, where the view declares it with tags."""
    composite = "," in keyed.join_key
    for declared in view.entity_columns:
        if composite and declared.tags:
            raise DeclarationError(
                f"{view.name}.{declared.name}",
                required="a view of one entity for the slot of its id",
                got=f"one keyed by {keyed.join_key}",
                do="declare entity_id(…) in a view that the entity alone keys",
            )
        if declared.name == keyed.join_key and declared.tags:
            slot = slot_of(declared, "i64", f"{view.name}.{declared.name}")
            if slot is not None:
                columns.add(declared.name, "i64")
            return slot
    return None


def _source(view: FeatureView) -> tuple[str, str]:
    """Path and timestamp column of the Parquet source."""
    source = view.batch_source
    if not isinstance(source, FileSource) or not source.path.endswith(".parquet"):
        raise DeclarationError(
            f"{view.name}.source",
            required="a FileSource of one .parquet file",
            got=source.path if isinstance(source, FileSource) else type(source).__name__,
        )
    if source.field_mapping:
        raise DeclarationError(
            f"{view.name}.source.field_mapping",
            required="none",
            got=", ".join(sorted(source.field_mapping)),
            do="name the features as the columns",
        )
    if not source.timestamp_field:
        raise DeclarationError(
            f"{view.name}.source.timestamp_field", required="a timestamp column", got="none"
        )
    return source.path, source.timestamp_field


def _push_source(view: FeatureView) -> str:
    """The name of the view's push source, "" where it has none."""
    source = view.stream_source
    if source is None:
        return ""
    if not isinstance(source, PushSource):
        raise DeclarationError(
            f"{view.name}.source",
            required="a FileSource or a PushSource over one",
            got=type(source).__name__,
            do="declare windows over a topic with streamed_view(…)",
        )
    return str(source.name)


def _refuse_code(view: FeatureView) -> None:
    held = [
        getattr(view, name, None)
        for name in ("udf", "feature_transformation", "_raw_feature_transformation_proto")
    ]
    if view.source_views or any(each is not None for each in held):
        raise DeclarationError(
            view.name,
            required="a view without a user-defined function",
            got="a derived view" if view.source_views else "one with a UDF",
            do="write its results into the Parquet source",
        )
