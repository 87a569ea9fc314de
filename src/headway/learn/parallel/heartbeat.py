"""Heartbeats between processes, so that the loss of one ends the others."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import Any

# Seconds between heartbeats, and the number of our own heartbeats after which a silent process counts as lost. They
# are counted, not timed, so that pausing all processes (Ctrl-Z, a sleeping laptop) does not matter.
_HEARTBEAT_SECONDS, _MAX_MISSED = 5.0, 60
_FINISHED = 1 << 40  # more heartbeats than any process sends


class Heartbeat:
    """Sends heartbeats to the other processes, and ends this one if another stays silent for too long. Otherwise a
    process that was stopped, or whose machine was lost, would block all others.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._closed = threading.Event()
        self._rounds = 0
        for target in (self._exchange, self._watch_store):
            threading.Thread(target=target, daemon=True, name="watch").start()

    def close(self) -> None:
        """Tell the other processes that this one has finished."""
        if not self._closed.is_set():
            self._closed.set()
            with suppress(RuntimeError):  # the store ended with its process
                self._store.add(f"headway/{self._rank}", _FINISHED)

    def _exchange(self) -> None:
        """Send heartbeats and read those of the others."""
        other_ranks = [rank for rank in range(self._world) if rank != self._rank]
        last_counts, missed = dict.fromkeys(other_ranks, -1), dict.fromkeys(other_ranks, 0)
        while not self._closed.wait(_HEARTBEAT_SECONDS):
            try:
                self._store.add(f"headway/{self._rank}", 1)
                for rank in other_ranks:
                    count = self._store.add(f"headway/{rank}", 0)
                    missed[rank] = 0 if count != last_counts[rank] or count >= _FINISHED else missed[rank] + 1
                    last_counts[rank] = count
            except RuntimeError:  # the main process has ended; the next collective operation reports it
                self._closed.set()
                return
            self._rounds += 1
            for rank in other_ranks:
                if missed[rank] >= _MAX_MISSED:
                    self._exit(rank)

    def _watch_store(self) -> None:
        """End this process if the process that runs the store does not respond."""
        last_rounds, silent_beats = 0, 0
        while not self._closed.wait(_HEARTBEAT_SECONDS):
            silent_beats = silent_beats + 1 if self._rounds == last_rounds else 0
            last_rounds = self._rounds
            if silent_beats >= _MAX_MISSED:
                self._exit(0)

    def _exit(self, lost: int) -> None:
        if self._closed.is_set():
            return
        print(
            f"headway: training process {lost} has not responded for {_HEARTBEAT_SECONDS * _MAX_MISSED:g} s (it may "
            "be stopped, or its machine may be down); end it, then resume from the last checkpoint with --resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread is blocked in a collective operation
