"""HTTP/1.1 connections: malformed requests get the same kind of error as all others, and slow clients time out.

httptools parses requests. It gets one complete head of bounded size at a time. Requests that it accepts but other
software may parse differently (RFC 9112, 11.2) are rejected, because a proxy may have parsed them that way.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from headway.serve.http_errors import StatusError, error_body
from headway.serve.interfaces import CLIENT_KEY

MAX_CONNECTIONS = 1024  # maximum number of open connections
_MAX_HEAD = 1 << 15  # bytes of request line and headers
_ARRIVAL = 30.0  # seconds for the headers to arrive
_CHUNKED = -1  # instead of the remaining bytes of a body: a chunked one marks its own end
_REQUEST_LINE = re.compile(rb'(?!CONNECT )[A-Z-]+ /[!"$-~]* HTTP/1\.[01]\r\n')
_UPGRADE = re.compile(rb"\r\nupgrade:[\t\x20-\x7e\x80-\xff]*(?=\r\n)", re.IGNORECASE)
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class Connection(HttpToolsProtocol):
    """A connection whose request heads must arrive in time and be unambiguous, and which can be aborted."""

    parser: httptools.HttpRequestParser  # type: ignore[assignment]  # None once the connection is lost

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, CLIENT_KEY: self}, _loop)
        self.on_disconnect: Callable[[], None] | None = None
        self.disconnected = False
        self._deadline: asyncio.TimerHandle | None = None
        self._received = bytearray()  # bytes that have arrived and are not parsed yet
        self._body_left = 0  # remaining bytes of the current body, or _CHUNKED
        self._body_complete = False  # whether a chunked body is complete
        self._empty_bytes = 0  # bytes of a chunked body since the last data

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            message = f"{MAX_CONNECTIONS:,} connections are open, which is the maximum; try again in a moment"
            self._send_error(StatusError(503, message, code="connections", retry_after=1))
            return
        self._start_timeout()

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._parse()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timeout()
        super().connection_lost(exc)
        self.disconnected = True
        if self.on_disconnect is not None:
            self.on_disconnect()

    @property
    def full(self) -> bool:
        return self.flow.write_paused

    def abort(self) -> None:
        self.transport.abort()

    def on_message_begin(self) -> None:
        if self._body_left:
            raise _invalid_http("another request arrived before its answer")
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._body_left:  # trailers are not headers: access has already been checked
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        version, hosts, self._body_left = self.parser.get_http_version(), 0, 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                self._body_left = int(value)
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked" or self._body_left or version == "1.0":
                    raise _invalid_http("Transfer-Encoding must be chunked, occur once, and needs HTTP/1.1")
                self._body_left = _CHUNKED
        if hosts > 1 or (version == "1.1" and not hosts):
            raise _invalid_http(f"it has {hosts} Host headers instead of one")
        self._body_complete, self._empty_bytes = False, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._empty_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._body_complete = True
        super().on_message_complete()
        self.flow.resume_reading()  # while paused, a disconnect would go unnoticed: the application reads no more

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._received:
            self._parse()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _parse(self) -> None:
        """Parse complete heads and bodies; the next request waits until the previous one is answered."""
        self._unset_keepalive_if_required()
        try:
            while self._received and not self.transport.is_closing():
                if self._body_left:
                    self._parse_body()
                elif self._is_answering:
                    if len(self._received) > HIGH_WATER_LIMIT:
                        self.flow.pause_reading()
                    break
                elif not self._parse_head():
                    break
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            self._send_error(cause if isinstance(cause, StatusError) else _invalid_http(str(error)))
        except StatusError as error:
            self._send_error(error)
        if self.transport.is_closing() or self._is_answering:
            self._cancel_timeout()
        elif self._deadline is None:
            self._start_timeout()

    def _parse_head(self) -> bool:
        """Whether a complete head was parsed."""
        end = self._received.find(b"\r\n\r\n") + 4
        if (end if end > 3 else len(self._received)) > _MAX_HEAD:
            raise StatusError(400, f"the headers have more than {_MAX_HEAD:,} bytes; send fewer", code="invalid_http")
        if not 0x21 <= self._received[0] <= 0x7E:  # such as a TLS handshake, in which the headers never end
            raise _invalid_http("it does not start with a method")
        if end < 4:
            return False
        head = bytes(self._received[:end])
        del self._received[:end]
        if not _REQUEST_LINE.match(head):
            raise _invalid_http("its first line is not METHOD /PATH HTTP/1.1")
        # No other protocol is supported, and httptools would treat all following bytes as one, even the body.
        self.parser.feed_data(_UPGRADE.sub(b"", head))
        return True

    def _parse_body(self) -> None:
        if self._body_left != _CHUNKED:
            chunk = bytes(self._received[: self._body_left])
            self._body_left -= len(chunk)
            del self._received[: len(chunk)]
            self.parser.feed_data(chunk)
            return
        self._empty_bytes += len(self._received)
        chunk = bytes(self._received)
        self._received.clear()
        self.parser.feed_data(chunk)
        if self._empty_bytes > _MAX_HEAD:
            raise _invalid_http(f"{_MAX_HEAD:,} bytes of its body contain no data")
        if self._body_complete:
            self._body_left = 0

    def _start_timeout(self) -> None:
        self._deadline = self.loop.call_later(_ARRIVAL, self._time_out)

    def _cancel_timeout(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        message = f"the headers did not arrive within {_ARRIVAL:g} s; send them faster"
        self._send_error(StatusError(408, message, code="headers_timeout"))

    def _send_error(self, error: StatusError) -> None:
        """Send the error and close. If the previous request is still unanswered, only close after its answer."""
        self._cancel_timeout()
        self._received.clear()
        if self._is_answering and self._body_complete:
            self._body_left, self.cycle.keep_alive = 0, False
            return
        if self._is_answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not (self._is_answering and self.cycle.response_started):
            body = msgspec.json.encode(error_body(error))
            self.transport.write(
                f"HTTP/1.1 {error.status} {_PHRASES[error.status]}\r\nContent-Type: application/json\r\n"
                f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
        self.transport.close()


def _invalid_http(reason: str) -> StatusError:
    return StatusError(400, f"the request is not valid HTTP ({reason}); send HTTP/1.1", code="invalid_http")
