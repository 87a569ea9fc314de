"""Memory of the machine: checks before large allocations, and huge pages."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headway.errors import UserError

if TYPE_CHECKING:
    import torch

_MACHINE = Path("/proc/meminfo")
_MEMBERSHIP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_PAGE_BYTES, _CACHE_LINE_BYTES = 1 << 21, 64  # bytes


def check_free_memory(purpose: str, parts: Mapping[str, int], device: torch.device, remedy: str) -> None:
    """Raise UserError if `parts` (bytes by name), needed by `purpose`, exceed the free memory of `device`.

    A device that does not report its memory is assumed to have enough.
    """
    needed, free = sum(parts.values()), free_bytes(device)
    if free is None or needed <= free:
        return
    shares = ", ".join(f"{name} {_format_bytes(size)}" for name, size in parts.items() if size)
    raise UserError(
        f"{purpose} needs {needed:,} bytes ({_format_bytes(needed)}) of memory: {shares}; {device} has {free:,} bytes "
        f"({_format_bytes(free)}) free; {remedy}"
    )


def free_bytes(device: torch.device) -> int | None:
    """Bytes that this process can still allocate on a device, without swap; None if the device does not report it."""
    if device.type == "cuda":
        import torch

        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's cache, reusable
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_cpu_bytes() if device.type == "cpu" else None


def free_cpu_bytes() -> int | None:
    """The minimum of the free memory of the machine and of its control groups (containers); None if it is unknown."""
    candidates, available = list[int](), _table(_MACHINE).get("MemAvailable:")
    if available is not None:  # Linux reports it; elsewhere use total memory as an upper bound
        candidates.append(1024 * available)
    else:
        with suppress(AttributeError, ValueError, OSError):  # outside Unix sysconf or these names may be missing
            candidates.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for line in _text(_MEMBERSHIP).splitlines():  # the control groups of this process
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            root, limit, used, caches = _GROUPS, "memory.max", "memory.current", ("inactive_file", "active_file")
        elif "memory" in controllers.split(","):
            root, limit, used = _GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            caches = ("total_inactive_file", "total_active_file")
        else:
            continue
        group_path = root / path.lstrip("/")
        for group in (group_path, *group_path.parents):
            sizes = [_text(group / name).strip() for name in (limit, used)]
            if all(size.isdecimal() for size in sizes):  # "max" means no limit
                cached_files = _table(group / "memory.stat")  # they can be evicted, so they count as free
                cached = sum(cached_files.get(name, 0) for name in caches)
                candidates.append(int(sizes[0]) - int(sizes[1]) + cached)
            if group == root:
                break
    return max(0, min(candidates)) if candidates else None


def _table(path: Path) -> dict[str, int]:
    """Parse a file whose lines are a name and a number."""
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def _text(path: Path) -> str:
    """Read a kernel file; "" if it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _format_bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def large_pages(size: int) -> np.ndarray:
    """`size` zero bytes in huge pages of 2 MB if the system has them (Linux: MADV_HUGEPAGE of madvise(2)), otherwise
    aligned to a cache line. MemoryError if the system lacks the memory.

    Without huge pages the data of one step span thousands of 4 kB pages. Each needs a lookup in the page tables (two on
    a virtual machine), and hardware prefetching stops at the end of each page.
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


def glibc() -> Any:
    """The C library if it is glibc, otherwise None."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if all(hasattr(libc, name) for name in ("mallopt", "malloc_trim", "gnu_get_libc_version")) else None


def release_freed_memory() -> None:
    """Return freed memory to the system."""
    libc = glibc()
    if libc is not None:
        libc.malloc_trim(ctypes.c_size_t(0))
