"""Where something was measured, and how its repeats spread."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_UNITS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_PACKAGES = (
    "headway",
    "torch",
    "numpy",
    "numba",
    "tokenizers",
    "transformers",
    "ctranslate2",
    "faster-whisper",
    "llama-cpp-python",
    "sacrebleu",
)


def machine() -> dict[str, Any]:
    """The processor, its cores and memory, and the versions of what is measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": named[0] if named else platform.processor(),
        "cores": os.cpu_count(),
        "units": [unit for unit in _UNITS if unit in flags.split()],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "packages": packages,
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Least, median and greatest, and all values in the order in which they came."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "values": list(values)}
