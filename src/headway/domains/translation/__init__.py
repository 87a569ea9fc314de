"""Sequences into sequences: translation, and the pronunciation of words."""

from __future__ import annotations

RECIPES = (
    "pronounce",
    "pronounce-lstm",
    "translation",
    "summarization",
    "multi30k-en-de",
    "multi30k-en-de-small",
    "tatoeba",
)
RECIPES += ("transformer-base-wmt",)
TASKS = {"pronounce": "pronunciation", "translation": "translation"}
VERBS = {
    "attention": "is_translator",
    "lens": "is_translator",
    "logits": "is_translator",
    "score": "is_translator",
    "translate": "is_translator",
}
