"""Ctrl-C and other signals end training at the next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_HANGUP_SIGNALS = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()  # the terminal was closed; not on Windows


class UserInterrupt(KeyboardInterrupt):
    """The user stopped training, which can be resumed from the last checkpoint. The command line exits with status 130.

    `where` names the step; `remedy` explains how to resume.
    """

    def __init__(self, where: str, remedy: str) -> None:
        super().__init__(where, remedy)
        self.where, self.remedy = where, remedy

    def __str__(self) -> str:
        return f"{self.where}; {self.remedy}"


class Interrupts:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a stop request, so that the current step completes. A second
    signal interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._is_breakable = False

    def __enter__(self) -> Interrupts:
        self._previous_handlers: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # the only thread that can set handlers
            for number in (signal.SIGINT, signal.SIGTERM, *_HANGUP_SIGNALS):
                is_ignored = signal.getsignal(number) is signal.SIG_IGN
                if number not in _HANGUP_SIGNALS or not is_ignored:  # nohup ignores SIGHUP
                    self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Inside this context, even the first signal interrupts at once: for work without side effects, such as
        evaluation.
        """
        self._is_breakable = True
        try:
            yield
        finally:
            self._is_breakable = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        already_requested, self.requested = self.requested, True
        if already_requested or self._is_breakable:
            raise KeyboardInterrupt
