"""The field's metrics, under the names that `evaluate` prints; rates are fractions, BLEU and chrF go to 100."""

from headway.metrics.edits import edit_distance, fewest_edits
from headway.metrics.errors import pronunciation_error_rates, word_error_rate
from headway.metrics.intervals import bootstrap_mean, bootstrap_ratio, wilson
from headway.metrics.language import bits_per_byte, language_scores, perplexity
from headway.metrics.translation import bleu, chrf, translation_scores

__all__ = [
    "bits_per_byte",
    "bleu",
    "bootstrap_mean",
    "bootstrap_ratio",
    "chrf",
    "edit_distance",
    "fewest_edits",
    "language_scores",
    "perplexity",
    "pronunciation_error_rates",
    "translation_scores",
    "wilson",
    "word_error_rate",
]
