"""What clients may send: request bodies are read within limits of size, depth and time, and their fields are checked.

The struct of a body lists its fields; an unknown one is an error that names it. A struct may have a table `NEUTRAL` of
further fields, which are accepted with values that have no effect; any other value is rejected with the reason. `null`
has no effect in any field, known or not.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, get_args, get_type_hints

import msgspec
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from headway.serve.http_errors import StatusError
from headway.serve.interfaces import BodyStream, ServerSettings

_INLINE_BYTES = 1 << 16  # larger bodies are decoded in a thread instead of on the event loop
_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)  # strings are skipped
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(.{1,200}?)`(?: - at `\$?(.*?)`)?$", re.DOTALL)
_LOCATION = re.compile(r"^(.*?)(?: - at `(?:key in )?\$\.?(.*?)`)?$", re.DOTALL)
_MAX_FIELDS = 1000  # fields per form
_MAX_ITEMS = 2048  # inputs or documents per request, as in OpenAI's service
_MAX_SHOWN = 60  # characters of a value in a message


async def read_body(request: Request, decoder: msgspec.json.Decoder[Any], settings: ServerSettings) -> Any:
    """A request's JSON body as the decoder's struct. StatusError 400, 408, 413 or 415 for an invalid body, and
    ClientDisconnect if the client disconnects too early.
    """
    _check_type(request, "application/json")
    _check_length(request, settings.body_bytes)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(settings.receive_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > settings.body_bytes:
                    raise _too_large(f"more than {settings.body_bytes:,}", settings.body_bytes)
                chunks.append(chunk)
    except TimeoutError:
        raise _timeout_error(settings.receive_seconds) from None
    raw = b"".join(chunks)
    if len(raw) <= _INLINE_BYTES:
        return decode(raw, decoder, settings.max_depth)
    return await asyncio.to_thread(decode, raw, decoder, settings.max_depth)


async def read_form(request: Request, settings: ServerSettings) -> FormData:
    """The fields and files of a form. Raises the same errors as `read_body`."""
    _check_type(request, "multipart/form-data")
    _check_length(request, settings.form_bytes)
    size, disconnected = 0, False
    original_stream = request.stream

    async def bounded() -> Any:
        nonlocal size, disconnected
        try:
            async for chunk in original_stream():
                size += len(chunk)
                if size > settings.form_bytes:
                    raise _too_large(f"more than {settings.form_bytes:,}", settings.form_bytes)
                yield chunk
        except ClientDisconnect:
            disconnected = True
            raise MultiPartException("the client left") from None  # on which the parser closes its files

    request.stream = bounded  # type: ignore[method-assign]  # for Starlette's parser
    try:
        async with asyncio.timeout(settings.receive_seconds):
            return await request.form(max_files=16, max_fields=_MAX_FIELDS, max_part_size=settings.body_bytes)
    except TimeoutError:
        raise _timeout_error(settings.receive_seconds) from None
    except (HTTPException, KeyError, UnicodeDecodeError, ValueError) as error:  # HTTPException comes from the parser
        if disconnected:
            raise ClientDisconnect from None
        reason = getattr(error, "detail", None) or str(error)
        raise StatusError(400, f"the body is not a form ({reason}); send multipart/form-data") from None


def open_stream(request: Request, settings: ServerSettings) -> BodyStream:
    """A request's raw body, of which each part must arrive in time. The chunks raise the same errors as `read_body`."""

    async def chunks() -> AsyncIterator[bytes]:
        parts = request.stream()
        while True:
            try:
                async with asyncio.timeout(settings.receive_seconds):
                    chunk = await anext(parts, None)
            except TimeoutError:
                raise _timeout_error(settings.receive_seconds) from None
            if chunk is None:
                return
            yield chunk

    _check_type(request, "application/octet-stream")
    length = request.headers.get("content-length", "")
    return BodyStream(chunks(), int(length) if length.isdecimal() and len(length) <= 18 else None)


def decode(raw: bytes, decoder: msgspec.json.Decoder[Any], depth: int) -> Any:
    """A body as the decoder's struct. StatusError 400 for invalid JSON, deep nesting, and wrong fields or types."""
    if raw.count(b"[") + raw.count(b"{") > depth:
        _check_depth(raw, depth)
    try:
        try:
            return decoder.decode(raw)
        except msgspec.ValidationError:  # perhaps because of a field without effect
            struct: Any = decoder.type
            return msgspec.convert(without_neutral(msgspec.json.decode(raw), struct), struct)
    except msgspec.ValidationError as error:
        raise _validation_error(str(error), decoder.type) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StatusError(400, f"the body is not JSON: {error}; send an object in UTF-8", code="invalid_json") from None
    except RecursionError:
        raise _too_deep(depth) from None


def _check_depth(raw: bytes, max_depth: int) -> None:
    depth = 0
    for match in _BRACKETS.finditer(raw):
        first = raw[match.start()]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                raise _too_deep(max_depth)
        elif first in b"]}":
            depth -= 1


def _too_deep(max_depth: int) -> StatusError:
    return StatusError(400, f"the body is nested more than {max_depth} levels deep; flatten it", code="too_deep")


def _validation_error(message: str, struct: Any) -> StatusError:
    """msgspec's error for a body, with the name of the field at fault and the known fields."""
    unknown = _UNKNOWN_FIELD.search(message)
    if unknown is not None and not unknown[2]:
        known = [field.encode_name for field in msgspec.structs.fields(struct)]
        message = f"unknown field {unknown[1]!r}; use {', '.join(known)}"
        return StatusError(400, message, unknown[1], "unknown_field")
    match = _LOCATION.match(message)
    reason, location = (message, None) if match is None else (match[1], match[2])
    if unknown is not None:
        reason, location = f"unknown field {unknown[1]!r}", f"{location}.{unknown[1]}" if location else unknown[1]
    at = f" at {location}" if location else ""
    return StatusError(400, f"the body is invalid: {reason}{at}; see /docs for the fields", location or None)


def _check_type(request: Request, expected: str) -> None:
    content_type = request.headers.get("content-type", "")
    kind, _, parameters = content_type.partition(";")
    may_be_missing = (
        not content_type and expected == "application/json" and "origin" not in request.headers
    )  # not from a web page
    if kind.strip().lower() != expected and not may_be_missing:
        problem = f"is {content_type[:80]!r}" if content_type else "is missing"
        raise StatusError(415, f"the Content-Type header {problem}; send {expected}", code="unsupported_media_type")
    if expected == "application/json" and "charset" in parameters.lower() and "utf-8" not in parameters.lower():
        raise StatusError(415, f"the Content-Type header has {parameters.strip()[:80]!r}; send UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise StatusError(415, "the body is compressed; send it uncompressed")


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > max_bytes):
        raise _too_large(f"{length[:20]}", max_bytes)


def _timeout_error(seconds: float) -> StatusError:
    return StatusError(408, f"the body did not arrive within {seconds:g} s; send it faster", code="body_timeout")


def _too_large(size: str, max_bytes: int) -> StatusError:
    return StatusError(
        413, f"the body has {size} bytes, but the limit is {max_bytes:,}; send less", code="body_too_large"
    )


def check_count(items: Sequence[Any], name: str, param: str | None = None) -> None:
    """StatusError 400 for no items, and for more than a request may have."""
    if not 1 <= len(items) <= _MAX_ITEMS:
        raise StatusError(400, f"{name} has {len(items):,} items; send 1 to {_MAX_ITEMS:,}", param)


class Neutral(NamedTuple):
    """A field of a request that may only have values without effect."""

    values: tuple[Any, ...] = ()
    reason: str | None = None  # why other values are rejected, and what to do; None: the struct also has this field
    default_of: str | None = None  # a field of the body whose value (default: 1) is also accepted
    kind: type | None = None  # for hints to other servers: the type whose values are all accepted

    def accepts(self, value: Any, body: Mapping[str, Any]) -> bool:
        if self.kind is not None and type(value) is self.kind:
            return True
        same = self.default_of is not None and value == (body.get(self.default_of) or 1)
        return same or any(
            value == neutral_value and type(value) is type(neutral_value) for neutral_value in self.values
        )


Neutrals = dict[str, Neutral]


def without_neutral(value: Any, struct: type[msgspec.Struct], path: str = "") -> Any:
    """Parsed JSON of a struct without fields that have no effect. StatusError 400 for other values of such fields."""
    if not isinstance(value, dict):
        return value
    fields, effective = _fields(struct), {}
    neutral: Mapping[str, Neutral] = getattr(struct, "NEUTRAL", {})
    for name, member in value.items():
        if member is None:
            continue
        if (known := neutral.get(name)) is not None:
            if known.accepts(member, value):
                continue
            reason = f"it must be a {known.kind.__name__}; leave it out" if known.kind else known.reason
            if reason is not None:
                encoded = msgspec.json.encode(member).decode("utf-8", "replace")
                encoded = encoded if len(encoded) <= _MAX_SHOWN else f"{encoded[:_MAX_SHOWN]}..."
                raise StatusError(400, f"{path}{name} is {encoded}, but {reason}", f"{path}{name}", "unsupported")
        inner = fields.get(name)
        if inner is not None and isinstance(member, list):
            member = [without_neutral(item, inner, f"{path}{name}[{index}].") for index, item in enumerate(member)]
        elif inner is not None:
            member = without_neutral(member, inner, f"{path}{name}.")
        effective[name] = member
    return effective


def structs_within(struct: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    """A struct and all structs in its fields."""
    yield struct
    for inner in _fields(struct).values():
        if inner is not None and inner is not struct:
            yield from structs_within(inner)


@cache
def _fields(struct: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct] | None]:
    """The struct of each field, or of the items of its list."""
    hints = get_type_hints(struct)
    return {field.encode_name: next(_structs(hints[field.name]), None) for field in msgspec.structs.fields(struct)}


def _structs(hint: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        yield hint
    for inner in get_args(hint):
        yield from _structs(inner)
