"""The rank log: one record a request, holding what the models saw and what they said.

Layout: `schemas/fbs/rank_record.fbs` (file identifier "ERNK"). Symbols:

    Vu, Vi  views read for the user, for each item, in `ServicePlan.views` order
    Nf      candidates of the fine stage, in the order in which they were scored
    Nc      candidates that only the coarse stage saw
    T       tasks, in the order of TASKS

`caller_id` is newer than the rest: records without it are read, and it is empty.

The values are those *before* ID-ization, as records of `value_dtype(plan, service, side)` of
schemas.values; the codec moves them as bytes, so a record travels without the plan that reads it.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, Final

import flatbuffers
import numpy as np
from numpy.typing import NDArray

from schemas.errors import RecordError
from schemas.flat import FlatTable

IDENTIFIER: Final = b"ERNK"
MAX_CANDIDATES: Final = 1 << 20
MAX_VALUES_BYTES: Final = 1 << 30
MAX_CALLER_ID_BYTES: Final = 1 << 10

#: The tasks of the fine network; column order of `task_scores`. Append-only.
TASKS: Final = ("click", "long_view", "like")

#: A row's fence as the log keeps it: 16 bytes, the padding zero.
FENCE: Final = np.dtype(
    {"names": ["epoch", "offset"], "formats": ["<u4", "<i8"], "offsets": [0, 8], "itemsize": 16}
)


class Degraded(IntFlag):
    """Why a reply is less than the whole cascade over whole rows. Bits are append-only."""

    NO_MODEL = 1  # no model at all: the caller's order
    NO_FINE_MODEL = 2  # the coarse score decides the page
    NO_COARSE_MODEL = 4  # the caller's order decides who reaches the fine stage
    STORE_TIMEOUT = 8  # no rows: the store did not answer in time
    STORE_ERROR = 16  # no rows: the store refused or is gone
    CORRUPT_ROWS = 32  # at least one row was damaged
    DEADLINE = 64  # scoring did not end in time: the caller's order
    MODEL_ERROR = 128  # a model raised: the caller's order
    FINE_SKIPPED = 256  # no time for the fine model: the coarse score decides the page
    STALE_ROWS = 512  # at least one view lags behind its stream


def degraded_text(flags: int) -> str:
    """The flags' names, comma separated; empty for a whole answer.

    >>> degraded_text(Degraded.NO_FINE_MODEL | Degraded.CORRUPT_ROWS)
    'no_fine_model,corrupt_rows'
    """
    return ",".join(flag.name.lower() for flag in Degraded if flags & flag and flag.name)


@dataclass(frozen=True, slots=True)
class RankRecord:
    """One request of the rank log.

    request_hi, request_lo: the request id's big-endian halves.
    now_ms: the clock the features were finalised at; received_ms: the server's own clock.
    coarse_version, fine_version: first 8 bytes of the sha256 of model.json; 0 = no model.
    degraded: bits of Degraded.
    user_values: one value record; empty where no row was read. user_status: (Vu,) u8.
    user_fences: (Vu,) FENCE.
    fine_ids: (Nf,) i64. item_values: Nf value records. item_status: (Nf, Vi) u8.
    item_fences: (Nf, Vi) FENCE.
    coarse_scores, final_scores: (Nf,) f32, NaN where unscored. task_scores: (Nf, T) f32
        probabilities, T = 0 without a fine model.
    positions: (Nf,) i16, 0 the first of the page, -1 not on the page.
    draw_probability: (Nf,) f32; 1 for ranked candidates, else the chance with which a coarse
        reject got its fine score.
    coarse_only_ids: (Nc,) i64. coarse_only_scores: (Nc,) f32.
    caller_id: the request's id as its caller sent it, no key; empty where it sent none.
    """

    request_hi: int
    request_lo: int
    user_id: int
    now_ms: int
    received_ms: int
    service_fingerprint: int
    plan_version: int
    serving_generation: int
    coarse_version: int
    fine_version: int
    degraded: int
    user_values: bytes
    user_status: NDArray[np.uint8]
    user_fences: NDArray[np.void]
    fine_ids: NDArray[np.int64]
    item_values: bytes
    item_status: NDArray[np.uint8]
    item_fences: NDArray[np.void]
    coarse_scores: NDArray[np.float32]
    task_scores: NDArray[np.float32]
    final_scores: NDArray[np.float32]
    positions: NDArray[np.int16]
    draw_probability: NDArray[np.float32]
    coarse_only_ids: NDArray[np.int64]
    coarse_only_scores: NDArray[np.float32]
    caller_id: str = ""

    @property
    def request_id(self) -> uuid.UUID:
        """The request id as a UUID."""
        return uuid.UUID(int=(self.request_hi << 64) | self.request_lo)


_U8: Final = struct.Struct("<B")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_I64: Final = struct.Struct("<q")

#: The inline fields in id order, from id 0.
_SCALARS: Final[tuple[tuple[str, struct.Struct], ...]] = (
    ("request_hi", _U64),
    ("request_lo", _U64),
    ("user_id", _I64),
    ("now_ms", _I64),
    ("received_ms", _I64),
    ("service_fingerprint", _U64),
    ("plan_version", _U32),
    ("serving_generation", _U32),
    ("coarse_version", _U64),
    ("fine_version", _U64),
    ("degraded", _U32),
    ("item_views", _U8),
    ("tasks", _U8),
)
#: The vectors in id order, from id len(_SCALARS).
_VECTORS: Final[tuple[tuple[str, np.dtype[Any]], ...]] = (
    ("user_values", np.dtype("u1")),
    ("user_status", np.dtype("u1")),
    ("user_fences", FENCE),
    ("fine_ids", np.dtype("<i8")),
    ("item_values", np.dtype("u1")),
    ("item_status", np.dtype("u1")),
    ("item_fences", FENCE),
    ("coarse_scores", np.dtype("<f4")),
    ("task_scores", np.dtype("<f4")),
    ("final_scores", np.dtype("<f4")),
    ("positions", np.dtype("<i2")),
    ("draw_probability", np.dtype("<f4")),
    ("coarse_only_ids", np.dtype("<i8")),
    ("coarse_only_scores", np.dtype("<f4")),
    ("caller_id", np.dtype("u1")),
)


# --- encode ---------------------------------------------------------------------------------


def encode_record(record: RankRecord) -> bytes:
    """A record as a FlatBuffer. Raises RecordError where its shapes contradict each other."""
    parts = {name: getattr(record, name) for name, _ in _VECTORS}
    parts["caller_id"] = caller = record.caller_id.encode()
    if len(caller) > MAX_CALLER_ID_BYTES:
        most, got = f"at most {MAX_CALLER_ID_BYTES} bytes of UTF-8", str(len(caller))
        raise RecordError("record.caller_id", required=most, got=got)
    _check_shapes(record, "record")
    size = sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts.values())
    builder = flatbuffers.Builder(size + 512)
    offsets = {name: _put_vector(builder, parts[name], dtype) for name, dtype in _VECTORS}
    scalars = {name: getattr(record, name, 0) for name, _ in _SCALARS}
    scalars["item_views"] = record.item_status.shape[1]
    scalars["tasks"] = record.task_scores.shape[1]
    put = {
        _U8: builder.PrependUint8Slot,
        _U32: builder.PrependUint32Slot,
        _U64: builder.PrependUint64Slot,
        _I64: builder.PrependInt64Slot,
    }
    builder.StartObject(len(_SCALARS) + len(_VECTORS))
    for field, (name, _) in enumerate(_VECTORS, start=len(_SCALARS)):
        builder.PrependUOffsetTRelativeSlot(field, offsets[name], 0)
    for field, (name, form) in enumerate(_SCALARS):
        put[form](field, scalars[name], 0)
    builder.Finish(builder.EndObject(), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _put_vector(
    builder: flatbuffers.Builder, values: bytes | NDArray[Any], dtype: np.dtype[Any]
) -> int:
    """Append a vector (row-major where it has two axes) and return its offset."""
    if isinstance(values, bytes):
        return int(builder.CreateByteVector(values))
    if dtype != FENCE:
        return int(builder.CreateNumpyVector(np.ascontiguousarray(values, dtype).reshape(-1)))
    fences = np.zeros(values.size, FENCE)  # zeros: the padding bytes are part of the record
    for name in ("epoch", "offset"):
        fences[name] = values[name].reshape(-1)
    raw = fences.tobytes()
    builder.StartVector(FENCE.itemsize, len(fences), 8)
    builder.head -= len(raw)
    builder.Bytes[builder.head : builder.head + len(raw)] = raw
    return int(builder.EndVector())


# --- decode ---------------------------------------------------------------------------------


def decode_record(data: bytes, where: str = "rank record") -> RankRecord:
    """The inverse of `encode_record`; arrays are read-only views of `data`.

    Raises RecordError for anything that is not a whole record whose shapes agree. Damage that
    leaves the shapes alone is not seen here: the spool's frame carries the checksum.
    """
    table = FlatTable.root(data, where, RecordError, IDENTIFIER)
    scalars = {name: table.scalar(field, form, 0) for field, (name, form) in enumerate(_SCALARS)}
    vectors: dict[str, Any] = {}
    for field, (name, dtype) in enumerate(_VECTORS, start=len(_SCALARS)):
        most = MAX_VALUES_BYTES if dtype.itemsize == 1 else MAX_CANDIDATES * 255
        most = MAX_CALLER_ID_BYTES if name == "caller_id" else most
        vector = table.vector(field, dtype, most)
        if vector is None and name != "caller_id":
            raise RecordError(f"{where}.{name}", required="a vector", got="none")
        vectors[name] = vector
    fine, views, tasks = len(vectors["fine_ids"]), scalars.pop("item_views"), scalars.pop("tasks")
    for name, width in (("item_status", views), ("item_fences", views), ("task_scores", tasks)):
        if vectors[name].size != fine * width:
            raise RecordError(
                f"{where}.{name}", required=f"{fine} × {width}", got=str(vectors[name].size)
            )
        vectors[name] = vectors[name].reshape(fine, width)
    for name in ("user_values", "item_values"):
        vectors[name] = vectors[name].tobytes()
    vectors["caller_id"] = _text(vectors["caller_id"], f"{where}.caller_id")
    record = RankRecord(**scalars, **vectors)
    _check_shapes(record, where)
    return record


def _text(utf8: NDArray[np.uint8] | None, where: str) -> str:
    if utf8 is None:
        return ""
    try:
        return utf8.tobytes().decode()
    except UnicodeDecodeError as error:
        raise RecordError(where, required="UTF-8", got=error.reason) from None


def _check_shapes(record: RankRecord, where: str) -> None:
    fine, rejected = len(record.fine_ids), len(record.coarse_only_ids)
    if max(fine, rejected) > MAX_CANDIDATES:
        most = f"at most {MAX_CANDIDATES} candidates"
        raise RecordError(f"{where}.fine_ids", required=most, got=str(max(fine, rejected)))
    lengths: dict[str, tuple[int, int]] = {
        "user_fences": (len(record.user_fences), len(record.user_status)),
        "item_status": (len(record.item_status), fine),
        "coarse_scores": (len(record.coarse_scores), fine),
        "task_scores": (len(record.task_scores), fine),
        "final_scores": (len(record.final_scores), fine),
        "positions": (len(record.positions), fine),
        "draw_probability": (len(record.draw_probability), fine),
        "coarse_only_scores": (len(record.coarse_only_scores), rejected),
    }
    for name, (length, required) in lengths.items():
        if length != required:
            raise RecordError(f"{where}.{name}", required=f"{required} elements", got=str(length))
    if record.item_fences.shape != record.item_status.shape:
        required_shape, got = str(record.item_status.shape), str(record.item_fences.shape)
        raise RecordError(f"{where}.item_fences", required=required_shape, got=got)
    size = len(record.item_values)
    if size % fine if fine else size:
        raise RecordError(
            f"{where}.item_values", required=f"{fine} records of one size", got=f"{size} bytes"
        )
    positions = record.positions
    if fine and not (positions.min() >= -1 and positions.max() < fine):
        raise RecordError(
            f"{where}.positions",
            required=f"places in [-1, {fine})",
            got=f"{positions.min()} to {positions.max()}",
        )
