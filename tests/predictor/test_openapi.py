"""The OpenAPI document says what the service does: its routes, and real replies by its schemas."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from predictor.http import create_app
from predictor.openapi import ERRORS, document
from predictor.service import Service
from tests.predictor.support import NOW_MS, PLAN, SERVICE, USERS, RunningServer, body
from tests.test_docs import table

DOCUMENT = document("0.1.0")
SCHEMAS = DOCUMENT["components"]["schemas"]


class HTMLBalance(HTMLParser):
    """Tags that are open, or closed though they are not."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[str] = []

    @classmethod
    def of(cls, text: str) -> list[str]:
        found = cls()
        found.feed(text)
        return found.left

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "meta":
            self.left.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.left[-1:] == [tag]:
            self.left.pop()
        else:
            self.left.append(f"/{tag}")


KINDS: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def faults(schema: dict[str, Any], value: Any, at: str = "$") -> list[str]:
    """Where a value is not of a schema, for the keywords that the document uses."""
    if "$ref" in schema:
        return faults(SCHEMAS[schema["$ref"].rpartition("/")[2]], value, at)
    if "const" in schema or "enum" in schema:
        return [] if value in schema.get("enum", [schema.get("const")]) else [f"{at}: {value!r}"]
    named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    fits = any(
        isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))
        for kind in named
    )
    if not fits:
        return [f"{at}: {value!r} is no {schema['type']}"]
    found: list[str] = []
    if isinstance(value, list) and "items" in schema:
        for place, item in enumerate(value):
            found += faults(schema["items"], item, f"{at}[{place}]")
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{at}: no {name}" for name in schema.get("required", ()) if name not in value]
        for name, item in value.items():
            if name in properties:
                found += faults(properties[name], item, f"{at}.{name}")
            elif isinstance(others, dict):
                found += faults(others, item, f"{at}.{name}")
            elif not others:
                found.append(f"{at}: {name} is not known")
    return found


def of_request(path: str, method: str) -> dict[str, Any]:
    schema: dict[str, Any] = DOCUMENT["paths"][path][method]["requestBody"]["content"][
        "application/json"
    ]["schema"]
    return schema


def of_reply(path: str, method: str, status: int) -> dict[str, Any]:
    response = DOCUMENT["paths"][path][method]["responses"][str(status)]
    if "$ref" in response:
        response = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
    schema: dict[str, Any] = response["content"]["application/json"]["schema"]
    return schema


def test_the_routes_are_the_applications() -> None:
    app: Any = create_app(Service.__new__(Service))
    routes = {(r.path, method.lower()) for r in app.routes for method in r.methods - {"HEAD"}}
    named = {
        (path, method)
        for path, operations in DOCUMENT["paths"].items()
        for method in operations
        if method != "parameters"
    }
    assert named == routes


def test_the_errors_are_those_of_the_errors_page() -> None:
    assert {str(status) for status in ERRORS} == {
        row[0] for row in table("docs/errors.md", "status")
    }


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(DOCUMENT)
    for part in text.split('"$ref": "')[1:]:
        place: Any = DOCUMENT
        for step in part.partition('"')[0].removeprefix("#/").split("/"):
            place = place[step]
    operations = [
        operation["operationId"]
        for path in DOCUMENT["paths"].values()
        for method, operation in path.items()
        if method != "parameters"
    ]
    assert len(set(operations)) == len(operations)


def test_the_page_tells_all_of_it(running: RunningServer) -> None:
    """And takes nothing from elsewhere."""
    reply = running.client.get("/docs")
    assert reply.headers["content-type"].startswith("text/html")
    for path in DOCUMENT["paths"]:
        assert path in reply.text
    anchors = re.findall(r'id="(\w+)"', reply.text)
    assert anchors == list(SCHEMAS)
    links = set(re.findall(r'(?:href|src)="([^"]+)"', reply.text))
    assert links <= {"/openapi.json", *(f"#{name}" for name in anchors)}
    assert "#InferRequest" in links
    assert "<script" not in reply.text
    assert "`" not in reply.text
    assert not set(HTMLBalance.of(reply.text))


def test_it_is_served(running: RunningServer) -> None:
    assert running.client.get("/openapi.json").json() == json.loads(json.dumps(DOCUMENT))


TEXTS = ("/metrics", "/docs")
GETS = [path for path, each in DOCUMENT["paths"].items() if "get" in each and path not in TEXTS]


@pytest.mark.parametrize("path", GETS)
def test_replies_of_questions_fit(path: str, running: RunningServer) -> None:
    for name in ("rank", "aggregate"):
        url = path.replace("{name}", name).replace("{version}", SERVICE.fingerprint)
        reply = running.client.get(url)
        assert not faults(of_reply(path, "get", reply.status_code), reply.json())


@pytest.mark.parametrize("version", ["", "/versions/{version}"])
@pytest.mark.parametrize("name", ["rank", "aggregate", "best"])
def test_requests_and_replies_fit(name: str, version: str, running: RunningServer) -> None:
    path = f"/v2/models/{{name}}{version}/infer"
    request = body(id="1c1f6a10-3c3b-4f8e-9b43-6f7c0a2b9d11", parameters={"now_ms": NOW_MS})
    assert not faults(of_request(path, "post"), request)
    url = path.replace("{name}", name).replace("{version}", SERVICE.fingerprint)
    reply = running.client.post(url, json=request)
    assert reply.status_code == (404 if name == "best" else 200)
    assert not faults(of_reply(path, "post", reply.status_code), reply.json())


def test_what_does_not_fit_is_refused(running: RunningServer) -> None:
    """The other way round: some requests outside of the schema."""
    path = "/v2/models/{name}/infer"
    for wrong in ({}, body(parameters={"timeout_ms": 1}), body() | {"inputs": ["user_id"]}):
        assert faults(of_request(path, "post"), wrong)
        reply = running.client.post("/v2/models/rank/infer", json=wrong)
        assert not faults(of_reply(path, "post", 400), reply.json())


def test_the_routes_of_feasts_clients_fit(running: RunningServer) -> None:
    view = next(view for view in PLAN.views if view.entity == "user" and view.features)
    asked = {
        "/get-online-features": {
            "entities": {"user_id": list(USERS[:2])},
            "features": [f"{view.name}:{view.features[0].name}"],
        },
        "/push": {"push_source_name": "nobody", "df": {"user_id": [1]}, "to": "online"},
        "/write-to-online-store": {"feature_view_name": "nobody", "df": {"user_id": [1]}},
    }
    for path, request in asked.items():
        assert not faults(of_request(path, "post"), request)
        reply = running.client.post(path, json=request)
        assert not faults(of_reply(path, "post", reply.status_code), reply.json())


def test_the_published_document_is_this_one() -> None:
    published = Path(__file__).parents[2] / "contracts" / "openapi.json"
    assert json.loads(published.read_text("utf-8")) == json.loads(json.dumps(DOCUMENT))
