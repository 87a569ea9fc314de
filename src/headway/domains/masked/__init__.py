"""Masked language models: predict masked tokens from both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.domains.masked.fill import Candidate, fill

__all__ = ["RECIPES", "TASKS", "VERBS", "Candidate", "fill"]
RECIPES = ("masked",)
TASKS = {"masked": "task"}
VERBS = {"fill": "is_masked"}
lazy_exports(__name__, {".fill": ("Candidate", "fill")})
