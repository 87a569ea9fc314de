"""Memory that a training step frees stays with the process until the run ends, where the C library is glibc."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM, _MAPPED = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_KEPT = (1 << 31) - 1  # bytes
_USUAL_TRIM, _USUAL_MAPPED = 1 << 26, 1 << 25  # where glibc's own adaption ends up with large blocks


@contextmanager
def kept_heap() -> Iterator[None]:
    """Within this context freed memory is used again instead of being returned to the system.

    Every step frees and takes the same blocks. glibc gives large ones back at once, and the system clears each page
    before it hands it out again: a sixth of a step of a small model.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MAPPED, _KEPT)
    libc.mallopt(_TRIM, _KEPT)
    try:
        yield
    finally:
        libc.mallopt(_MAPPED, _USUAL_MAPPED)
        libc.mallopt(_TRIM, _USUAL_TRIM)
        libc.malloc_trim(ctypes.c_size_t(0))


def _glibc() -> Any:
    """The C library with glibc's functions; None where it is another."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if all(hasattr(libc, name) for name in ("mallopt", "malloc_trim", "gnu_get_libc_version")) else None
