"""Images and audio that clients send in a request, as data: URLs. Nothing is fetched, and no file is read."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np

from headway.codecs.image_processor import decode_image
from headway.domains.audio.sound_files import read_sound
from headway.errors import UserError

_MAX_SHOWN = 40  # characters of an invalid URL in messages


def image_of(url: object, name: str) -> np.ndarray:
    """The pixels of an image in a data: URL, uint8 [H, W, 3]; `name` is for messages. UserError for anything else, and
    for an image that is damaged or too large.
    """
    return decode_image(_decode_data_url(url, name, "image"), name)


def sound_of(url: object, name: str) -> np.ndarray:
    """The samples of the audio in a data: URL at 16 kHz, float32 [N]. UserError for anything else, and for audio that
    is damaged or exceeds the limits for input files.
    """
    audio_bytes = _decode_data_url(url, name, "audio")
    with NamedTemporaryFile(prefix="headway-") as file:  # private to this user; decoders need a file
        file.write(audio_bytes)
        file.flush()
        with with_client_name(Path(file.name), name):
            return read_sound(file.name).numpy()


@contextmanager
def with_client_name(path: Path, name: str) -> Iterator[None]:
    """Within the context, UserErrors show the client's name of a file instead of its path."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from None


def _decode_data_url(url: object, name: str, kind: str) -> bytes:
    head, comma, payload = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not comma or not head.startswith(f"data:{kind}/") or not head.endswith(";base64"):
        received = repr(url[:_MAX_SHOWN]) if isinstance(url, str) else f"a {type(url).__name__}"
        raise UserError(f"{name} is {received}, but no files or URLs are opened; send data:{kind}/...;base64,...")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise UserError(f"{name} is not base64 ({error}); encode it again") from None
