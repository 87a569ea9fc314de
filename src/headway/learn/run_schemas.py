"""Schemas for a run's files: run.json, a checkpoint's state.json, and the lines in metrics.jsonl.

Each is declared once, and `from_dict` checks it on every read because runs may be untrusted. Unknown fields are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required, TypedDict

from headway.config import Range, from_dict
from headway.errors import ConfigError, UserError
from headway.io.durable import decode_json, read_json
from headway.io.files import open_file

_MAX_SCORE = 1e100  # maximum score; larger ones are mistakes whose squares overflow
_STRING_FIELDS = ("split", "weights", "remark")  # fields that are strings
_REMEDY = "restore it from a copy"
_NOISE_SAMPLES = 3.5  # accuracies that differ by fewer samples are considered equal
_FRACTION_GOALS = ("accuracy", "f1", "recall_at_1", "mean_recall_at_1", "exact_match")  # goals that are fractions


def check_scores(scores: Mapping[str, Any], path: str) -> None:
    """Check scores by name: numbers or None, [low, high] in NAME_interval, and strings in NAME_signature. Raises
    ConfigError for anything else.
    """
    for name, value in scores.items():
        if value is None:
            continue
        if name in _STRING_FIELDS or name.endswith("_signature"):
            is_valid, expected = isinstance(value, str), "a string"
        elif name.endswith("_interval"):
            is_valid = isinstance(value, list) and len(value) == 2 and all(map(_is_score, value))
            expected = "two numbers"
        else:
            is_valid, expected = _is_score(value), "a number"
        if not is_valid:
            text = repr(value)
            raise ConfigError(f"{path}: {name} is {text[:100]}{'...' * (len(text) > 100)}, not {expected}; {_REMEDY}")


def _is_score(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= _MAX_SCORE or not math.isfinite(value)


def _check_interval(values: list[float], path: str) -> None:
    if len(values) != 2:
        raise ConfigError(f"{path} has {len(values)} numbers instead of the two ends of an interval; {_REMEDY}")


Count = Annotated[int, Range(0)]
Seconds = Annotated[float, Range(0, 1e12)]


class PredictedLoss(TypedDict):
    """The final loss predicted from an early evaluation."""

    step: Count
    loss: float
    loss_interval: Annotated[list[float], _check_interval]


class MetricsLine(TypedDict):
    """A line in metrics.jsonl: the metrics for a step or, with a "split", the scores from an evaluation. The best
    evaluation so far is also stored as such a line.
    """

    step: Count
    split: NotRequired[str]


def check_line(line: Mapping[str, Any], path: str) -> None:
    """Check a step and scores; raise ConfigError for anything else."""
    from_dict(MetricsLine, line, path)
    check_scores(line, path)


class FinalScores(TypedDict, total=False):
    """Scores on the final split, or on part of it if time was short."""

    split: Required[str]
    judged: Count
    judged_of: Count


class Status(TypedDict, total=False):
    """run.json."""

    format: Required[int]
    status: Required[Literal["running", "interrupted", "finished"]]
    recipe: str
    parameters: Required[Count]
    steps: Required[Count]
    step: Required[Count]
    tokens: Required[Count]
    epochs: Annotated[float, Range(0)] | None
    trained: Count | None
    seconds: Required[Seconds]
    elapsed: Seconds | None
    minutes: Seconds | None
    precision: str
    precision_reason: str
    fresh: list[str]
    goal: str
    unit: str
    best: Annotated[dict[str, Any], check_line] | None
    forecast: PredictedLoss | None
    data: dict[str, int | str]
    scores: Annotated[FinalScores, check_scores] | None
    samples: list[dict[str, str]]
    remark: str
    refitted: Count  # training and validation samples that the head was finally refitted to
    judging_seconds: Seconds
    report: str | None
    packages: dict[str, str]
    python: str
    machine: dict[str, str | int | None]
    device: str
    threads: Count
    deterministic: bool
    processes: Count


@dataclass
class Progress:
    """The progress of a run after `step` updates. state.json contains this and a version.

    There is no random number generator state, because dropout is seeded from (seed, step) and the data order is a
    function of the step. `evaluated` is the last step with an evaluation, `stale` the number of evaluations since the
    best one, and `forecast` the predicted final loss.
    """

    step: Count = 0
    tokens: Count = 0
    seconds: Seconds = 0.0
    evaluated: Count = 0
    stale: Count = 0
    best: Annotated[dict[str, Any], check_line] | None = None
    forecast: PredictedLoss | None = None

    def record(self, metrics: dict[str, Any], goal: str, better: Literal["min", "max"]) -> bool:
        """Record an evaluation; return whether it is the best so far.

        If the goal differs by no more than chance (about three validation samples), the smaller loss is better.
        """
        is_best = math.isfinite(metrics[goal])
        if is_best and self.best is not None:
            gain = (metrics[goal] - self.best[goal]) * (1 if better == "max" else -1)
            sample_count = metrics.get("words") or metrics.get("samples")
            tolerance = _NOISE_SAMPLES / sample_count if goal in _FRACTION_GOALS and sample_count else 0.0
            loss, best_loss = metrics.get("loss", math.inf), self.best.get("loss", math.inf)
            is_best = gain > tolerance or (gain >= -tolerance and loss < best_loss)
        if is_best:
            self.best = {"step": self.step, **metrics}
        self.stale = 0 if is_best else self.stale + 1
        self.evaluated = self.step
        return is_best


def read_progress(path: Path, version: int) -> Progress:
    """Read a checkpoint's state. Raises UserError for another version or a damaged file."""
    data = read_json(path)
    found_version = data.pop("version", None) if isinstance(data, dict) else None
    if found_version != version:
        raise ConfigError(
            f"{path} has version {str(found_version)[:50]}, but this headway reads {version}; use the version that "
            "wrote it"
        )
    missing = [field.name for field in fields(Progress) if field.name not in data]
    if missing:
        raise ConfigError(f"{path} has no {missing[0]!r}; {_REMEDY}")
    progress = from_dict(Progress, data, str(path))
    if f"step-{progress.step:08d}" != path.parent.name:
        raise ConfigError(f"{path} is from step {progress.step:,}, but its folder is {path.parent.name}; {_REMEDY}")
    return progress


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines in a metrics.jsonl. An incomplete last line, left by a killed process, is ignored."""
    if not path.is_file():
        return []
    with open_file(path) as file:
        content = file.read()
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(content.splitlines(keepends=True), 1):
        source = f"{path}, line {number}"
        try:
            line = decode_json(text, source)
        except UserError:
            if text.endswith(b"\n"):
                raise
            break
        check_line(line, source)
        lines.append(line)
    return lines
