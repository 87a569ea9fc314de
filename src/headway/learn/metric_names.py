"""Metrics for people: their names, and their values with units."""

from __future__ import annotations

import re

from headway.learn.report.charts import compact_number

TITLES = {
    "loss": "loss",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "bleu": "BLEU",
    "bleu_lowercase": "BLEU, lower-cased",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "wer": "word error rate",
    "per": "phoneme error rate",
    "boundary_error_ms": "boundary error (ms)",
    "start_error_ms": "start time error (ms)",
    "end_error_ms": "end time error (ms)",
    "exact_match": "exact match",
    "exact_match_novel": "exact match, novel pairs",
    "return_mean": "mean return",
    "return_normalised": "D4RL normalised return",
    "target_return": "target return",
    "success_rate": "success rate",
    "score": "success and speed",
    "steps_mean": "steps to success",
    "length_mean": "steps per episode",
    "f1": "F1",
    "mean_recall_at_1": "recall at 1, mean of both directions",
    "f1_micro": "micro F1",
    "mrr_at_10": "MRR at 10",
    "ndcg_at_10": "NDCG at 10",
    "rare_f1": "F1 of rare classes",
    "r2": "R²",
    "policy": "nats per move",
    "value": "nats per outcome",
    "score_error": "error of the expected score",
    "mase": "mean absolute scaled error",
    "mase_naive": "mean absolute scaled error, seasonal naive",
    "mase_smoothing": "mean absolute scaled error, exponential smoothing",
    "weighted_quantile_loss_smoothing": "weighted quantile loss, exponential smoothing",
    "weighted_quantile_loss_naive": "weighted quantile loss, seasonal naive",
    "legal_rate": "legal top moves",
    "perplexity_change": "perplexity of the chosen answers, relative to the initial model",
    "answer_tokens": "tokens per answer",
    "endless_rate": "answers without an end",
    "equal_rewards_rate": "prompts with equal rewards",
    "sampler_difference": "sampler and trainer, largest difference of log probabilities",
    "samples": "samples",
    "tokens": "tokens",
}
RATE_METRICS = (
    "wer",
    "per",
    "accuracy",
    "next_accuracy",
    "exact_match",
    "exact_match_novel",
    "f1",
    "f1_micro",
    "rare_f1",
    "balanced_accuracy",
    "precision",
    "recall",
    "puzzle_accuracy",
    "legal_rate",
)
LOWER_IS_BETTER = ("loss", "wer", "per", "mean_absolute_error")  # of the scores that select the best model
_AT_K = re.compile(r"_at_\d+(_|$)")  # recall, chance and neighbours at K


def title(name: str) -> str:
    """A metric's name for people."""
    return TITLES.get(name, name.replace("_", " "))


def format_metric(name: str, value: float) -> str:
    """A metric's value for people: rates in per cent, counts with all their digits."""
    if is_rate(name):
        return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else compact_number(value)


def is_rate(name: str) -> bool:
    """Whether a metric is shown in per cent."""
    return (
        name in RATE_METRICS
        or name.endswith("_rate")
        or name.startswith("success_rate")
        or _AT_K.search(name) is not None
    )
