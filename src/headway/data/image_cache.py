"""Images decoded once: memory-mapped bytes at the model's input size, with a content key per image."""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from headway.data.array_store import (
    ColumnWriter,
    cache_key,
    cache_root,
    open_or_build,
    read_column,
    read_info,
    write_info,
)
from headway.data.prepared.prepared_samples import PreparedSamples, SampleArrays
from headway.data.prepared.sample_shards import EncodedSample
from headway.errors import UserError, logger

_LOG = logger(__name__)
_FORMAT = 2  # cache format
_PREFETCH = 4  # images per worker that are decoded ahead of writing
_SHAPE = 3  # height, width, channels
_MAX_LISTED = 3  # bad images listed in a message
Pixels = UInt8[np.ndarray, "H W C"]


class DecodedImages(NamedTuple):
    """`pixels` of N images, and `keys`, equal for equal images. `errors` maps the indices of unreadable images to the
    reason; their pixels are 0.
    """

    pixels: UInt8[np.ndarray, "N H W C"] | SampleArrays
    keys: list[str]
    errors: dict[int, str]


class ImageSource(NamedTuple):
    """A source of images: `read(n)` returns one of `count` images of the `shape` [H, W, C], or raises a UserError that
    names it; several threads call it. `content` identifies whatever determines the pixels. Keys have `digest_size`
    bytes; splits by hash depend on the keys.
    """

    read: Callable[[int], Pixels]
    count: int
    shape: tuple[int, ...]
    content: object
    digest_size: int


def open_images(source: ImageSource, skip: bool = False) -> DecodedImages:
    """The images, from the cache if the same contents have been decoded before.

    UserError for the first unreadable one; with `skip`, unreadable ones are counted in the log and listed in `errors`.
    """
    count, shape = source.count, source.shape
    folder = cache_root() / cache_key("images", _FORMAT, source.content, count, shape, source.digest_size)
    open_or_build(folder, lambda part: _build(part, source, skip))
    pixels = read_column(folder, "pixels", np.uint8, count * int(np.prod(shape))).reshape(count, *shape)
    digests = read_column(folder, "digests", np.uint8, count * source.digest_size).reshape(count, source.digest_size)
    errors = {int(index): reason for index, reason in read_info(folder)["wrong"].items()}
    if errors and not skip:
        raise _with_skip_hint(next(iter(errors.values())))
    if errors:
        examples = "; ".join(list(errors.values())[:_MAX_LISTED])
        _LOG.warning("skipped %d of %d images that cannot be read: %s", len(errors), count, examples)
    return DecodedImages(pixels, [row.tobytes().hex() for row in digests], errors)


def open_prepared_images(paths: Sequence[Path], kind: str) -> PreparedSamples:
    """The prepared images at a path. UserErrors as in `PreparedSamples.open`, and for an invalid shape."""
    prepared = PreparedSamples.open(paths, kind)
    shape = prepared.details.get("shape")
    if not isinstance(shape, list) or len(shape) != _SHAPE or not all(type(n) is int and n > 0 for n in shape):
        raise UserError(f"the index of {prepared.data.name} states no shape of images; prepare the data again")
    if (np.diff(prepared.starts) != math.prod(shape)).any() or prepared.sums.shape[1] != 2 * shape[2]:
        raise UserError(f"{prepared.data.name} has images of another shape than its index; prepare the data again")
    return prepared


def stored_images(samples: PreparedSamples, digest_size: int) -> DecodedImages:
    """Prepared images with keys of this size, which are those in the table if they have it."""
    pixels = SampleArrays(samples, tuple(samples.details["shape"]))
    if samples.keys.shape[1] == digest_size:
        return DecodedImages(pixels, samples.hex_keys(), {})
    return DecodedImages(pixels, [image_key(pixels[row], digest_size) for row in range(len(samples))], {})


def encode_pixels(image: Pixels, digest_size: int) -> EncodedSample:
    """An image as a sample of shards, with the sums of each channel's values and those of their squares."""
    values = image.reshape(-1, image.shape[2]).astype(np.uint64)
    sums = [*values.sum(0).tolist(), *(values**2).sum(0).tolist()]
    return EncodedSample(image.tobytes(), bytes.fromhex(image_key(image, digest_size)), sums=sums)


def image_key(image: Pixels, digest_size: int) -> str:
    """The key of an image in a cache."""
    return hashlib.blake2b(image.tobytes(), digest_size=digest_size).hexdigest()


def _build(part: Path, source: ImageSource, skip: bool) -> None:
    errors: dict[int, str] = {}
    with ColumnWriter(part, {"pixels": np.uint8, "digests": np.uint8}) as columns:
        for index, image in enumerate(_read_in_parallel(partial(_read, source, skip), source.count)):
            if isinstance(image, str):
                errors[index], image = image, np.zeros(source.shape, np.uint8)
            columns.append("pixels", image)
            columns.append("digests", np.frombuffer(bytes.fromhex(image_key(image, source.digest_size)), np.uint8))
    write_info(part, {"wrong": {str(index): reason for index, reason in errors.items()}})


def _read(source: ImageSource, skip: bool, index: int) -> Pixels | str:
    """An image or, with `skip`, the error that reading it raised."""
    try:
        return source.read(index)
    except UserError as error:
        if not skip:
            raise _with_skip_hint(str(error)) from None
        return str(error)


def _with_skip_hint(reason: str) -> UserError:
    return UserError(f"{reason}; or skip such images with task.skip_bad=true")


def _read_in_parallel(read: Callable[[int], Pixels | str], count: int) -> Iterator[Pixels | str]:
    """`read` each index in order, with one thread per core, because Pillow releases the GIL while it decodes."""
    workers = os.cpu_count() or 1
    pending: deque[Future[Pixels | str]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for index in range(count):
                pending.append(pool.submit(read, index))
                if len(pending) >= _PREFETCH * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
