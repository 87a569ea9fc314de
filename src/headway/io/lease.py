"""Leases: a file that its holder renews, so that two programs do not use one folder even where the system's locks do
nothing, as on some network and cluster file systems.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from headway.errors import UserError, logger
from headway.io.durable import is_running, machine_id, process_start
from headway.io.files import open_file
from headway.io.outputs import open_run_file

_PERIOD = 5.0  # seconds between renewals; one that is not renewed for two periods is abandoned
_LOOKS = 10  # per period, while another process's lease is watched
_SETTLE = 1.0  # seconds after which a second process that took the lease over at the same moment is visible
_MAX_BYTES = 4096
_SIZE = 1024  # bytes of each content: of two that are written at the same moment, one remains whole
_FOREIGN_AGE = 60.0  # seconds after which a lease of another machine, which may have another clock, is abandoned
_LOG = logger(__name__)


class Holder(NamedTuple):
    """The process that holds a lease, in words. `process` and `began` identify it on this machine; they are 0 and None
    for a process of another one.
    """

    description: str
    process: int
    began: str | None


def holder(path: Path) -> Holder | None:
    """The process that holds the lease in a file, without waiting; None if there is none, or if it has ended."""
    try:
        with open_file(path) as file:
            content = file.read(_MAX_BYTES).decode(errors="replace")
        age = time.time() - os.stat(path).st_mtime
    except (OSError, UserError):
        return None
    record = _parse(content)
    process, began = record.get("process"), record.get("began")
    if record.get("machine") != machine_id():
        return Holder(_describe(content), 0, None) if age < _FOREIGN_AGE else None
    if not isinstance(process, int) or not 1 < process < 1 << 31:
        return None
    start = process_start(process)
    is_same = start is not None if not isinstance(began, str) else start == began
    return Holder(_describe(content), process, began if isinstance(began, str) else None) if is_same else None


@contextmanager
def exclusive_lock(path: Path, refusal: str) -> Iterator[None]:
    """Hold the system's lock of a file; UserError with this refusal while another program holds it."""
    with open_run_file(path, update=True) as file:
        with suppress(ImportError):  # Windows
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(refusal) from None
        yield


class Lease:
    """The lease in the file at `path`: host, process, start and a counter."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mine: dict[str, Any] = {}
        self._count = 0
        self._released = threading.Event()

    def take(self, is_locked: Callable[[], bool]) -> str | None:
        """Take the lease, and renew it in a thread until `release`. If another process holds it, return that process
        for a message.

        A lease that is not renewed for two periods is taken over. So is one of this machine, without waiting, if its
        process has ended: `is_locked` returns whether a lock of the system excludes other processes of this machine.
        """
        self._mine = {
            "host": platform.node(),
            "process": os.getpid(),
            "machine": machine_id(),
            "started": time.time(),
            "began": process_start(os.getpid()),
        }
        while not self._create():
            content = self._read()
            if content is None:  # it was released in the meantime
                continue
            process, machine = (_parse(content).get(key) for key in ("process", "machine"))
            has_ended = False  # unknown for processes of other machines
            if os.name == "posix" and machine == self._mine["machine"] and isinstance(process, int):
                has_ended = 0 < process < 1 << 31 and (not is_running(process) or is_locked())
            if not has_ended and self._changes(content):
                content = self._read()
                if content is None:
                    continue
                return _describe(content)
            self._write()
            time.sleep(0 if has_ended else _SETTLE)
            content = self._read()
            if content is not None and not self._holds(content):
                return _describe(content)
            break
        self._released = threading.Event()
        threading.Thread(target=self._renew, args=(self._released,), daemon=True, name="lease").start()
        return None

    def taker(self) -> str | None:
        """The process that has taken the lease over from this one, because this one was paused; for a message."""
        with suppress(OSError):
            content = self._read()
            return None if content is None or self._holds(content) else _describe(content)

    def release(self) -> None:
        """Stop renewing, and remove the file unless another process has taken it over."""
        self._released.set()
        with suppress(OSError, UserError):
            content = self._read()
            if content is not None and self._holds(content):
                self.path.unlink()

    def _renew(self, released: threading.Event) -> None:
        while not released.wait(_PERIOD):
            with suppress(OSError, UserError):  # a full disk or a lost connection; the next renewal may succeed
                content = self._read()
                if released.is_set():
                    return
                if content is None:
                    self._create()
                elif self._holds(content):
                    self._write()
                else:
                    return

    def _changes(self, content: str) -> bool:
        """Whether the content changes within two periods. A process that renews its lease changes it within one."""
        for look in range(2 * _LOOKS):
            if look == _LOOKS + 1:
                _LOG.warning(
                    "%s may be in use by %s; waiting %g s for a sign of it",
                    *(self.path.parent, _describe(content), _PERIOD),
                )
            time.sleep(_PERIOD / _LOOKS)
            if self._read() != content:
                return True
        return False

    def _create(self) -> bool:
        """Create the file with our content; whether there was none."""
        try:
            file = open_run_file(self.path, update=True, flags=os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        with file:
            file.write(self._content())
        return True

    def _write(self) -> None:
        self._count += 1
        with open_run_file(self.path, update=True, flags=0) as file:  # in place, which needs no space on the disk
            file.write(self._content())
            file.truncate(_SIZE)

    def _read(self) -> str | None:
        """The content, None if there is no file; opened each time, because network file systems check it then."""
        try:
            with open_run_file(self.path, update=True, flags=0) as file:
                return file.read(_MAX_BYTES)
        except FileNotFoundError:
            return None

    def _content(self) -> str:
        return json.dumps({**self._mine, "count": f"{self._count:012d}"}).ljust(_SIZE)

    def _holds(self, content: str) -> bool:
        """Whether a content is ours, or nobody's."""
        record = _parse(content)
        return not record or all(record.get(key) == value for key, value in self._mine.items())


def _parse(content: str) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _describe(content: str) -> str:
    """The process of a content, for a message."""
    record = _parse(content)
    host, process, started = (str(record.get(key, "unknown"))[:100] for key in ("host", "process", "started"))
    with suppress(ValueError, OverflowError, OSError):
        started = datetime.fromtimestamp(float(started)).isoformat(" ", "minutes")
    return f"process {process} on {host}, since {started}"
