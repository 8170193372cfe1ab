"""The API's description: OpenAPI of the endpoints, and a page of it for people.

Schemas come from the structs that read the bodies, so that the two do not differ.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from typing import Any

import msgspec

import regionqa

CODE = re.compile("`([^`]+)`")
REFERENCES = "#/components/schemas/{name}"


@dataclass(frozen=True)
class ApiEndpoint:
    """One method of one path, as it is described."""

    method: str
    path: str
    summary: str
    body: type[msgspec.Struct] | str | None = None
    """Struct of a JSON body, or the media type of another one."""
    query: tuple[tuple[str, str, str], ...] = ()
    """Parameters of the query: name, JSON type, description."""
    replies: str = "application/json"
    """Media type of the response."""
    details: str = ""
    """Further sentences."""


STATUSES = {
    "400": "The body is not JSON, or breaks off.",
    "401": "The token is missing or wrong.",
    "403": "The request comes from a page of another origin.",
    "404": "There is no such image.",
    "409": "The model is not the one that was named, or is being switched.",
    "413": "The body is too large.",
    "422": "A value is missing or not possible; nothing could be answered.",
    "429": "Too much is waiting; Retry-After says when to ask again.",
    "503": "The server is shutting down.",
}
"""What the statuses of failures mean, for all endpoints; each has `{"error": "one line"}`."""


def openapi(endpoints: Sequence[ApiEndpoint]) -> dict[str, Any]:
    """Return the OpenAPI document of the endpoints."""
    structs = [each.body for each in endpoints if isinstance(each.body, type)]
    schemas, components = msgspec.json.schema_components(structs, ref_template=REFERENCES)
    by_struct = dict(zip(structs, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for each in endpoints:
        operation: dict[str, Any] = {
            "summary": each.summary,
            "description": each.details or each.summary,
            "responses": {
                "200": {"description": "Done.", "content": {each.replies: {}}},
                **{status: {"description": text} for status, text in STATUSES.items()},
            },
        }
        names = [part[1:-1].partition(":")[0] for part in each.path.split("/") if part[:1] == "{"]
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ] + [
            {"name": name, "in": "query", "description": text, "schema": {"type": kind}}
            for name, kind, text in each.query
        ]
        if parameters:
            operation["parameters"] = parameters
        if isinstance(each.body, type):
            content = {"application/json": {"schema": by_struct[each.body]}}
            operation["requestBody"] = {"required": True, "content": content}
        elif each.body:
            operation["requestBody"] = {"required": True, "content": {each.body: {}}}
        path = each.path.replace(":path}", "}")
        paths.setdefault(path, {})[each.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "regionqa",
            "version": regionqa.__version__,
            "description": "Questions about regions of images.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def docs_page(document: dict[str, Any]) -> str:
    """Render an OpenAPI document as a page without scripts."""
    schemas = document["components"]["schemas"]
    sections = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            sections.append(_section(method.upper(), path, operation, schemas))
    statuses = "".join(
        f"<tr><th scope=row>{status}</th><td>{escape(text)}</td></tr>"
        for status, text in STATUSES.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<title>regionqa API</title>\n<link rel=icon href=/page/icon.svg>\n"
        "<link rel=stylesheet href=/page/style.css>\n</head>\n"
        '<body class="docs">\n<main>\n<h1>regionqa API</h1>\n'
        "<p>Send the token as <code>Authorization: Bearer TOKEN</code>. "
        "<a href=/openapi.json>OpenAPI document</a>, <a href=/>the page</a></p>\n"
        + "\n".join(sections)
        + f"\n<h2>Statuses</h2>\n<table>{statuses}</table>\n</main>\n</body>\n</html>\n"
    )


def _section(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    description = CODE.sub(r"<code>\1</code>", escape(operation["description"]))
    parts = [
        f"<section>\n<h2><code>{method} {escape(path)}</code></h2>",
        f"<p>{description}</p>",
    ]
    parameters = [
        (each["name"], each["schema"]["type"], each.get("description", "Part of the path."))
        for each in operation.get("parameters", ())
    ]
    if parameters:
        parts.append(_table("Parameters", parameters))
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        if "schema" not in content:
            parts.append(f"<p>Body: <code>{escape(kind)}</code></p>")
            continue
        name = content["schema"]["$ref"].rpartition("/")[2]
        parts.append(_table("Body", _fields(schemas[name], schemas)))
    parts.append("</section>")
    return "\n".join(parts)


def _table(title: str, rows: Sequence[tuple[str, str, str]]) -> str:
    body = "".join(
        f"<tr><th scope=row><code>{escape(name)}</code></th><td>{escape(kind)}</td>"
        f"<td>{escape(text)}</td></tr>"
        for name, kind, text in rows
    )
    return f"<table><caption>{title}</caption>{body}</table>"


def _fields(
    schema: dict[str, Any], schemas: dict[str, Any], prefix: str = ""
) -> list[tuple[str, str, str]]:
    """Return name, type and description of the fields of a schema, and of objects in its lists."""
    rows = []
    required = schema.get("required", ())
    for name, each in schema.get("properties", {}).items():
        reference = each.get("$ref") or each.get("items", {}).get("$ref")
        kind = _kind(each, schemas) + (", required" if name in required else "")
        rows.append((prefix + name, kind, _description(each)))
        inner = schemas.get(str(reference).rpartition("/")[2], {})
        if "properties" in inner:
            rows += _fields(inner, schemas, f"{prefix}{name}[].")
    return rows


def _description(schema: dict[str, Any]) -> str:
    """Return the description of a value, or of the first of its alternatives that has one."""
    if "description" in schema:
        return str(schema["description"])
    return next(filter(None, map(_description, schema.get("anyOf", ()))), "")


def _kind(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    """Return the type of a value in words."""
    if "$ref" in schema:
        return _kind(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "anyOf" in schema:
        kinds = (_kind(each, schemas).split(" or ") for each in schema["anyOf"])
        return " or ".join(dict.fromkeys(chain.from_iterable(kinds)))
    if "enum" in schema:
        return ", ".join(str(each) for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}), schemas)}"
    return str(schema.get("type", "any"))
