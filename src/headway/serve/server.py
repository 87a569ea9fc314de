"""The server process: a listening socket, and a shutdown that does not keep clients waiting."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from types import FrameType

import uvicorn
from uvicorn.config import Config

from headway.errors import UserError, logger
from headway.serve.app import create_app
from headway.serve.connection import MAX_CONNECTIONS, Connection
from headway.serve.gate import is_loopback
from headway.serve.interfaces import ModelRegistry, ServerSettings

_IDLE_SECONDS = 30  # seconds that a connection may stay idle between requests
_FORCED_SECONDS = 5  # seconds after the grace period before the remaining requests are cut off
_REFUSAL_SECONDS = 0.5  # seconds during shutdown in which new connections still get an answer
_LOOP_ITERATIONS = 10  # iterations of the event loop: accept, connect, watch and read take one each


def open_listener(host: str, port: int, settings: ServerSettings, insecure: bool = False) -> socket.socket:
    """A listening socket; clients that connect before the server has started wait. UserError for an address that cannot
    be bound, and for one that other machines can reach without an API key, unless `insecure` is set.
    """
    if not (settings.keys or settings.key_files or insecure or is_loopback(host)):
        raise UserError(
            f"{host} is reachable from other machines and needs an API key; add --api-key, or --insecure to allow "
            "anyone"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"unknown host {host!r} ({error}); use a host name or an address of this machine") from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(MAX_CONNECTIONS)
    except OSError as error:
        sock.close()
        messages = {
            errno.EADDRINUSE: f"port {port} on {host} is in use; stop that program, or choose another port with --port",
            errno.EACCES: f"port {port} needs more rights than this user has; choose port 1024 or higher with --port",
            errno.EADDRNOTAVAIL: f"{host} is not an address of this machine; pass one with --host, such as 127.0.0.1",
        }
        message = messages.get(
            error.errno or 0, f"port {port} on {host} cannot be bound ({error.strerror}); choose another one"
        )
        raise UserError(message) from None
    return sock


def url_of(sock: socket.socket) -> str:
    """The URL of a server that listens on this socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"http://{host}:{port}"


def run_server(served: ModelRegistry, settings: ServerSettings, sock: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; Ctrl-C is raised as KeyboardInterrupt after the shutdown."""
    access = logger("headway.access")
    access.propagate = False
    access.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.addHandler(handler)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # do not log malformed requests
    config = Config(
        create_app(served, settings),
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=int(settings.grace) + _FORCED_SECONDS,
    )
    server = _Server(config, served, settings)
    sys.setswitchinterval(0.001)  # so that an engine's thread never waits long for the thread of the requests
    sock.listen(2048)
    server.run([sock])
    if server.stop_signal == signal.SIGINT:
        raise KeyboardInterrupt


class _Server(uvicorn.Server):
    """Tells the models immediately to shut down: waiting requests are refused, and only running ones continue."""

    def __init__(self, config: Config, served: ModelRegistry, settings: ServerSettings) -> None:
        super().__init__(config)
        self.stop_signal: int | None = None
        self._served = served
        self._grace = settings.grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self.stop_signal = self.stop_signal or sig

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.ensure_future(self._served.close(self._grace))
        if not self.force_exit:
            await self._answer_last_clients()
        await super().shutdown(sockets)
        await closing

    async def _answer_last_clients(self) -> None:
        """Answer clients that are connecting now or in the next moment: if the socket closed at once, connections that
        wait to be accepted or read would be reset, and their clients would not know why.
        """
        await asyncio.sleep(_REFUSAL_SECONDS)
        for _ in range(
            _LOOP_ITERATIONS
        ):  # so that a busy event loop, too, accepts and reads everything that has arrived
            await asyncio.sleep(0)
