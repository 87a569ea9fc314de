"""Image files opened with Pillow, after checks that decoding will not take excessive time or memory."""

from __future__ import annotations

import io
import logging
import mmap
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.io.files import open_file

# Pillow supports more formats, but some of its readers start other programs (EPS), and the rest are rare.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
HOW_TO_INSTALL = "images need Pillow; install headway[vision]"
logging.getLogger("PIL").addHandler(logging.NullHandler())  # no warnings about damaged files in addition to our errors
# Silence its warnings about metadata. Filters are per process, so decoding threads cannot each set their own.
warnings.filterwarnings("ignore", module=r"PIL\.")
_MAX_SCANS = 64  # maximum scans of a JPEG file: 100 bytes can cost a pass over all pixels; encoders write 10 to 20
_USUAL_SCANS, _MAX_SCANNED_PIXELS = 20, 1 << 31  # scans of most files; maximum of pixels times scans
_MAX_EXIF_PARTS = 100  # maximum parts of a JPEG file's Exif data, which Pillow joins one by one
_MAX_RLE_PIXELS = 1 << 24  # maximum pixels of a compressed BMP file, which Pillow decodes in Python
_JPEG, _MARKER = b"\xff\xd8", re.compile(rb"\xff([^\x00\xff])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MARKERS_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}  # markers without a length field


def pillow() -> Any:
    """Pillow's module Image; UserError if Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError(HOW_TO_INSTALL) from None
    return Image


@contextmanager
def open_image(source: Path | io.BytesIO, name: str, formats: Collection[str] = FORMATS) -> Iterator[Any]:
    """Open an image without decoding it; `name` is for messages. UserError for too many pixels, scans or Exif parts.
    For a file that is not an image, and on decoding, Pillow's own exceptions.
    """
    Image = pillow()
    scans = _check_jpeg(source, name)
    # Pillow maps the pixels of a file that has a name into memory, and misreads turned TIFF files.
    opened = nullcontext(source) if isinstance(source, io.BytesIO) else open_file(source)
    with opened as file, Image.open(file, formats=formats) as image:
        (wide, high), max_pixels = image.size, Image.MAX_IMAGE_PIXELS
        if max_pixels is not None and wide * high > max_pixels:  # Pillow only warns, up to twice as many
            raise UserError(
                f"{name} has too many pixels ({wide} x {high}, more than {max_pixels:,}); make the image smaller"
            )
        if wide * high * scans > _MAX_SCANNED_PIXELS:
            raise UserError(
                f"{name} is a JPEG file with {scans} scans of {wide} x {high} pixels; save it with fewer scans"
            )
        if wide * high > _MAX_RLE_PIXELS and any(tile[0] == "bmp_rle" for tile in image.tile):
            raise UserError(f"{name} is a compressed BMP file of {wide} x {high} pixels; save it as PNG")
        yield image


def _check_jpeg(source: Path | io.BytesIO, name: str) -> int:
    """The number of scans of a file, 0 if it is not a JPEG file. UserError for too many scans or Exif parts."""
    if isinstance(source, io.BytesIO):
        return _check_jpeg_data(source.getvalue(), name)
    with open_file(source) as file:
        if file.read(len(_JPEG)) != _JPEG:
            return 0
        with closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as data:
            return _check_jpeg_data(data, name)


def _check_jpeg_data(data: bytes | mmap.mmap, name: str) -> int:
    if data[: len(_JPEG)] != _JPEG:
        return 0
    if _count_markers(data, b"Exif\0\0", _MAX_EXIF_PARTS) > _MAX_EXIF_PARTS:
        raise UserError(f"{name} has over {_MAX_EXIF_PARTS} parts of Exif data; save it again without Exif data")
    scans = _count_markers(data, b"\xff\xda", _USUAL_SCANS)
    if scans > _USUAL_SCANS:  # metadata can look like scans, so parse the markers
        position, scans = len(_JPEG), 0
        while scans <= _MAX_SCANS and (match := _MARKER.search(data, position)):
            position, marker = match.end(), match[1][0]
            if marker == _END_OF_IMAGE and scans:
                break
            scans += marker == _START_OF_SCAN
            if marker not in _MARKERS_WITHOUT_LENGTH and marker != _END_OF_IMAGE:
                position += max(2, int.from_bytes(data[position : position + 2], "big"))
    if scans > _MAX_SCANS:
        raise UserError(f"{name} is a JPEG file with over {_MAX_SCANS} scans; save it again with fewer scans")
    return scans


def _count_markers(data: bytes | mmap.mmap, marker: bytes, limit: int) -> int:
    """The number of occurrences of `marker`, counted up to `limit` + 1."""
    count, position = 0, data.find(marker)
    while position >= 0 and count <= limit:
        count, position = count + 1, data.find(marker, position + len(marker))
    return count
