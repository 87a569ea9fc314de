"""The application: a table of endpoints, and the code that runs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
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
    monitoring,
    ollama,
    play,
    rerank,
    responses,
    runs,
    sessions,
    starters,
    tokenization,
    training,
    transcriptions,
    verbs,
    web_page,
)
from headway.serve.body_reader import open_stream, read_body, read_form
from headway.serve.gate import CLIENT_DISCONNECTED, CONTEXT_KEY, Gate
from headway.serve.http_errors import StatusError, error_body, error_response, to_status_error
from headway.serve.interfaces import (
    CLIENT_KEY,
    BodyStream,
    Client,
    Context,
    Endpoint,
    Events,
    ModelRegistry,
    ServerSettings,
)
from headway.serve.openapi import documentation_endpoints

ENDPOINTS: tuple[Endpoint, ...] = (
    *chat.ENDPOINTS,
    *completions.ENDPOINTS,
    *responses.ENDPOINTS,
    *tokenization.ENDPOINTS,
    *embeddings.ENDPOINTS,
    *rerank.ENDPOINTS,
    *transcriptions.ENDPOINTS,
    *verbs.ENDPOINTS,
    *runs.ENDPOINTS,
    *starters.ENDPOINTS,
    *play.ENDPOINTS,
    *ollama.ENDPOINTS,
    *training.ENDPOINTS,
    *monitoring.ENDPOINTS,
    *sessions.ENDPOINTS,
    *web_page.ENDPOINTS,
)
_MIN_SIMILARITY = 0.85  # path similarity, from 0 to 1, above which a path is suggested
_encode = msgspec.json.Encoder().encode


def create_app(served: ModelRegistry, settings: ServerSettings, endpoints: Sequence[Endpoint] = ENDPOINTS) -> Starlette:
    """The server's application. Its lifespan starts and closes `served`."""
    all_endpoints = (*endpoints, *documentation_endpoints(endpoints))
    paths = sorted({endpoint.path for endpoint in all_endpoints})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await served.start()
        yield
        await served.close(settings.grace)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        request_line, known_paths = f"{request.method} {request.url.path[:200]}", ", ".join(paths)
        if error.status_code == 404:
            path = request.url.path[:200]
            suggestions = (
                [f"/v1{path}"] if f"/v1{path}" in paths else get_close_matches(path, paths, n=1, cutoff=_MIN_SIMILARITY)
            )
            remedy = f"did you mean {suggestions[0]!r}?" if suggestions else "/docs lists the paths"
            status_error = StatusError(404, f"there is no {request_line}; {remedy}", code="unknown_path")
            return error_response(status_error, path=request.url.path)
        allowed = [endpoint.method for endpoint in all_endpoints if endpoint.path == request.url.path]
        remedy = f"use {' or '.join(allowed)}" if allowed else f"the paths are {known_paths}"
        status_error = StatusError(error.status_code, f"{request_line} is not allowed; {remedy}")
        return error_response(status_error, error.headers, request.url.path)

    async def on_error(request: Request, error: Exception) -> Response:
        return error_response(to_status_error(error), path=request.url.path)

    return Starlette(
        routes=[Route(endpoint.path, _EndpointApp(endpoint), methods=[endpoint.method]) for endpoint in all_endpoints],
        middleware=[Middleware(Gate, served=served, settings=settings)],
        exception_handlers={HTTPException: on_http_error, Exception: on_error},
        lifespan=lifespan,
    )


class _EndpointApp:
    """An endpoint as an ASGI application."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._decoder = None
        if endpoint.body is not None and issubclass(endpoint.body, msgspec.Struct):
            self._decoder = msgspec.json.Decoder(endpoint.body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: Context = scope[CONTEXT_KEY]
        context.route, context.path = self._endpoint.path, scope.get("path_params", {})
        client: Client | None = scope.get("state", {}).get(CLIENT_KEY)
        responder = _Responder(send, client, context, self._endpoint)
        try:
            try:
                is_stream = self._endpoint.body is BodyStream
                async with asyncio.timeout(None if is_stream else context.settings.request_seconds) as limit:
                    request, body = Request(scope, receive), None
                    if self._endpoint.query:
                        context.query = request.query_params
                    if self._decoder is not None:
                        body = await read_body(request, self._decoder, context.settings)
                    elif self._endpoint.body is FormData:
                        body = await read_form(request, context.settings)
                    elif is_stream:
                        body = open_stream(request, context.settings)
                    with _cancel_on_disconnect(client, limit):
                        answer = await self._endpoint.handler(body, context)
                        if isinstance(answer, Events):
                            async with aclosing(answer.parts) as parts:
                                await responder.send_events(parts)
                        elif isinstance(answer, Response):
                            await responder.send_response(answer)
                        else:
                            await responder.send_response(Response(_encode(answer), media_type="application/json"))
            except TimeoutError:
                if client is not None and client.disconnected:
                    raise ClientDisconnectedError("the client disconnected") from None
                message = (
                    f"the request took longer than {context.settings.request_seconds:g} s; ask for less, "
                    "or try again later"
                )
                await responder.send_error(StatusError(408, message, code="timeout"))
            except ClientDisconnectedError:
                raise
            except ClientDisconnect:
                raise ClientDisconnectedError("the client disconnected before its body arrived") from None
            except Exception as error:
                await responder.send_error(to_status_error(error))
        except ClientDisconnectedError as error:
            context.log_fields["left"], context.logged_status = str(error), CLIENT_DISCONNECTED
            if client is not None:
                client.abort()  # discards unread data
                await asyncio.sleep(0)  # until the connection is known to be lost


class _Responder:
    """Sends an answer to a client that may read slowly, or not at all."""

    def __init__(self, send: Send, client: Client | None, context: Context, endpoint: Endpoint) -> None:
        self._wire, self._path, self._num_parts = endpoint.wire, endpoint.path, 0
        self._context = context  # its headers are added to each answer's
        self._send = send
        self._client = client
        self.started = False

    async def send_response(self, response: Response) -> None:
        headers = response.raw_headers
        await self._send_message({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await self._send_message({"type": "http.response.body", "body": response.body})

    async def send_events(self, parts: AsyncIterator[msgspec.Struct]) -> None:
        """The parts as they arrive. Nothing is sent before the first one: until then an error has its own status."""
        async for part in parts:
            if not self.started:
                media_type = self._wire.media_type.encode()
                headers = [(b"content-type", media_type), (b"cache-control", b"no-store")]
                await self._send_message({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send_part(self._wire.part(part))
            self._num_parts += 1
        if self._wire.end:
            await self._send_part(self._wire.end)
        await self._send_message({"type": "http.response.body", "body": b""})

    async def send_error(self, error: StatusError) -> None:
        """An error as the answer, or as the last part if a stream has started with another status; the log has it."""
        if not self.started:
            await self.send_response(error_response(error, path=self._path))
            return
        self._context.log_fields["error"], self._context.logged_status = str(error), error.status
        await self._send_part(self._wire.part(self._wire.error(error_body(error, self._path), self._num_parts)))
        await self._send_message({"type": "http.response.body", "body": b""})

    async def _send_part(self, encoded: bytes) -> None:
        await self._send_message({"type": "http.response.body", "body": encoded, "more_body": True})

    async def _send_message(self, message: dict[str, Any]) -> None:
        self.started = True
        if self._context.headers and message["type"] == "http.response.start":
            extra_headers = [(name.encode(), value.encode()) for name, value in self._context.headers.items()]
            message["headers"] = [*message["headers"], *extra_headers]
        if self._client is None or not self._client.full:
            await self._send(message)  # no timeout: one per event would cost as much as the event
            return
        seconds = self._context.settings.stalled_seconds
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await self._send(message)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ClientDisconnectedError(f"the client read nothing for {seconds:g} s") from None


class ClientDisconnectedError(Exception):
    """The client has disconnected, so nobody can receive an answer."""


@contextmanager
def _cancel_on_disconnect(client: Client | None, limit: asyncio.Timeout) -> Iterator[None]:
    """Cancel the code in the `with` block as soon as the client disconnects."""
    if client is None:
        yield
        return
    if client.disconnected:
        raise ClientDisconnectedError("the client disconnected")
    client.on_disconnect = lambda: limit.reschedule(0)
    try:
        yield
    finally:
        client.on_disconnect = None
