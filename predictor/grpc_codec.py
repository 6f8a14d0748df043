"""The protocol's messages as requests and replies, without a step through JSON.

Tensors come as `raw_input_contents` (what fast clients send: used where it lies) or as
`int64_contents`, and leave as `raw_output_contents`. A refusal names the same place as the HTTP
body's would: `inputs.candidate_ids.shape`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from predictor import grpc_messages as messages
from predictor.limits import Limits
from predictor.protocol import (
    InferReply,
    InferRequest,
    as_text,
    check_count,
    check_extensions,
    check_new,
    check_parameters,
    datatype_of,
    from_bytes,
    from_elements,
    length_of,
)
from schemas.errors import EncoreError, RequestError

ERROR_DOMAIN: Final = "encore"


def decode_message(kind: Any, data: bytes, most_bytes: int) -> Any:
    """A message of that class. Raises RequestError for too many bytes, or other ones."""
    if len(data) > most_bytes:
        raise RequestError(
            "body",
            required=f"at most {most_bytes} bytes",
            got=f"{len(data)} bytes",
            do="send fewer candidates",
            status=413,
        )
    try:
        return kind.FromString(data)
    except DecodeError as error:
        required = f"a message {kind.DESCRIPTOR.full_name}"
        raise RequestError("body", required=required, got=str(error)[:200]) from None


def request_of(message: Any, limits: Limits) -> InferRequest:
    """A ModelInferRequest. Raises RequestError (400) naming the first thing that is wrong."""
    request_id = as_text(message.id, "id", limits) if message.id else None
    parameters = _parameters(message.parameters)
    check_parameters(parameters, limits)
    inputs = _inputs(message, limits)
    check_count(message.outputs, "outputs")
    names = tuple(dict.fromkeys(_outputs(message, limits))) or None
    return InferRequest(request_id, parameters, inputs, names)


def _outputs(message: Any, limits: Limits) -> Iterator[str]:
    for index, output in enumerate(message.outputs):
        name = as_text(output.name, f"outputs[{index}]", limits)
        check_extensions(output.parameters, f"outputs[{index}]")
        yield name


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            required = "a string, number or boolean"
            raise RequestError(f"parameters.{name[:80]}", required=required, got="nothing")
        found[name] = getattr(parameter, choice)
    return found


def _inputs(message: Any, limits: Limits) -> dict[str, NDArray[np.int64]]:
    entries, raw = message.inputs, message.raw_input_contents
    check_count(entries, "inputs")
    for entry in entries:
        check_extensions(entry.parameters, f"inputs.{entry.name[: limits.name_chars]}")
    if raw and len(raw) != len(entries):
        required = f"one for each of the {len(entries)} inputs, or none"
        raise RequestError("raw_input_contents", required=required, got=str(len(raw)))
    inputs: dict[str, NDArray[np.int64]] = {}
    for index, entry in enumerate(entries):
        name = as_text(entry.name, f"inputs[{index}].name", limits)
        check_new(name, inputs, f"inputs[{index}]")
        where = f"inputs.{name}"
        n = length_of(entry.datatype, list(entry.shape[:9]), where)
        if not raw:
            inputs[name] = from_elements(entry.contents.int64_contents, n, where)
            continue
        if entry.HasField("contents"):
            required = "contents or raw_input_contents"
            raise RequestError(f"{where}.data", required=required, got="both")
        inputs[name] = from_bytes(raw[index], n, where)
    return inputs


def reply_message(reply: InferReply) -> Any:
    """A ModelInferResponse."""
    message = messages.ModelInferResponse(
        model_name=reply.model, model_version=reply.version, id=reply.id
    )
    for name, value in reply.parameters.items():
        if isinstance(value, str):
            message.parameters[name].string_param = value
        else:
            message.parameters[name].int64_param = value
    for name, array in reply.outputs:
        message.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        message.raw_output_contents.append(array.tobytes())
    return message


def metadata_message(metadata: Mapping[str, Any]) -> Any:
    """A ModelMetadataResponse of what HTTP writes as JSON; its parameters are `properties`."""
    return messages.ModelMetadataResponse(
        name=metadata["name"],
        versions=metadata["versions"],
        platform=metadata["platform"],
        inputs=_tensors(metadata["inputs"]),
        outputs=_tensors(metadata["outputs"]),
        properties={name: str(value) for name, value in metadata["parameters"].items()},
    )


def _tensors(tensors: Iterable[Mapping[str, Any]]) -> list[Any]:
    return [messages.ModelMetadataResponse.TensorMetadata(**tensor) for tensor in tensors]


def status_bytes(error: EncoreError, code: int) -> bytes:
    """A refusal as a google.rpc.Status: its line, and its parts as an ErrorInfo."""
    parts = error.parts()
    info = messages.ErrorInfo(
        reason=parts["code"].upper(), domain=ERROR_DOMAIN, metadata={"error": str(error), **parts}
    )
    status = messages.RpcStatus(code=code, message=str(error))
    status.details.add(type_url=messages.ERROR_INFO_URL, value=info.SerializeToString())
    return bytes(status.SerializeToString())


def error_parts(status: bytes) -> dict[str, str] | None:
    """The inverse: `{"error", "code", "where", "required", "got", "do"}`; None where it is not
    encore's."""
    try:
        decoded = messages.RpcStatus.FromString(status)
        for detail in decoded.details:
            if detail.type_url == messages.ERROR_INFO_URL:
                info = messages.ErrorInfo.FromString(detail.value)
                if info.domain == ERROR_DOMAIN:
                    return dict(info.metadata)
    except DecodeError:
        return None
    return None
