"""A helper process with limits on CPU time and memory, for computations on untrusted files.

A library call, such as matching a regular expression that backtracks or processing gigabytes of text, cannot be
interrupted. A separate process can be ended when its time is up. The process stays alive between requests, is restarted
if it has ended, and ends with this one. Messages are JSON over pipes, and bytes if needed, each preceded by its length
in 8 bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast
from weakref import WeakSet

from headway.errors import UserError

_GRACE = 0.5  # extra seconds of CPU time before the kernel ends the process
_OUT_OF_MEMORY = 77  # exit status
_READY = b""  # a process's first message, unless it cannot start; then it sends the reason
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ", "LANG", "LC_ALL")  # its environment
_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads reserve memory, which has a limit
_HAS_LIMITS = find_spec("resource") is not None and hasattr(signal, "setitimer")

Bytes = bytes | bytearray | memoryview


class HelperError(Exception):
    """There is no reply, because it would take too much `time` or `memory`, or because the process ended (`death`)."""

    def __init__(self, reason: Literal["time", "memory", "death"]) -> None:
        super().__init__(reason)
        self.reason = reason


class Helper:
    """A process that replies with the function `answer` in `module`, using at most `memory` bytes.

    Threads wait for each other, and a forked child starts its own process. On platforms without such limits, `answer`
    is called in this process.
    """

    def __init__(self, module: str, memory: int) -> None:
        self._module = module
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        _helpers.add(self)

    def ask(self, request: Any, seconds: float, data: Bytes | None = None) -> Any:
        """The reply to a request, which may take `seconds` of CPU time. With `data`, `answer` takes these bytes as its
        second argument, and the reply is a pair of a value and bytes. Raises HelperError if there is no reply,
        UserError if the process cannot be started, and ValueError if the request is not JSON.
        """
        if not _HAS_LIMITS or not sys.executable:
            return import_module(self._module).answer(request, *([] if data is None else [data]))
        header = json.dumps({"seconds": seconds, "binary": data is not None, "request": request}).encode()
        messages = [header] if data is None else [header, data]
        with self._lock:
            reply = self._reply(messages)
            if reply is None:  # the process may have ended long ago
                reply = self._reply(messages)
        if reply is None:
            raise HelperError("death")
        return json.loads(reply[0]) if data is None else (json.loads(reply[0]), reply[1])

    def _reply(self, messages: Sequence[Bytes]) -> list[bytearray] | None:
        """The process's reply; the process is started if needed. None if it ends without a known reason."""
        process = self._process or self._start()
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for message in messages:
                    _send(process.stdin.fileno(), message)  # type: ignore[union-attr]
                reply = [_receive(process.stdout.fileno()) for _ in messages]  # type: ignore[union-attr]
                if None not in reply:
                    return cast(list[bytearray], reply)
        except BaseException:  # after an interrupt, the late reply would be taken for the reply to the next request
            process.kill()
            self.stop()
            raise
        status = self.stop()
        if status == -signal.SIGPROF:
            raise HelperError("time")
        if status == _OUT_OF_MEMORY:
            raise HelperError("memory")
        return None

    def _start(self) -> subprocess.Popen[bytes]:
        paths = [str(Path(__file__).parents[2]), *(path for path in sys.path if os.path.isabs(path))]
        code = (
            f"import sys; sys.path[:] = {paths!r}; "
            f"from headway.io.helper import serve; serve({self._module!r}, {self._memory})"
        )
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # libraries print panics there
                bufsize=0,
                env=_THREADS | {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                start_new_session=True,  # Ctrl-C must reach only this process
            )
        except OSError as error:
            raise _start_error(error.strerror or str(error)) from error
        try:
            failure = _receive(self._process.stdout.fileno())  # type: ignore[union-attr]
        except BaseException:
            self._process.kill()
            self.stop()
            raise
        if failure != _READY:
            status = self.stop()
            raise _start_error(f"exit status {status}" if failure is None else failure.decode(errors="replace"))
        return self._process

    def stop(self) -> int | None:
        """End the process, if there is one, and return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            pipe.close()  # type: ignore[union-attr]
        try:
            return process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def discard(self) -> None:
        """In a forked child, forget the process, because it belongs to the parent."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                pipe.close()  # type: ignore[union-attr]
            process.returncode = 0  # this process does not wait for it


def _start_error(reason: str) -> UserError:
    return UserError(
        f"{sys.executable} cannot start the helper process for untrusted files ({reason:.300}); check that "
        "Python and its packages are installed correctly, and that there is enough memory for another process"
    )


_helpers: WeakSet[Helper] = WeakSet()


def _discard_all() -> None:
    for helper in list(_helpers):
        helper.discard()


@atexit.register
def _end_all() -> None:
    for helper in list(_helpers):
        helper.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_discard_all)


def _send(pipe: int, message: Bytes) -> None:
    for part in (len(message).to_bytes(8, "little"), message):
        remaining = memoryview(part)
        while remaining:
            remaining = remaining[os.write(pipe, remaining) :]


def _receive(pipe: int) -> bytearray | None:
    """The received message; None if the other side has closed the pipe."""
    size = _read(pipe, 8)
    return None if size is None else _read(pipe, int.from_bytes(size, "little"))


def _read(pipe: int, size: int) -> bytearray | None:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(pipe, min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return parts


def serve(module: str, memory: int) -> None:
    """The helper process's main loop: reply to requests on standard input until it closes."""
    import resource

    try:
        answer = import_module(module).answer
    except Exception as error:
        _send(1, f"{type(error).__name__}: {error}".encode(errors="replace"))
        return
    _send(1, _READY)
    limits = {resource.RLIMIT_AS: memory, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    for limit, value in limits.items():
        with contextlib.suppress(ValueError, OSError):  # unsupported on some platforms
            resource.setrlimit(limit, (value, value))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    while (message := _receive(0)) is not None:
        signal.setitimer(signal.ITIMER_PROF, json.loads(message[: message.index(b",")] + b"}")["seconds"] + _GRACE)
        try:
            header = json.loads(message)
            if header["binary"]:
                value, data = answer(header["request"], _receive(0))
                replies = [json.dumps(value).encode(), data]
            else:
                replies = [json.dumps(answer(header["request"])).encode()]
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for reply in replies:
            _send(1, reply)
