"""The server as a program: a socket, and an end that lets nobody hang."""

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
from headway.serve.connection import CONNECTIONS, Connection
from headway.serve.frame import Served, ServerSettings
from headway.serve.gate import is_loopback

_IDLE = 30  # seconds that a connection may wait for its next request
_FORCED = 5  # seconds after the grace, until what has still not ended is cut off
_TURNED_AWAY = 0.5  # seconds in which whoever comes at the end is still told so
_TURNS = 10  # accept, connect, watch and read are one each


def listener(host: str, port: int, settings: ServerSettings, insecure: bool = False) -> socket.socket:
    """A socket that listens: whoever asks before the server has begun waits. UserError for an address that cannot be
    had, and for one that other machines reach where everybody would be served, unless that is meant (`insecure`).
    """
    if not (settings.keys or settings.key_files or insecure or is_loopback(host)):
        raise UserError(
            f"{host} is reached by other machines, and without --api-key everybody is served; give keys, or --insecure "
            "if that is meant"
        )
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"the host {host!r} is not known ({error}); give a name or an address of this machine"
        ) from None
    bound = socket.socket(family, kind, number)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(CONNECTIONS)
    except OSError as error:
        bound.close()
        reasons = {
            errno.EADDRINUSE: f"port {port} of {host} is taken; give another one with --port, or end what has it",
            errno.EACCES: f"port {port} may not be had by this user; give one from 1024 on with --port",
            errno.EADDRNOTAVAIL: f"{host} is no address of this machine; give one with --host, such as 127.0.0.1",
        }
        told = reasons.get(
            error.errno or 0, f"port {port} of {host} cannot be had ({error.strerror}); give another one"
        )
        raise UserError(told) from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a server with this socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


def run_server(served: Served, settings: ServerSettings, bound: socket.socket) -> None:
    """Serve until SIGTERM, or until Ctrl-C, which is raised as KeyboardInterrupt when all has ended."""
    access = logger("headway.access")
    access.propagate = False
    access.setLevel(logging.INFO)
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(logging.Formatter("%(message)s"))
    access.addHandler(lines)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # hostile bytes are no news
    config = Config(
        create_app(served, settings),
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=int(settings.grace) + _FORCED,
    )
    server = _Server(config, served, settings)
    sys.setswitchinterval(0.001)  # an engine's thread that has ended a step waits no longer for that of requests
    bound.listen(2048)
    server.run([bound])
    if server.ended_by == signal.SIGINT:
        raise KeyboardInterrupt


class _Server(uvicorn.Server):
    """Tells the models at once that there will be an end: what waits is refused, and only what has begun goes on."""

    def __init__(self, config: Config, served: Served, settings: ServerSettings) -> None:
        super().__init__(config)
        self.ended_by: int | None = None
        self._served = served
        self._grace = settings.grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self.ended_by = self.ended_by or sig

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.ensure_future(self._served.close(self._grace))
        if not self.force_exit:
            await self._turn_away()
        await super().shutdown(sockets)
        await closing

    async def _turn_away(self) -> None:
        """Answer whoever has come, or comes in the next moment: closed at once, a connection that waits to be accepted
        or whose request waits to be read would be reset, and its client would not know why.
        """
        await asyncio.sleep(_TURNED_AWAY)
        for _ in range(
            _TURNS
        ):  # of the loop: also where it had no time until now, all that has come is accepted and read
            await asyncio.sleep(0)
