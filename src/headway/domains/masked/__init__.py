"""Masked language models: what is hidden is foretold from both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.domains.masked.batches import MaskedBatch, MaskedBatches
    from headway.domains.masked.fill import Candidate, fill
    from headway.domains.masked.masking import Masking, MaskingConfig
    from headway.domains.masked.task import Masked, MaskedConfig

__all__ = [
    "RECIPES",
    "TASKS",
    "VERBS",
    "Candidate",
    "Masked",
    "MaskedBatch",
    "MaskedBatches",
    "MaskedConfig",
    "Masking",
    "MaskingConfig",
    "fill",
]
RECIPES = ("masked",)
TASKS = {"masked": "task"}
VERBS = {"fill": "is_masked"}
lazily(
    __name__,
    {
        ".batches": ("MaskedBatch", "MaskedBatches"),
        ".fill": ("Candidate", "fill"),
        ".masking": ("Masking", "MaskingConfig"),
        ".task": ("Masked", "MaskedConfig"),
    },
)
