"""Bytes as they come: nothing reaches the application that h11, a strict reader of HTTP/1.1, would not have read so."""

from __future__ import annotations

import asyncio
import json
import random
import re
from typing import Any, NamedTuple

import h11
import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from headway.serve import connection
from headway.serve.connection import Connection

HOST = b"Host: localhost\r\n"


class Read(NamedTuple):
    """A request as it was read."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Pipe(asyncio.Transport):
    """The server's end of a connection that has no other one."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.said = b""
        self.closed = self.paused = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.said += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Wire:
    """A connection whose application answers when it is told to."""

    def __init__(self) -> None:
        self.read: list[Read] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.pipe = Pipe()
        config = Config(self._app, http=Connection, ws="none", interface="asgi3", proxy_headers=False, log_config=None)
        self.connection = Connection(config, ServerState(), {}, asyncio.get_running_loop())
        self.connection.connection_made(self.pipe)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", scope["path"] != "/unread"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        self.read.append(Read(scope["method"], target, tuple(scope["headers"]), body))
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.pipe.closed:
                self.connection.data_received(piece)
            await self.settle()

    async def settle(self) -> None:
        for _ in range(12):
            await asyncio.sleep(0)

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", self.pipe.said)]


def by_h11(raw: bytes) -> list[Read]:
    """The requests that h11 reads, until it finds something wrong."""
    found, reader = [], h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    reader.receive_data(raw)
    head, body = None, b""
    while True:
        try:
            event = reader.next_event()
        except h11.RemoteProtocolError:
            return found
        if isinstance(event, h11.Request):
            head, body = event, b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            headers = tuple((name, value) for name, value in head.headers if name != b"upgrade")
            found.append(Read(head.method.decode(), head.target, headers, body))
            reader.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            reader.send(h11.EndOfMessage())
            if reader.our_state is not h11.DONE or reader.their_state is not h11.DONE:
                return found
            reader.start_next_cycle()
        else:
            return found


async def reading(*pieces: bytes) -> tuple[list[Read], Pipe]:
    wire = Wire()
    await wire.feed(*pieces)
    closed = wire.pipe.closed
    wire.connection.connection_lost(None)
    wire.pipe.closed = closed  # by the server
    return wire.read, wire.pipe


def read(*pieces: bytes) -> tuple[list[Read], Pipe]:
    return asyncio.run(reading(*pieces))


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"".join([b"POST /x HTTP/1.1\r\n", HOST, *(header + b"\r\n" for header in headers), b"\r\n", body])


CHUNKED = b"Transfer-Encoding: chunked"
WHOLE = [
    b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /a%20b?c=d&e HTTP/1.1\r\nhost:localhost\r\nX-Empty:\r\nX-Odd: \t a\xe9 b \t\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    post(b"Content-Length: 5", body=b"hello"),
    post(b"Content-Length: 0"),
    post(CHUNKED, body=b"3\r\nabc\r\n00a;x=y\r\n0123456789\r\n0\r\n\r\n"),
    post(CHUNKED, body=b"1\r\na\r\n0\r\nAuthorization: Bearer stolen\r\n\r\n"),
    post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", b"Content-Length: 2")
    + b"hi",
    post(b"Connection: upgrade", b"UPGRADE: websocket", CHUNKED, body=b"2\r\nhi\r\n0\r\n\r\n"),
    b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
]


@pytest.mark.parametrize("raw", WHOLE)
def test_a_request_is_what_it_says_however_it_comes(raw: bytes) -> None:
    [wanted] = by_h11(raw)
    for size in (len(raw), 1, 7, 40):
        found, pipe = read(*(raw[start : start + size] for start in range(0, len(raw), size)))
        assert found == [wanted]
        assert pipe.said.startswith(b"HTTP/1.1 200 OK\r\n")
        assert pipe.closed is (b"close" in raw or b"HTTP/1.0" in raw)


HOSTILE = {
    "two hosts": b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "both lengths": post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"),
    "both lengths, turned": post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 4", b"Content-Length: 5", body=b"xxxxx"),
    "a list of lengths": post(b"Content-Length: 4, 5", body=b"xxxxx"),
    "a signed length": post(b"Content-Length: +5", body=b"xxxxx"),
    "an endless length": post(b"Content-Length: " + b"9" * 30, body=b"x"),
    "another coding": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "a coding twice": post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"),
    "nearly a coding": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "chunks in 1.0": b"POST /x HTTP/1.0\r\n" + CHUNKED + b"\r\n\r\n0\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n",
    "a folded upgrade": b"GET / HTTP/1.1\r\n" + HOST + b"Upgrade: a\r\n Content-Length: 5\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n",
    "a line feed alone": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\nContent-Length: 5\r\n\r\n",
    "a carriage return alone": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\rContent-Length: 5\r\n\r\n",
    "a zero byte": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n",
    "another protocol": b"POST /x RTSP/1.0\r\n" + HOST + b"Content-Length: 0\r\n\r\n",
    "a newer one": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
    "an older one": b"GET /\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
    "an empty line first": b"\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment": b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n",
    "a whole address": b"GET http://elsewhere/a HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT /elsewhere HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path of other bytes": b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a made up method": b"TAKE / HTTP/1.1\r\n" + HOST + b"\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "long headers": b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 40_000 + b"\r\n\r\n",
    "a long path": b"GET /" + b"a" * 40_000,
    "a chunk of a hidden size": post(CHUNKED, body=b"0x1\r\na\r\n0\r\n\r\n"),
    "a chunk of another size": post(CHUNKED, body=b"1\r\nab\r\n0\r\n\r\n"),
    "chunks that hold nothing": post(CHUNKED, body=b"1;" + b"a" * 40_000),
    "a trailer without an end": post(CHUNKED, body=b"0\r\nX: " + b"a" * 40_000),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_request_or_may_be_two_is_refused(raw: bytes) -> None:
    found, pipe = read(raw)
    assert (found, pipe.closed) == ([], True)
    head, _, body = pipe.said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Connection: close" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "invalid_http"


def test_nothing_is_read_that_a_strict_reader_reads_otherwise() -> None:
    """Whole requests, one behind the other, in which bytes were changed, left out, doubled and moved."""
    draw = random.Random(0)
    odd = [b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b";", b",", b"\0", b"0", b"1", b"\xff", b"#", b"chunked", HOST]

    async def go() -> tuple[int, int]:
        same = fewer = 0
        for _ in range(1000):
            raw = b"".join(draw.choices(WHOLE, k=draw.randint(1, 3)))
            for _ in range(draw.randint(0, 2)):
                start = draw.randrange(len(raw))
                stop = min(len(raw), start + draw.choice([0, 1, 2, 20]))
                raw = raw[:start] + draw.choice([*odd, b"", raw[start:stop] * 2]) + raw[stop:]
            cut = draw.randrange(len(raw))
            found, _ = await reading(raw[:cut], raw[cut:])
            wanted = by_h11(raw)
            assert found == wanted[: len(found)], raw
            same, fewer = same + (found == wanted), fewer + (found != wanted)
        return same, fewer

    same, fewer = asyncio.run(go())
    assert same > 4 * fewer > 0  # what h11 alone takes: line feeds alone, folded headers, what follows chunks


def test_what_comes_before_an_answer_waits_for_it() -> None:
    async def go() -> None:
        wire = Wire()
        wire.may_answer.clear()
        await wire.feed(WHOLE[0] + WHOLE[3], b"GET /bad HTTP/9\r\n\r\n", WHOLE[0])
        assert [each.target for each in wire.read] == [b"/"]
        assert (wire.pipe.said, wire.pipe.closed) == (b"", False)
        wire.may_answer.set()
        await wire.settle()
        assert [each.target for each in wire.read] == [b"/", b"/x"]
        assert wire.statuses == [200, 200, 400]
        assert wire.pipe.closed
        wire.connection.connection_lost(None)

    asyncio.run(go())


def test_who_sends_on_and_on_before_an_answer_is_read_no_further() -> None:
    async def go() -> None:
        wire = Wire()
        wire.may_answer.clear()
        await wire.feed(WHOLE[0])
        sent = 0
        while not wire.pipe.paused:
            await wire.feed(WHOLE[0] * 100)
            sent += 100
            assert sent < 10_000
        assert len(wire.read) == 1
        wire.may_answer.set()
        await wire.settle()
        for _ in range(sent):
            await wire.settle()
        assert len(wire.read) == 1 + sent
        assert not wire.pipe.paused
        wire.connection.connection_lost(None)

    asyncio.run(go())


@pytest.mark.parametrize("behind", [b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n", b"garbage", b"\0"])
def test_a_body_in_chunks_is_answered_whatever_comes_behind_it(behind: bytes) -> None:
    found, pipe = read(WHOLE[5] + behind)
    assert [each.body for each in found] == [b"abc0123456789"]
    assert pipe.said.startswith(b"HTTP/1.1 200 ")
    assert pipe.said.count(b"HTTP/1.1 ") == 1
    assert pipe.closed


@pytest.mark.parametrize("raw", [WHOLE[3], WHOLE[5]])
def test_the_rest_of_a_body_that_nobody_wanted_is_no_request(raw: bytes) -> None:
    raw = raw.replace(b"/x", b"/unread")
    for cut in (-1, -4, raw.index(b"\r\n\r\n") + 4):
        found, pipe = read(raw[:cut], raw[cut:], WHOLE[0])
        assert [each.target for each in found] == [b"/unread", b"/"]
        assert pipe.said.count(b"HTTP/1.1 200 ") == 2
        assert not pipe.closed


def test_a_body_that_breaks_off_is_refused_in_place_of_its_answer() -> None:
    found, pipe = read(WHOLE[0], post(CHUNKED, body=b"1\r\n"), b"ab")
    assert len(found) == 1
    assert pipe.said.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 400 " in pipe.said
    assert pipe.closed


def test_a_head_that_does_not_come_is_told_so_and_an_answer_may_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_ARRIVAL", 0.02)

    async def go() -> None:
        wire, slow = Wire(), Wire()
        slow.may_answer.clear()
        await slow.feed(WHOLE[3])
        while not wire.pipe.closed:
            await wire.feed(b"")
            await asyncio.sleep(0.01)
        assert wire.statuses == [408]
        assert not slow.pipe.closed
        slow.may_answer.set()
        await slow.settle()
        assert (slow.statuses, slow.pipe.closed) == ([200], False)
        await slow.feed(b"GET / HTTP/1.1\r\n")
        while not slow.pipe.closed:
            await asyncio.sleep(0.01)
        assert slow.statuses == [200, 408]
        wire.connection.connection_lost(None)
        slow.connection.connection_lost(None)

    asyncio.run(go())


def test_no_more_than_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 0)
    _, pipe = read()
    assert pipe.said.startswith(b"HTTP/1.1 503 ")
    assert pipe.closed
