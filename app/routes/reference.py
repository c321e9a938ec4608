"""The API's reference as a web page: the OpenAPI document made readable, with no script and nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request, Response

router = APIRouter(include_in_schema=False)

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid #8886; padding: .5rem 0 1rem; }
h2, code { font-family: ui-monospace, monospace; }
h2 { font-size: 1.05rem; overflow-wrap: anywhere; }
h2 b { display: inline-block; min-width: 4.5rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td { border-top: 1px solid #8883; padding: .2rem .8rem .2rem 0; vertical-align: top; }
td:first-child { white-space: nowrap; }
pre { overflow-x: auto; background: #8882; padding: .7rem; font-size: .85rem; }
h3 { font-size: .9rem; margin: .8rem 0 .2rem; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"


@router.get("/docs")
async def reference(request: Request) -> Response:
    """The reference of the API."""
    html = render(request.app.openapi())
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return Response(html, media_type="text/html", headers=headers)


def render(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document."""
    return "\n".join(_page(document))


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    info, schemas = document["info"], document["components"]["schemas"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}: API</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>{title}</h1>{_paragraphs(info['description'])}"
    yield '<p>For programs: <a href="openapi.json">openapi.json</a></p>'
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"<section><h2><b>{method.upper()}</b> {escape(path)}</h2>"
            yield f"<p><strong>{escape(operation.get('summary', ''))}.</strong></p>"
            yield _paragraphs(operation.get("description", ""))
            yield from _parameters(operation)
            yield from _body(operation, schemas)
            yield from _responses(operation)
            yield "</section>"
    for name in ("VideoObject", "ChunkObject", "ModelObject"):
        yield f"<section><h2>{name}</h2>"
        yield from _fields(schemas[name])
        yield "</section>"
    yield "</body></html>"


def _parameters(operation: Mapping[str, Any]) -> Iterator[str]:
    if rows := operation.get("parameters"):
        yield "<h3>Parameters</h3><table>"
        for row in rows:
            said = f"{row['in']}. {row.get('description', '')}"
            yield _row(row["name"], _type(row["schema"]), said)
        yield "</table>"


def _body(operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = schemas[content["schema"]["$ref"].rpartition("/")[2]]
        yield f"<h3>Body, {escape(media_type)}</h3>"
        if media_type == "application/json":
            yield from _fields(schema)
            for example in schema.get("examples", []):
                yield f"<pre>{escape(json.dumps(example, indent=2, ensure_ascii=False))}</pre>"
        else:
            yield "<p>The same fields.</p>"


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    yield "<table>"
    for name, field in schema["properties"].items():
        yield _row(name, _type(field), field.get("description", ""))
    yield "</table>"


def _responses(operation: Mapping[str, Any]) -> Iterator[str]:
    yield "<h3>Answers</h3><table>"
    for status, answer in operation["responses"].items():
        types = ", ".join(answer.get("content", {}))
        yield _row(status, types, answer["description"])
    yield "</table>"


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("type", schema.get("const", "")))


def _row(*cells: str) -> str:
    first, *rest = cells
    others = "".join(f"<td>{_inline(cell)}</td>" for cell in rest)
    return f"<tr><td><code>{escape(first)}</code></td>{others}</tr>"


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_inline(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
