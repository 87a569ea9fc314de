"""Bodies of requests, read within limits of size, depth and time."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from headway.serve.errors import StatusError
from headway.serve.frame import ServerSettings
from headway.serve.neutral import without_neutral

_AT_ONCE = 1 << 16  # bytes that are decoded on the event loop; larger bodies are decoded in a thread
_MARKS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)  # strings are skipped
_UNKNOWN = re.compile(r"Object contains unknown field `(.{1,200}?)`(?: - at `\$?(.*?)`)?$", re.DOTALL)
_PLACE = re.compile(r"^(.*?)(?: - at `(?:key in )?\$\.?(.*?)`)?$", re.DOTALL)
_FIELDS = 1000  # maximum fields of a form


async def read_body(request: Request, decoder: msgspec.json.Decoder[Any], settings: ServerSettings) -> Any:
    """The JSON body of a request as the decoder's struct. StatusError 400, 408, 413 or 415 for an invalid body, and
    ClientDisconnect if the client disconnects too early.
    """
    _check_type(request, "application/json")
    raw = await _received(request, settings.body_bytes, settings.receive_seconds)
    if len(raw) <= _AT_ONCE:
        return decode(raw, decoder, settings.depth)
    return await asyncio.to_thread(decode, raw, decoder, settings.depth)


async def read_form(request: Request, settings: ServerSettings) -> FormData:
    """The fields and files of a form. Raises the same errors as `read_body`."""
    _check_type(request, "multipart/form-data")
    _check_length(request, settings.form_bytes)
    read, left = 0, False
    take = request.stream

    async def bounded() -> Any:
        nonlocal read, left
        try:
            async for piece in take():
                read += len(piece)
                if read > settings.form_bytes:
                    raise _too_large(f"more than {settings.form_bytes:,}", settings.form_bytes)
                yield piece
        except ClientDisconnect:
            left = True
            raise MultiPartException("the client left") from None  # on which the parser closes its files

    request.stream = bounded  # type: ignore[method-assign]  # read by Starlette's parser
    try:
        async with asyncio.timeout(settings.receive_seconds):
            return await request.form(max_files=16, max_fields=_FIELDS, max_part_size=settings.body_bytes)
    except TimeoutError:
        raise _late(settings.receive_seconds) from None
    except (HTTPException, KeyError, UnicodeDecodeError, ValueError) as error:  # HTTPException comes from the parser
        if left:
            raise ClientDisconnect from None
        reason = getattr(error, "detail", None) or str(error)
        raise StatusError(400, f"the body is not a form ({reason}); send multipart/form-data") from None


def decode(raw: bytes, decoder: msgspec.json.Decoder[Any], depth: int) -> Any:
    """A body as the decoder's struct. StatusError 400 for invalid JSON, deep nesting, and wrong fields or types."""
    if raw.count(b"[") + raw.count(b"{") > depth:
        _check_depth(raw, depth)
    try:
        try:
            return decoder.decode(raw)
        except msgspec.ValidationError:  # perhaps for a field without effect
            struct: Any = decoder.type
            return msgspec.convert(without_neutral(msgspec.json.decode(raw), struct), struct)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), decoder.type) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StatusError(400, f"the body is not JSON: {error}; send an object in UTF-8", code="invalid_json") from None
    except RecursionError:
        raise _too_deep(depth) from None


def _check_depth(raw: bytes, most: int) -> None:
    depth = 0
    for mark in _MARKS.finditer(raw):
        first = raw[mark.start()]
        if first in b"[{":
            depth += 1
            if depth > most:
                raise _too_deep(most)
        elif first in b"]}":
            depth -= 1


def _too_deep(most: int) -> StatusError:
    return StatusError(400, f"the body has more than {most} levels; make it flatter", code="too_deep")


def _invalid(told: str, struct: Any) -> StatusError:
    """msgspec's error for a body, with the name of the field at fault and the known fields."""
    unknown = _UNKNOWN.search(told)
    if unknown is not None and not unknown[2]:
        known = [field.encode_name for field in msgspec.structs.fields(struct)]
        told = f"unknown field {unknown[1]!r}; use {', '.join(known)}"
        return StatusError(400, told, unknown[1], "unknown_field")
    found = _PLACE.match(told)
    reason, place = (told, None) if found is None else (found[1], found[2])
    if unknown is not None:
        reason, place = f"unknown field {unknown[1]!r}", f"{place}.{unknown[1]}" if place else unknown[1]
    at = f" at {place}" if place else ""
    return StatusError(400, f"the body is invalid: {reason}{at}; see /docs for the fields", place or None)


def _check_type(request: Request, wanted: str) -> None:
    found = request.headers.get("content-type", "")
    kind, _, rest = found.partition(";")
    left_out = not found and wanted == "application/json" and "origin" not in request.headers  # not from a web page
    if kind.strip().lower() != wanted and not left_out:
        given = f"is {found[:80]!r}" if found else "is missing"
        raise StatusError(415, f"the Content-Type header {given}; send {wanted}", code="unsupported_media_type")
    if wanted == "application/json" and "charset" in rest.lower() and "utf-8" not in rest.lower():
        raise StatusError(415, f"the Content-Type header has {rest.strip()[:80]!r}; send UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise StatusError(415, "the body is compressed; send it uncompressed")


def _check_length(request: Request, most: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > most):
        raise _too_large(f"{length[:20]}", most)


async def _received(request: Request, most: int, seconds: float) -> bytes:
    _check_length(request, most)
    pieces, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > most:
                    raise _too_large(f"more than {most:,}", most)
                pieces.append(piece)
    except TimeoutError:
        raise _late(seconds) from None
    return b"".join(pieces)


def _late(seconds: float) -> StatusError:
    return StatusError(408, f"the body did not arrive within {seconds:g} s; send it faster", code="body_timeout")


def _too_large(size: str, most: int) -> StatusError:
    return StatusError(413, f"the body has {size} bytes, but the limit is {most:,}; send less", code="body_too_large")
