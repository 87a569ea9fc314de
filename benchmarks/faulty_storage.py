"""Object storage that fails sometimes, between a client and an S3 server."""

from __future__ import annotations

import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.request import Request, urlopen


class Faulty(BaseHTTPRequestHandler):
    """Passes requests to the S3 server, and makes some of the answers slow, forbidden, failed or short."""

    protocol_version = "HTTP/1.1"
    target = ""
    faults: Counter[str]
    counts: Counter[str]
    forbid = False
    lock = threading.Lock()

    def do_GET(self) -> None:
        self.answer()

    do_PUT = do_HEAD = do_DELETE = do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None: ...

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        kind = None
        with Faulty.lock:
            if self.command == "GET" and ".safetensors" in self.path:
                Faulty.counts[self.path.rpartition("/")[2].partition("?")[0]] += 1
                kind = next((name for name, left in Faulty.faults.items() if left > 0), None)
                if kind is not None:
                    Faulty.faults[kind] -= 1
                    Faulty.counts[self.path.rpartition("/")[2].partition("?")[0]] -= kind != "slow"
        if Faulty.forbid or kind == "error":
            self.send_response(403 if Faulty.forbid else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        try:
            with urlopen(Request(Faulty.target + self.path, body, headers, method=self.command)) as reply:
                status, content, names = reply.status, reply.read(), reply.headers
        except OSError as error:
            status, content, names = getattr(error, "code", 502), getattr(error, "read", bytes)(), {}
        if kind == "slow":
            time.sleep(3)
        self.send_response(status)
        for name, value in names.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        size = names.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", size or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if kind == "short" else content)
        if kind == "short":
            self.close_connection = True
