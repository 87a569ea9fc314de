"""Batches made in a thread, a few ahead of the step that needs them, in the same order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")
_AHEAD = 4  # items
_POLL_SECONDS = 0.5


def ahead(items: Iterator[T], count: int = _AHEAD) -> Iterator[T]:
    """The same items, computed in a thread up to `count` ahead; an error is raised where its item would be. The thread
    ends with the iterator.
    """
    results: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(count)
    closed = threading.Event()

    def put(result: tuple[T | None, BaseException | None]) -> bool:
        while not closed.is_set():
            try:
                results.put(result, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    def read() -> Iterator[T]:
        thread = threading.Thread(target=work, daemon=True, name="batches ahead")
        thread.start()
        try:
            while True:
                item, error = results.get()
                if isinstance(error, StopIteration):
                    return
                if error is not None:
                    raise error
                yield item  # type: ignore[misc]
        finally:
            closed.set()

    return read()
