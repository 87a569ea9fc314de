"""Memory in huge pages of 2 MB if the system has them (Linux: MADV_HUGEPAGE of madvise(2)).

The data of a step otherwise span thousands of 4 kB pages. Each needs a lookup in the page tables (two on a virtual
machine), and hardware prefetching stops at the end of each page.
"""

from __future__ import annotations

import mmap

import numpy as np

_PAGE, _LINE = 1 << 21, 64  # bytes


def large_pages(size: int) -> np.ndarray:
    """`size` zero bytes, aligned to a huge page, or to a cache line if there are no huge pages. MemoryError if the
    system lacks the memory.
    """
    try:
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return _from_a_border(np.zeros(size + _LINE, np.uint8), size, _LINE)
        # Shared anonymous memory, Python's default, is backed by a file and does not get huge pages.
        room = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        room.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(f"cannot allocate {size} bytes: {error}") from error
    return _from_a_border(np.frombuffer(room, np.uint8), size, _PAGE)


def _from_a_border(room: np.ndarray, size: int, apart: int) -> np.ndarray:
    start = -room.ctypes.data % apart
    return room[start : start + size]
