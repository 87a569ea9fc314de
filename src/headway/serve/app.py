"""The application: a table of endpoints, and what is done for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from headway.errors import nearest
from headway.serve import chat, completions, embeddings, operation, page, tokenizing, transcriptions, verbs
from headway.serve.errors import StatusError, error_answer, error_response, refusal
from headway.serve.frame import CLIENT, Client, Context, Endpoint, Events, Served, ServerSettings
from headway.serve.gate import CONTEXT, Gate
from headway.serve.openapi import pages
from headway.serve.receiving import read_body, read_form

ENDPOINTS: tuple[Endpoint, ...] = (
    *chat.ENDPOINTS,
    *completions.ENDPOINTS,
    *tokenizing.ENDPOINTS,
    *embeddings.ENDPOINTS,
    *transcriptions.ENDPOINTS,
    *verbs.ENDPOINTS,
    *operation.ENDPOINTS,
    *page.ENDPOINTS,
)
_encode = msgspec.json.Encoder().encode


def create_app(served: Served, settings: ServerSettings, endpoints: Sequence[Endpoint] = ENDPOINTS) -> Starlette:
    """The server's application, which starts and closes `served` with its own life."""
    every = (*endpoints, *pages(endpoints))
    paths = sorted({endpoint.path for endpoint in every})

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        await served.start()
        yield
        await served.close(settings.grace)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        asked, known = f"{request.method} {request.url.path[:200]}", ", ".join(paths)
        if error.status_code == 404:
            remedy = nearest(request.url.path, paths)
            return error_response(StatusError(404, f"there is no {asked}; {remedy}", code="unknown_path"))
        allowed = [endpoint.method for endpoint in every if endpoint.path == request.url.path]
        remedy = f"use {' or '.join(allowed)}" if allowed else f"the paths are {known}"
        return error_response(StatusError(error.status_code, f"{asked} is not had; {remedy}"), error.headers)

    async def failed(request: Request, error: Exception) -> Response:
        return error_response(refusal(error))

    return Starlette(
        routes=[Route(each.path, _Answering(each), methods=[each.method]) for each in every],
        middleware=[Middleware(Gate, served=served, settings=settings)],
        exception_handlers={HTTPException: refused, Exception: failed},
        lifespan=life,
    )


class _Answering:
    """An endpoint as an application of its own."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._decoder = None
        if endpoint.body is not None and issubclass(endpoint.body, msgspec.Struct):
            self._decoder = msgspec.json.Decoder(endpoint.body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: Context = scope[CONTEXT]
        context.route, context.path = self._endpoint.path, scope.get("path_params", {})
        client: Client | None = scope.get("state", {}).get(CLIENT)
        sending = _Sending(send, client, context.settings.stalled_seconds)
        sending.headers = context.headers
        try:
            try:
                async with asyncio.timeout(context.settings.seconds) as limit:
                    body = await self._received(Request(scope, receive), context.settings)
                    with _unless_left(client, limit):
                        await self._answer(body, context, sending)
            except TimeoutError:
                if client is not None and client.gone:
                    raise ClientLeftError("the client has gone") from None
                told = f"{context.settings.seconds:g} s have passed without an end; ask for less, or later"
                await sending.refuse(StatusError(408, told, code="timeout"))
            except ClientLeftError:
                raise
            except Exception as error:
                await sending.refuse(refusal(error))
        except ClientLeftError as error:
            context.noted["left"] = str(error)
            if client is not None:
                client.abort()  # what it has not read is thrown away
                await asyncio.sleep(0)  # until the connection is known to be lost

    async def _received(self, request: Request, settings: ServerSettings) -> Any:
        if self._decoder is not None:
            return await read_body(request, self._decoder, settings)
        return await read_form(request, settings) if self._endpoint.body is FormData else None

    async def _answer(self, body: Any, context: Context, sending: _Sending) -> None:
        answer = await self._endpoint.serve(body, context)
        if isinstance(answer, Response):
            await sending.whole(answer)
        elif isinstance(answer, Events):
            async with aclosing(answer.parts) as parts:
                await sending.events(parts)
        else:
            await sending.whole(Response(_encode(answer), media_type="application/json"))


class _Sending:
    """The way to a client, who may read slowly, or not at all."""

    def __init__(self, send: Send, client: Client | None, seconds: float) -> None:
        self._send = send
        self._client = client
        self._seconds = seconds
        self._begun = False
        self.headers: Mapping[str, str] = {}  # added to those of each answer

    async def whole(self, response: Response) -> None:
        headers = response.raw_headers
        await self._put({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await self._put({"type": "http.response.body", "body": response.body})

    async def events(self, parts: AsyncIterator[msgspec.Struct]) -> None:
        """The parts as they come. Nothing is sent before the first is there: until then an error has a status."""
        async for part in parts:
            if not self._begun:
                headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
                await self._put({"type": "http.response.start", "status": 200, "headers": headers})
            await self._event(_encode(part))
        await self._event(b"[DONE]")
        await self._put({"type": "http.response.body", "body": b""})

    async def refuse(self, error: StatusError) -> None:
        """An error as the answer, or as the last event where a stream has begun."""
        if not self._begun:
            await self.whole(error_response(error))
            return
        await self._event(_encode(error_answer(error)))
        await self._put({"type": "http.response.body", "body": b""})

    async def _event(self, data: bytes) -> None:
        await self._put({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})

    async def _put(self, message: dict[str, Any]) -> None:
        self._begun = True
        if self.headers and message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in self.headers.items()]
            message["headers"] = [*message["headers"], *added]
        if self._client is None or not self._client.full:
            await self._send(message)  # at once; to look after that would cost as much as an event
            return
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                await self._send(message)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ClientLeftError(f"nothing was read for {self._seconds:g} s") from None


class ClientLeftError(Exception):
    """Nobody is there any more who could be told anything."""


@contextmanager
def _unless_left(client: Client | None, limit: asyncio.Timeout) -> Iterator[None]:
    """What is done within has no time left as soon as the client goes."""
    if client is None:
        yield
        return
    if client.gone:
        raise ClientLeftError("the client has gone")
    client.leaving = lambda: limit.reschedule(0)
    try:
        yield
    finally:
        client.leaving = None
