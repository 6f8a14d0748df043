"""Action messages: what arrives on Kafka.

Layout: `schemas/fbs/action.fbs`. An `Action` is a struct of 96 bytes, little endian, so a batch's
vector is one numpy structured array without a copy:

    user, item, time_ms, value    i64 each      ids; event time, ms since 1970; play ms
    request_hi, request_lo        u64 each      request id (a UUID's big-endian halves)
    author, music, tags[3]        i64 each      what the edge knows of the item
    scene u16, position i16, type u8, known u8, 2 bytes of padding

Three message forms, told apart by the header `encore-content`: `action-batch` (the FlatBuffer, also
when there is no header), `action` (i64 sent_ms, then one bare struct, 104 bytes) and `action-json`.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Annotated, Any, Final

import flatbuffers
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from schemas.errors import ActionError
from schemas.flat import FlatTable
from schemas.ids import string_id
from schemas.names import CONTENT_ACTION, CONTENT_BATCH, CONTENT_JSON, HEADER_CONTENT

IDENTIFIER: Final = b"EACT"
MAX_ACTIONS: Final = 100_000
MAX_TIME_MS: Final = 1 << 48  # the year 10889
MAX_VALUE: Final = 1 << 40  # 35 years of play ms: 2**23 of them still fit an i64 sum
MAX_TAGS: Final = 3
#: Stands in a sequence for a column that the edge did not know of that action; it has id 0.
UNKNOWN: Final = -(1 << 63)

KNOWN_AUTHOR: Final = 1
KNOWN_MUSIC: Final = 2
KNOWN_REQUEST: Final = 4
KNOWN_POSITION: Final = 8
KNOWN_TAGS_SHIFT: Final = 4

ACTION: Final = np.dtype(
    {
        "names": [
            *("user", "item", "time_ms", "value", "request_hi", "request_lo", "author", "music"),
            *("tags", "scene", "position", "type", "known"),
        ],
        "formats": [*["<i8"] * 4, "<u8", "<u8", "<i8", "<i8", ("<i8", 3), "<u2", "<i2", "u1", "u1"],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56, 64, 88, 90, 92, 93],
        "itemsize": 96,
    }
)

PADDING_START: Final = 94

_SENT_MS: Final = struct.Struct("<q")


class ActionType(IntEnum):
    """What the user did. Numbers are append-only."""

    IMPRESSION = 1
    PLAY = 2
    FINISH = 3
    CLICK = 4
    LONG_VIEW = 5
    LIKE = 6
    FOLLOW = 7
    COMMENT = 8
    SHARE = 9
    DISLIKE = 10
    PROFILE = 11
    DELETE_USER = 12


#: The names that declarations and JSON use: "impression", "long_view", …
ACTION_TYPES: Final[dict[str, ActionType]] = {kind.name.lower(): kind for kind in ActionType}


@dataclass(frozen=True, slots=True)
class ActionBatch:
    """One message. actions: (a,) of dtype ACTION, read-only where it views the message."""

    sent_ms: int
    actions: NDArray[np.void]


def encode_batch(actions: NDArray[np.void], sent_ms: int) -> bytes:
    """A batch as a FlatBuffer. actions: (a,) of dtype ACTION, all of one partition."""
    builder = flatbuffers.Builder(actions.size * ACTION.itemsize + 64)
    vector = add_structs(builder, actions, ACTION, PADDING_START)
    builder.StartObject(2)
    builder.PrependInt64Slot(0, sent_ms, 0)
    builder.PrependUOffsetTRelativeSlot(1, vector, 0)
    builder.Finish(builder.EndObject(), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def add_structs(
    builder: Any, structs: NDArray[np.void], dtype: np.dtype[Any], padding_start: int
) -> int:
    """A vector of fixed structs, appended to a FlatBuffer that is being built.

    structs: (n,) of `dtype`. padding_start: bytes of a struct from here on are written as 0, or
    equal structs would have unequal bytes. Returns the vector's place, for a slot of a table.
    """
    packed = np.ascontiguousarray(structs, dtype).view(np.uint8).reshape(-1, dtype.itemsize)
    packed = packed.copy()  # (n, itemsize)
    packed[:, padding_start:] = 0
    raw = packed.tobytes()
    builder.StartVector(dtype.itemsize, len(structs), 8)
    builder.head -= len(raw)
    builder.Bytes[builder.head : builder.head + len(raw)] = raw
    return int(builder.EndVector())


def decode_message(
    value: bytes | None, headers: Mapping[str, bytes], where: str = "action"
) -> ActionBatch:
    """Decode by content header. Raises ActionError; whatever it returns is safe to fold."""
    if value is None:
        raise ActionError(where, required="a value", got="null", do="send a delete_user action")
    content = headers.get(HEADER_CONTENT, CONTENT_BATCH)
    if content == CONTENT_BATCH:
        return decode_batch(value, where)
    if content == CONTENT_ACTION:
        return decode_action(value, where)
    if content == CONTENT_JSON:
        return decode_json(value, where)
    known = ", ".join(name.decode() for name in (CONTENT_BATCH, CONTENT_ACTION, CONTENT_JSON))
    raise ActionError(
        f"{where}.headers.{HEADER_CONTENT}", required=f"one of {known}", got=repr(content)
    )


def decode_batch(data: bytes, where: str = "action") -> ActionBatch:
    """The FlatBuffer form, without a copy. Raises ActionError."""
    table = FlatTable.root(data, where, ActionError, IDENTIFIER)
    actions = table.vector(1, ACTION, MAX_ACTIONS)
    if actions is None or len(actions) == 0:
        raise ActionError(f"{where}.actions", required="at least one action", got="none")
    return _checked(table.scalar(0, _SENT_MS, 0), actions, where)


def decode_action(data: bytes, where: str = "action") -> ActionBatch:
    """One bare action: i64 sent_ms, then the struct. Raises ActionError."""
    if len(data) != _SENT_MS.size + ACTION.itemsize:
        raise ActionError(where, required="104 bytes for one action", got=f"{len(data)} bytes")
    sent_ms = _SENT_MS.unpack_from(data)[0]
    return _checked(sent_ms, np.frombuffer(data, ACTION, 1, _SENT_MS.size), where)


def _checked(sent_ms: int, actions: NDArray[np.void], where: str) -> ActionBatch:
    """Refuse a batch with any action that must not be folded; name the first."""
    if not 0 < sent_ms < MAX_TIME_MS:
        raise ActionError(
            f"{where}.sent_ms", required=f"ms since 1970 in (0, {MAX_TIME_MS})", got=str(sent_ms)
        )
    check_actions(actions, where)
    return ActionBatch(sent_ms, actions)


def check_actions(actions: NDArray[np.void], where: str) -> None:
    """actions: (a,) of dtype ACTION. Raises ActionError, naming the first that cannot be folded."""
    for name, required, bad in _refused(actions):
        if bad.any():
            first = int(np.argmax(bad))
            got = str(actions[name][first])
            raise ActionError(f"{where}.actions[{first}].{name}", required=required, got=got)


def sound(actions: NDArray[np.void]) -> NDArray[np.bool_]:
    """(a,) bool: which actions `check_actions` lets pass."""
    bad = np.zeros(len(actions), bool)
    for _, _, refused in _refused(actions):
        bad |= refused
    return ~bad


def _refused(actions: NDArray[np.void]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Each field that can be wrong, what is required of it, and where it is: (a,) bool."""
    known, kind = actions["known"], actions["type"]
    yield "type", "1 to 12", (kind < 1) | (kind > max(ActionType))
    yield "time_ms", f"(0, {MAX_TIME_MS})", ~_within(actions["time_ms"], 1, MAX_TIME_MS)
    yield "value", f"[0, {MAX_VALUE})", ~_within(actions["value"], 0, MAX_VALUE)
    yield "known", f"at most {MAX_TAGS} tags", known >> KNOWN_TAGS_SHIFT > MAX_TAGS
    yield "position", "0 or more", (known & KNOWN_POSITION > 0) & (actions["position"] < 0)


def _within(values: NDArray[Any], low: int, high: int) -> NDArray[np.bool_]:
    return (values >= low) & (values < high)


# --- JSON -----------------------------------------------------------------------------------


def _id(value: object) -> object:
    """A string id is hashed here, at the edge, and nowhere else."""
    return string_id(value) if isinstance(value, str) else value


_INT64 = {"ge": -(1 << 63), "lt": 1 << 63}
JsonId = Annotated[int, BeforeValidator(_id), Field(strict=True, **_INT64)]


class JsonAction(BaseModel):
    """One action in JSON. Ids are int64 or strings; `type` is a name of ACTION_TYPES."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user: JsonId
    item: JsonId
    type: str
    time_ms: int = Field(gt=0, lt=MAX_TIME_MS)
    value: int = Field(0, ge=0, lt=MAX_VALUE)
    request_id: str | None = None
    author: JsonId | None = None
    music: JsonId | None = None
    tags: list[JsonId] = Field(default_factory=list, max_length=MAX_TAGS)
    scene: int = Field(0, ge=0, le=65535)
    position: int | None = Field(None, ge=0, le=32767)


class JsonBatch(BaseModel):
    """A batch in JSON: when it was sent, and its actions."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sent_ms: int = Field(gt=0, lt=MAX_TIME_MS)
    actions: list[JsonAction] = Field(min_length=1, max_length=MAX_ACTIONS)


def decode_json(data: bytes, where: str = "action") -> ActionBatch:
    """`{"sent_ms": …, "actions": [{"user": …, "item": …, "type": "click", …}]}`. Raises
    ActionError.
    """
    try:
        batch = JsonBatch.model_validate_json(data)
    except ValidationError as error:
        raise _not_json(error, where, "the JSON form of an action batch") from None
    actions = np.zeros(len(batch.actions), ACTION)
    for index, action in enumerate(batch.actions):
        actions[index] = _from_json(action, partial("{}.actions[{}].{}".format, where, index))
    return _checked(batch.sent_ms, actions, where)


def action_of(record: object, where: str) -> NDArray[np.void]:
    """One action in JSON, parsed already, as (1,) of dtype ACTION. Raises ActionError."""
    return _one(JsonAction.model_validate, record, where)


def action_of_line(line: bytes, where: str) -> NDArray[np.void]:
    """The same of its text: a whole JSON object, and nothing but that. Raises ActionError."""
    return _one(JsonAction.model_validate_json, line, where)


def _one(parse: Callable[[Any], JsonAction], given: object, where: str) -> NDArray[np.void]:
    try:
        action = parse(given)
    except ValidationError as error:
        raise _not_json(error, where, "the JSON form of an action") from None
    actions = np.zeros(1, ACTION)
    actions[0] = _from_json(action, partial("{}.{}".format, where))
    return actions


def _not_json(error: ValidationError, where: str, required: str) -> ActionError:
    first = error.errors(include_url=False, include_input=True)[0]
    place = ".".join(str(part) for part in first["loc"])
    came = repr(first.get("input"))[:60]
    got = {
        "missing": "no such field",
        "extra_forbidden": f"a field that no action has, of {came}",
    }.get(first["type"], f"{first['msg']} ({came})")
    return ActionError(
        f"{where}{'.' + place if place else ''}",
        required=required,
        got=got,
        do="see docs/actions.md",
    )


def _from_json(action: JsonAction, place: partial[str]) -> tuple[Any, ...]:
    kind = ACTION_TYPES.get(action.type)
    if kind is None:
        names = ", ".join(ACTION_TYPES)
        raise ActionError(place("type"), required=f"one of {names}", got=repr(action.type))
    known = len(action.tags) << KNOWN_TAGS_SHIFT
    request_hi = request_lo = 0
    if action.request_id is not None:
        try:
            request_hi, request_lo = split_request_id(action.request_id)
        except ValueError:
            raise ActionError(
                place("request_id"), required="a UUID", got=repr(action.request_id)
            ) from None
        known |= KNOWN_REQUEST
    known |= KNOWN_AUTHOR * (action.author is not None)
    known |= KNOWN_MUSIC * (action.music is not None)
    known |= KNOWN_POSITION * (action.position is not None)
    tags = (*action.tags, 0, 0, 0)[:MAX_TAGS]
    ids = (action.user, action.item, action.time_ms, action.value, request_hi, request_lo)
    extra = (action.author or 0, action.music or 0, tags, action.scene, action.position or 0)
    return (*ids, *extra, int(kind), known)


def split_request_id(text: str) -> tuple[int, int]:
    """A UUID's two big-endian 64-bit halves. Raises ValueError.

    >>> split_request_id("00000000-0000-0001-0000-000000000002")
    (1, 2)
    """
    number = uuid.UUID(text).int
    return number >> 64, number & 0xFFFF_FFFF_FFFF_FFFF
