"""Ctrl-C and other signals end training at the next step."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_HANGUP_SIGNALS = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()  # the terminal was closed; not on Windows
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *_HANGUP_SIGNALS)

STEP_SECONDS = 10.0  # a step that takes longer is broken off
_EXIT_SECONDS = 5.0  # for the main thread to leave a step that is broken off
_REPEAT_SECONDS = 5.0  # with several processes, one stop reaches each of them along several paths within this time


class UserInterrupt(KeyboardInterrupt):
    """The user stopped training, which can be resumed from the last checkpoint. The command line exits with status 128
    plus the signal's `number`: 130 after Ctrl-C, 143 after SIGTERM.

    `where` names the step; `remedy` explains how to resume. `is_agreed`: all processes stop after the same step.
    """

    def __init__(self, where: str, remedy: str, number: int = signal.SIGINT, is_agreed: bool = False) -> None:
        super().__init__(where, remedy)
        self.where, self.remedy, self.number, self.is_agreed = where, remedy, int(number), is_agreed

    def __str__(self) -> str:
        return f"{self.where}; {self.remedy}"


class Interrupts:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a stop request, so that the current step completes. A second
    signal interrupts at once.

    A step that takes more than 10 s after the signal is broken off with the result of `break_off`, except after Ctrl-C
    in a run with one process, where people can repeat it.
    """

    _last_time = -math.inf  # of a signal in this process

    def __init__(self, break_off: Callable[[int], UserInterrupt] | None = None, several: bool = False) -> None:
        self.number = 0  # the first signal
        self._break_off, self._several = break_off, several
        self._is_breakable = self._in_step = self._is_late = False

    @staticmethod
    def ignore_repeats(since: float = math.inf) -> None:
        """With several processes, ignore signals from now on: all processes have agreed to stop."""
        Interrupts._last_time = since

    @property
    def requested(self) -> bool:
        return self.number > 0

    def __enter__(self) -> Interrupts:
        self._previous_handlers: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # the only thread that can set handlers
            for number in STOP_SIGNALS:
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

    @contextmanager
    def step(self) -> Iterator[None]:
        """A training step, which is broken off if it does not end in time after a signal."""
        self._in_step = True
        try:
            yield
        finally:
            self._in_step = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_late:
            self._is_late = False
            if self._in_step and self._break_off is not None:
                raise self._break_off(self.number)
            return
        is_repeat = self._several and time.monotonic() - Interrupts._last_time < _REPEAT_SECONDS
        Interrupts._last_time = max(Interrupts._last_time, time.monotonic())
        if is_repeat:
            return
        already_requested = self.requested
        if not already_requested:
            self.number = number
            if self._break_off is not None and (self._several or number != signal.SIGINT):
                threading.Thread(target=self._wait_for_step, daemon=True, name="break off").start()
        if already_requested or self._is_breakable:
            raise KeyboardInterrupt

    def _wait_for_step(self) -> None:
        time.sleep(STEP_SECONDS)
        if not self._in_step or self._break_off is None:
            return
        self._is_late = True
        interrupt_main(signal.Signals(self.number))
        time.sleep(_EXIT_SECONDS)
        if self._in_step:  # the main thread is blocked in an operation
            if os.environ.get("RANK", "0") == "0":
                print(f"headway: {self._break_off(self.number)}", file=sys.stderr, flush=True)
            os._exit(128 + self.number)
