"""What a grammar leaves to be looked after while a text is written."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """What arrays and objects of one place may be, where some must not repeat what they hold."""

    kind: str  # "array" or "object"
    distinct: bool  # whether items, or keys, must not come twice
    first: list[int]  # places of the first items
    named: dict[str, int]  # of members
    others: list[int]  # of all other items or members
    values: list[str] | None  # all that items may be, as JSON, where these are few
