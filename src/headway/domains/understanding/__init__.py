"""Fine-tuning tasks for encoders: classes and numbers for texts and pairs, tags of words, sentence embeddings,
relevance of documents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.domains.understanding.answers import Answer
    from headway.domains.understanding.predictors import RankedDocument, TaggedWords, Text

__all__ = ["RECIPES", "TASKS", "VERBS", "Answer", "RankedDocument", "TaggedWords", "Text"]
RECIPES = ("classification", "pairs", "tagging", "embedding", "reranking", "banking77")
TASKS = {
    "classification": "classification",
    "embedding": "task",
    "pairs": "classification",
    "reranking": "reranking",
    "tagging": "tagging",
}
VERBS = {
    "answer": "is_answerer",
    "classify": "is_text_classifier",
    "embed": "is_text",
    "rerank": "is_cross_encoder",
    "tag": "is_tagger",
}
lazy_exports(__name__, {".answers": ("Answer",), ".predictors": ("RankedDocument", "TaggedWords", "Text")})
