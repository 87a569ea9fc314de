"""A connection over HTTP/1.1: what is no request is refused in the form of all other errors, and nobody may dawdle.

httptools reads requests. It is given one head at a time, whole and of bounded size, and what it would take and others
may read otherwise (RFC 9112, 11.2) is refused: who stands between may have read it otherwise.
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

CONNECTIONS = 1024  # at once
_HEAD = 1 << 15  # bytes of a request's line and headers
_ARRIVAL = 30.0  # seconds for a head
_CHUNKS = -1  # in place of the bytes that are left of a body, which says itself where it ends
_LINE = re.compile(rb'(?!CONNECT )[A-Z-]+ /[!"$-~]* HTTP/1\.[01]\r\n')
_UPGRADE = re.compile(rb"\r\nupgrade:[\t\x20-\x7e\x80-\xff]*(?=\r\n)", re.IGNORECASE)
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class Connection(HttpToolsProtocol):
    """A connection whose heads must arrive in time and be of one meaning, and which can be cut off."""

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
        self._come = bytearray()  # and is not read yet
        self._left = 0  # bytes of the body that is read, or _CHUNKS
        self._whole = False  # whether a body in chunks has come to its end
        self._empty = 0  # bytes of it since something was in them

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            told = f"{CONNECTIONS:,} connections are open, the most; ask again in a moment"
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
            raise _invalid("another request comes before its answer")
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._left:  # a trailer is no header: who asks has been looked at by then
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
        self.flow.resume_reading()  # paused, nobody would see the client go: the application asks for nothing more

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._come:
            self._read()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _read(self) -> None:
        """Read what has come, as far as it is whole; a further request waits until the one before has its answer."""
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
        """Whether there was a whole one."""
        end = self._come.find(b"\r\n\r\n") + 4
        if (end if end > 3 else len(self._come)) > _HEAD:
            raise StatusError(400, f"the headers have more than {_HEAD:,} bytes; send fewer", code="invalid_http")
        if not 0x21 <= self._come[0] <= 0x7E:  # a greeting of TLS, for one, in which no end of a head may be
            raise _invalid("it begins with no method")
        if end < 4:
            return False
        head = bytes(self._come[:end])
        del self._come[:end]
        if not _LINE.match(head):
            raise _invalid("its first line is not METHOD /PATH HTTP/1.1")
        # No other protocol is spoken here; httptools would take what follows for one, the body too.
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
            raise _invalid(f"{_HEAD:,} bytes of its body hold nothing")
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
        """Say so and close. Where the request before it still has its answer to come, only close, once that has."""
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
    """Bytes of the body, or _CHUNKS. StatusError for headers that may be read in two ways."""
    hosts = length = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked" or length or version == "1.0":
                raise _invalid("Transfer-Encoding is to be chunked, in HTTP/1.1, and said once")
            length = _CHUNKS
    if hosts > 1 or (version == "1.1" and not hosts):
        raise _invalid(f"it has {hosts} headers Host in place of one")
    return length


def _invalid(reason: str) -> StatusError:
    return StatusError(400, f"the request is no HTTP ({reason}); send HTTP/1.1", code="invalid_http")
