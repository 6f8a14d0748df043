"""A stream feature view → state: rings of tiles and sequences, and the features read from them.

Grammar of a Feast Aggregation: column "<action>" or "<action>.<column>", "*" for any action;
function "count", "sum", or "last_n:…" (`catalog.sequences`); name always; time_window and
slide_interval (the hop) for the former two. One ring a (function, action, column, hop) serves all
windows of that hop; it holds the longest window and the tiles that late actions may still reach.
One head a hop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

from feast import Entity, Field, KafkaSource
from feast.aggregation import Aggregation
from feast.stream_feature_view import StreamFeatureView
from feast.types import Array, FeastType, Int64

from aggregation.matching import ACTION_COLUMNS, ANY_ACTION
from catalog import tags
from catalog.drafts import FieldDraft, SlotDraft, ViewDraft
from catalog.durations import HOUR_MS, MINUTE_MS, either, label, text, to_ms
from catalog.fields import (
    check_name,
    check_unique,
    entity_of,
    slot_of,
    string_keys_of,
    ttl_of,
    type_name,
)
from catalog.sequences import (
    LAST_N,
    LastN,
    check_aligned,
    check_sequence_column,
    compile_sequences,
    parse_last_n,
    sequence_slot,
    spelled,
)
from schemas.actions import ACTION_TYPES, ActionType
from schemas.errors import DeclarationError
from schemas.names import BY_ITEM_SUFFIX
from schemas.plan import AccumulatorPlan, Dtype, FeaturePlan, SequencePlan, Side

MAX_TILES: Final = 4_096
DEFAULT_SKEW_MS: Final = 10 * MINUTE_MS
DEFAULT_FUTURE_MS: Final = MINUTE_MS
MAX_LATENESS_MS: Final = 24 * HOUR_MS
ACTIONS: Final = tuple(
    name for name, kind in ACTION_TYPES.items() if kind is not ActionType.DELETE_USER
)
SUMMABLE: Final = ("value",)
FUNCTIONS: Final = 'count, sum or last_n:<n> (as in "last_n:50")'


@dataclass(frozen=True)
class Window:
    """A count or sum over one window. column: "" for a count."""

    name: str
    function: Literal["count", "sum"]
    action: str
    column: str
    window_ms: int
    hop_ms: int

    @property
    def ring(self) -> tuple[int, str, str, str]:
        """What windows that share a ring have in common."""
        return self.hop_ms, self.function, self.action, self.column

    @property
    def ring_field(self) -> str:
        """The stored field: `count_click_5min`, `sum_play_value_1h`."""
        parts = (self.function, spelled(self.action), self.column, label(self.hop_ms))
        return "_".join(part for part in parts if part)

    @property
    def tiles(self) -> int:
        """Tiles a window holds."""
        return self.window_ms // self.hop_ms


def compile_streamed(view: StreamFeatureView, entities: Mapping[str, Entity]) -> ViewDraft:
    """A stream feature view's draft. Raises DeclarationError."""
    check_name(view.name, view.name)
    _refuse_code(view)
    tags.check_known(view.tags, tags.VIEW_TAGS, view.name)
    entity, side = entity_of(view, entities)
    programs = [_program(view.name, each) for each in view.aggregations]
    check_unique((program.name for program in programs), view.name, "aggregation")
    _check_fields(view, programs)
    windows = sorted((p for p in programs if isinstance(p, Window)), key=lambda w: w.ring)
    sequences = sorted((p for p in programs if isinstance(p, LastN)), key=lambda s: s.sequence)
    skew_ms = _lateness(view, tags.SKEW_MS, DEFAULT_SKEW_MS)
    rings, features = _rings(windows, skew_ms)
    stored, more = compile_sequences(view.name, sequences)
    fields = [*_ring_fields(rings), *_sequence_fields(stored)]
    check_unique((field.name for field in fields), view.name, "stored field")
    slots = _slots(view, {program.name: program for program in programs})
    return ViewDraft(
        name=view.name,
        entity=side,
        join_key=entity.join_key,
        source=_topic(view, side),
        ttl_ms=ttl_of(view, max((window.window_ms for window in windows), default=0)),
        streamed=True,
        fields=tuple(fields),
        features=tuple(sorted((*features, *more), key=lambda feature: feature.name)),
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


def _program(view: str, declared: Aggregation) -> Window | LastN:
    if not declared.name:
        raise DeclarationError(
            f"{view}.{declared.function}({declared.column})",
            required="name=",
            got="none",
            do="name the feature; it is what services and requests refer to",
        )
    where = f"{view}.{declared.name}"
    check_name(declared.name, where)
    action, column = _parse_column(declared, where)
    newest = parse_last_n(declared, action, column, where)
    if newest is not None:
        return newest
    if declared.function not in ("count", "sum"):
        raise DeclarationError(f"{where}.function", required=FUNCTIONS, got=repr(declared.function))
    window_ms, hop_ms = _window(declared, where)
    function = cast(Literal["count", "sum"], declared.function)
    if function == "count" and column:
        raise DeclarationError(
            f"{where}.column",
            required="the action alone for a count",
            got=repr(declared.column),
            do=f"use {action!r}",
        )
    if function == "sum" and column not in SUMMABLE:
        raise DeclarationError(
            f"{where}.column",
            required=f"<action>.{' or '.join(SUMMABLE)} for a sum",
            got=repr(declared.column),
            do=f"use '{action}.{SUMMABLE[0]}'",
        )
    return Window(declared.name, function, action, column, window_ms, hop_ms)


def _parse_column(declared: Aggregation, where: str) -> tuple[str, str]:
    action, dot, column = declared.column.partition(".")
    if action != ANY_ACTION and action not in ACTIONS:
        raise DeclarationError(
            f"{where}.column",
            required=f"an action, one of {', '.join(ACTIONS)} or *",
            got=repr(action),
        )
    if dot and LAST_N.fullmatch(declared.function):
        check_sequence_column(column, where)
    elif dot and column not in ACTION_COLUMNS:
        raise DeclarationError(
            f"{where}.column",
            required=f"a column of an action, one of {', '.join(ACTION_COLUMNS)}",
            got=repr(column),
        )
    return action, column


def _window(declared: Aggregation, where: str) -> tuple[int, int]:
    """(window_ms, hop_ms), checked to be whole tiles."""
    window_ms = to_ms(declared.time_window) if declared.time_window is not None else 0
    hop_ms = to_ms(declared.slide_interval) if declared.slide_interval is not None else 0
    if window_ms <= 0:
        raise DeclarationError(
            f"{where}.window", required="a window longer than 0", got=text(window_ms)
        )
    if hop_ms <= 0:
        raise DeclarationError(f"{where}.hop", required="a hop longer than 0", got=text(hop_ms))
    if window_ms % hop_ms:
        below = window_ms // hop_ms * hop_ms
        above = below + hop_ms
        raise DeclarationError(
            f"{where}.window",
            required=f"a multiple of the {text(hop_ms)} hop",
            got=text(window_ms),
            do=f"use {either(below, above) if below else text(above)}",
        )
    if window_ms // hop_ms > MAX_TILES:
        raise DeclarationError(
            f"{where}.hop",
            required=f"at most {MAX_TILES} tiles a window",
            got=f"{window_ms // hop_ms}",
            do=f"use a hop of {text(-(-window_ms // MAX_TILES // MINUTE_MS) * MINUTE_MS)} or more",
        )
    return window_ms, hop_ms


# --- fields and features --------------------------------------------------------------------


def _check_fields(view: StreamFeatureView, programs: Sequence[Window | LastN]) -> None:
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
            do="declare both with count(…), total(…) or last_n(…)",
        )
    for name, program in by_name.items():
        wanted: FeastType = Int64 if isinstance(program, Window) else Array(Int64)
        if declared[name] != wanted:
            raise DeclarationError(
                f"{view.name}.{name}.dtype",
                required=type_name(wanted),
                got=type_name(declared[name]),
            )


def _rings(
    windows: Sequence[Window], skew_ms: int
) -> tuple[list[AccumulatorPlan], list[FeaturePlan]]:
    longest: dict[tuple[int, str, str, str], Window] = {}
    for window in windows:
        known = longest.get(window.ring)
        if known is None or known.window_ms < window.window_ms:
            longest[window.ring] = window
    rings = [
        AccumulatorPlan(
            field=window.ring_field,
            head=f"head_{label(window.hop_ms)}",
            function=window.function,
            action=window.action,
            column=window.column,
            hop_ms=window.hop_ms,
            tiles=window.tiles + -(-skew_ms // window.hop_ms),
        )
        for _, window in sorted(longest.items())
    ]
    features = [
        FeaturePlan(
            name=window.name,
            dtype="i64",
            kind="window",
            source=window.ring_field,
            tiles=window.tiles,
            window_ms=window.window_ms,
        )
        for window in windows
    ]
    return rings, features


def _ring_fields(rings: Sequence[AccumulatorPlan]) -> list[FieldDraft]:
    dtypes: dict[str, Dtype] = {"count": "u16", "sum": "i64"}
    heads: defaultdict[str, list[AccumulatorPlan]] = defaultdict(list)
    for ring in rings:
        heads[ring.head].append(ring)
    fields = [FieldDraft(head, "i64") for head in heads]
    return fields + [FieldDraft(ring.field, dtypes[ring.function], ring.tiles) for ring in rings]


def _sequence_fields(sequences: Sequence[SequencePlan]) -> list[FieldDraft]:
    return [
        FieldDraft(name, "i64", sequence.capacity)
        for sequence in sequences
        for name in (*sequence.fields, sequence.time_field)
    ]


def _slots(
    view: StreamFeatureView, programs: Mapping[str, Window | LastN]
) -> dict[str, tuple[SlotDraft, ...]]:
    slots: dict[str, tuple[SlotDraft, ...]] = {}
    for field in view.features:
        where = f"{view.name}.{field.name}"
        slot = slot_of(field, "i64", where)
        program = programs[field.name]
        if isinstance(program, Window):
            _refuse_length(field, where)
        elif slot is not None:
            slot = sequence_slot(slot, program, field, where)
        if slot is not None:
            slots[field.name] = (slot,)
    check_aligned(view.name, (slot for held in slots.values() for slot in held))
    return slots


def _refuse_length(field: Field, where: str) -> None:
    if tags.LENGTH in field.tags:
        raise DeclarationError(
            f"{where}.length", required="no length for a window", got=field.tags[tags.LENGTH]
        )
