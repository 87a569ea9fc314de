"""Images as a model reads them, decoded once: a memory-mapped cache of pixels."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from headway.codecs.images import decode_image
from headway.codecs.processor import ImageProcessor
from headway.data.files import File
from headway.data.fingerprint import fingerprint
from headway.data.store import Columns, cache_key, cache_root, open_or_build, read_column, read_info, write_info
from headway.errors import UserError

_LOG = logging.getLogger(__name__)
_FORM = 1  # of the cache
_DIGEST = 16  # bytes
_SHOWN = 3  # bad images that a message names


class Pictures(NamedTuple):
    """Pixels of M images. `keys` are equal where pixels are; `bad` says by number what is wrong with an image."""

    pixels: UInt8[np.ndarray, "M H W 3"]
    keys: list[str]
    bad: dict[int, str]


def open_pictures(images: Sequence[File], processor: ImageProcessor, skip: bool) -> Pictures:
    """The images, resized and cropped for a model, from the cache or into it.

    UserError for the first image that is corrupt, no image at all or too large to be decoded; with `skip` such images
    are counted in a warning, and their pixels are black.
    """
    shape = processor.shape
    if shape is None:
        raise UserError("the image processor gives every image a size of its own; let it resize or crop to one")
    steps = (processor.size, processor.shortest, processor.resample, processor.crop)
    folder = cache_root() / cache_key("pictures", _FORM, fingerprint(images), steps)
    open_or_build(folder, lambda part: _build(part, images, processor, skip))
    pixels = read_column(folder, "pixels", np.uint8, len(images) * shape[0] * shape[1] * 3)
    digests = read_column(folder, "digests", np.uint8, len(images) * _DIGEST).reshape(-1, _DIGEST)
    bad = {int(number): reason for number, reason in read_info(folder)["bad"].items()}
    if bad and not skip:
        raise _refused(next(iter(bad.values())))
    if bad:
        first = "; ".join(list(bad.values())[:_SHOWN])
        _LOG.warning("%d of %d images are left out: %s", len(bad), len(images), first)
    return Pictures(pixels.reshape(-1, *shape, 3), [row.tobytes().hex() for row in digests], bad)


def _build(folder: Path, images: Sequence[File], processor: ImageProcessor, skip: bool) -> None:
    bad: dict[int, str] = {}
    high, wide = processor.shape or (0, 0)
    with Columns(folder, {"pixels": np.uint8, "digests": np.uint8}) as columns:
        for number, (file, data) in enumerate(_contents(images)):
            try:
                pixels = processor.pixels(decode_image(data, str(file)))
                key = hashlib.blake2b(pixels.tobytes(), digest_size=_DIGEST)
            except UserError as error:
                if not skip:
                    raise _refused(str(error)) from None
                bad[number] = str(error)
                pixels, key = np.zeros((high, wide, 3), np.uint8), hashlib.blake2b(data, digest_size=_DIGEST)
            columns.append("pixels", pixels)
            columns.append("digests", np.frombuffer(key.digest(), np.uint8))
    write_info(folder, {"bad": bad})


def _refused(reason: str) -> UserError:
    return UserError(f"{reason}, or leave such images out and have them counted: task.skip_bad=true")


def _contents(images: Sequence[File]) -> Iterator[tuple[File, bytes]]:
    """The bytes of files, and of members of .zip archives, each of which is opened once."""
    opened: dict[Path, zipfile.ZipFile] = {}
    with ExitStack() as stack:
        for file in images:
            if file.member is None:
                yield file, file.path.read_bytes()
                continue
            if file.path not in opened:
                opened[file.path] = stack.enter_context(zipfile.ZipFile(file.path))
            yield file, opened[file.path].read(file.member)
