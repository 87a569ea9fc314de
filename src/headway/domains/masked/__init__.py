"""Masked language models: what is hidden is foretold from both sides."""

from headway.domains.masked.batches import MaskedBatch, MaskedBatches
from headway.domains.masked.fill import Candidate, fill
from headway.domains.masked.masking import Masking, MaskingConfig
from headway.domains.masked.recipes import RECIPES
from headway.domains.masked.task import Masked, MaskedConfig

__all__ = [
    "RECIPES",
    "Candidate",
    "Masked",
    "MaskedBatch",
    "MaskedBatches",
    "MaskedConfig",
    "Masking",
    "MaskingConfig",
    "fill",
]
