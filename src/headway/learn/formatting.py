"""Quantities as text for people: numbers, durations and epochs."""

from __future__ import annotations


def format_number(number: float) -> str:
    """A number for people: 430 and 1,230 as integers, smaller ones with two digits, and no exponents."""
    return f"{number:,.0f}" if abs(number) >= 9.95 else f"{float(f'{number:.2g}'):.10f}".rstrip("0").rstrip(".")


def format_seconds(seconds: float) -> str:
    """A duration for people: 41 s, or 1.8 minutes."""
    return f"{format_number(seconds)} s" if seconds < 60 else format_minutes(float(format_number(seconds / 60)))


def format_minutes(minutes: float) -> str:
    """Minutes for people: 1 minute, or 2.5 minutes."""
    return "1 minute" if minutes == 1 else f"{minutes:g} minutes"


def format_count(number: float) -> str:
    """A count for people: 950, 12k, 3.4M."""
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2g}{name}" if number < 100 * size else f"{number / size:.0f}{name}"
    return f"{number:.0f}"


def format_duration(seconds: float) -> str:
    """Seconds as 42 s, 3:05 or 1:02:03."""
    total_seconds = max(0, round(seconds))
    hours, remainder = divmod(total_seconds, 3600)
    minutes, remainder = divmod(remainder, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{remainder:02d}"
    return f"{minutes}:{remainder:02d}" if minutes else f"{remainder} s"


def format_epochs(epochs: float) -> str:
    """Epochs as 0.4 epochs, 3.1 epochs or 1,200 epochs."""
    return f"{epochs:,.0f} epochs" if epochs >= 10 else f"{epochs:.1f} epochs"
