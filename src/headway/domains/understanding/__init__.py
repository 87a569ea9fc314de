"""Fine-tuning tasks for encoders: classes and numbers for texts and pairs, tags of words, sentence embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.domains.understanding.classification import ClassificationConfig, TextPairsConfig
    from headway.domains.understanding.embedding import EmbeddingConfig
    from headway.domains.understanding.encoder_inference import (
        RankedDocument,
        TaggedWords,
        Text,
        classify,
        embed,
        rerank,
        tag,
    )
    from headway.domains.understanding.tagging import TaggingConfig

__all__ = [
    "RECIPES",
    "TASKS",
    "VERBS",
    "ClassificationConfig",
    "EmbeddingConfig",
    "RankedDocument",
    "TaggedWords",
    "TaggingConfig",
    "Text",
    "TextPairsConfig",
    "classify",
    "embed",
    "rerank",
    "tag",
]
RECIPES = ("classification", "pairs", "tagging", "embedding", "banking77")
TASKS = {"classification": "classification", "embedding": "embedding", "pairs": "classification", "tagging": "tagging"}
VERBS = {
    "classify": "is_text_classifier",
    "embed": "is_text",
    "rerank": "is_cross_encoder",
    "tag": "is_tagger",
}
lazy_exports(
    __name__,
    {
        ".classification": ("ClassificationConfig", "TextPairsConfig"),
        ".embedding": ("EmbeddingConfig",),
        ".tagging": ("TaggingConfig",),
        ".encoder_inference": ("RankedDocument", "TaggedWords", "Text", "classify", "embed", "rerank", "tag"),
    },
)
