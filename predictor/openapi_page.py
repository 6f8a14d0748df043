"""The OpenAPI document as a page for people: HTML, no scripts, nothing from elsewhere."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from predictor.openapi import Json, document

_STYLE: Final = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "code,pre{font:13px/1.4 monospace}pre{background:#f4f4f4;padding:.8em;overflow:auto}"
    "h3{margin-top:2em}h3 code{font-size:16px}"
    "td,th{padding:.2em 1em .2em 0;text-align:left;vertical-align:top}"
)
_CODE: Final = re.compile(r"`([^`]+)`")
_SCHEMA_LINK: Final = re.compile(r"&quot;#/components/schemas/(\w+)&quot;")


def page(version: str) -> str:
    """The page. version: of the service."""
    shown = document(version)
    title = html.escape(shown["info"]["title"])
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title} {html.escape(version)}</h1>",
        f"<p>{html.escape(shown['info']['summary'])} "
        'For programs: <a href="/openapi.json">openapi.json</a>.</p><h2>Routes</h2>',
        *_routes(shown),
        "<h2>Schemas</h2>",
        *_schemas(shown["components"]["schemas"]),
        "</body></html>",
    ]
    return "\n".join(parts)


def _routes(shown: Json) -> Iterator[str]:
    for path, operations in shown["paths"].items():
        for method, operation in operations.items():
            if method == "parameters":
                continue
            yield f"<h3><code>{method.upper()} {html.escape(path)}</code></h3>"
            yield f"<p>{_text(operation['summary'])}</p><table>"
            if "requestBody" in operation:
                yield _row("takes", _contents(operation["requestBody"]["content"]))
            for status, response in operation["responses"].items():
                yield _row(status, _answer(response, shown["components"]["responses"]))
            yield "</table>"


def _answer(response: Json, shared: Json) -> str:
    if "$ref" in response:
        response = shared[response["$ref"].rpartition("/")[2]]
    return f"{_text(response['description'])} {_contents(response['content'])}"


def _contents(content: Json) -> str:
    """What a body may be."""
    kinds = []
    for kind, each in content.items():
        name = each["schema"].get("$ref", "").rpartition("/")[2]
        link = f'<a href="#{name}">{name}</a> ' if name else ""
        kinds.append(f"{link}<code>{html.escape(kind)}</code>")
    return ", ".join(kinds)


def _text(text: str) -> str:
    """A line of prose: what is between backticks is code."""
    return _CODE.sub(r"<code>\1</code>", html.escape(text))


def _row(head: str, cell: str) -> str:
    return f"<tr><th>{head}</th><td>{cell}</td></tr>"


def _schemas(schemas: dict[str, Any]) -> Iterator[str]:
    for name, schema in schemas.items():
        text = html.escape(json.dumps(schema, indent=1))
        linked = _SCHEMA_LINK.sub(r'<a href="#\1">\1</a>', text)
        yield f'<h3 id="{name}">{name}</h3><pre>{linked}</pre>'
