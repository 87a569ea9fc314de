"""Checks of free memory before large allocations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from headway.errors import UserError

_MACHINE = Path("/proc/meminfo")
_MEMBERSHIP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


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
    """Bytes that this process can still allocate on a device, without swap; None if the device does not report it.

    On a CPU, this is the minimum of the free memory of the machine and of its control groups (containers).
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's cache, reusable
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    candidates, available = list(_groups()), _table(_MACHINE).get("MemAvailable:")
    if available is not None:  # Linux reports it; elsewhere use total memory as an upper bound
        candidates.append(1024 * available)
    else:
        with suppress(AttributeError, ValueError, OSError):  # outside Unix sysconf or these names may be missing
            candidates.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(0, min(candidates)) if candidates else None


def _groups() -> Iterator[int]:
    """Free bytes of each control group of this process; file caches can be evicted, so they count as free."""
    for line in _text(_MEMBERSHIP).splitlines():
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
                cached = _table(group / "memory.stat")
                yield int(sizes[0]) - int(sizes[1]) + sum(cached.get(name, 0) for name in caches)
            if group == root:
                break


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
