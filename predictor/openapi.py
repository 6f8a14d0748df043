"""The ranking service over HTTP as an OpenAPI 3.1 document.

Served at `/openapi.json`, as a page at `/docs`, and published as `contracts/openapi.json`. It says
what holds for any plan; the tensors of a running one are in `GET /v2/models/{name}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from predictor.limits import Limits

Json = dict[str, Any]
ERROR_PARTS: Final = ("error", "code", "where", "required", "got", "do")
#: Status -> when a route answers with it.
ERRORS: Final[dict[int, str]] = {
    400: "The request is wrong; `where` names the field.",
    404: "No such route, model or version.",
    405: "A known route, another method.",
    408: "The head or the body did not come in time.",
    413: "The body is larger than `max_body_bytes`.",
    415: "The body is compressed.",
    431: "The head is too large.",
    500: "A defect of the service.",
    503: "Overloaded, draining, or something required is away; try again after `Retry-After`.",
}
_JSON: Final = "application/json"
_BINARY: Final = "application/octet-stream"


def document(version: str) -> Json:
    """The document. version: of the service."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "encore ranking service",
            "version": version,
            "summary": "Open Inference Protocol v2 over HTTP, and the routes of Feast's clients.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _protocol_paths() | _feast_paths(),
        "components": {
            "schemas": _schemas(),
            "parameters": _parameters(),
            "responses": {f"E{status}": _error(text) for status, text in ERRORS.items()},
        },
    }


# --- paths ----------------------------------------------------------------------------------


def _protocol_paths() -> Json:
    paths = {
        "/v2": {"get": _get("serverMetadata", "The server and its extensions", "Server")},
        "/v2/health/live": {"get": _get("serverLive", "The process answers", "Live")},
        "/v2/health/ready": {"get": _ready("serverReady", "A plan is served, no drain", "Ready")},
        "/metrics": {"get": _metrics()},
        "/openapi.json": {"get": _get("openapi", "This document", "Any")},
        "/docs": {"get": _page()},
    }
    for path, names in (("", ("name",)), ("/versions/{version}", ("name", "version"))):
        at, suffix = f"/v2/models/{{name}}{path}", "Version" if path else ""
        metadata = _get(f"modelMetadata{suffix}", "What a model takes and gives", "Model", 404)
        ready = _ready(f"modelReady{suffix}", "Readiness of a model", "ModelReady", 404)
        paths[at] = {**_in_path(names), "get": metadata}
        paths[f"{at}/ready"] = {**_in_path(names), "get": ready}
        paths[f"{at}/infer"] = {**_in_path(names), "post": _infer(f"modelInfer{suffix}")}
    return paths


def _feast_paths() -> Json:
    read, written = (400, 408, 413, 415), (400, 408, 413, 415, 503)
    online = _post(
        "getOnlineFeatures", "Features of entities", "OnlineRequest", "OnlineReply", *read
    )
    return {
        "/get-online-features": {"post": online},
        "/push": {"post": _post("push", "Batch rows by push source", "Push", "Null", *written)},
        "/write-to-online-store": {
            "post": _post("writeToOnlineStore", "Batch rows by view", "Write", "Null", *written)
        },
        "/health": {"get": _ready("health", "As /v2/health/ready", "Ready")},
    }


def _in_path(names: tuple[str, ...]) -> Json:
    return {"parameters": [{"$ref": f"#/components/parameters/{name}"} for name in names]}


def _errors(*statuses: int) -> Json:
    return {str(each): {"$ref": f"#/components/responses/E{each}"} for each in (*statuses, 500)}


def _get(operation: str, summary: str, schema: str, *errors: int) -> Json:
    answer = {"description": summary, "content": {_JSON: {"schema": _ref(schema)}}}
    return {
        "operationId": operation,
        "summary": summary,
        "responses": {"200": answer, **_errors(*errors)},
    }


def _ready(operation: str, summary: str, schema: str, *errors: int) -> Json:
    get = _get(operation, summary, schema, *errors)
    get["responses"]["503"] = {
        "description": "Not ready",
        "content": {_JSON: {"schema": _ref(schema)}},
    }
    return get


def _metrics() -> Json:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": "metrics",
        "summary": "Prometheus; of one of several serving processes not here",
        "responses": {"200": {"description": "Metrics", "content": text}, **_errors(404)},
    }


def _page() -> Json:
    text = {"text/html": {"schema": {"type": "string"}}}
    return {
        "operationId": "docs",
        "summary": "This document for people",
        "responses": {"200": {"description": "A page", "content": text}, **_errors()},
    }


def _post(operation: str, summary: str, takes: str, gives: str, *errors: int) -> Json:
    return {
        "operationId": operation,
        "summary": summary,
        "requestBody": {"required": True, "content": {_JSON: {"schema": _ref(takes)}}},
        "responses": {
            "200": {"description": summary, "content": {_JSON: {"schema": _ref(gives)}}},
            **_errors(*errors),
        },
    }


def _infer(operation: str) -> Json:
    statuses = (400, 404, 408, 413, 415, 503)
    post = _post(operation, "One request to a model", "InferRequest", "InferReply", *statuses)
    length = {"$ref": "#/components/parameters/jsonLength"}
    raw = {"schema": {"type": "string", "contentMediaType": _BINARY}}
    post["parameters"] = [length]
    post["requestBody"]["content"][_BINARY] = raw
    post["responses"]["200"]["content"][_BINARY] = raw
    return post


# --- components -----------------------------------------------------------------------------


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _object(required: Mapping[str, Json], optional: Mapping[str, Json] | None = None) -> Json:
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": [*required], "properties": properties}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


_TEXT: Final[Json] = {"type": "string"}
_BOOLEAN: Final[Json] = {"type": "boolean"}
_INTEGER: Final[Json] = {"type": "integer"}
#: As its caller names it; the reply's parameter `request_id` is the key of its log.
_ID: Final[Json] = {"type": "string", "minLength": 1, "maxLength": Limits().name_chars}
_INT64: Final[Json] = {"type": "integer", "format": "int64"}
_VALUES: Final[Json] = {"type": "object", "additionalProperties": {"type": "array"}}
_ANY_PARAMETERS: Final[Json] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
}


def _parameters() -> Json:
    named = {"in": "path", "required": True, "schema": _TEXT}
    return {
        "name": {"name": "name", "description": "`rank` or `aggregate`", **named},
        "version": {
            "name": "version",
            "description": "Fingerprint of the feature service: 404 when another one serves",
            **named,
        },
        "jsonLength": {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "description": "Binary tensors follow the JSON, which is so many bytes long",
            "schema": _INTEGER,
        },
    }


def _error(description: str) -> Json:
    return {"description": description, "content": {_JSON: {"schema": _ref("Error")}}}


def _schemas() -> Json:
    return {
        "Any": {"type": "object"},
        "Null": {"type": "null"},
        "Error": _object(dict.fromkeys(ERROR_PARTS, _TEXT)),
        "Live": _object({"live": _BOOLEAN}),
        "Ready": _object({"ready": _BOOLEAN}),
        "Server": _object({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}),
        "ModelReady": _object({"name": _TEXT, "ready": _BOOLEAN}),
        **_model_schemas(),
        **_infer_schemas(),
        **_feast_schemas(),
    }


def _model_schemas() -> Json:
    tensor = {"name": _TEXT, "datatype": _TEXT, "shape": _list(_INTEGER)}
    return {
        "TensorMetadata": _object(tensor),
        "Model": _object(
            {
                "name": _TEXT,
                "versions": _list(_TEXT),
                "platform": _TEXT,
                "inputs": _list(_ref("TensorMetadata")),
                "outputs": _list(_ref("TensorMetadata")),
                "parameters": _ANY_PARAMETERS,
            }
        ),
    }


def _infer_schemas() -> Json:
    binary_input = _object({}, {"binary_data_size": _INTEGER})
    binary_output = _object({}, {"binary_data": _BOOLEAN})
    tensor = {"name": _TEXT, "datatype": _TEXT, "shape": _list(_INTEGER)}
    asked = {
        "request_id": {"type": "string", "format": "uuid"},
        "page_size": _INTEGER,
        "timeout": {"type": "number", "description": "ms by which the reply comes"},
        "now_ms": {**_INT64, "description": "the features' clock, where the server allows it"},
        "binary_data_output": _BOOLEAN,
    }
    return {
        "Input": _object(
            {
                "name": {"enum": ["user_id", "candidate_ids"]},
                "datatype": {"const": "INT64"},
                "shape": _list(_INTEGER),
            },
            {"data": _list(_INT64), "parameters": binary_input},
        ),
        "InferRequest": _object(
            {"inputs": _list(_ref("Input"))},
            {
                "id": _ID,
                "parameters": {**_object({}, asked), "additionalProperties": False},
                "outputs": _list(_object({"name": _TEXT}, {"parameters": binary_output})),
            },
        ),
        "Output": _object(
            tensor,
            {
                "data": _list({"type": ["number", "null"], "description": "null: not computed"}),
                "parameters": binary_input,
            },
        ),
        "InferReply": _object(
            {
                "model_name": _TEXT,
                "model_version": _TEXT,
                "id": _ID,
                "parameters": _ANY_PARAMETERS,
                "outputs": _list(_ref("Output")),
            }
        ),
    }


def _feast_schemas() -> Json:
    column = {"values": {"type": "array"}, "statuses": _list(_TEXT)}
    written = {"df": _VALUES}
    ignored = {"allow_registry_cache": _BOOLEAN, "transform_on_write": _BOOLEAN}
    return {
        "OnlineRequest": _object(
            {"entities": _VALUES},
            {
                "features": _list(_TEXT),
                "feature_service": _TEXT,
                "full_feature_names": _BOOLEAN,
                "include_feature_view_version_metadata": _BOOLEAN,
            },
        ),
        "OnlineReply": _object(
            {
                "metadata": _object({"feature_names": _list(_TEXT)}),
                "results": _list(_object({**column, "event_timestamps": _list(_TEXT)})),
            }
        ),
        "Push": _object(
            {"push_source_name": _TEXT, **written}, {"to": {"const": "online"}, **ignored}
        ),
        "Write": _object({"feature_view_name": _TEXT, **written}, ignored),
    }
