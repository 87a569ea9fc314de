"""Steps whose loss is far from that of the steps before, and the samples of a step."""

from __future__ import annotations

import math
import statistics
from collections import deque

from headway.learn.examples import FULL_SHARD, Examples, RowSubset

_WINDOW, _MIN_STEPS = 100, 30  # steps that a loss is compared with
_MAX_DEVIATIONS = 20.0  # median absolute deviations above the median
_MIN_RISE = 0.5  # of the median, by which a loss must exceed it
_MAX_NAMED = 16  # samples in a message


class LossWatch:
    """Finds jumps of the loss: far above the median of the steps before, by their median absolute deviation."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._quiet_until = 0  # the step before which no other jump is reported

    def jump(self, step: int, loss: float) -> float | None:
        """Record the loss of a step; return the median before it if the loss jumps."""
        if not math.isfinite(loss):
            return None
        previous = list(self._losses)
        self._losses.append(loss)
        if len(previous) < _MIN_STEPS or step < self._quiet_until:
            return None
        median = statistics.median(previous)
        deviation = statistics.median(abs(value - median) for value in previous)
        if loss - median <= max(_MAX_DEVIATIONS * deviation, _MIN_RISE * abs(median)):
            return None
        self._quiet_until = step + _WINDOW
        return median


def describe_samples(examples: Examples, step: int, accumulate: int) -> str:
    """The micro-batches of a step (from 1) and, if the examples know them, their samples, which are counted from 0."""
    first, last = (step - 1) * accumulate, step * accumulate - 1
    text = f"micro-batch {first:,}" if first == last else f"micro-batches {first:,} to {last:,}"
    if examples.batches_per_epoch() is None:
        return text
    samples = examples.of("train")
    indices = []
    for number in range(first, last + 1):
        _, chosen = next(samples.training_order().endless(FULL_SHARD, number))
        indices += (samples.rows[chosen] if isinstance(samples, RowSubset) else chosen).tolist()
        if len(indices) > _MAX_NAMED:
            break
    names = ", ".join(map(str, indices[:_MAX_NAMED])) + (", ..." if len(indices) > _MAX_NAMED else "")
    return f"{text}: {'sample' if len(indices) == 1 else 'samples'} {names}"
