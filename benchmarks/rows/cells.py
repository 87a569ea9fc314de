"""Cells of the tables of docs/benchmarks/index.md."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]  # a file of benchmarks/results
Row = tuple[str, str, str]  # the task, headway's figure, and the figure it is compared with


def duration(result: Result) -> str:
    """The minutes of a run: core-minutes if it used one thread."""
    if result.get("threads") == 1:
        return core_minutes(result)
    seconds = result.get("seconds_in_all") or result["seconds_before_training"] + result["seconds_training"]
    return f"{seconds / 60:.1f} min"


def core_minutes(result: Result) -> str:
    return f"{result['core_seconds'] / 60:.0f} core-minutes"


def millions(result: Result) -> str:
    return f"{result['parameters'] / 1e6:.1f}M parameters"


def rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}%"
