"""Images decoded once: bytes of the size that the model reads, memory-mapped, with a key of each one's content."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from headway.codecs.images import pillow, read_image
from headway.codecs.processor import ImageProcessor
from headway.data.files import File
from headway.data.fingerprint import fingerprint
from headway.data.store import Columns, cache_key, cache_root, open_or_build, read_column, read_info, write_info
from headway.domains.vision.samples import Samples
from headway.errors import UserError

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_WAITING = 4  # images a worker that are decoded ahead of what is written
_SHOWN = 3  # files that a message names
Pixels = UInt8[np.ndarray, "h w C"]


@dataclass(frozen=True)
class Images:
    """`pixels` uint8 [N, H, W, C], and `keys`, equal for equal images. `wrong` says by number which could not be read,
    and why; their pixels are 0.
    """

    pixels: UInt8[np.ndarray, "N H W C"]
    keys: list[str]
    wrong: dict[int, str]


def load_images(samples: Samples, processor: ImageProcessor, skip: bool) -> Images:
    """The images as the model sees them, from the cache if these contents have been decoded for this size before.

    A file that is no sound image is a UserError, which names it; with `skip`, such are counted in the log and stand in
    `wrong`.
    """
    shape = (*(processor.shape or ()), processor.channels)
    if samples.grey is not None and samples.grey.shape[1:] == shape[:2] and shape[2] == 1:
        pixels = samples.grey[..., None]
        return Images(pixels, [_key(image) for image in pixels], {})
    if samples.files is not None:
        pillow()  # before any work
        content = fingerprint(File(path) for path in samples.files)
    else:
        assert samples.grey is not None  # one of the two always is
        content = hashlib.blake2b(samples.grey.tobytes(), digest_size=16).hexdigest()
    how = (processor.size, processor.shortest, processor.resample, processor.crop, processor.channels)
    folder = cache_root() / cache_key("images", _FORMAT, content, len(samples), how)
    read = _reader(samples, processor, skip)
    images = _load(open_or_build(folder, lambda part: _build(part, len(samples), read, shape)), len(samples), shape)
    if images.wrong:
        _tell(images.wrong, len(samples), skip)
    return images


def _tell(wrong: dict[int, str], total: int, skip: bool) -> None:
    first = next(iter(wrong.values()))
    if not skip:
        raise UserError(f"{first}; or leave such images out with task.skip_bad=true")
    shown = "; ".join(list(wrong.values())[:_SHOWN])
    _LOG.warning("%d of %d images cannot be read and are left out: %s", len(wrong), total, shown)


def _reader(samples: Samples, processor: ImageProcessor, skip: bool) -> Callable[[int], Pixels | str]:
    """What gives an image by its number or, with `skip`, what is wrong with it."""

    def read(number: int) -> Pixels | str:
        if samples.files is None:
            assert samples.grey is not None  # one of the two always is
            return processor.pixels(np.repeat(samples.grey[number][:, :, None], 3, axis=2))
        try:
            return processor.pixels(read_image(samples.files[number]))
        except UserError as error:
            if not skip:
                raise UserError(f"{error}; or leave such images out with task.skip_bad=true") from None
            return str(error)

    return read


def _build(part: Path, count: int, read: Callable[[int], Pixels | str], shape: tuple[int, ...]) -> None:
    wrong: dict[int, str] = {}
    with Columns(part, {"pixels": np.uint8, "keys": np.uint64}) as columns:
        for number, found in enumerate(_ahead(read, range(count))):
            if isinstance(found, str):
                wrong[number], found = found, np.zeros(shape, np.uint8)
            columns.append("pixels", found)
            columns.append("keys", int(_key(found), 16))
    write_info(part, {"shape": shape, "wrong": {str(number): why for number, why in wrong.items()}})


def _ahead(read: Callable[[int], Pixels | str], numbers: Iterable[int]) -> Iterator[Pixels | str]:
    """`read` of each number, in order, computed by as many threads as there are cores: Pillow decodes without Python's
    lock.
    """
    workers = os.cpu_count() or 1
    waiting: deque[Future[Pixels | str]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for number in numbers:
                waiting.append(pool.submit(read, number))
                if len(waiting) >= _WAITING * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _load(folder: Path, count: int, shape: tuple[int, ...]) -> Images:
    pixels = read_column(folder, "pixels", np.uint8, count * int(np.prod(shape))).reshape(count, *shape)
    keys = [f"{key:016x}" for key in read_column(folder, "keys", np.uint64, count).tolist()]
    return Images(pixels, keys, {int(number): why for number, why in read_info(folder)["wrong"].items()})


def _key(image: Pixels) -> str:
    return hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest()
