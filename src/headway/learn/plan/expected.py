"""The expected score of a run, in its domain's own metric, from reference runs on other data and a quick classical
method on the user's data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from headway.io.durable import read_json
from headway.learn.formatting import format_minutes
from headway.learn.metric_names import format_metric, title
from headway.learn.objective import Baseline
from headway.learn.run import ExpectedResult

COVERAGE = 0.8  # of the interval
_REFERENCE_MINUTES, _REFERENCE_SAMPLES = 5.0, 2000.0
_MARGIN = 0.002  # distance of a rate from 0 and 1
_PERCENT_METRICS = ("bleu", "chrf", "rougeL")
_ERROR_METRICS = ("loss", "perplexity", "bits_per_byte", "wer", "per", "mase")
_FORECAST_METRICS = ("mase",)
_RETURN_METRICS = ("return_mean",)
# Standard deviations of the weights before any reference: of all recipes, of each recipe, of the classical score, and
# of the logarithms of the minutes and of the number of samples.
_DEVIATIONS = {
    "rate": (1.0, 1.0, 0.4, 0.15, 0.2),
    "error": (0.2, 0.2, 0.3, 0.05, 0.05),
    "return": (0.3, 0.3, 0.1, 0.1, 0.1),
}
_GAIN = {"rate": 0.2, "error": -0.04, "return": 0.0}  # of a score per e-fold of the minutes, before any reference
_NOISE = {"rate": 0.4, "error": 0.1, "return": 0.2}  # standard deviation of a score, before any reference
_NOISE_WEIGHT = 2.0  # sources that the noise before any reference counts as
_POOLED_WEIGHT = 2.0  # sources that the noise of all recipes counts as, for each recipe
_PASSES = 3  # estimates of the noise
# Quantiles of Student's t at 90 %, by degrees of freedom from 2; the last is the normal distribution's.
_STUDENT = (1.886, 1.638, 1.533, 1.476, 1.44, 1.415, 1.397, 1.383, 1.372, 1.363, 1.356, 1.35, 1.345, 1.341, 1.337)
_NORMAL = 1.282


class Facts(NamedTuple):
    """What a score is predicted from: the recipe, the minutes, the number of training samples, and the score of a quick
    classical method on the validation split, if the task has one; with the numbers of validation and test samples, if
    they are known.
    """

    recipe: str
    minutes: float
    samples: int
    baseline: Baseline | None
    evaluated: tuple[int, int] | None = None


class Reference(NamedTuple):
    """A finished run: its data, the source that they share with others, its facts and test score, and the name and the
    test score of a classical tool, if one was measured.
    """

    name: str
    source: str
    metric: str
    facts: Facts
    score: float
    tool: str | None = None
    tool_score: float | None = None


class ExpectedScore(NamedTuple):
    """The expected test score after the minutes, with an 80 % interval; a classical tool, if one is known for the
    recipe, and its expected score.
    """

    metric: str
    minutes: float
    low: float
    score: float
    high: float
    tool: str | None = None
    tool_score: float | None = None

    def result(self) -> ExpectedResult:
        """The prediction as it is stored with a run."""
        interval = [self.low, self.high]
        return ExpectedResult(
            metric=self.metric,
            minutes=self.minutes,
            score=self.score,
            interval=interval,
            tool=self.tool,
            tool_score=self.tool_score,
        )

    def lines(self, baseline: Baseline | None, split: str) -> list[str]:
        """The prediction of the score on a split, for people."""
        low, score, high = (format_score(self.metric, value) for value in (self.low, self.score, self.high))
        known = (
            ""
            if baseline is None
            else (f"; {baseline.method} has {format_score(baseline.metric, baseline.score)} on the validation split")
        )
        after = format_minutes(self.minutes)
        lines = [f"expected {title(self.metric)} on the {split} split after {after}: {score} ({low} to {high}){known}"]
        if self.tool is not None and self.tool_score is not None:
            tool_score = format_score(self.metric, self.tool_score)
            lines.append(f"expected from {self.tool}: about {tool_score}; compare it before you train for long")
        return lines


def format_score(metric: str, score: float) -> str:
    """A score with the digits that a prediction deserves."""
    if metric in _PERCENT_METRICS:
        return f"{score:.1f}"
    return format_metric(metric, score) if kind_of(metric) == "rate" else f"{score:.3g}"


def kind_of(metric: str) -> str:
    """The scale on which a metric's scores are compared: "rate", "error" or "return"."""
    return "error" if metric in _ERROR_METRICS else "return" if metric in _RETURN_METRICS else "rate"


def _comparable(metric: str) -> tuple[str, bool]:
    """Equal for metrics whose scores help to predict each other. Errors of forecasts and scores of generated text vary
    more than other errors and rates.
    """
    return kind_of(metric), metric in (*_FORECAST_METRICS, *_PERCENT_METRICS)


@cache
def references() -> tuple[Reference, ...]:
    """The references that headway ships, from benchmarks/scores.py."""
    return tuple(map(as_reference, read_json(Path(__file__).with_name("references.json"))["references"]))


def as_reference(row: Mapping[str, Any]) -> Reference:
    """A row of references.json."""
    baseline = None if row["baseline"] is None else Baseline(*row["baseline"])
    facts = Facts(row["recipe"], row["minutes"], row["samples"], baseline, tuple(row["evaluated"]))
    own = (row[name] for name in ("score", "tool", "tool_score"))
    return Reference(row["name"], row["source"], row["metric"], facts, *own)


def expected_score(facts: Facts, known: Sequence[Reference]) -> ExpectedScore | None:
    """The expected score of a run with these facts; None if no reference has its recipe and metric.

    Scores are compared as log-odds (rates), logarithms (errors), or relative to the recorded return. The difference
    from the classical method's score is linear in the recipe, that score, and the logarithms of minutes and samples,
    with normal priors (Bishop 2006, section 3.3). The noise of a recipe is its leave-one-source-out error, shrunk to
    that of all recipes, so the interval is wide where references disagree or are few. Rates of few samples vary by
    chance: the variance of their log-odds is added (Gart and Zweifel 1967).
    """
    own = [
        row
        for row in known
        if row.facts.recipe == facts.recipe and (row.facts.baseline is None) == (facts.baseline is None)
    ]
    if facts.baseline is not None:
        own = [row for row in own if row.metric == facts.baseline.metric]
    if not own:
        return None
    metric = own[0].metric
    if facts.baseline is not None and not math.isfinite(_position(metric, facts.baseline.score, facts)):
        return None
    related = [
        row
        for row in known
        if _comparable(row.metric) == _comparable(metric) and (row.facts.baseline is None) == (facts.baseline is None)
    ]
    mean, spread = _predict(facts, metric, related, [row.score for row in related])
    bounds = (mean - spread, mean, mean + spread)
    low, score, high = sorted(_score(metric, bound, facts) for bound in bounds)
    result = ExpectedScore(metric, facts.minutes, low, score, high)
    measured = [row for row in related if row.tool_score is not None]
    tools = [row.tool for row in measured if row.facts.recipe == facts.recipe]
    if not tools:
        return result
    # A tool does not depend on the minutes.
    at_reference = [row._replace(facts=row.facts._replace(minutes=_REFERENCE_MINUTES)) for row in measured]
    tool_facts = facts._replace(minutes=_REFERENCE_MINUTES)
    tool_mean, _ = _predict(tool_facts, metric, at_reference, [row.tool_score or 0.0 for row in measured])
    return result._replace(tool=tools[0], tool_score=_score(metric, tool_mean, facts))


def _predict(facts: Facts, metric: str, known: Sequence[Reference], scores: Sequence[float]) -> tuple[float, float]:
    """The mean and half the width of the interval, on the scale of the metric's kind."""
    kind = kind_of(metric)
    recipes = sorted({row.facts.recipe for row in known})
    inputs = np.array([_features(row.facts, row.metric, recipes) for row in known])
    usual = np.array([_offset(row.facts, row.metric) + _GAIN[kind] * _log_minutes(row.facts) for row in known])
    wanted = np.array([_position(row.metric, score, row.facts) for row, score in zip(known, scores)]) - usual
    sources = np.array([row.source for row in known])
    own = np.array([recipes.index(row.facts.recipe) for row in known])
    tasks = list(zip(sources.tolist(), own.tolist()))
    shares = np.array([1 / tasks.count(task) for task in tasks])  # runs on the same data count as one
    first, every, *others = _DEVIATIONS[kind]
    prior = np.array([first, *[every] * len(recipes), *others])
    count = len(set(sources.tolist()))
    observed = count if count > 1 else 0
    noise = np.full(len(recipes), _NOISE[kind])  # of each recipe
    for _ in range(_PASSES * (observed > 0)):
        squares = np.zeros((2, len(recipes)))  # sums of squared errors, and of how many sources
        for source, recipe in dict.fromkeys(tasks):
            kept, left_out = sources != source, (sources == source) & (own == recipe)
            weights, covariance = _fit(inputs[kept], wanted[kept], shares[kept], prior, noise[own[kept]])
            rows, variance = inputs[left_out], noise[recipe] ** 2
            of_noise = variance / (variance + np.einsum("ij,jk,ik->i", rows, covariance, rows))
            squares[:, recipe] += float(np.mean((wanted[left_out] - rows @ weights) ** 2 * of_noise)), 1
        pooled = (_NOISE_WEIGHT * _NOISE[kind] ** 2 + squares[0].sum()) / (_NOISE_WEIGHT + squares[1].sum())
        noise = np.sqrt((_POOLED_WEIGHT * pooled + squares[0]) / (_POOLED_WEIGHT + squares[1]))
    weights, covariance = _fit(inputs, wanted, shares, prior, noise[own])
    features = _features(facts, metric, recipes)
    mean = float(features @ weights) + _offset(facts, metric) + _GAIN[kind] * _log_minutes(facts)
    quantile = _STUDENT[observed] if observed < len(_STUDENT) else _NORMAL
    variance = noise[recipes.index(facts.recipe)] ** 2 + float(features @ covariance @ features)
    if facts.evaluated and kind == "rate" and metric not in _PERCENT_METRICS:
        for count, position in zip(facts.evaluated, (_offset(facts, metric), mean)):
            right = count / (1 + math.exp(-position))
            variance += 1 / (right + 0.5) + 1 / (count - right + 0.5)
    return mean, quantile * math.sqrt(variance)


def _fit(
    inputs: Float[np.ndarray, "N F"],
    wanted: Float[np.ndarray, "N"],
    shares: Float[np.ndarray, "N"],
    prior: Float[np.ndarray, "F"],
    noise: Float[np.ndarray, "N"],
) -> tuple[Float[np.ndarray, "F"], Float[np.ndarray, "F F"]]:
    """The mean and covariance of the weights of a linear regression with a normal prior; rows count by their shares."""
    weighted = inputs * (shares / noise**2)[:, None]
    covariance = np.linalg.inv(np.diag(1 / prior**2) + inputs.T @ weighted)
    return covariance @ weighted.T @ wanted, covariance


def _features(facts: Facts, metric: str, recipes: Sequence[str]) -> Float[np.ndarray, "F"]:
    own = [float(facts.recipe == recipe) for recipe in recipes]
    classical = 0.0 if kind_of(metric) == "return" else _offset(facts, metric)
    return np.array([1.0, *own, classical, _log_minutes(facts), math.log(max(1, facts.samples) / _REFERENCE_SAMPLES)])


def _log_minutes(facts: Facts) -> float:
    return math.log(facts.minutes / _REFERENCE_MINUTES)


def _offset(facts: Facts, metric: str) -> float:
    """The classical method's score on the scale of the metric's kind; 0 without one."""
    return 0.0 if facts.baseline is None else _position(metric, facts.baseline.score, facts)


def _position(metric: str, score: float, facts: Facts) -> float:
    """A score on the scale of its metric's kind."""
    kind = kind_of(metric)
    if kind == "error":
        return math.log(max(score, 1e-6))
    if kind == "return":
        recorded = score if facts.baseline is None else facts.baseline.score
        return (score - recorded) / max(abs(recorded), 1e-6)
    share = min(max(score / (100 if metric in _PERCENT_METRICS else 1), _MARGIN), 1 - _MARGIN)
    return math.log(share / (1 - share))


def _score(metric: str, position: float, facts: Facts) -> float:
    """The score at a position, the inverse of `_position`."""
    kind = kind_of(metric)
    if kind == "error":
        return math.exp(position)
    if kind == "return":
        recorded = 0.0 if facts.baseline is None else facts.baseline.score
        expected = recorded + position * max(abs(recorded), 1e-6)
        highest = None if facts.baseline is None else facts.baseline.highest
        return expected if highest is None else min(expected, highest)
    return (100 if metric in _PERCENT_METRICS else 1) / (1 + math.exp(-position))
