"""A stream feature view → state: rings of tiles and sequences, and the features read from them.

A Feast Aggregation is a function of a window (`catalog.functions`), the newest values of a column
(`catalog.sequences`), or function "ratio:<prior>:<weight>" of column "<feature>/<feature>", two
numbers of the view.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from feast import Entity, Field, KafkaSource
from feast.aggregation import Aggregation
from feast.stream_feature_view import StreamFeatureView
from feast.types import Array, FeastType, Float64, Int64

from catalog import tags
from catalog.drafts import FieldDraft, SlotDraft, ViewDraft
from catalog.durations import HOUR_MS, MINUTE_MS, text, to_ms
from catalog.fields import (
    check_name,
    check_unique,
    entity_of,
    slot_of,
    string_keys_of,
    ttl_of,
    type_name,
)
from catalog.functions import FUNCTIONS, Window, compile_windows, parse_window
from catalog.sequences import (
    LastN,
    check_aligned,
    compile_sequences,
    parse_last,
    refuse_time,
    sequence_slot,
)
from schemas.errors import DeclarationError
from schemas.names import ACTIONS_TOPIC, BY_ITEM_SUFFIX
from schemas.plan import FeaturePlan, SequencePlan, Side

DEFAULT_SKEW_MS: Final = 10 * MINUTE_MS
DEFAULT_FUTURE_MS: Final = MINUTE_MS
MAX_LATENESS_MS: Final = 24 * HOUR_MS

_RATIO: Final = re.compile(r"ratio:([^:]+):([^:]+)")


@dataclass(frozen=True)
class Ratio:
    """(above + prior * weight) / (below + weight), of two features of the view."""

    name: str
    above: str
    below: str
    prior: float
    weight: float

    @property
    def feature(self) -> FeaturePlan:
        """What a reader gets."""
        return FeaturePlan(
            name=self.name,
            dtype="f64",
            kind="ratio",
            source=self.above,
            others=(self.below,),
            prior=self.prior,
            weight=self.weight,
        )


Program = Window | LastN | Ratio


def compile_streamed(view: StreamFeatureView, entities: Mapping[str, Entity]) -> ViewDraft:
    """A stream feature view's draft. Raises DeclarationError."""
    check_name(view.name, view.name)
    _refuse_code(view)
    tags.check_known(view.tags, tags.VIEW_TAGS, view.name)
    entity, side = entity_of(view, entities)
    programs = [_program(view.name, each) for each in view.aggregations]
    check_unique((program.name for program in programs), view.name, "aggregation")
    _check_fields(view, programs)
    windows = [each for each in programs if isinstance(each, Window)]
    sequences = sorted((p for p in programs if isinstance(p, LastN)), key=lambda s: s.sequence)
    ratios = [each for each in programs if isinstance(each, Ratio)]
    _check_ratios(view.name, ratios, {program.name: program for program in programs})
    skew_ms = _lateness(view, tags.SKEW_MS, DEFAULT_SKEW_MS)
    rings, ring_fields, features = compile_windows(windows, skew_ms)
    stored, more = compile_sequences(view.name, sequences)
    features += [*more, *(each.feature for each in ratios)]
    fields = [*ring_fields, *_sequence_fields(stored)]
    check_unique((field.name for field in fields), view.name, "stored field")
    longest_ms = [window.window_ms for window in windows] + [each.within_ms for each in sequences]
    slots = _slots(view, {program.name: program for program in programs})
    return ViewDraft(
        name=view.name,
        entity=side,
        join_key=entity.join_key,
        source=_topic(view, side),
        ttl_ms=ttl_of(view, max(longest_ms, default=0)),
        streamed=True,
        fields=tuple(fields),
        features=tuple(sorted(features, key=lambda feature: feature.name)),
        declared=tuple(field.name for field in view.features),
        slots=slots,
        timestamp_field=view.timestamp_field,
        string_keys=string_keys_of(entity),
        skew_ms=skew_ms,
        future_ms=_lateness(view, tags.FUTURE_MS, DEFAULT_FUTURE_MS),
        accumulators=tuple(rings),
        sequences=tuple(stored),
    )


def _refuse_code(view: StreamFeatureView) -> None:
    held = (view.udf, view.feature_transformation, view.udf_string)
    if any(each is not None and each != "" for each in held):
        raise DeclarationError(
            view.name,
            required="a view without a user-defined function",
            got="one with a UDF, whose pickled code the registry would run",
            do="declare aggregations, and ID transforms in the Fields' tags",
        )


def _topic(view: StreamFeatureView, side: Side) -> str:
    source = view.stream_source
    topic = source.kafka_options.topic if isinstance(source, KafkaSource) else ""
    if not topic:
        raise DeclarationError(
            f"{view.name}.source",
            required="a KafkaSource with a topic",
            got=type(source).__name__,
            do='declare source=actions("…"): windowed views are fed by their topic, not by push',
        )
    by_item = topic.endswith(BY_ITEM_SUFFIX)
    if topic.removesuffix(BY_ITEM_SUFFIX) != ACTIONS_TOPIC:
        helper = "actions_by_item" if by_item else "actions"
        raise DeclarationError(
            f"{view.name}.source",
            required=f"the topic that workers read, {ACTIONS_TOPIC}",
            got=topic,
            do=f'declare source={helper}("{ACTIONS_TOPIC}")',
        )
    if by_item != (side == "item"):
        origin = topic.removesuffix(BY_ITEM_SUFFIX)
        helper = "actions_by_item" if side == "item" else "actions"
        raise DeclarationError(
            f"{view.name}.source",
            required=f"a topic keyed by {side}",
            got=f"{topic}, keyed by {'item' if by_item else 'user'}",
            do=f'declare source={helper}("{origin}")',
        )
    return topic


def _lateness(view: StreamFeatureView, tag: str, default_ms: int) -> int:
    value_ms = tags.integer(view.tags, tag, view.name, low=0, default=default_ms)
    if value_ms > MAX_LATENESS_MS:
        raise DeclarationError(
            f"{view.name}.{tag.removeprefix(tags.PREFIX)}",
            required=f"at most {text(MAX_LATENESS_MS)}",
            got=text(value_ms),
        )
    return value_ms


# --- one aggregation ------------------------------------------------------------------------


def _program(view: str, declared: Aggregation) -> Program:
    if not declared.name:
        raise DeclarationError(
            f"{view}.{declared.function}({declared.column})",
            required="name=",
            got="none",
            do="name the feature; it is what services and requests refer to",
        )
    where = f"{view}.{declared.name}"
    check_name(declared.name, where)
    program = (
        parse_last(declared, where)
        or _parse_ratio(declared, where)
        or parse_window(declared, where)
    )
    if program is None:
        raise DeclarationError(f"{where}.function", required=FUNCTIONS, got=repr(declared.function))
    return program


def _parse_ratio(declared: Aggregation, where: str) -> Ratio | None:
    found = _RATIO.fullmatch(declared.function)
    if found is None:
        return None
    above, slash, below = declared.column.partition("/")
    if not (above and slash and below):
        raise DeclarationError(
            f"{where}.column", required="<feature>/<feature>", got=repr(declared.column)
        )
    try:
        prior, weight = float(found[1]), float(found[2])
    except ValueError:
        prior = weight = math.nan
    if not (math.isfinite(prior) and math.isfinite(weight) and weight >= 0):
        raise DeclarationError(
            f"{where}.function",
            required="a finite prior, and a weight of 0 or more",
            got=f"{found[1]} and {found[2]}",
        )
    if declared.time_window is not None:
        raise DeclarationError(
            f"{where}.window",
            required="no window for a ratio, whose features have theirs",
            got=text(to_ms(declared.time_window)),
        )
    return Ratio(declared.name, above, below, prior, weight)


def _check_ratios(view: str, ratios: Sequence[Ratio], programs: Mapping[str, Program]) -> None:
    """Each is of two numbers of the view. Raises DeclarationError."""
    numbers = [
        name
        for name, program in programs.items()
        if isinstance(program, Window) or (isinstance(program, LastN) and program.single)
    ]
    for ratio in ratios:
        for name in (ratio.above, ratio.below):
            if name not in numbers:
                raise DeclarationError(
                    f"{view}.{ratio.name}.column",
                    required=f"numbers of the view that are no ratios: {', '.join(numbers)}",
                    got=repr(name),
                )


# --- fields and features --------------------------------------------------------------------


def _check_fields(view: StreamFeatureView, programs: Sequence[Program]) -> None:
    """Each Field has its aggregation and the dtype it gives, and each aggregation its Field."""
    check_unique((field.name for field in view.features), view.name, "feature")
    if not programs:
        raise DeclarationError(
            f"{view.name}.aggregations", required="at least one aggregation", got="none"
        )
    by_name = {program.name: program for program in programs}
    declared = {field.name: field.dtype for field in view.features}
    for name in sorted(set(declared) ^ set(by_name)):
        missing = "an aggregation" if name in declared else "a Field"
        raise DeclarationError(
            f"{view.name}.{name}",
            required="a Field and an aggregation of one name",
            got=f"no such {missing.split()[1]}",
            do="declare both with count(…), total(…), last_n(…) or the like",
        )
    for name, program in by_name.items():
        wanted = _type(program)
        if declared[name] != wanted:
            raise DeclarationError(
                f"{view.name}.{name}.dtype",
                required=type_name(wanted),
                got=type_name(declared[name]),
            )


def _type(program: Program) -> FeastType:
    """What its Field must be."""
    if isinstance(program, LastN):
        return Int64 if program.single else Array(Int64)
    return program.type if isinstance(program, Window) else Float64


def _sequence_fields(sequences: Sequence[SequencePlan]) -> list[FieldDraft]:
    return [
        FieldDraft(name, "i64", sequence.capacity)
        for sequence in sequences
        for name in (*sequence.fields, sequence.time_field)
    ]


def _slots(
    view: StreamFeatureView, programs: Mapping[str, Program]
) -> dict[str, tuple[SlotDraft, ...]]:
    slots: dict[str, tuple[SlotDraft, ...]] = {}
    for field in view.features:
        where = f"{view.name}.{field.name}"
        program = programs[field.name]
        slot = slot_of(field, "f64" if _type(program) == Float64 else "i64", where)
        if not isinstance(program, LastN) or program.single:
            _refuse_length(field, where)
        if slot is not None and isinstance(program, LastN):
            slot = sequence_slot(slot, program, field, where)
        if slot is not None and isinstance(program, Window) and program.of_time:
            raise refuse_time(program.selected, where)
        if slot is not None:
            slots[field.name] = (slot,)
    check_aligned(view.name, (slot for held in slots.values() for slot in held))
    return slots


def _refuse_length(field: Field, where: str) -> None:
    if tags.LENGTH in field.tags:
        raise DeclarationError(
            f"{where}.length", required="no length for a number", got=field.tags[tags.LENGTH]
        )
