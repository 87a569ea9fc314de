"""The server process: a listening socket, and a shutdown that does not keep clients waiting."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType

import uvicorn
from uvicorn.config import Config

from headway.errors import logger
from headway.serve.app import create_app
from headway.serve.connection import Connection
from headway.serve.interfaces import ModelRegistry, ServerSettings
from headway.serve.listener import BACKLOG

_LOG = logger(__name__)
_IDLE_SECONDS = 30  # seconds that a connection may stay idle between requests
_FORCED_SECONDS = 5  # seconds after the grace period before the remaining requests are cut off
_REFUSAL_SECONDS = 0.5  # seconds during shutdown in which new connections still get an answer
_LOOP_ITERATIONS = 10  # iterations of the event loop: accept, connect, watch and read take one each
_STALLED = 70  # exit code after a model has taken no step for too long
_TICKS = 10  # ticks of uvicorn's main loop between two signs of life, which are a second apart


def run_server(
    served: ModelRegistry, settings: ServerSettings, sock: socket.socket, channel: socket.socket | None = None
) -> None:
    """Serve until SIGTERM or Ctrl-C; Ctrl-C is raised as KeyboardInterrupt after the shutdown. With a `channel` to a
    supervisor, send it a byte per second, shut down when it has gone, and end the process if a model takes no steps.
    """
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
    server = _Server(config, served, settings, channel)
    sys.setswitchinterval(0.001)  # so that an engine's thread never waits long for the thread of the requests
    sock.listen(BACKLOG)
    server.run([sock])
    if server.stop_signal == signal.SIGINT:
        raise KeyboardInterrupt


class _Server(uvicorn.Server):
    """Tells the models immediately to shut down: waiting requests are refused, and only running ones continue."""

    def __init__(
        self, config: Config, served: ModelRegistry, settings: ServerSettings, channel: socket.socket | None
    ) -> None:
        super().__init__(config)
        self.stop_signal: int | None = None
        self._served, self._settings, self._channel = served, settings, channel
        if channel is not None:
            channel.setblocking(False)

    async def on_tick(self, counter: int) -> bool:
        if self._channel is not None and counter % _TICKS == 0:
            for name, loop in self._served.loops().items():
                limit = self._settings.step_seconds + self._settings.request_seconds * loop.reads_whole_prompts
                if loop.seconds_since_step > limit:
                    _LOG.error("%s has taken no step for %d s; the process ends", name, loop.seconds_since_step)
                    os._exit(_STALLED)
            try:
                with suppress(BlockingIOError):  # a supervisor that is suspended reads nothing
                    self._channel.send(b".")
            except OSError:  # it has gone
                self.handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self.stop_signal = self.stop_signal or sig

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.ensure_future(self._served.close(self._settings.grace))
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
