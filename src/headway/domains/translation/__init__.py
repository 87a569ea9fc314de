"""Sequences into sequences: translation, and the pronunciation of words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.domains.translation.config import Codecs, PairsConfig, PairSpecialTokens, TranslationConfig
    from headway.domains.translation.task import (
        Alignment,
        ParallelText,
        PronounceConfig,
        SentencePairs,
        TargetText,
        TokenSequences,
        alignment,
    )
    from headway.domains.translation.translator import Translator, translate_hypotheses

__all__ = [
    "RECIPES",
    "TASKS",
    "VERBS",
    "Alignment",
    "Codecs",
    "PairSpecialTokens",
    "PairsConfig",
    "ParallelText",
    "PronounceConfig",
    "SentencePairs",
    "TargetText",
    "TokenSequences",
    "TranslationConfig",
    "Translator",
    "alignment",
    "translate_hypotheses",
]
RECIPES = ("pronounce", "translation", "multi30k-en-de", "multi30k-en-de-small", "tatoeba", "transformer-base-wmt")
TASKS = {"pronounce": "task", "translation": "config"}
VERBS = {
    "attention": "is_translator",
    "logits": "is_translator",
    "score": "is_translator",
    "translate": "is_translator",
}
lazy_exports(
    __name__,
    {
        ".config": ("Codecs", "PairSpecialTokens", "PairsConfig", "TranslationConfig"),
        ".task": (
            "Alignment",
            "ParallelText",
            "PronounceConfig",
            "SentencePairs",
            "TokenSequences",
            "TargetText",
            "alignment",
        ),
        ".translator": ("Translator", "translate_hypotheses"),
    },
)
