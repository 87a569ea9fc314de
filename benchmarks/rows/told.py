"""How results are told in the table of docs/benchmarks/index.md."""

from __future__ import annotations

from typing import Any

Found = dict[str, Any]  # a file of benchmarks/results
Row = tuple[str, str, str]  # what was measured, what headway reached, and what stands beside it


def duration(found: Found) -> str:
    """The minutes of a run; of one thread, the minutes of its core."""
    if found.get("threads") == 1:
        return f"{found['core_seconds'] / 60:.0f} minutes of one core"
    seconds = found.get("seconds_in_all") or found["seconds_before_training"] + found["seconds_training"]
    return f"{seconds / 60:.1f} minutes"


def rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
