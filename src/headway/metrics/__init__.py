"""Metrics under the names that `evaluate` prints. Rates are fractions; BLEU and chrF range from 0 to 100."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.metrics.classification import (
        EntitySpan,
        accuracy,
        class_scores,
        entity_scores,
        entity_spans,
        f1_score,
        has_spans,
        nearest_centroid,
        neighbour_recall,
        paired_recall,
        ranking_scores,
        tag_scores,
    )
    from headway.metrics.error_rates import (
        edit_distance,
        english_words,
        min_edits,
        pronunciation_error_rates,
        word_error_rate,
    )
    from headway.metrics.intervals import (
        bootstrap,
        bootstrap_mean,
        bootstrap_ratio,
        correlation_scores,
        elo_difference,
        wilson_interval,
    )
    from headway.metrics.label_metrics import balanced_scores, best_thresholds, label_scores, number_scores
    from headway.metrics.text_metrics import (
        bits_per_byte,
        bleu,
        caption_scores,
        chrf,
        exact_match,
        language_scores,
        perplexity,
        rouge,
        translation_scores,
    )

__all__ = [
    "EntitySpan",
    "accuracy",
    "balanced_scores",
    "best_thresholds",
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
    "entity_spans",
    "exact_match",
    "f1_score",
    "has_spans",
    "label_scores",
    "language_scores",
    "min_edits",
    "nearest_centroid",
    "neighbour_recall",
    "number_scores",
    "paired_recall",
    "perplexity",
    "pronunciation_error_rates",
    "ranking_scores",
    "rouge",
    "tag_scores",
    "translation_scores",
    "wilson_interval",
    "word_error_rate",
]

lazy_exports(
    __name__,
    {
        ".classification": (
            "EntitySpan",
            "accuracy",
            "class_scores",
            "entity_scores",
            "f1_score",
            "has_spans",
            "nearest_centroid",
            "neighbour_recall",
            "paired_recall",
            "ranking_scores",
            "entity_spans",
            "tag_scores",
        ),
        ".error_rates": ("edit_distance", "english_words", "min_edits", "pronunciation_error_rates", "word_error_rate"),
        ".intervals": (
            "bootstrap",
            "bootstrap_mean",
            "bootstrap_ratio",
            "correlation_scores",
            "elo_difference",
            "wilson_interval",
        ),
        ".label_metrics": ("balanced_scores", "best_thresholds", "label_scores", "number_scores"),
        ".text_metrics": (
            "bits_per_byte",
            "bleu",
            "caption_scores",
            "chrf",
            "exact_match",
            "language_scores",
            "perplexity",
            "rouge",
            "translation_scores",
        ),
    },
)
