"""A server in a thread of the test, for clients that need a port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from headway.serve.app import ENDPOINTS, create_app
from headway.serve.connection import Connection
from headway.serve.interfaces import Endpoint, ModelRegistry, ServerSettings


@contextmanager
def server(
    served: ModelRegistry, settings: ServerSettings, endpoints: Sequence[Endpoint] = ENDPOINTS, loop: str = "auto"
) -> Iterator[str]:
    """The URL of a server of these models, which `loop` runs: auto, asyncio or uvloop."""
    app = create_app(served, settings, endpoints)
    config = uvicorn.Config(app, http=Connection, ws="none", port=0, log_level="error", lifespan="on", loop=loop)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join(20)
