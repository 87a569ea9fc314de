"""Image files opened by Pillow, once it is known that decoding them takes no more than their pixels are worth."""

from __future__ import annotations

import io
import logging
import mmap
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from headway.errors import UserError

# Pillow knows more, but some of its readers start other programs (EPS) and few of the rest hold pictures.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
HOW_TO_INSTALL = "images need Pillow; install headway[vision]"
logging.getLogger("PIL").addHandler(logging.NullHandler())  # or it would print of bad files what our error says
# Nor its advice on metadata. Filters are the process's own, so that threads which decode cannot each set theirs.
warnings.filterwarnings("ignore", module=r"PIL\.")
_SCANS = 64  # of a JPEG file: each takes time for all pixels, in a hundred bytes; encoders write 10 to 20
_USUAL, _SCANNED = 20, 1 << 31  # scans of most files; pixels times scans
_EXIF = 100  # parts of a JPEG file's Exif data, which Pillow joins one by one
_RUNS = 1 << 24  # pixels of a compressed BMP file, which Pillow decodes in Python
_JPEG, _MARKER = b"\xff\xd8", re.compile(rb"\xff([^\x00\xff])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers that no length follows


def pillow() -> Any:
    """Pillow's module Image; UserError where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError(HOW_TO_INSTALL) from None
    return Image


@contextmanager
def open_image(source: Path | io.BytesIO, name: str, formats: Collection[str] = FORMATS) -> Iterator[Any]:
    """Pillow's image of a plain file, not decoded yet; `name` is for messages. UserError for too many pixels, scans or
    parts; for what is not an image, and when it is decoded, whatever Pillow raises.
    """
    Image = pillow()
    scans = _check_jpeg(source, name)
    with Image.open(source, formats=formats) as image:
        (wide, high), most = image.size, Image.MAX_IMAGE_PIXELS
        if most is not None and wide * high > most:  # Pillow only warns, up to twice as many
            raise UserError(f"{name} has too many pixels ({wide} x {high}, more than {most:,}); make the image smaller")
        if wide * high * scans > _SCANNED:
            raise UserError(f"{name} is a JPEG file of {scans} scans of {wide} x {high} pixels; save it with fewer")
        if wide * high > _RUNS and any(tile[0] == "bmp_rle" for tile in image.tile):
            raise UserError(f"{name} is a compressed BMP file of {wide} x {high} pixels; save it as PNG")
        yield image


def _check_jpeg(source: Path | io.BytesIO, name: str) -> int:
    """The scans of a file, 0 of what is not a JPEG file. UserError for too many of them, or of parts of Exif."""
    if isinstance(source, io.BytesIO):
        return _checked(source.getvalue(), name)
    with open(source, "rb") as file:
        if file.read(len(_JPEG)) != _JPEG:
            return 0
        with closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
            return _checked(data, name)


def _checked(data: bytes | mmap.mmap, name: str) -> int:
    if data[: len(_JPEG)] != _JPEG:
        return 0
    if _count(data, b"Exif\0\0", _EXIF) > _EXIF:
        raise UserError(f"{name} has over {_EXIF} parts of Exif data; save it again without them")
    scans = _count(data, b"\xff\xda", _USUAL)
    if scans > _USUAL:  # metadata can look like scans, which only a closer look tells
        scans = _scans(data)
    if scans > _SCANS:
        raise UserError(f"{name} is a JPEG file of over {_SCANS} scans; save it again with fewer")
    return scans


def _count(data: bytes | mmap.mmap, mark: bytes, most: int) -> int:
    """How often `mark` is there, counted up to `most` and one more."""
    count, place = 0, data.find(mark)
    while place >= 0 and count <= most:
        count, place = count + 1, data.find(mark, place + len(mark))
    return count


def _scans(data: bytes | mmap.mmap) -> int:
    """How many scans libjpeg decodes of an image, counted up to the limit and one more."""
    place, count = len(_JPEG), 0
    while count <= _SCANS and (found := _MARKER.search(data, place)):
        place, marker = found.end(), found[1][0]
        if marker == _END_OF_IMAGE and count:
            break
        count += marker == _START_OF_SCAN
        if marker not in _ALONE and marker != _END_OF_IMAGE:
            place += max(2, int.from_bytes(data[place : place + 2], "big"))
    return count
