"""Memory in huge pages of 2 MB if the system has them (Linux: MADV_HUGEPAGE of madvise(2)).

Otherwise the data of one step span thousands of 4 kB pages. Each needs a lookup in the page tables (two on a virtual
machine), and hardware prefetching stops at the end of each page.
"""

from __future__ import annotations

import mmap

import numpy as np

_PAGE_BYTES, _CACHE_LINE_BYTES = 1 << 21, 64  # bytes


def large_pages(size: int) -> np.ndarray:
    """`size` zero bytes, aligned to a huge page, or to a cache line if there are no huge pages. MemoryError if the
    system lacks the memory.
    """
    try:
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return _aligned(np.zeros(size + _CACHE_LINE_BYTES, np.uint8), size, _CACHE_LINE_BYTES)
        # Shared anonymous memory, Python's default, is backed by a file and does not get huge pages.
        buffer = mmap.mmap(-1, size + _PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(f"cannot allocate {size} bytes: {error}") from error
    return _aligned(np.frombuffer(buffer, np.uint8), size, _PAGE_BYTES)


def _aligned(buffer: np.ndarray, size: int, alignment: int) -> np.ndarray:
    start = -buffer.ctypes.data % alignment
    return buffer[start : start + size]
