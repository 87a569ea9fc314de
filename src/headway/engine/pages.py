"""Memory in pages of 2 MB where the system has them (Linux: MADV_HUGEPAGE of madvise(2)).

What streams through a step lies on thousands of pages of 4 kB. Where each leads is looked up in the tables of the
system, twice on a virtual machine, and a processor that reads ahead stops at the end of each.
"""

from __future__ import annotations

import mmap

import numpy as np

_PAGE = 1 << 21  # bytes


def large_pages(size: int) -> np.ndarray:
    """Zeros of `size` bytes, from the beginning of a page on. MemoryError where the system has not so many."""
    try:
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return np.zeros(size, np.uint8)
        # Anonymous memory that is shared, Python's default, lies in a file of its own and has other pages.
        room = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        room.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(f"{size} bytes are not to be had: {error}") from error
    found = np.frombuffer(room, np.uint8)
    start = -found.ctypes.data % _PAGE
    return found[start : start + size]
