"""Clients that leave are noticed, however large their bodies were and whichever event loop runs; the log says so."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
from served import Resident
from serving import server
from starlette.datastructures import FormData, UploadFile

from headway.errors import UserError
from headway.serve.interfaces import Context, Endpoint, Events, ServerSettings

SIZES = [100, 200_000, 6_000_000]


class Padded(msgspec.Struct):
    text: str


class Slow(NamedTuple):
    """Endpoints that answer when the client disconnected, and what became of their requests."""

    url: str
    begun: threading.Semaphore
    ended: threading.Semaphore
    lines: list[dict[str, Any]]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def line(self) -> dict[str, Any]:
        """The next line of the log, which is written after the end of a request."""
        wait_for(lambda: bool(self.lines))
        return self.lines.pop(0)


def wait_for(state: Any) -> None:
    end = time.monotonic() + 20
    while not state():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def slow(request: pytest.FixtureRequest) -> Iterator[Slow]:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    begun, ended = threading.Semaphore(0), threading.Semaphore(0)

    async def wait() -> None:
        begun.release()
        try:
            await asyncio.sleep(60)
        finally:
            ended.release()

    async def json_body(body: Padded, context: Context) -> Padded:
        await wait()
        return body

    async def form_body(form: FormData, context: Context) -> Padded:
        file = form["file"]
        assert isinstance(file, UploadFile)
        try:
            await wait()
        finally:
            await form.close()
        return Padded("")

    async def stream(body: Padded, context: Context) -> Events:
        async def parts() -> AsyncGenerator[msgspec.Struct, None]:
            yield Padded("first")
            if body.text == "fails":
                raise UserError("the answer is damaged; ask again")
            await wait()

        return Events(parts())

    endpoints = [
        Endpoint("POST", "/json", json_body, "", Padded),
        Endpoint("POST", "/form", form_body, "", FormData),
        Endpoint("POST", "/stream", stream, "", Padded, part=Padded),
    ]
    lines: list[dict[str, Any]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(record.getMessage()))

    log, kept = logging.getLogger("headway.access"), Kept()
    level = log.level
    log.addHandler(kept)
    log.setLevel(logging.INFO)
    with server(Resident([]), ServerSettings(), endpoints, request.param) as url:  # type: ignore[arg-type]
        yield Slow(url, begun, ended, lines)
    log.removeHandler(kept)
    log.setLevel(level)


def asked(path: str, body: bytes, kind: str, length: int | None = None) -> bytes:
    heads = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length or len(body)}"
    return heads.encode() + b"\r\n\r\n" + body


def form(size: int) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return head + b"0" * size + b"\r\n--x--\r\n"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["json", "form"])
def test_who_leaves_is_noticed_at_any_size(slow: Slow, kind: str, size: int) -> None:
    body = b'{"text": "a"}' + b" " * size if kind == "json" else form(size)
    media = "application/json" if kind == "json" else "multipart/form-data; boundary=x"
    with socket.create_connection(("127.0.0.1", slow.port)) as client:
        client.sendall(asked(f"/{kind}", body, media))
        assert slow.begun.acquire(timeout=20)
    assert slow.ended.acquire(timeout=5)
    line = slow.line()
    assert (line["status"], line["left"]) == (499, "the client disconnected")


@pytest.mark.parametrize("kind", ["json", "form"])
def test_who_leaves_amid_the_body_is_noticed(slow: Slow, kind: str) -> None:
    body = b'{"text": "' + b"a" * 300_000 if kind == "json" else form(300_000)[:-20]
    media = "application/json" if kind == "json" else "multipart/form-data; boundary=x"
    with socket.create_connection(("127.0.0.1", slow.port)) as client:
        client.sendall(asked(f"/{kind}", body, media, 2_000_000))
    line = slow.line()
    assert (line["status"], line["left"]) == (499, "the client disconnected before its body arrived")


def test_the_log_says_how_a_stream_ended(slow: Slow) -> None:
    with socket.create_connection(("127.0.0.1", slow.port)) as client:
        client.sendall(asked("/stream", b'{"text": "a"}' + b" " * 200_000, "application/json"))
        assert slow.begun.acquire(timeout=20)
    assert slow.ended.acquire(timeout=5)
    line = slow.line()
    assert (line["status"], line["sent"], line["left"]) == (499, 200, "the client disconnected")
    with socket.create_connection(("127.0.0.1", slow.port)) as client:
        client.sendall(asked("/stream", b'{"text": "fails"}', "application/json"))
        line = slow.line()
    assert (line["status"], line["sent"], line["error"]) == (400, 200, "the answer is damaged; ask again")
