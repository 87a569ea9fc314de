"""Access control: host, web page and key are checked before a request is read. Each request is logged."""

from __future__ import annotations

import json
import random
import secrets
import time
from collections import Counter

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headway.errors import logger
from headway.serve import metrics
from headway.serve.api_keys import ApiKey, KeyRing
from headway.serve.http_errors import StatusError, error_response
from headway.serve.interfaces import Context, ModelRegistry, ServerSettings
from headway.serve.listener import is_loopback

CONTEXT_KEY = "headway.context"  # key of the context in the scope
HEALTH_PATHS = ("/health", "/ready")  # health checks need no key and may use any host name
PUBLIC_PAGES = (
    "/",
    "/docs",
    "/openapi.json",  # the same on every server: a browser opens them before the user can enter a key
    "/v1/session",
    "/v1/session/one-time-key",  # these have a secret of their own in their body
)
_ACCESS = logger("headway.access")
_ANY_ADDRESS = {"0.0.0.0", "::"}  # addresses to listen on, not host names
_MAX_LOGGED = 200  # characters per path or name in the log
_ID_SOURCE = random.Random(secrets.token_bytes())  # source of request ids
CLIENT_DISCONNECTED = 499  # status in the log if the client disconnected before its answer was complete


class Gate:
    """Middleware that checks access and logs requests."""

    def __init__(self, app: ASGIApp, served: ModelRegistry, settings: ServerSettings) -> None:
        self._app = app
        self._served = served
        self._settings = settings
        self._keys = KeyRing(settings.keys, settings.key_files, settings.sessions)
        self._hosts = {host.lower().rstrip(".") for host in settings.hosts} - _ANY_ADDRESS
        self._running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = scope[CONTEXT_KEY] = Context(self._settings, self._served, f"req-{_ID_SOURCE.getrandbits(96):024x}")
        headers = Headers(scope=scope)
        request_log = _RequestLog(scope, send, context)
        try:
            if scope["path"] in HEALTH_PATHS:
                await self._app(scope, receive, request_log.send)
                return
            self._check_host(headers)
            origin = headers.get("origin")
            if origin is not None and origin.partition("://")[2] != headers["host"]:  # not a page from this server
                if origin not in self._settings.origins and "*" not in self._settings.origins:
                    message = (
                        f"the web page {origin[:_MAX_LOGGED]!r} may not use this server; start it with --cors ORIGIN"
                    )
                    raise StatusError(403, message, code="origin")
                request_log.origin = origin
            if request_log.origin is not None and scope["method"] == "OPTIONS":
                await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, request_log.send)
                return
            key = None if scope["path"] in PUBLIC_PAGES else self._key(scope, headers, context)
            if (
                key is not None
                and key.max_concurrent is not None
                and self._running[context.owner] >= key.max_concurrent
            ):
                message = (
                    f"{key.max_concurrent} requests with this key are running, which is its limit; wait "
                    "for one to finish"
                )
                raise StatusError(429, message, code="key_limit", retry_after=1)
            self._running[context.owner] += 1
            try:
                await self._app(scope, receive, request_log.send)
            finally:
                self._running[context.owner] -= 1
        except StatusError as error:
            await error_response(error, path=scope["path"])(scope, receive, request_log.send)
        finally:
            request_log.end(self._settings.log)

    def _check_host(self, headers: Headers) -> None:
        """Accept only the server's own host names, so that no foreign name can lead a browser here (DNS rebinding)."""
        hosts = headers.getlist("host")
        name = hosts[0].strip().lower() if len(hosts) == 1 else ""
        is_ipv6 = name.startswith("[")
        name = name.partition("]")[0][1:] if is_ipv6 else name.partition(":")[0].rstrip(".")
        if not (is_loopback(name) or name in self._hosts):
            host = repr(hosts[0][:_MAX_LOGGED]) if hosts else "(missing)"
            raise StatusError(
                403, f"the Host header {host} is not allowed; start the server with --allow-host NAME", code="host"
            )

    def _key(self, scope: Scope, headers: Headers, context: Context) -> ApiKey | None:
        if not self._keys.required:
            context.may_train = True
            return None
        name, _, ticket = scope["query_string"].decode("latin-1").partition("=")
        if name == "ticket" and scope["method"] == "GET":  # a document, which browsers open without headers
            owner = self._settings.tickets.redeem(scope["path"], ticket)
            if owner is not None:
                context.owner, context.has_ticket = owner, True
                return None
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        match = self._keys.find(secret.strip())
        if self._settings.sessions is not None and match is None:
            message = "this server needs a key; run headway open again, which opens a page that has one"
            raise StatusError(401, message, code="session_key")
        if match is None or scheme.lower() != "bearer":
            problem = "the API key is unknown" if secret else "the API key is missing"
            raise StatusError(401, f"{problem}; send the header Authorization: Bearer KEY", code="invalid_api_key")
        key, number = match
        context.owner, context.may_train = f"key-{number}", key.may_train
        context.may_follow = key.max_concurrent is None
        return key


_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Max-Age": "600",
}


class _RequestLog:
    """A request's log line and metrics, and the headers for every answer."""

    def __init__(self, scope: Scope, send: Send, context: Context) -> None:
        self.origin: str | None = None
        self._scope = scope
        self._send = send
        self._context = context
        self._start = time.monotonic()
        self._status = CLIENT_DISCONNECTED

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = message["headers"]
            headers += [(b"x-request-id", self._context.id.encode()), (b"x-content-type-options", b"nosniff")]
            if self.origin is not None:
                headers += [(b"access-control-allow-origin", self.origin.encode("latin-1")), (b"vary", b"Origin")]
        await self._send(message)

    def end(self, log: bool) -> None:
        """Count the request and log one line, without its content."""
        seconds = time.monotonic() - self._start
        context, route = self._context, self._context.route or "other"
        status = context.logged_status or self._status
        metrics.REQUESTS.labels(route, str(status)).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(seconds)
        if not log:
            return
        client = self._scope.get("client")
        fields = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": context.id,
            "client": client[0] if client else None,
            "key": context.owner or None,
            "method": self._scope["method"][:_MAX_LOGGED],
            "path": self._scope["path"][:_MAX_LOGGED],
            "status": status,
            **({} if status == self._status else {"sent": self._status}),
            "ms": round(seconds * 1000, 1),
            **context.log_fields,
        }
        _ACCESS.info(json.dumps(fields))
