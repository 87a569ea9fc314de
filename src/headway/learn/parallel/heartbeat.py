"""Heartbeats between processes, so that the loss of one, an error in one, or a signal to one reaches the others."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from _thread import interrupt_main
from contextlib import suppress
from typing import Any, NamedTuple

from headway.learn.interrupts import STOP_SIGNALS

_MAX_INTERVAL = 1.0  # seconds between heartbeats, at most
_BEATS = 10  # heartbeats within the timeout, at least
_MAX_SILENT = 5  # heartbeats that a process may miss once a collective operation has failed somewhere
_GRACE_SECONDS = 5.0  # for the main thread to leave by itself, and for the others to read why the first one ends
VERDICT, _STOP, ACKNOWLEDGED, _FINISHED = "verdict", "stop", "acknowledged", "finished"


class Verdict(NamedTuple):
    """Why all processes end: the process that reports it, the exit code, and the reason."""

    rank: int
    code: int
    reason: str


class Beat(NamedTuple):
    """What a process publishes with each heartbeat. `is_broken`: one of its collective operations has failed."""

    count: int | str
    step: int
    seconds: float
    is_broken: bool
    host: str


class Heartbeat:
    """Publishes heartbeats of this process, and ends it if another is silent for `timeout` seconds or reports an error.

    Process 0 reads all heartbeats with one request and publishes its verdict; the others read the verdict and the
    heartbeat of process 0, so each round costs O(number of processes). The timeout is counted in heartbeats of the
    process that waits, so that a pause of all processes (Ctrl-Z, a sleeping laptop) does not matter.
    """

    def __init__(self, store: Any, rank: int, world: int, timeout: float) -> None:
        self.step = 0
        self.seconds = 0.0  # that this process computed per step
        self.beats: list[Beat] = []  # the last heartbeats of the watched processes
        self.watched = [other for other in (range(world) if rank == 0 else (0,)) if other != rank]
        self._rank = rank
        self._interval = min(_MAX_INTERVAL, timeout / _BEATS)
        self._max_missed = round(timeout / self._interval) - 2  # the silence lasts longer than it is noticed
        self._silent = f"has not responded for {timeout:g} s (it may be stopped, or its machine may be down)"
        # Without the store, which process 0 may have, this process reports.
        self._is_deputy = rank < 2 or os.environ.get("LOCAL_RANK") == "0"
        self._is_broken, self._threads = False, list[threading.Thread]()
        self._count = self._rounds = 0
        self._closed, self._ended = threading.Event(), threading.Event()
        self._verdict: Verdict | None = None
        self._signals, self._has_signal = (None, None), False
        self.store, self._store = store, store.clone()  # for the main thread, which may wait, and for heartbeats
        for key, value in ((VERDICT, "null"), (_STOP, "0")):
            store.compare_set(key, "", value)
        self._publish_beat(0)
        if threading.current_thread() is threading.main_thread():
            # Handlers in Python wait until the main thread leaves a collective operation; this socket does not.
            self._signals = socket.socketpair()
            for end in self._signals:
                end.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._signals[1].fileno(), warn_on_full_buffer=False)

    def start(self) -> None:
        """Watch the other processes, all of which have published a heartbeat."""
        self._threads = [
            threading.Thread(target=target, daemon=True, name="heartbeat")
            for target in (self._exchange, self._watch_store)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Tell the other processes that this one has finished."""
        if not self._closed.is_set():
            self._closed.set()
            if self._ended.is_set():
                for thread in self._threads:  # which may wait until the others have read the reason
                    thread.join(_GRACE_SECONDS)
            with suppress(RuntimeError):  # the store ended with its process
                self._publish_beat(_FINISHED)
            if self._signals[1] is not None:
                signal.set_wakeup_fd(self._previous_fd)

    def end_all(self, code: int, reason: str, *, prints: bool = False, lost: int = 0) -> bool:
        """End all processes with this exit code; return whether this process reports the reason, which it does here if
        it `prints`. False: another one was first. `lost` processes will not read the reason.
        """
        text = json.dumps([self._rank, code, reason])
        try:
            stored = self._store.compare_set(VERDICT, "null", text).decode()
        except RuntimeError:  # process 0 had the store, which would say who is first
            stored = text if self._is_deputy else json.dumps([1, code, reason])
        verdict = Verdict(*json.loads(stored))
        is_first = verdict.rank == self._rank
        if is_first and prints:
            report(reason)
        self._verdict = verdict
        self._ended.set()
        if self._rank == 0 and is_first:  # it may have the store, which the others read first
            deadline = time.monotonic() + _GRACE_SECONDS
            running = len(self.watched) - sum(beat.count == _FINISHED for beat in self.beats) - lost
            with suppress(RuntimeError):
                while self._store.add(ACKNOWLEDGED, 0) < running and time.monotonic() < deadline:
                    time.sleep(self._interval / _BEATS)
        return is_first

    def other_verdict(self, beats: float) -> Verdict | None:
        """Wait this many heartbeats for another process to report."""
        self._ended.wait(beats * self._interval)
        return self._verdict

    def broken(self, reason: str) -> int:
        """The exit code after a collective operation has failed, once a process has reported the cause."""
        self._is_broken = True
        verdict = self.other_verdict(3 * _MAX_SILENT)
        if verdict is None:
            reason = f"a connection between training processes failed ({reason}); check the network, then use --resume"
            self.end_all(1, reason, prints=True)
        return self._verdict.code if self._verdict else 1

    def _publish_beat(self, count: int | str) -> None:
        beat = Beat(count, self.step, self.seconds, self._is_broken, socket.gethostname())
        self._store.set(f"beat/{self._rank}", json.dumps(beat))

    def _exchange(self) -> None:
        """Publish heartbeats, and read the verdict, stop requests and the heartbeats of the watched processes."""
        keys = [VERDICT, _STOP, *(f"beat/{rank}" for rank in self.watched)]
        last_counts: dict[int, int | str] = dict.fromkeys(self.watched, -1)
        missed = dict.fromkeys(self.watched, 0)
        while not self._closed.wait(self._interval):
            self._count += 1
            try:
                self._relay_signals()
                self._publish_beat(self._count)
                verdict, stop, *beats = map(json.loads, self._store.multi_get(keys))
                if verdict is not None and self._rank:
                    self._store.add(ACKNOWLEDGED, 1)
            except RuntimeError:
                if not self._closed.is_set():
                    self._end_for(0, "has ended")
                return
            self._rounds += 1
            if verdict is not None:
                is_new = self._verdict is None
                self._verdict = Verdict(*verdict)
                self._ended.set()
                if is_new:  # otherwise the main thread reports it
                    self._exit()
                return
            if stop and not self._has_signal:
                self._has_signal = True
                interrupt_main(signal.Signals(stop))
            self.beats = [Beat(*beat) for beat in beats]
            for rank, beat in zip(self.watched, self.beats):
                has_beaten = beat.count != last_counts[rank] or beat.count == _FINISHED
                missed[rank] = 0 if has_beaten else missed[rank] + 1
                last_counts[rank] = beat.count
            is_broken = self._is_broken or any(beat.is_broken for beat in self.beats)
            if not missed or max(missed.values()) < (_MAX_SILENT if is_broken else self._max_missed):
                continue
            lost = max(missed, key=lambda rank: missed[rank])
            self._end_for(lost, "has ended" if is_broken else self._silent)
            return

    def _relay_signals(self) -> None:
        """Publish signals that this process has received."""
        numbers = b""
        if self._signals[0] is not None:
            with suppress(BlockingIOError):
                numbers = self._signals[0].recv(1 << 12)
        for number in numbers:
            if number in STOP_SIGNALS and not self._has_signal:
                self._has_signal = True
                self._store.set(_STOP, str(number))

    def _watch_store(self) -> None:
        """End this process if the process that runs the store does not respond."""
        last_rounds, silent_beats = 0, 0
        while not self._closed.wait(self._interval):
            if self._ended.is_set():
                return
            silent_beats = silent_beats + 1 if self._rounds == last_rounds else 0
            last_rounds = self._rounds
            if silent_beats > self._max_missed:
                self._verdict = Verdict(self._rank, 1, self._describe(0, self._silent))
                if self._is_deputy:
                    report(self._verdict.reason)
                self._ended.set()
                self._exit()

    def _end_for(self, lost: int, event: str) -> None:
        """End all processes because one is lost."""
        if self._verdict is None:
            self.end_all(1, self._describe(lost, event), prints=True, lost=1)
        self._exit()

    def _describe(self, rank: int, event: str) -> str:
        beat = dict(zip(self.watched, self.beats)).get(rank)
        if beat is None:
            return f"training process {rank} {event}; see its log, then resume with --resume"
        last = f"its last heartbeat was at step {beat.step:,}"
        return f"training process {rank} on {beat.host} {event}; {last}; see its log, then resume with --resume"

    def _exit(self) -> None:
        """End this process unless the main thread does: it may be blocked in a collective operation."""
        if not self._closed.wait(_GRACE_SECONDS):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._verdict.code if self._verdict else 1)


def report(reason: str) -> None:
    """Print the reason why all processes end."""
    print(f"headway: {reason}", file=sys.stderr, flush=True)
