"""Images decoded once: memory-mapped bytes in the size of the model's input, with a content key per image."""

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
_WAITING = 4  # images per worker that are decoded ahead of writing
_SHOWN = 3  # bad images listed in a message
Pixels = UInt8[np.ndarray, "H W C"]


class DecodedImages(NamedTuple):
    """`pixels` of N images, and `keys`, equal for equal images. `errors` maps the indices of unreadable images to the
    reason; their pixels are 0.
    """

    pixels: UInt8[np.ndarray, "N H W C"]
    keys: list[str]
    wrong: dict[int, str]


class ImageReading(NamedTuple):
    """A source of images: `read(n)` returns one of `count` images of the `shape` [H, W, C], or raises a UserError that
    names it; several threads call it. `content` identifies everything that decides the pixels. Keys have `digest_size`
    bytes; splits by hash depend on the keys.
    """

    read: Callable[[int], Pixels]
    count: int
    shape: tuple[int, ...]
    content: object
    digest: int


def open_images(reading: ImageReading, skip: bool = False) -> DecodedImages:
    """The images, from the cache if the same contents have been decoded before.

    UserError for the first unreadable one; with `skip`, unreadable ones are counted in the log and listed in `errors`.
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
        _LOG.warning("skipped %d of %d images that cannot be read: %s", len(wrong), count, shown)
    return DecodedImages(pixels, [row.tobytes().hex() for row in digests], wrong)


def key_of(image: Pixels, digest: int) -> str:
    """The key of an image in a cache."""
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
    """An image or, with `skip`, the error that reading it raised."""
    try:
        return reading.read(number)
    except UserError as error:
        if not skip:
            raise _refused(str(error)) from None
        return str(error)


def _refused(why: str) -> UserError:
    return UserError(f"{why}; or skip such images with task.skip_bad=true")


def _ahead(read: Callable[[int], Pixels | str], count: int) -> Iterator[Pixels | str]:
    """`read` each index in order, with one thread per core, because Pillow releases the GIL while it decodes."""
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
