"""Memory in pages of 2 MB where the system has them (Linux: MADV_HUGEPAGE of madvise(2)).

What streams through a step lies on thousands of pages of 4 kB. Where each leads is looked up in the tables of the
system, twice on a virtual machine, and a processor that reads ahead stops at the end of each.
"""

from __future__ import annotations

import mmap

import numpy as np

_PAGE, _LINE = 1 << 21, 64  # bytes


def large_pages(size: int) -> np.ndarray:
    """Zeros of `size` bytes, from the beginning of a page on, or of a line of memory where there are no large pages.
    MemoryError where the system has not so many bytes.
    """
    try:
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return _from_a_border(np.zeros(size + _LINE, np.uint8), size, _LINE)
        # Anonymous memory that is shared, Python's default, lies in a file of its own and has other pages.
        room = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        room.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(f"{size} bytes are not to be had: {error}") from error
    return _from_a_border(np.frombuffer(room, np.uint8), size, _PAGE)


def _from_a_border(room: np.ndarray, size: int, apart: int) -> np.ndarray:
    start = -room.ctypes.data % apart
    return room[start : start + size]
