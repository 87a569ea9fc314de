"""Sequences into sequences: translation, and the pronunciation of words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.domains.translation.alignment import Alignment, alignment
    from headway.domains.translation.batches import PairBatch, Pairs, Sentences
    from headway.domains.translation.config import Codecs, Marks, TranslationConfig
    from headway.domains.translation.decode import translate, translate_hypotheses
    from headway.domains.translation.pronounce import Pronounce, PronounceConfig
    from headway.domains.translation.task import PairTask, Translation

__all__ = [
    "RECIPES",
    "TASKS",
    "VERBS",
    "Alignment",
    "Codecs",
    "Marks",
    "PairBatch",
    "PairTask",
    "Pairs",
    "Pronounce",
    "PronounceConfig",
    "Sentences",
    "Translation",
    "TranslationConfig",
    "alignment",
    "translate",
    "translate_hypotheses",
]
RECIPES = ("pronounce", "translation", "multi30k-en-de", "multi30k-en-de-small", "tatoeba", "transformer-base-wmt")
TASKS = {"pronounce": "pronounce", "translation": "config"}
VERBS = {
    "attention": "is_translator",
    "logits": "is_translator",
    "score": "is_translator",
    "translate": "is_translator",
}
lazily(
    __name__,
    {
        ".alignment": ("Alignment", "alignment"),
        ".batches": ("PairBatch", "Pairs", "Sentences"),
        ".config": ("Codecs", "Marks", "TranslationConfig"),
        ".decode": ("translate", "translate_hypotheses"),
        ".pronounce": ("Pronounce", "PronounceConfig"),
        ".task": ("PairTask", "Translation"),
    },
)
