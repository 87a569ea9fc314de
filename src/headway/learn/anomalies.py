"""Steps whose loss is far from that of the steps before, and the samples of a step."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import NamedTuple

from headway.learn.examples import FULL_SHARD, Examples, RowSubset

_WINDOW, _MIN_STEPS = 100, 30  # steps that a loss is compared with
_MAX_DEVIATIONS = 20.0  # median absolute deviations above the median
_MIN_RISE = 0.5  # of the median, by which a loss must exceed it
_HIGH_STEPS = 3  # that must follow a jump with a high loss: a single batch of unusual samples is none
_MAX_NAMED = 16  # samples in a message


class Jump(NamedTuple):
    """A step with a high loss, and the median of the losses before it."""

    step: int
    loss: float
    median: float


class LossWatch:
    """Finds jumps of the loss: far above the median of the steps before, by their median absolute deviation, and still
    high in the next steps.
    """

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._quiet_until = 0  # the step before which no other jump is reported
        self._candidate: tuple[Jump, float] | None = None  # with the loss below which it was a single batch

    def jump(self, step: int, loss: float) -> Jump | None:
        """Record the loss of a step; return a jump some steps ago if the loss has been high since."""
        if not math.isfinite(loss):
            return None
        previous = list(self._losses)
        self._losses.append(loss)
        if self._candidate is not None:
            jump, limit = self._candidate
            if loss <= limit or step >= jump.step + _HIGH_STEPS:
                self._candidate = None
            if loss <= limit or step < jump.step + _HIGH_STEPS:
                return None
            self._quiet_until = step + _WINDOW
            return jump
        if len(previous) < _MIN_STEPS or step < self._quiet_until:
            return None
        median = statistics.median(previous)
        deviation = statistics.median(abs(value - median) for value in previous)
        rise = max(_MAX_DEVIATIONS * deviation, _MIN_RISE * abs(median))
        if loss - median > rise:
            self._candidate = Jump(step, loss, median), median + rise / 2
        return None


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
