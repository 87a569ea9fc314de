"""Sequences into sequences: translation, and the pronunciation of words."""

from headway.domains.translation.alignment import Alignment, alignment
from headway.domains.translation.batches import PairBatch, Pairs, Sentences
from headway.domains.translation.config import Codecs, Marks, PairsConfig, TranslationConfig
from headway.domains.translation.decode import translate, translate_hypotheses
from headway.domains.translation.pronounce import Pronounce, PronounceConfig
from headway.domains.translation.recipes import RECIPES
from headway.domains.translation.task import PairTask, Translation

__all__ = [
    "RECIPES",
    "Alignment",
    "Codecs",
    "Marks",
    "PairBatch",
    "PairTask",
    "Pairs",
    "PairsConfig",
    "Pronounce",
    "PronounceConfig",
    "Sentences",
    "Translation",
    "TranslationConfig",
    "alignment",
    "translate",
    "translate_hypotheses",
]
