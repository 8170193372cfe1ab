"""Bodies of requests and responses: size and time limits, JSON, and errors as one line."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from regionqa.boxes.fields import parse_json
from regionqa.data.fields import likely_key
from regionqa.pipeline.outputs import encode

Body = TypeVar("Body", bound=msgspec.Struct)


class HttpError(Exception):
    """A request that is refused, with the status and the line of the response."""

    def __init__(self, status: int, line: str, **headers: str) -> None:
        """headers: of the response, with `_` for `-`."""
        super().__init__(line)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> Response:
        """Return the response."""
        return failure(self.status, str(self), self.headers)


def json_bytes(document: object) -> bytes:
    """Render JSON as `ask --format json` does: UTF-8, stray bytes of file names escaped."""
    return encode(json.dumps(document, ensure_ascii=False))


def reply(
    document: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response with a JSON document."""
    return Response(json_bytes(document), status, headers, media_type="application/json")


def failure(status: int, line: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response to a request that failed."""
    return reply({"error": " ".join(line.split())}, status, headers)


async def read_body(request: HttpRequest, limit: int, seconds: float) -> bytes:
    """Read the body of a request.

    Args:
        request: The request.
        limit: Largest number of bytes.
        seconds: Time in which all of it must arrive.

    Raises:
        HttpError: It is too large or too slow, or breaks off.
    """
    too_large = HttpError(413, f"the body is larger than {limit:,} bytes; send less")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > limit:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise HttpError(408, f"the body did not arrive within {seconds:g} seconds") from None
    except ClientDisconnect:
        raise HttpError(400, "the body breaks off") from None
    return b"".join(parts)


async def read_document(request: HttpRequest, limit: int, seconds: float) -> dict[str, Any]:
    """Read a body that is a JSON object; HttpError if it is none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpError(415, "send JSON, with the header Content-Type: application/json")
    content = await read_body(request, limit, seconds)
    try:
        document = parse_json(content.decode("utf-8"))
    except ValueError as error:
        raise HttpError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise HttpError(400, 'the body is not a JSON object, like {"question": "what is this?"}')
    return document


def convert(document: Mapping[str, object], kind: type[Body]) -> Body:
    """Read a JSON object; HttpError for an unknown key, or a value of a wrong kind."""
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for key in document:
        if key not in known:
            near = likely_key(key, known)
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(known)}"
            raise HttpError(422, f"unknown key {key!r}; {hint}")
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise HttpError(422, str(error)) from None
