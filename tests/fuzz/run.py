"""The fuzzer's loop: so many damaged files into one reader, with a watch on time and memory."""

from __future__ import annotations

import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from mutate import draw_of

from headway.errors import UserError

SECONDS = 30  # that one file may take, on a machine that has other work too
MEMORY = 512 << 20  # bytes that the process may grow by over all files


@dataclass(frozen=True)
class Reader:
    """`seeds` are whole files, for which it may put others beside; `read` is given a damaged one.

    It may return or raise UserError, and nothing else.
    """

    file: str
    seeds: Callable[[Path], list[bytes]]
    damage: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], Any]


class TooSlow(BaseException):
    """No reader catches it."""


@dataclass
class Outcome:
    """`read` files were taken, `refused` were UserErrors; `failures` name the input and what happened instead."""

    files: int = 0
    read: int = 0
    refused: int = 0
    grown: int = 0  # bytes
    seconds: float = 0.0  # of a core
    failures: dict[int, str] = field(default_factory=dict)


def fuzz(
    reader: Reader, folder: Path, seed: int, first: int, count: int, core_seconds: float = float("inf")
) -> Outcome:
    """Inputs `first` to `first + count` of a seed, each written to `folder` and read; fewer if they take too long."""
    seeds = reader.seeds(folder)
    path = folder / reader.file
    for whole in seeds:  # what is not damaged is read, or the fuzzer would test nothing
        path.write_bytes(whole)
        reader.read(path)
    outcome, started, before = Outcome(), time.process_time(), _peak()
    for index in range(first, first + count):
        if time.process_time() - started > core_seconds:
            break
        outcome.files += 1
        draw = draw_of(seed, index)
        path.unlink()  # a file that is written over is written to the disk
        path.write_bytes(reader.damage(seeds[index % len(seeds)], draw))
        try:
            with limited(SECONDS):
                reader.read(path)
            outcome.read += 1
        except UserError:
            outcome.refused += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome.failures[index] = f"{type(error).__name__}: {str(error)[:200]}"
    outcome.grown, outcome.seconds = _peak() - before, time.process_time() - started
    if outcome.grown > MEMORY:
        outcome.failures[-1] = f"{outcome.grown} bytes more memory than before"
    return outcome


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
