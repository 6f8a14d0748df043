"""Open Inference Protocol v2: requests in, replies out, and how both are written in HTTP bodies.

A request body is `{"id"?, "parameters"?, "inputs": [{"name", "shape", "datatype", "data"}],
"outputs"?: [{"name"}]}`. All inputs here are INT64 of one axis. A reply's NaN is `null`, since
JSON has no NaN. Source: KServe, "Open Inference Protocol", HTTP/REST.

The binary tensor extension puts tensors behind the JSON instead of into it, little-endian and
row-major, in the order of their mention; the header `Inference-Header-Content-Length` says how long
the JSON is. An input says `"parameters": {"binary_data_size": bytes}` in place of `data`. Outputs
come so where `"parameters": {"binary_data": true}` of the output, or `"binary_data_output": true`
of the request, asks for it. Source: NVIDIA, Triton Inference Server, "Binary Tensor Data".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pydantic_core
from numpy.typing import NDArray

from predictor.limits import Limits
from schemas.errors import EncoreError, RequestError

INT64: Final = "INT64"
#: numpy kind and width -> the protocol's name of the datatype.
DATATYPES: Final[dict[str, str]] = {
    "i8": "INT64",
    "i4": "INT32",
    "f4": "FP32",
    "u1": "UINT8",
}
#: The header of a body with binary tensors: how many bytes of it are JSON.
JSON_LENGTH_HEADER: Final = "inference-header-content-length"
BINARY_OUTPUT: Final = "binary_data_output"
_INT64_BYTES: Final = 8
_MOST_INPUTS: Final = 16
_MOST_OUTPUTS: Final = 64
_MOST_PARAMETERS: Final = 32
#: Parameters of tensors, of extensions that are not spoken here. A reply that passed over them
#: would leave its caller with a region that nobody wrote, or with numbers in place of classes.
_OTHER_EXTENSIONS: Final = ("classification", "shared_memory_")
_BODY_KEYS: Final = frozenset({"id", "parameters", "inputs", "outputs"})
_INPUT_KEYS: Final = frozenset({"name", "shape", "datatype", "data", "parameters"})
_OUTPUT_KEYS: Final = frozenset({"name", "parameters"})


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A well-formed request. inputs: name -> (n,) i64. outputs: the requested names, None for the
    model's default ones. binary: of an output, or of all others, whether its bytes are wanted."""

    id: str | None
    parameters: Mapping[str, Any]
    inputs: Mapping[str, NDArray[np.int64]]
    outputs: tuple[str, ...] | None
    binary: Mapping[str, bool] = field(default_factory=dict)
    binary_others: bool = False

    def wants_binary(self, output: str) -> bool:
        """Whether an output is to come as bytes."""
        return self.binary.get(output, self.binary_others)


@dataclass(frozen=True, slots=True)
class InferReply:
    """What a request gets, before it is written. version: of the model. parameters: strings and
    integers. outputs: (name, array) of the datatypes of DATATYPES."""

    model: str
    version: str
    id: str
    parameters: Mapping[str, Any]
    outputs: Sequence[tuple[str, NDArray[Any]]]


def parse_infer(body: bytes, limits: Limits, json_length: str | None = None) -> InferRequest:
    """A request body. Raises RequestError (400) naming the first thing that is wrong.

    json_length: the header `Inference-Header-Content-Length`, None where there is none.
    """
    tail = None
    if json_length is not None:
        head_bytes = _json_bytes(json_length, len(body))
        body, tail = body[:head_bytes], Tail(memoryview(body)[head_bytes:])
    fields = parse_object(body, _BODY_KEYS)
    request_id = fields.get("id")
    if request_id is not None:
        request_id = as_text(request_id, "id", limits)
    parameters = _parameters(fields.get("parameters"), limits)
    binary_others = as_flag(parameters.pop(BINARY_OUTPUT, False), f"parameters.{BINARY_OUTPUT}")
    inputs = _inputs(fields.get("inputs"), limits, tail)
    if tail is not None and tail.left:
        required = "no bytes behind those of its tensors"
        raise RequestError("body", required=required, got=f"{tail.left} bytes")
    outputs = _outputs(fields.get("outputs"), limits)
    names = tuple(outputs) or None
    binary = {name: flag for name, flag in outputs.items() if flag is not None}
    return InferRequest(request_id, parameters, inputs, names, binary, binary_others)


def _json_bytes(given: str, body_bytes: int) -> int:
    if not (given.isascii() and given.isdigit() and len(given) < 12 and int(given) <= body_bytes):
        required = f"a number of bytes, at most the body's {body_bytes}"
        raise RequestError(JSON_LENGTH_HEADER, required=required, got=repr(given)[:80])
    return int(given)


class Tail:
    """The bytes behind the JSON, handed out from the front."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    @property
    def left(self) -> int:
        """Bytes not handed out."""
        return len(self._data)

    def take(self, size: object, where: str) -> memoryview:
        """The next bytes. Raises RequestError where there are not so many."""
        if type(size) is not int or not 0 <= size <= self.left:
            required = f"a number of bytes, at most the {self.left} that are left"
            raise RequestError(f"{where}.binary_data_size", required=required, got=repr(size)[:80])
        taken, self._data = self._data[:size], self._data[size:]
        return taken


def parse_object(body: bytes, known: frozenset[str]) -> dict[str, Any]:
    """A body's JSON object of no other than the known keys. Raises RequestError."""
    if not body:
        raise RequestError("body", required="a JSON object", got="an empty body")
    try:
        data = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError("body", required="JSON", got=str(error)) from None
    return as_object(data, "body", known)


def as_object(value: object, where: str, known: frozenset[str]) -> dict[str, Any]:
    """The value if it is an object of no other than the known keys. Raises RequestError."""
    if not isinstance(value, dict):
        raise RequestError(where, required="a JSON object", got=kind_of(value))
    if unknown := sorted(value.keys() - known):
        raise RequestError(
            where, required=f"only {', '.join(sorted(known))}", got=repr(unknown[0])[:80]
        )
    return value


def as_list(value: object, where: str) -> list[Any]:
    """The value if it is a list. Raises RequestError."""
    if not isinstance(value, list):
        raise RequestError(where, required="a list", got=kind_of(value))
    return value


def as_text(value: object, where: str, limits: Limits) -> str:
    """The value if it is a string, neither empty nor too long. Raises RequestError."""
    if not isinstance(value, str) or not 0 < len(value) <= limits.name_chars:
        got = f"{len(value)} characters" if isinstance(value, str) else kind_of(value)
        raise RequestError(where, required=f"1 to {limits.name_chars} characters", got=got)
    return value


def as_flag(value: object, where: str) -> bool:
    """The value if it is a boolean. Raises RequestError."""
    if not isinstance(value, bool):
        raise RequestError(where, required="true or false", got=kind_of(value))
    return value


def check_count(entries: Sequence[object], what: str) -> None:
    """Raises RequestError for more inputs or outputs than any request needs."""
    most = _MOST_INPUTS if what == "inputs" else _MOST_OUTPUTS
    if len(entries) > most:
        raise RequestError(what, required=f"at most {most}", got=str(len(entries)))


def check_parameters(parameters: Mapping[str, Any], limits: Limits) -> None:
    """Raises RequestError for too many of them, or one of a kind or length that none has."""
    if len(parameters) > _MOST_PARAMETERS:
        required = f"an object of at most {_MOST_PARAMETERS}"
        raise RequestError("parameters", required=required, got=f"{len(parameters)} of them")
    for name, each in parameters.items():
        if not isinstance(each, str | int | float):
            required = "a string, number or boolean"
            raise RequestError(f"parameters.{name[:80]}", required=required, got=kind_of(each))
        if isinstance(each, str):
            as_text(each, f"parameters.{name[:80]}", limits)


def check_new(name: str, known: Mapping[str, object], where: str) -> None:
    """Raises RequestError for an input that was there before."""
    if name in known:
        raise RequestError(f"{where}.name", required="a name of its own", got=repr(name))


def check_extensions(parameters: object, where: str) -> None:
    """Raises RequestError for parameters of an input or output that ask for another extension of
    the protocol than that of binary tensors."""
    for name in parameters if isinstance(parameters, Mapping) else ():
        if str(name).startswith(_OTHER_EXTENSIONS):
            raise RequestError(
                f"{where}.parameters",
                required="a tensor in the message itself",
                got=repr(name)[:80],
                do="send and take tensors as JSON or bytes, without shared memory or classes",
            )


def length_of(datatype: object, shape: object, where: str) -> int:
    """n of an INT64 tensor of one axis, (n,). Raises RequestError for another one."""
    if datatype != INT64:
        raise RequestError(f"{where}.datatype", required=INT64, got=repr(datatype)[:80])
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int:
        raise RequestError(f"{where}.shape", required="[n]", got=repr(shape)[:80])
    return shape[0]


def from_elements(data: Sequence[int], n: int, where: str) -> NDArray[np.int64]:
    """Integers as a tensor. Returns (n,). Raises RequestError."""
    if n != len(data):
        required, got = f"{n} elements, as the shape says", f"{len(data)} elements"
        raise RequestError(f"{where}.data", required=required, got=got)
    try:
        return np.array(data, np.int64)
    except OverflowError:
        raise RequestError(
            f"{where}.data", required="integers of 64 bits, signed", got="a larger one"
        ) from None


def from_bytes(data: bytes | memoryview, n: int, where: str) -> NDArray[np.int64]:
    """Little-endian i64 as a tensor, over these very bytes where they lie aligned: behind a JSON
    head they may begin anywhere. Returns (n,). Raises RequestError."""
    if n * _INT64_BYTES != len(data):
        required, got = f"{n * _INT64_BYTES} bytes, as the shape says", f"{len(data)} bytes"
        raise RequestError(f"{where}.data", required=required, got=got)
    found = np.frombuffer(data, "<i8")
    return found if found.flags.aligned else found.copy()


def _parameters(value: object, limits: Limits) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        required = f"an object of at most {_MOST_PARAMETERS}"
        raise RequestError("parameters", required=required, got=kind_of(value))
    check_parameters(value, limits)
    return value


def _inputs(value: object, limits: Limits, tail: Tail | None) -> dict[str, NDArray[np.int64]]:
    entries = as_list(value, "inputs")
    check_count(entries, "inputs")
    inputs: dict[str, NDArray[np.int64]] = {}
    for index, entry in enumerate(entries):
        where = f"inputs[{index}]"
        fields = as_object(entry, where, _INPUT_KEYS)
        name = as_text(fields.get("name"), f"{where}.name", limits)
        check_new(name, inputs, where)
        inputs[name] = _tensor(fields, f"inputs.{name}", tail)
    return inputs


def _tensor(fields: Mapping[str, Any], where: str, tail: Tail | None) -> NDArray[np.int64]:
    """One INT64 tensor of one axis, (n,)."""
    n = length_of(fields.get("datatype"), fields.get("shape"), where)
    given = fields.get("parameters")
    check_extensions(given, where)
    if tail is not None and isinstance(given, dict) and "binary_data_size" in given:
        if "data" in fields:
            required = "data or binary_data_size"
            raise RequestError(f"{where}.data", required=required, got="both")
        return from_bytes(tail.take(given["binary_data_size"], f"{where}.parameters"), n, where)
    data = as_list(fields.get("data"), f"{where}.data")
    if wrong := {type(element) for element in data} - {int}:
        names = ", ".join(sorted(_NAMES.get(kind, kind.__name__) for kind in wrong))
        raise RequestError(f"{where}.data", required="integers", got=names)
    return from_elements(data, n, where)


def _outputs(value: object, limits: Limits) -> dict[str, bool | None]:
    """Name -> its flag `binary_data`, None where it has none."""
    if value is None:
        return {}
    entries = as_list(value, "outputs")
    check_count(entries, "outputs")
    outputs: dict[str, bool | None] = {}
    for index, entry in enumerate(entries):
        where = f"outputs[{index}]"
        fields = as_object(entry, where, _OUTPUT_KEYS)
        name, given = as_text(fields.get("name"), where, limits), fields.get("parameters")
        check_extensions(given, where)
        flag = given.get("binary_data") if isinstance(given, dict) else None
        flagged = f"{where}.parameters.binary_data"
        outputs[name] = None if flag is None else as_flag(flag, flagged)
    return outputs


_NAMES: Final[dict[type, str]] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    type(None): "nothing",
}


def kind_of(value: object) -> str:
    """What a JSON value is, for people."""
    return _NAMES.get(type(value), type(value).__name__)


# --- replies --------------------------------------------------------------------------------


def encode_reply(reply: InferReply, request: InferRequest) -> tuple[bytes, int | None]:
    """A reply's body, and how many bytes of it are JSON where tensors follow, else None."""
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, array in reply.outputs:
        output: dict[str, Any] = {
            "name": name,
            "datatype": datatype_of(array),
            "shape": array.shape,
        }
        if request.wants_binary(name):
            tail.append(array.tobytes())
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    head = pydantic_core.to_json(
        {
            "model_name": reply.model,
            "model_version": reply.version,
            "id": reply.id,
            "parameters": reply.parameters,
            "outputs": outputs,
        },
        inf_nan_mode="null",
    )
    return (b"".join((head, *tail)), len(head)) if tail else (head, None)


def datatype_of(array: NDArray[Any]) -> str:
    """The protocol's name of an array's dtype."""
    return DATATYPES[array.dtype.str[1:]]


def encode_error(error: EncoreError) -> bytes:
    """The one error body of every route: the protocol's `error`, and its parts beside it."""
    return pydantic_core.to_json({"error": str(error), **error.parts()})
