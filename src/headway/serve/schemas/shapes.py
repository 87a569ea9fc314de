"""Constraints that a grammar cannot express and that are checked during generation."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """The possible arrays and objects at one position of a schema, some of which must have unique items or keys."""

    kind: str  # "array" or "object"
    distinct: bool  # whether items, or keys, must be unique
    first: list[int]  # indices of the first items' shapes
    named: dict[str, int]  # indices of the members' shapes
    others: list[int]  # indices for all other items or members
    values: list[str] | None  # all possible items, as JSON, if there are few
