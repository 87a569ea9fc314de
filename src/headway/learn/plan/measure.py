"""How fast a recipe trains on this machine, measured on a throwaway copy of its model."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import nn

from headway.errors import UserError
from headway.io.arguments import format_value
from headway.learn.distributed import Processes
from headway.learn.examples import OnPolicyExamples
from headway.learn.fine_tuning import prepare_for_training
from headway.learn.learner import Learner
from headway.learn.precision import choose_precision
from headway.learn.recipe import Recipe
from headway.learn.task import Task
from headway.nn.models import build

_WARM_UP = 1  # untimed steps after the first
_MEASURE_FRACTION = 0.02  # fraction of the time spent measuring the speed, within these limits in seconds:
_MIN_MEASURE, _MAX_MEASURE = 0.3, 6.0
_SIZE_FRACTION, _MIN_SIZE, _MAX_SIZE = 0.003, 0.15, 2.0  # the same for measuring one of several sizes
_REPORT_SECONDS = 0.8  # seconds for pictures and the report
_AGENT_REPORT_SECONDS = 2.0  # seconds for samples and the report of agents, which are not measured
FINAL_SHARE = 0.1  # maximum fraction of the time spent on the final split
_EVALUATION_FRACTION = 0.01  # fraction of the time for measuring an evaluation, with at least this many samples:
MIN_EVALUATED = 64


class Speed(NamedTuple):
    """Seconds per step, per evaluation, for everything after the last step, and for evaluating the complete final
    split. That last evaluation may be shortened to fit the available time.
    """

    step: float
    evaluation: float
    ending: float = 0.0
    final: float = 0.0


class Throughput(NamedTuple):
    """A model's training speed on this machine: targets per second, and the fixed seconds per step (the optimiser's). A
    batch has `share` targets per unit of its size, for example 0.5 if only half of its tokens are predicted. The
    measured steps had `step` targets each.
    """

    targets: float
    overhead: float
    share: float = 1.0
    step: float = 1.0


def check_minutes(minutes: Sequence[float]) -> None:
    """Raise UserError for minutes that are not positive numbers."""
    for number in minutes:
        if not isinstance(number, (int, float)) or not 0 < number < math.inf:
            raise UserError(f"minutes is {format_value(number)}; use a number above 0")


class Clock:
    """A monotonic clock that counts the seconds a run has worked, starting at `spent`, and excludes the time passed to
    `leave_out`.
    """

    def __init__(self, spent: float = 0.0) -> None:
        self._start = time.perf_counter() - spent

    def elapsed(self) -> float:
        return time.perf_counter() - self._start

    def leave_out(self, seconds: float) -> None:
        self._start += seconds


class SpeedMeter:
    """Measures the speed of a recipe on a throwaway model."""

    def __init__(
        self, recipe: Recipe, fresh: Collection[str], task: Task, processes: Processes, precision: str
    ) -> None:
        model = prepare_for_training(build(recipe.model, recipe.train.seed), recipe, fresh)
        self.task = task
        self.processes = processes
        self.learner = Learner(model, recipe, task, processes, precision)
        self._micro_batches = processes.local_micro_batches(recipe.train.accumulate)
        self._stream = task.batches("train", processes.shard)
        self._steps_done = 0
        accumulate = recipe.train.accumulate
        explorer = task.examples if isinstance(task.examples, OnPolicyExamples) else None
        self._rollout_period = 1 if explorer is None else -(-explorer.rollout_batches // accumulate)
        self.targets = 0.0  # mean target tokens per step

    def steps(self, count: int) -> float:
        """Seconds for `count` steps."""
        _synchronize(self.processes.device)
        start = time.perf_counter()
        tokens = 0
        for _ in range(count):
            batches = [next(self._stream) for _ in range(self._micro_batches)]
            self.learner.update(self._steps_done, batches)
            self._steps_done += 1
            tokens += sum(batch.tokens for batch in batches)
        _synchronize(self.processes.device)
        self.targets = self.processes.world * tokens / count
        return time.perf_counter() - start

    def overhead(self) -> float:
        """Seconds per step that do not grow with the batch, namely the optimiser's."""
        times = []
        for _ in range(_WARM_UP + 1):
            _synchronize(self.processes.device)
            start = time.perf_counter()
            self.learner.optimizer.step(0.0)
            _synchronize(self.processes.device)
            times.append(time.perf_counter() - start)
        return min(times)

    def seconds_per_step(self, seconds: float) -> float:
        """Seconds per step, measured for about `seconds`. If the first step (or an on-policy task's first period) takes
        longer than that, only that step is used.
        """
        period = self._rollout_period
        first_step = self.steps(period) / period
        if self.processes.broadcast_object(first_step * period > seconds):
            return first_step
        self.steps(_WARM_UP * period)
        estimate = self.steps(period)
        count = self.processes.broadcast_object(period * max(2, min(1000, round(seconds / estimate))))
        return self.steps(count) / count

    def samples(self, count: int) -> float:
        """Seconds to generate `count` samples with an almost untrained model."""
        start = time.perf_counter()
        if self.processes.is_main and count:
            with self.learner.evaluating() as model:
                self.task.samples(model, count)
        return time.perf_counter() - start

    def evaluation(self, split: str, limit: int | None) -> float:
        """Estimated seconds to evaluate a trained model on at most `limit` samples."""
        start = time.perf_counter()
        growth = 1.0
        if self.processes.is_main:
            with self.learner.evaluating() as model:
                scores = self.task.evaluate(model, split, limit)
            growth = self.task.evaluation_growth(scores)
        return growth * (time.perf_counter() - start)


def measure_speed(
    recipe: Recipe,
    fresh: Collection[str],
    task: Task,
    processes: Processes,
    precision: str,
    seconds: float,
    evaluate_final: bool,
    samples: int = 0,
) -> Speed:
    """Measure the speed of `recipe` on this machine with the first batches of its data, for a run of about `seconds`.

    With `evaluate_final`, the time after the last step includes the best model's final evaluation, `samples` samples,
    the report, and any episodes the model plays for it.
    """
    meter = SpeedMeter(recipe, fresh, task, processes, precision)
    step_seconds = meter.seconds_per_step(min(max(_MEASURE_FRACTION * seconds, _MIN_MEASURE), _MAX_MEASURE))
    evaluation = _evaluation_seconds(meter, "validation", recipe.train.evaluate_limit, seconds)
    if not evaluate_final:
        return Speed(*processes.broadcast_object([step_seconds, evaluation]))
    final, playing_seconds = (
        _evaluation_seconds(meter, task.final_split, None, seconds),
        task.report_cost() * evaluation,
    )
    final_sample_seconds = final / max(1, task.count(task.final_split))
    if playing_seconds > 0 or isinstance(task.examples, OnPolicyExamples):
        report_seconds = playing_seconds + _AGENT_REPORT_SECONDS
    elif MIN_EVALUATED * final_sample_seconds > _EVALUATION_FRACTION * seconds:  # generating samples is as slow
        report_seconds = samples * final_sample_seconds + _REPORT_SECONDS
    else:
        report_seconds = meter.samples(samples) + _REPORT_SECONDS
    ending = min(final, FINAL_SHARE * seconds) + report_seconds
    return Speed(*processes.broadcast_object([step_seconds, evaluation, ending, final]))


def _evaluation_seconds(meter: SpeedMeter, split: str, limit: int | None, seconds: float) -> float:
    """Seconds to evaluate at most `limit` samples from a split, extrapolated from a few samples or, if they are fast,
    from as many as fit in 1 % of `seconds`. An untrained model may take longer than a trained one because it may never
    generate EOS.
    """
    count = meter.task.count(split)
    count = count if limit is None else min(limit, count)
    measured = min(MIN_EVALUATED, count)
    seconds_taken = meter.evaluation(split, measured)
    larger_count = min(count, int(measured * _EVALUATION_FRACTION * seconds / max(seconds_taken, 1e-9)))
    if larger_count > 2 * measured:
        measured, seconds_taken = larger_count, meter.evaluation(split, larger_count)
    return seconds_taken * count / max(1, measured)


def measure_throughput(
    recipe: Recipe,
    model: nn.Module,
    task: Task,
    processes: Processes,
    batch_setting: str,
    minutes: float,
    fresh: Collection[str] = (),
) -> Throughput:
    """The throughput of one of several sizes; `model` is an outline of the recipe's model."""
    name, _ = choose_precision(recipe.train.precision, model, processes.device)
    meter = SpeedMeter(recipe, fresh, task, processes, name)
    seconds_per_step = meter.seconds_per_step(min(max(_SIZE_FRACTION * 60 * minutes, _MIN_SIZE), _MAX_SIZE))
    overhead = min(meter.overhead(), 0.5 * seconds_per_step)
    units = getattr(recipe.train, batch_setting.removeprefix("train.")) * recipe.train.accumulate
    measured = [meter.targets / (seconds_per_step - overhead), overhead, meter.targets / units, meter.targets]
    return Throughput(*processes.broadcast_object(measured))


def _synchronize(device: torch.device) -> None:
    """Wait until the GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
