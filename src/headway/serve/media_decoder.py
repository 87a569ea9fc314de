"""Decodes images and audio of clients in a helper process, because damaged files can crash the libraries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headway.codecs.image_processor import decode_image
from headway.errors import UserError
from headway.io.sounds import open_sound_file

_MAX_OPEN = 64  # files that are being read in turn


class _OpenSound(NamedTuple):
    blocks: Iterator[np.ndarray]
    number: int  # of the next block


_open_sounds: dict[str, _OpenSound] = {}


def answer(request: dict[str, Any], data: bytearray) -> tuple[dict[str, Any], bytes]:
    """An "image" in `data`: its `shape` and pixels. A "sound" in a file: its `rate` and `seconds`, or the number of
    `channels` and the samples of the block with this number, which is empty after the last one. Or an `error`.
    """
    try:
        if "image" in request:
            pixels = decode_image(bytes(data), request["image"])
            return {"shape": pixels.shape}, pixels.tobytes()
        if "block" in request:
            block = _read_block(request["sound"], request["block"])
            return {"channels": block.shape[1]}, block.tobytes()
        reader = open_sound_file(Path(request["sound"]))
        return {"rate": reader.rate, "seconds": reader.seconds}, b""
    except UserError as error:
        return {"error": str(error)}, b""


def _read_block(path: str, number: int) -> np.ndarray:
    """A block of a file, float32 [N, channels]. Blocks are usually read in order; after a crash that another file
    caused, reading starts again and skips the first ones.
    """
    for other in [name for name in _open_sounds if name != path and not os.path.exists(name)]:
        del _open_sounds[other]  # the request has ended
    opened = _open_sounds.pop(path, None)
    if opened is None or opened.number != number:
        opened = _OpenSound(iter(open_sound_file(Path(path)).read()), 0)
        for _ in range(number):
            next(opened.blocks, None)
    block = next(opened.blocks, None)
    if block is None:
        return np.empty((0, 1), np.float32)
    while len(_open_sounds) >= _MAX_OPEN:
        del _open_sounds[next(iter(_open_sounds))]
    _open_sounds[path] = _OpenSound(opened.blocks, number + 1)
    return block
