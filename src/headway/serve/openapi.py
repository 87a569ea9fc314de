"""The OpenAPI document, generated from the endpoints' structs, and a page that displays it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import msgspec
from starlette.datastructures import FormData
from starlette.responses import HTMLResponse, Response

from headway.serve.body_reader import structs_within
from headway.serve.http_errors import OLLAMA_PREFIX, ErrorBody, OllamaError
from headway.serve.interfaces import BodyStream, Context, Endpoint
from headway.serve.wire import JSON_LINES, NAMED

_REFERENCE = "#/components/schemas/{name}"
_JSON_TYPES = {str: "string", int: "integer"}
_AUDIO_FORM = {  # all forms contain an audio file
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "timestamp_granularities[]": {"type": "array", "items": {"enum": ["segment", "word"]}},
        "stream": {"enum": ["false"]},
        "chunking_strategy": {"enum": ["auto"]},
        "temperature": {"type": "number", "minimum": 0, "maximum": 1},
        "response_format": {"enum": ["json", "text", "srt", "verbose_json", "vtt"]},
        **{name: {"type": "string"} for name in ("model", "language", "prompt")},
    },
    "required": ["file"],
    "additionalProperties": False,
}
_STATUSES = {
    "400": "invalid request",
    "401": "missing or unknown API key",
    "403": "host or web page not allowed",
    "404": "unknown model",
    "408": "timeout",
    "413": "body too large",
    "415": "wrong content type",
    "429": "too many requests",
    "503": "model unavailable, or server shutting down",
}


def documentation_endpoints(endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """The endpoints that document all others."""
    document = openapi(endpoints)
    raw, page = json.dumps(document).encode(), _page(document)
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}

    async def get_document(body: None, context: Context) -> Response:
        return Response(raw, media_type="application/json")

    async def get_docs(body: None, context: Context) -> Response:
        return HTMLResponse(page, headers=headers)

    return (
        Endpoint("GET", "/openapi.json", get_document, "this server's OpenAPI document"),
        Endpoint("GET", "/docs", get_docs, "this server's API as a web page"),
    )


def openapi(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these endpoints."""
    structs: list[Any] = [ErrorBody, OllamaError]
    for entry in endpoints:
        structs += [
            kind
            for kind in (entry.body, entry.answer, entry.part)
            if kind not in (None, FormData, BodyStream, *structs)
        ]
    schemas, components = msgspec.json.schema_components(structs, ref_template=_REFERENCE)
    by_struct = dict(zip(structs, schemas))
    for struct in {inner for entry in structs for inner in structs_within(entry)}:
        properties: dict[str, Any] = components[struct.__name__].get("properties", {})
        for name, neutral in getattr(struct, "NEUTRAL", {}).items():
            kind = int if neutral.default_of else neutral.kind
            properties.setdefault(
                name, {"type": [_JSON_TYPES[kind], "null"]} if kind else {"enum": [None, *neutral.values]}
            )
    paths: dict[str, Any] = {}
    for entry in endpoints:
        paths.setdefault(entry.path.replace(":path}", "}"), {})[entry.method.lower()] = _operation(entry, by_struct)
    return {
        "openapi": "3.1.0",
        "info": {"title": "headway", "version": "1", "description": "headway models with an OpenAI-compatible API."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _operation(endpoint: Endpoint, schemas: dict[Any, Any]) -> dict[str, Any]:
    response_content: dict[str, Any] = (
        {"application/json": {"schema": schemas[endpoint.answer]}} if endpoint.answer else {}
    )
    if endpoint.part is not None:
        # The schema of one element of the stream: a line or an event.
        element: dict[str, Any] = schemas[endpoint.part]
        if endpoint.wire is not JSON_LINES:
            data = {"type": "string", "contentMediaType": "application/json", "contentSchema": element}
            if endpoint.wire.end:
                data = {"anyOf": [data, {"const": "[DONE]"}]}  # the last event
            properties = {**({"event": {"type": "string"}} if endpoint.wire is NAMED else {}), "data": data}
            element = {"type": "object", "properties": properties, "required": list(properties)}
        response_content[endpoint.wire.media_type.partition(";")[0]] = {"schema": element}
    errors = OllamaError if endpoint.path.startswith(OLLAMA_PREFIX) else ErrorBody
    refused = {"application/json": {"schema": schemas[errors]}}
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "responses": {
            "200": {"description": endpoint.summary, **({"content": response_content} if response_content else {})},
            **{status: {"description": why, "content": refused} for status, why in _STATUSES.items()},
        },
    }
    if endpoint.body is FormData:
        operation["requestBody"] = {"content": {"multipart/form-data": {"schema": _AUDIO_FORM}}, "required": True}
    elif endpoint.body is BodyStream:
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"content": content, "required": True}
    elif endpoint.body is not None:
        content = {"application/json": {"schema": schemas[endpoint.body]}}
        operation["requestBody"] = {"content": content, "required": True}
    parts = [part[1:-1].partition(":")[0] for part in endpoint.path.split("/") if part.startswith("{")]
    parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in parts]
    parameters += [{"name": n, "in": "query", "schema": {"type": "string"}} for n in endpoint.query]
    if parameters:
        operation["parameters"] = parameters
    return operation


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } td { border-top: 1px solid #ccc; padding: .2rem .6rem; }
td:first-child, h2 { font-family: ui-monospace, monospace; } h2 { font-size: 1.1rem; margin-top: 2rem; }
"""


def _page(document: dict[str, Any]) -> str:
    schemas = document["components"]["schemas"]
    parts = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(operation['summary'])}</p>")
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content:
                parts.append(_table(schemas[content["schema"]["$ref"].rpartition("/")[2]]))
    for name, schema in sorted(schemas.items()):
        parts.append(f"<h2>{escape(name)}</h2><p>{escape(schema.get('description', ''))}</p>{_table(schema)}")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>headway</title><style>{_STYLE}</style>"
    return f"{head}<h1>headway</h1><p>The document: <a href=/openapi.json>/openapi.json</a></p>{''.join(parts)}</html>"


def _table(schema: dict[str, Any]) -> str:
    rows = []
    required = schema.get("required", ())
    for name, kind in schema.get("properties", {}).items():
        must = "required" if name in required else f"default {json.dumps(kind['default'])}" if "default" in kind else ""
        rows.append(f"<tr><td>{escape(name)}<td>{escape(_type_text(kind))}<td>{escape(must)}")
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _type_text(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_type_text, schema["anyOf"]))
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"]))
    kind = str(schema.get("type", "anything"))
    limits = [f"{sign} {schema[key]}" for key, sign in _LIMITS.items() if key in schema]
    inner = f" of {_type_text(schema['items'])}" if kind == "array" and schema.get("items") else ""
    return f"{kind}{inner}{', ' if limits else ''}{', '.join(limits)}"


_LIMITS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to"}
