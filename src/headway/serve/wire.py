"""Stream formats: server-sent events, named server-sent events, and JSON lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import msgspec

from headway.serve.http_errors import ErrorBody, ErrorObject, OllamaError

_encode = msgspec.json.Encoder().encode


class Wire(NamedTuple):
    """A stream format: its media type, the encoding of a part, the bytes that end a stream, and the part that
    reports an error after a number of other parts.
    """

    media_type: str
    part: Callable[[msgspec.Struct], bytes]
    end: bytes = b""
    error: Callable[[ErrorBody | OllamaError, int], msgspec.Struct] = lambda answer, number: answer


class ErrorEvent(msgspec.Struct):
    """The last event of a failed stream of named events. `error` is the error object that other streams send."""

    code: str | None
    message: str
    param: str | None
    sequence_number: int
    error: ErrorObject
    type: str = "error"


def _event(part: msgspec.Struct) -> bytes:
    return b"data: " + _encode(part) + b"\n\n"


def _named_event(part: msgspec.Struct) -> bytes:
    return b"event: " + cast(ErrorEvent, part).type.encode() + b"\n" + _event(part)


def _error_event(answer: ErrorBody | OllamaError, number: int) -> ErrorEvent:
    error = cast(ErrorObject, answer.error)
    return ErrorEvent(error.code, error.message, error.param, number, error)


def _line(part: msgspec.Struct) -> bytes:
    return _encode(part) + b"\n"


SERVER_SENT = Wire("text/event-stream; charset=utf-8", _event, b"data: [DONE]\n\n")
NAMED = Wire("text/event-stream; charset=utf-8", _named_event, error=_error_event)  # the name is the part's `type`
JSON_LINES = Wire("application/x-ndjson", _line)
