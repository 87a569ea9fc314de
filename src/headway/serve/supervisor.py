"""The supervisor of a server: it holds the listening socket, and replaces the process that serves when that fails.

The serving process inherits the socket and accepts connections itself, so requests cost nothing more. Every second, its
event loop sends a byte over a channel. If the process ends, or is silent for a minute, the supervisor starts another
one at once, and answers all requests with 503 until that one is ready. It imports no package but headway.errors.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from headway.errors import logger

Job = Callable[[socket.socket, socket.socket], int]

_LOG = logger(__name__)
_SILENT_SECONDS = 60  # without a sign of life, after which the serving process is killed
_STABLE_SECONDS = 10.0  # a process that fails sooner after its start is followed by a delay
_FIRST_DELAY, _MAX_DELAY = 1.0, 60.0  # seconds before another start; each delay is twice the one before
_MAX_FAILED_STARTS = 5  # consecutive processes that end before they are ready
_ANSWER_SECONDS = 5.0  # for a client to send its request and to read the answer
_MAX_HEAD = 1 << 15  # bytes of request line and headers
_MAX_CLIENTS = 256  # clients that are being answered at once


def can_supervise() -> bool:
    """Whether this process can start another one that inherits its socket, and receives signals."""
    return os.name == "posix" and bool(sys.executable) and threading.current_thread() is threading.main_thread()


def supervise(sock: socket.socket, job: Job) -> int:
    """Let other processes serve on this socket until SIGTERM or Ctrl-C, one after the other, and return the exit code
    of the last one. Each runs `job`, which can be pickled, with its copy of the socket and a channel for signs of life.
    KeyboardInterrupt if there is none when Ctrl-C arrives.
    """
    return asyncio.run(_Supervisor(sock, job).run())


def work(descriptor: int) -> int:
    """In the serving process: run the job that arrives over the channel with this descriptor."""
    channel = socket.socket(fileno=descriptor)
    with channel.makefile("rb") as file:
        listener, job = pickle.load(file)
    for inherited in (descriptor, listener):
        os.set_inheritable(inherited, False)  # programs that the server starts do not keep them open
    return job(socket.socket(fileno=listener), channel)


class _Supervisor:
    def __init__(self, sock: socket.socket, job: Job) -> None:
        self._sock, self._job = sock, job
        self._process: asyncio.subprocess.Process | None = None
        self._stop_signal: int | None = None
        self._stopped = asyncio.Event()
        self._answers: set[asyncio.Task[None]] = set()  # to clients that connected while no process served
        self._start_seconds = 1.0  # of the last process that became ready
        self._ready_time = 0.0  # when the next process will probably be ready, by the monotonic clock
        self._refused = 0

    async def run(self) -> int:
        """The exit code. The first process must become ready; if a later one fails, another one follows."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        self._sock.setblocking(False)
        has_served, failures, failed_starts, delay = False, 0, 0, 0.0
        while True:
            exit_code, seconds = await self._serve()
            if seconds is not None:
                has_served, failed_starts = True, 0
            else:
                failed_starts += 1
            reason = f"exit code {exit_code}" if exit_code >= 0 else signal.Signals(-exit_code).name
            if not has_served or failed_starts == _MAX_FAILED_STARTS or self._stop_signal is not None:
                if self._stop_signal is None and (exit_code < 0 or has_served):
                    _LOG.error("the serving process ended before it was ready (%s)", reason)
                return exit_code if exit_code >= 0 else 128 - exit_code
            failures = 0 if seconds is not None and seconds > _STABLE_SECONDS else failures + 1
            delay = 0.0 if failures < 2 else min(_FIRST_DELAY * 2 ** (failures - 2), _MAX_DELAY)
            _LOG.error("the serving process ended (%s); another one starts%s", reason, f" in {delay:g} s" * (delay > 0))
            self._ready_time = time.monotonic() + delay + self._start_seconds
            if self._stop_signal is None:
                loop.add_reader(self._sock, self._accept)
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopped.wait()
            if self._stop_signal == signal.SIGINT:
                raise KeyboardInterrupt
            if self._stop_signal is not None:
                return 0

    async def _serve(self) -> tuple[int, float | None]:
        """Start a process and wait for its end: its exit code, and for how many seconds it was ready."""
        started, ready = time.monotonic(), None
        process, reader, writer = await self._start()
        silent = 0  # counted in seconds of waiting: after this process was suspended, a clock would be wrong
        while silent < _SILENT_SECONDS:
            try:
                async with asyncio.timeout(1):
                    if not await reader.read(64):
                        break  # the process ends
            except TimeoutError:
                silent += ready is not None and self._stop_signal is None
                continue
            silent = 0
            if ready is None:
                ready = time.monotonic()
                self._start_seconds = ready - started
                if asyncio.get_running_loop().remove_reader(self._sock):
                    _LOG.warning("the server is ready again; %d requests got status 503", self._refused)
                    self._refused = 0
        else:
            _LOG.error("the serving process has not responded for %d s and is killed", _SILENT_SECONDS)
            process.kill()
        seconds = None if ready is None else time.monotonic() - ready
        writer.close()
        try:
            async with asyncio.timeout(_SILENT_SECONDS):
                return await process.wait(), seconds
        except TimeoutError:
            process.kill()
            return await process.wait(), seconds

    async def _start(self) -> tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamWriter]:
        """A process that runs the job, and its channel."""
        ours, theirs = socket.socketpair()
        listener = self._sock.fileno()
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from headway.serve.supervisor import work; sys.exit(work({theirs.fileno()}))"
        )
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *flags,
                "-c",
                code,
                pass_fds=(listener, theirs.fileno()),
                start_new_session=True,  # a terminal sends Ctrl-C to this process only, which passes it on
            )
        if self._stop_signal is not None:
            self._process.send_signal(self._stop_signal)
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(pickle.dumps((listener, self._job)))
        return self._process, reader, writer

    def _stop(self, number: int) -> None:
        self._stop_signal = self._stop_signal or number
        self._stopped.set()
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()  # the serving process has the only copy, and refuses connections when it closes it
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _accept(self) -> None:
        """Accept a connection, and answer its request with 503."""
        try:
            connection, _ = self._sock.accept()
        except OSError:  # the client has left, or the process that serves now was faster
            return
        if len(self._answers) >= _MAX_CLIENTS:
            connection.close()
            return
        task = asyncio.create_task(self._refuse(connection))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _refuse(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=_MAX_HEAD)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                self._refused += 1
                writer.write(self._answer(head))
                writer.write_eof()
                while await reader.read(_MAX_HEAD):  # closing with unread data would reset the connection
                    pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client has left, is too slow, or does not speak HTTP
        finally:
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        """The answer to a request with this head, in the error format of its API; a page that loads again for one."""
        seconds = max(1, math.ceil(self._ready_time - time.monotonic()))
        message = f"the server is restarting; try again in {seconds} s"
        kind = "application/json"
        error = {"message": message, "type": "overloaded_error", "param": None, "code": "restarting"}
        is_ollama = head.partition(b" ")[2].startswith(b"/api/")
        body = json.dumps({"error": message if is_ollama else error}, separators=(",", ":"))
        if head.startswith(b"GET / "):
            kind, title = "text/html", f'<title>headway</title><meta http-equiv="refresh" content="{seconds};url=/">'
            body = f'<!doctype html><html lang="en">{title}<p>headway restarts. This page comes back by itself.'
        return (
            f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: {kind}\r\nRetry-After: {seconds}\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
