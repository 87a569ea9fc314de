"""The field's metrics, under the names that `evaluate` prints; rates are fractions, BLEU and chrF go to 100."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.metrics.captions import caption_scores, exact_match
    from headway.metrics.classification import accuracy, class_scores, f1_score
    from headway.metrics.correlation import correlation_scores
    from headway.metrics.edits import edit_distance, fewest_edits
    from headway.metrics.elo import elo_difference
    from headway.metrics.errors import pronunciation_error_rates, word_error_rate
    from headway.metrics.intervals import bootstrap, bootstrap_mean, bootstrap_ratio, wilson
    from headway.metrics.language import bits_per_byte, language_scores, perplexity
    from headway.metrics.retrieval import nearest_centroid, neighbour_recall, partner_recall
    from headway.metrics.spans import Span, entity_scores, has_spans, spans, tag_scores
    from headway.metrics.spoken import english_words
    from headway.metrics.translation import bleu, chrf, translation_scores

__all__ = [
    "Span",
    "accuracy",
    "bits_per_byte",
    "bleu",
    "bootstrap",
    "bootstrap_mean",
    "bootstrap_ratio",
    "caption_scores",
    "chrf",
    "class_scores",
    "correlation_scores",
    "edit_distance",
    "elo_difference",
    "english_words",
    "entity_scores",
    "exact_match",
    "f1_score",
    "fewest_edits",
    "has_spans",
    "language_scores",
    "nearest_centroid",
    "neighbour_recall",
    "partner_recall",
    "perplexity",
    "pronunciation_error_rates",
    "spans",
    "tag_scores",
    "translation_scores",
    "wilson",
    "word_error_rate",
]

lazily(
    __name__,
    {
        ".captions": ("caption_scores", "exact_match"),
        ".classification": ("accuracy", "class_scores", "f1_score"),
        ".correlation": ("correlation_scores",),
        ".edits": ("edit_distance", "fewest_edits"),
        ".elo": ("elo_difference",),
        ".errors": ("pronunciation_error_rates", "word_error_rate"),
        ".intervals": ("bootstrap", "bootstrap_mean", "bootstrap_ratio", "wilson"),
        ".language": ("bits_per_byte", "language_scores", "perplexity"),
        ".retrieval": ("nearest_centroid", "neighbour_recall", "partner_recall"),
        ".spans": ("Span", "entity_scores", "has_spans", "spans", "tag_scores"),
        ".spoken": ("english_words",),
        ".translation": ("bleu", "chrf", "translation_scores"),
    },
)
