"""Image files to pixels: every kind that people have becomes red, green and blue of 8 bits each."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from headway.errors import UserError

# Pillow knows more, but some of its readers start other programs (EPS) and few of the rest hold pictures.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
logging.getLogger("PIL").addHandler(logging.NullHandler())  # or it would print of bad files what our error says
# Nor its advice on metadata. Filters are the process's own, so that threads which decode cannot each set theirs.
warnings.filterwarnings("ignore", module=r"PIL\.")
HOW_TO_INSTALL = "images need Pillow; install headway[vision]"


def pillow() -> Any:
    """Pillow's module Image; UserError where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError(HOW_TO_INSTALL) from None
    return Image


def read_image(path: Path | str) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of an image file, turned as its camera says; the first picture of several.

    Palettes and grey become RGB, 16 bits become 8, and what is transparent lies on white. UserError for what is no
    image, is cut off or corrupt, or has so many pixels that decoding it would take the memory (a decompression bomb).
    """
    place = Path(path)
    if not place.is_file():
        raise UserError(f"{place} is not a file; give image files ({', '.join(FORMATS)})")
    return _read(place, str(place))


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """`read_image` of a file's bytes; `name` is for messages."""
    return _read(io.BytesIO(data), name)


def _read(source: Path | io.BytesIO, place: str) -> UInt8[np.ndarray, "H W 3"]:
    Image = pillow()
    try:
        with Image.open(source, formats=FORMATS) as image:
            _check_size(image, place)
            return _rgb(image, place)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise UserError(f"{place} has too many pixels ({_said(error)}); make the image smaller") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{place} is not an image that is known; give one of {', '.join(FORMATS)}") from None
    except Exception as error:  # each format's parser raises its own: OSError, SyntaxError, struct.error, ...
        raise UserError(f"{place} is cut off or corrupt ({_said(error)}); get the file again") from None


def _check_size(image: Any, place: str) -> None:
    """UserError above Pillow's limit, where it would only warn, up to twice as many pixels."""
    (wide, high), most = image.size, pillow().MAX_IMAGE_PIXELS
    if most is not None and wide * high > most:
        raise UserError(f"{place} has too many pixels ({wide} x {high}, more than {most:,}); make the image smaller")


def write_image(pixels: UInt8[np.ndarray, "H W 3"], path: Path | str) -> None:
    """Write a file of the kind that its name ends on. UserError for a kind that is not known, or where it cannot be."""
    try:
        pillow().fromarray(pixels).save(path)
    except ValueError:
        raise UserError(f"{path} does not end like an image file; name it like picture.png") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({_said(error)}); choose another place") from None


def _rgb(image: Any, place: str) -> UInt8[np.ndarray, "H W 3"]:
    from PIL import ImageOps

    image.load()  # decodes, so that what is wrong is found here
    if image.mode.startswith(("I", "F")):
        return np.repeat(_eight_bits(image, place)[:, :, None], 3, axis=2)
    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = pillow().new("RGBA", image.size, (255, 255, 255, 255))
        image = pillow().alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _eight_bits(image: Any, place: str) -> UInt8[np.ndarray, "H W"]:
    """Grey of 16 bits; Pillow itself would cut it at 255."""
    grey = np.asarray(image)
    if grey.dtype.kind == "f" or grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
        raise UserError(f"{place} has pixels of mode {image.mode}, outside 0 to 65535; save it with 8 or 16 bits")
    return ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
