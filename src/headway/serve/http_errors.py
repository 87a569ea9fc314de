"""Request errors: an HTTP status, and the OpenAI API's error object with a one-line message."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from headway.errors import UserError, logger
from headway.generate.scheduler import FullError

_LOG = logger(__name__)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "overloaded_error"}
OLLAMA_PREFIX = "/api/"  # Ollama API paths, whose clients expect the error as a string
_MAX_MESSAGE = 1000  # characters per message, which may quote long values


class StatusError(UserError):
    """An error with an HTTP status. `param` names the invalid field, `code` is an identifier for programs, and
    `retry_after` is the number of seconds to wait before trying again.
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
    """The problem in one line, the error type, the invalid field, and an identifier for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct):
    """The body of every error; in a stream, the last event."""

    error: ErrorObject


class OllamaError(msgspec.Struct):
    """The body of every Ollama API error; in a stream, the last line."""

    error: str


def to_status_error(error: BaseException) -> StatusError:
    """An error as the client may see it. Anything but a UserError is a server error: it is logged, and the
    client sees only its class.
    """
    if isinstance(error, StatusError):
        return error
    if isinstance(error, FullError):
        return StatusError(429, str(error), code="queue_full", retry_after=1)
    if isinstance(error, UserError):
        return StatusError(400, str(error))
    _LOG.error("a request failed", exc_info=error)
    return StatusError(500, f"the server failed ({type(error).__name__}); see its log", code="server_failed")


def error_body(error: StatusError, path: str = "") -> ErrorBody | OllamaError:
    """An error's body in the format of this path's API."""
    error_type = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    message = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    if len(message) > _MAX_MESSAGE:
        message = f"{message[: _MAX_MESSAGE // 2]} ... {message[-_MAX_MESSAGE // 2 :]}"
    if path.startswith(OLLAMA_PREFIX):
        return OllamaError(message)
    return ErrorBody(ErrorObject(message, error_type, error.param, error.code))


def error_response(error: StatusError, headers: Mapping[str, str] | None = None, path: str = "") -> Response:
    """An error as a complete response to a request for this path, with additional `headers`."""
    all_headers = dict(headers or {})
    if error.retry_after is not None:
        all_headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        all_headers["WWW-Authenticate"] = "Bearer"
    return Response(msgspec.json.encode(error_body(error, path)), error.status, all_headers, "application/json")
