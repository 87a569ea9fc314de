"""The charsmap of a sentencepiece model: which characters become which, as a trie in a double array (Aoe 1989).

4 bytes: size of the array | the array, units of 4 bytes | texts, each ended by a zero byte

A unit holds the offset of its children, whether a key ends at it, and its own label, which is a byte; a unit that a key
leads to holds the place of a text. The library follows offsets and places unchecked, and ends the process's work
where they lead out of the map.
"""

from __future__ import annotations

import numpy as np

_VALUE, _LEAF = np.uint32(1 << 31), np.uint32(1 << 8)


def check_charsmap(data: bytes) -> None:
    """Raises ValueError where some text would lead out of the map."""
    size = int.from_bytes(data[:4], "little")
    if not size or size % 1024 or 4 + size > len(data):
        raise ValueError(f"its charsmap of {len(data)} bytes claims an array of {size}")
    units, texts = np.frombuffer(data, "<u4", size // 4, 4), data[4 + size :]
    texts.decode("utf-8")
    if texts and texts[-1]:
        raise ValueError("the last text of its charsmap has no end")
    nodes = np.flatnonzero(units < _VALUE)
    below = nodes ^ _offsets(units[nodes])
    if (below | 255 >= len(units)).any():
        raise ValueError("its charsmap leads out of its array")
    places = units[below[units[nodes] & _LEAF != 0]] & (_VALUE - 1)
    if (places >= len(texts)).any():
        raise ValueError("its charsmap leads out of its texts")
    if (np.frombuffer(texts, np.uint8)[places] & 0xC0 == 0x80).any():
        raise ValueError("its charsmap leads into the middle of a character")


def _offsets(units: np.ndarray) -> np.ndarray:
    """22 bits; large ones are multiples of 256 and say so by a bit."""
    return (units.astype(np.int64) >> 10) << np.where(units & 512, 8, 0)
