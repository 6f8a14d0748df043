"""Open Inference Protocol v2 over JSON: requests in, replies out.

A request body is `{"id"?, "parameters"?, "inputs": [{"name", "shape", "datatype", "data"}],
"outputs"?: [{"name"}]}`. All inputs here are INT64 of one axis. A reply's NaN is `null`, since
JSON has no NaN. Source: KServe, "Open Inference Protocol V2", HTTP/REST.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pydantic_core
from numpy.typing import NDArray

from predictor.limits import Limits
from schemas.errors import RequestError

INT64: Final = "INT64"
#: numpy kind and width -> the protocol's name of the datatype.
DATATYPES: Final[dict[str, str]] = {
    "i8": "INT64",
    "i4": "INT32",
    "f4": "FP32",
    "u1": "UINT8",
}
_BODY_KEYS: Final = frozenset({"id", "parameters", "inputs", "outputs"})
_INPUT_KEYS: Final = frozenset({"name", "shape", "datatype", "data", "parameters"})


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A well-formed body. inputs: name -> (n,) i64. outputs: the requested names, None for the
    model's default ones."""

    id: str | None
    parameters: Mapping[str, Any]
    inputs: Mapping[str, NDArray[np.int64]]
    outputs: tuple[str, ...] | None


def parse_infer(body: bytes, limits: Limits) -> InferRequest:
    """A request body. Raises RequestError (400) naming the first thing that is wrong."""
    fields = parse_object(body, _BODY_KEYS)
    request_id = fields.get("id")
    if request_id is not None:
        request_id = as_text(request_id, "id", limits)
    return InferRequest(
        request_id,
        _parameters(fields.get("parameters"), limits),
        _inputs(fields.get("inputs"), limits),
        _outputs(fields.get("outputs"), limits),
    )


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


def _parameters(value: object, limits: Limits) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > 32:
        got = f"{len(value)} of them" if isinstance(value, dict) else kind_of(value)
        raise RequestError("parameters", required="an object of at most 32", got=got)
    for name, each in value.items():
        if not isinstance(each, str | int | float):
            required = "a string, number or boolean"
            raise RequestError(f"parameters.{name[:80]}", required=required, got=kind_of(each))
        if isinstance(each, str):
            as_text(each, f"parameters.{name[:80]}", limits)
    return value


def _inputs(value: object, limits: Limits) -> dict[str, NDArray[np.int64]]:
    entries = as_list(value, "inputs")
    if len(entries) > 16:
        raise RequestError("inputs", required="at most 16 tensors", got=str(len(entries)))
    inputs: dict[str, NDArray[np.int64]] = {}
    for index, entry in enumerate(entries):
        where = f"inputs[{index}]"
        fields = as_object(entry, where, _INPUT_KEYS)
        name = as_text(fields.get("name"), f"{where}.name", limits)
        if name in inputs:
            raise RequestError(f"{where}.name", required="a name of its own", got=repr(name))
        inputs[name] = _tensor(fields, f"inputs.{name}")
    return inputs


def _tensor(fields: Mapping[str, Any], where: str) -> NDArray[np.int64]:
    """One INT64 tensor of one axis, (n,)."""
    if fields.get("datatype") != INT64:
        got = repr(fields.get("datatype"))[:80]
        raise RequestError(f"{where}.datatype", required=INT64, got=got)
    shape, data = fields.get("shape"), as_list(fields.get("data"), f"{where}.data")
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int:
        raise RequestError(f"{where}.shape", required="[n]", got=repr(shape)[:80])
    if shape[0] != len(data):
        got = f"{len(data)} elements"
        raise RequestError(f"{where}.data", required=f"{shape[0]}, as the shape says", got=got)
    if wrong := {type(element) for element in data} - {int}:
        names = ", ".join(sorted(_NAMES.get(kind, kind.__name__) for kind in wrong))
        raise RequestError(f"{where}.data", required="integers", got=names)
    try:
        return np.array(data, np.int64)
    except OverflowError:
        raise RequestError(
            f"{where}.data", required="integers of 64 bits, signed", got="a larger one"
        ) from None


def _outputs(value: object, limits: Limits) -> tuple[str, ...] | None:
    if value is None:
        return None
    entries = as_list(value, "outputs")
    if len(entries) > 64:
        raise RequestError("outputs", required="at most 64", got=str(len(entries)))
    known = frozenset({"name", "parameters"})
    names = tuple(
        as_text(
            as_object(entry, f"outputs[{index}]", known).get("name"), f"outputs[{index}]", limits
        )
        for index, entry in enumerate(entries)
    )
    return names or None


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


def encode_reply(
    model: str,
    request_id: str,
    parameters: Mapping[str, Any],
    outputs: Sequence[tuple[str, NDArray[Any]]],
) -> bytes:
    """A reply's JSON; data is flat, row-major."""
    return pydantic_core.to_json(
        {
            "model_name": model,
            "id": request_id,
            "parameters": parameters,
            "outputs": [
                {
                    "name": name,
                    "datatype": DATATYPES[array.dtype.str[1:]],
                    "shape": array.shape,
                    "data": array.ravel().tolist(),
                }
                for name, array in outputs
            ],
        },
        inf_nan_mode="null",
    )


def encode_error(parts: Mapping[str, str]) -> bytes:
    """The one error shape of every route: the protocol's `error`, and its parts beside it."""
    return pydantic_core.to_json(parts)
