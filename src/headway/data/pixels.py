"""Images decoded once: bytes of the size that a model reads, memory-mapped, with a key of each one's content."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from headway.data.store import Columns, cache_key, cache_root, open_or_build, read_column, read_info, write_info
from headway.errors import UserError, logger

_LOG = logger(__name__)
_FORMAT = 2  # of the cache
_WAITING = 4  # images a worker that are decoded ahead of what is written
_SHOWN = 3  # bad images that a message names
Pixels = UInt8[np.ndarray, "H W C"]


class DecodedImages(NamedTuple):
    """`pixels` of N images, and `keys`, equal for equal images. `wrong` says by number which could not be read, and
    why; their pixels are 0.
    """

    pixels: UInt8[np.ndarray, "N H W C"]
    keys: list[str]
    wrong: dict[int, str]


class ImageReading(NamedTuple):
    """How images are read: `read(n)` gives one of `count`, of the `shape` [H, W, C], or raises a UserError that names
    it, and is called by several threads. `content` is whatever decides all pixels. Keys have `digest` bytes: a split
    that is drawn by them stays the same only while they do.
    """

    read: Callable[[int], Pixels]
    count: int
    shape: tuple[int, ...]
    content: object
    digest: int


def open_images(reading: ImageReading, skip: bool = False) -> DecodedImages:
    """The images, from the cache if the same contents have been decoded before.

    UserError for the first that cannot be read; with `skip` such are counted in the log, and stand in `wrong`.
    """
    count, shape = reading.count, reading.shape
    folder = cache_root() / cache_key("images", _FORMAT, reading.content, count, shape, reading.digest)
    open_or_build(folder, lambda part: _build(part, reading, skip))
    pixels = read_column(folder, "pixels", np.uint8, count * int(np.prod(shape))).reshape(count, *shape)
    digests = read_column(folder, "digests", np.uint8, count * reading.digest).reshape(count, reading.digest)
    wrong = {int(number): why for number, why in read_info(folder)["wrong"].items()}
    if wrong and not skip:
        raise _refused(next(iter(wrong.values())))
    if wrong:
        shown = "; ".join(list(wrong.values())[:_SHOWN])
        _LOG.warning("%d of %d images cannot be read and are left out: %s", len(wrong), count, shown)
    return DecodedImages(pixels, [row.tobytes().hex() for row in digests], wrong)


def key_of(image: Pixels, digest: int) -> str:
    """The key that an image has in a cache."""
    return hashlib.blake2b(image.tobytes(), digest_size=digest).hexdigest()


def _build(part: Path, reading: ImageReading, skip: bool) -> None:
    wrong: dict[int, str] = {}
    with Columns(part, {"pixels": np.uint8, "digests": np.uint8}) as columns:
        for number, found in enumerate(_ahead(partial(_read, reading, skip), reading.count)):
            if isinstance(found, str):
                wrong[number], found = found, np.zeros(reading.shape, np.uint8)
            columns.append("pixels", found)
            columns.append("digests", np.frombuffer(bytes.fromhex(key_of(found, reading.digest)), np.uint8))
    write_info(part, {"wrong": {str(number): why for number, why in wrong.items()}})


def _read(reading: ImageReading, skip: bool, number: int) -> Pixels | str:
    """An image or, with `skip`, what is wrong with it."""
    try:
        return reading.read(number)
    except UserError as error:
        if not skip:
            raise _refused(str(error)) from None
        return str(error)


def _refused(why: str) -> UserError:
    return UserError(f"{why}; or leave such images out with task.skip_bad=true")


def _ahead(read: Callable[[int], Pixels | str], count: int) -> Iterator[Pixels | str]:
    """`read` of each number, in order, computed by as many threads as there are cores: Pillow decodes without Python's
    lock.
    """
    workers = os.cpu_count() or 1
    waiting: deque[Future[Pixels | str]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for number in range(count):
                waiting.append(pool.submit(read, number))
                if len(waiting) >= _WAITING * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
