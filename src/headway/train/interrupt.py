"""Ctrl-C and a polite kill: training ends at the next step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class UserInterrupt(KeyboardInterrupt):
    """Training was stopped by the user, and can go on from its last checkpoint. The command line exits with 130.

    `where` says how far it came, `remedy` how it goes on.
    """

    def __init__(self, where: str, remedy: str) -> None:
        super().__init__(where, remedy)
        self.where, self.remedy = where, remedy

    def __str__(self) -> str:
        return f"{self.where}; {self.remedy}"


class Interrupts:
    """Turns the first SIGINT or SIGTERM into a request, so that no step is cut in half; a second one breaks off."""

    def __init__(self) -> None:
        self.requested = False
        self._breakable = False

    def __enter__(self) -> Interrupts:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Inside, the first signal breaks off at once: for work that changes nothing, such as an evaluation."""
        self._breakable = True
        try:
            yield
        finally:
            self._breakable = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested, True
        if again or self._breakable:
            raise KeyboardInterrupt
