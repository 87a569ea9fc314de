"""What a request is refused with: a status of HTTP, and the error object of the OpenAI API in one line."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from headway.errors import UserError, logger
from headway.generate.scheduler import FullError

_LOG = logger(__name__)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "overloaded_error"}
PLAIN = "/api/"  # paths of ollama's API, whose clients show an error that is a string
_LONGEST = 1000  # characters of a message: what it quotes may be long


class StatusError(UserError):
    """A refusal with a status of its own. `param` names the field that is at fault, `code` is a word for programs, and
    `retry_after` says in seconds when to ask again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after


class ErrorObject(msgspec.Struct):
    """What was wrong, in one line; which kind of error; the field at fault; and a word for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(msgspec.Struct):
    """Every refusal has this body; in a stream it is the last event."""

    error: ErrorObject


class PlainError(msgspec.Struct):
    """Every refusal of ollama's API has this body; in a stream it is the last line."""

    error: str


def refusal(error: BaseException) -> StatusError:
    """An error as the client may see it. What is no UserError is a fault of the server: it is logged, and the client
    learns its class alone.
    """
    if isinstance(error, StatusError):
        return error
    if isinstance(error, FullError):
        return StatusError(429, str(error), code="queue_full", retry_after=1)
    if isinstance(error, UserError):
        return StatusError(400, str(error))
    _LOG.error("a request failed", exc_info=error)
    return StatusError(500, f"the server failed ({type(error).__name__}); its log says where", code="server_failed")


def error_answer(error: StatusError, path: str = "") -> ErrorAnswer | PlainError:
    """The body of an error as clients of this path read it."""
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    line = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    if path.startswith(PLAIN):
        return PlainError(line)
    return ErrorAnswer(ErrorObject(line, kind, error.param, error.code))


def error_response(error: StatusError, headers: Mapping[str, str] | None = None, path: str = "") -> Response:
    """An error as a whole answer to a request for this path, with these headers next to its own."""
    told = dict(headers or {})
    if error.retry_after is not None:
        told["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        told["WWW-Authenticate"] = "Bearer"
    return Response(msgspec.json.encode(error_answer(error, path)), error.status, told, "application/json")
