"""HTTP/1.1 connections: malformed requests get the same kind of error as all others, and slow clients time out.

httptools parses requests. It gets one complete head of bounded size at a time. Requests that it accepts and other
software may parse differently (RFC 9112, 11.2) are refused, because a proxy may have parsed them differently.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import Any

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from headway.serve.errors import StatusError, error_answer
from headway.serve.frame import CLIENT

CONNECTIONS = 1024  # maximum number of open connections
_HEAD = 1 << 15  # bytes of a request's line and headers
_ARRIVAL = 30.0  # seconds for a head to arrive
_CHUNKS = -1  # instead of the remaining bytes of a body: a chunked one marks its own end
_LINE = re.compile(rb'(?!CONNECT )[A-Z-]+ /[!"$-~]* HTTP/1\.[01]\r\n')
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
        super().__init__(config, server_state, {**app_state, CLIENT: self}, _loop)
        self.leaving: Callable[[], None] | None = None
        self.gone = False
        self._deadline: asyncio.TimerHandle | None = None
        self._come = bytearray()  # bytes that have arrived and are not parsed yet
        self._left = 0  # remaining bytes of the current body, or _CHUNKS
        self._whole = False  # whether a chunked body is complete
        self._empty = 0  # bytes of a chunked body since the last data

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            told = f"{CONNECTIONS:,} connections are open, which is the maximum; try again in a moment"
            self._refuse(StatusError(503, told, code="connections", retry_after=1))
            return
        self._expect()

    def data_received(self, data: bytes) -> None:
        self._come += data
        self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)
        self.gone = True
        if self.leaving is not None:
            self.leaving()

    @property
    def full(self) -> bool:
        return self.flow.write_paused

    def abort(self) -> None:
        self.transport.abort()

    def on_message_begin(self) -> None:
        if self._left:
            raise _invalid("another request arrived before its answer")
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._left:  # a trailer is not a header: access has been checked by then
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        self._left = _length(self.headers, self.parser.get_http_version())
        self._whole, self._empty = False, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._empty = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._whole = True
        super().on_message_complete()
        self.flow.resume_reading()  # while paused, a disconnect would go unnoticed: the application reads no more

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._come:
            self._read()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _read(self) -> None:
        """Parse complete heads and bodies; the next request waits until the one before has its answer."""
        self._unset_keepalive_if_required()
        try:
            while self._come and not self.transport.is_closing():
                if self._left:
                    self._read_body()
                elif self._answering:
                    if len(self._come) > HIGH_WATER_LIMIT:
                        self.flow.pause_reading()
                    break
                elif not self._read_head():
                    break
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, StatusError) else _invalid(str(error)))
        except StatusError as error:
            self._refuse(error)
        if self.transport.is_closing() or self._answering:
            self._rest()
        elif self._deadline is None:
            self._expect()

    def _read_head(self) -> bool:
        """Whether a complete head was parsed."""
        end = self._come.find(b"\r\n\r\n") + 4
        if (end if end > 3 else len(self._come)) > _HEAD:
            raise StatusError(400, f"the headers have more than {_HEAD:,} bytes; send fewer", code="invalid_http")
        if not 0x21 <= self._come[0] <= 0x7E:  # a TLS handshake, for one, in which a head never ends
            raise _invalid("it does not start with a method")
        if end < 4:
            return False
        head = bytes(self._come[:end])
        del self._come[:end]
        if not _LINE.match(head):
            raise _invalid("its first line is not METHOD /PATH HTTP/1.1")
        # No other protocol is supported; httptools would take what follows for one, even the body.
        self.parser.feed_data(_UPGRADE.sub(b"", head))
        return True

    def _read_body(self) -> None:
        if self._left != _CHUNKS:
            some = bytes(self._come[: self._left])
            self._left -= len(some)
            del self._come[: len(some)]
            self.parser.feed_data(some)
            return
        self._empty += len(self._come)
        some = bytes(self._come)
        self._come.clear()
        self.parser.feed_data(some)
        if self._empty > _HEAD:
            raise _invalid(f"{_HEAD:,} bytes of its body contain no data")
        if self._whole:
            self._left = 0

    def _expect(self) -> None:
        self._deadline = self.loop.call_later(_ARRIVAL, self._late)

    def _rest(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        told = f"the headers did not arrive within {_ARRIVAL:g} s; send them faster"
        self._refuse(StatusError(408, told, code="headers_timeout"))

    def _refuse(self, error: StatusError) -> None:
        """Send the error and close. If the previous request is still unanswered, only close after its answer."""
        self._rest()
        self._come.clear()
        if self._answering and self._whole:
            self._left, self.cycle.keep_alive = 0, False
            return
        if self._answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not (self._answering and self.cycle.response_started):
            body = msgspec.json.encode(error_answer(error))
            self.transport.write(
                f"HTTP/1.1 {error.status} {_PHRASES[error.status]}\r\nContent-Type: application/json\r\n"
                f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
        self.transport.close()


def _length(headers: Iterable[tuple[bytes, bytes]], version: str) -> int:
    """Bytes of the body, or _CHUNKS. StatusError for ambiguous headers."""
    hosts = length = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked" or length or version == "1.0":
                raise _invalid("Transfer-Encoding must be chunked, occur once, and needs HTTP/1.1")
            length = _CHUNKS
    if hosts > 1 or (version == "1.1" and not hosts):
        raise _invalid(f"it has {hosts} Host headers instead of one")
    return length


def _invalid(reason: str) -> StatusError:
    return StatusError(400, f"the request is not valid HTTP ({reason}); send HTTP/1.1", code="invalid_http")
