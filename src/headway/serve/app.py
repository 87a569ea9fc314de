"""The application: a table of endpoints, and the code that runs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from difflib import get_close_matches
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from headway.serve import (
    chat,
    completions,
    embeddings,
    ollama,
    operation,
    page,
    rerank,
    responses,
    tokenizing,
    transcriptions,
    verbs,
)
from headway.serve.errors import StatusError, error_answer, error_response, refusal
from headway.serve.frame import CLIENT, Client, Context, Endpoint, Events, Served, ServerSettings
from headway.serve.gate import CLIENT_LEFT, CONTEXT, Gate
from headway.serve.openapi import pages
from headway.serve.receiving import read_body, read_form

ENDPOINTS: tuple[Endpoint, ...] = (
    *chat.ENDPOINTS,
    *completions.ENDPOINTS,
    *responses.ENDPOINTS,
    *tokenizing.ENDPOINTS,
    *embeddings.ENDPOINTS,
    *rerank.ENDPOINTS,
    *transcriptions.ENDPOINTS,
    *verbs.ENDPOINTS,
    *ollama.ENDPOINTS,
    *operation.ENDPOINTS,
    *page.ENDPOINTS,
)
_NEAR = 0.85  # similarity of two paths, from 0 to 1, above which one is suggested for the other
_encode = msgspec.json.Encoder().encode


def create_app(served: Served, settings: ServerSettings, endpoints: Sequence[Endpoint] = ENDPOINTS) -> Starlette:
    """The server's application. Its lifespan starts and closes `served`."""
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
            path = request.url.path[:200]
            near = [f"/v1{path}"] if f"/v1{path}" in paths else get_close_matches(path, paths, n=1, cutoff=_NEAR)
            remedy = f"did you mean {near[0]!r}?" if near else "/docs lists the paths"
            wrong = StatusError(404, f"there is no {asked}; {remedy}", code="unknown_path")
            return error_response(wrong, path=request.url.path)
        allowed = [endpoint.method for endpoint in every if endpoint.path == request.url.path]
        remedy = f"use {' or '.join(allowed)}" if allowed else f"the paths are {known}"
        wrong = StatusError(error.status_code, f"{asked} is not allowed; {remedy}")
        return error_response(wrong, error.headers, request.url.path)

    async def failed(request: Request, error: Exception) -> Response:
        return error_response(refusal(error), path=request.url.path)

    return Starlette(
        routes=[Route(each.path, _Answering(each), methods=[each.method]) for each in every],
        middleware=[Middleware(Gate, served=served, settings=settings)],
        exception_handlers={HTTPException: refused, Exception: failed},
        lifespan=life,
    )


class _Answering:
    """An endpoint as an ASGI application."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._decoder = None
        if endpoint.body is not None and issubclass(endpoint.body, msgspec.Struct):
            self._decoder = msgspec.json.Decoder(endpoint.body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: Context = scope[CONTEXT]
        context.route, context.path = self._endpoint.path, scope.get("path_params", {})
        client: Client | None = scope.get("state", {}).get(CLIENT)
        sending = _Sending(send, client, context, self._endpoint)
        try:
            try:
                async with asyncio.timeout(context.settings.seconds) as limit:
                    body = await self._received(Request(scope, receive), context.settings)
                    with _unless_left(client, limit):
                        await self._answer(body, context, sending)
            except TimeoutError:
                if client is not None and client.gone:
                    raise ClientLeftError("the client disconnected") from None
                told = f"the request took longer than {context.settings.seconds:g} s; ask for less, or try again later"
                await _refuse(StatusError(408, told, code="timeout"), context, sending)
            except ClientLeftError:
                raise
            except ClientDisconnect:
                raise ClientLeftError("the client disconnected before its body arrived") from None
            except Exception as error:
                await _refuse(refusal(error), context, sending)
        except ClientLeftError as error:
            context.noted["left"], context.outcome = str(error), CLIENT_LEFT
            if client is not None:
                client.abort()  # what it has not read is discarded
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
    """Sends an answer to a client that may read slowly, or not at all."""

    def __init__(self, send: Send, client: Client | None, context: Context, endpoint: Endpoint) -> None:
        self._wire, self._path, self._sent = endpoint.wire, endpoint.path, 0
        self._headers: Mapping[str, str] = context.headers  # added to those of each answer
        self._send = send
        self._client = client
        self._seconds = context.settings.stalled_seconds
        self.begun = False

    async def whole(self, response: Response) -> None:
        headers = response.raw_headers
        await self._put({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await self._put({"type": "http.response.body", "body": response.body})

    async def events(self, parts: AsyncIterator[msgspec.Struct]) -> None:
        """The parts as they arrive. Nothing is sent before the first one: until then an error has its own status."""
        async for part in parts:
            if not self.begun:
                media_type = self._wire.media_type.encode()
                headers = [(b"content-type", media_type), (b"cache-control", b"no-store")]
                await self._put({"type": "http.response.start", "status": 200, "headers": headers})
            await self._part(self._wire.part(part))
            self._sent += 1
        if self._wire.end:
            await self._part(self._wire.end)
        await self._put({"type": "http.response.body", "body": b""})

    async def refuse(self, error: StatusError) -> None:
        """An error as the answer, or as the last part if a stream has started."""
        if not self.begun:
            await self.whole(error_response(error, path=self._path))
            return
        await self._part(self._wire.part(self._wire.error(error_answer(error, self._path), self._sent)))
        await self._put({"type": "http.response.body", "body": b""})

    async def _part(self, written: bytes) -> None:
        await self._put({"type": "http.response.body", "body": written, "more_body": True})

    async def _put(self, message: dict[str, Any]) -> None:
        self.begun = True
        if self._headers and message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in self._headers.items()]
            message["headers"] = [*message["headers"], *added]
        if self._client is None or not self._client.full:
            await self._send(message)  # no timeout: one per event would cost as much as the event
            return
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                await self._send(message)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ClientLeftError(f"the client read nothing for {self._seconds:g} s") from None


async def _refuse(error: StatusError, context: Context, sending: _Sending) -> None:
    """Send an error; if a stream has started with another status, the log reports the error."""
    if sending.begun:
        context.noted["error"], context.outcome = str(error), error.status
    await sending.refuse(error)


class ClientLeftError(Exception):
    """The client has disconnected, so nobody can receive an answer."""


@contextmanager
def _unless_left(client: Client | None, limit: asyncio.Timeout) -> Iterator[None]:
    """Cancel the code within as soon as the client disconnects."""
    if client is None:
        yield
        return
    if client.gone:
        raise ClientLeftError("the client disconnected")
    client.leaving = lambda: limit.reschedule(0)
    try:
        yield
    finally:
        client.leaving = None
