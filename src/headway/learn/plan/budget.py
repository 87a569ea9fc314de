"""A run's time: how fast a recipe trains on this machine, measured on a throwaway copy of its model; how many steps fit
in a given time; and revisions of that plan during the run.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from headway.errors import UserError
from headway.io.arguments import format_value
from headway.learn.adapters import frozen_formats
from headway.learn.examples import OnPolicyExamples
from headway.learn.fine_tuning import initial_rows, prepare_for_training
from headway.learn.formatting import format_number
from headway.learn.frozen_base import quantise_matrices, released_matrices
from headway.learn.learner import Learner
from headway.learn.parallel.processes import Processes
from headway.learn.precision import choose_precision
from headway.learn.recipe import Recipe, TrainConfig
from headway.learn.task import Task
from headway.nn.models import build, outline

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
        whole = outline(recipe.model)
        formats = frozen_formats(whole, recipe.adapter, fresh)
        with initial_rows(recipe, processes), released_matrices(recipe.model, formats):
            model = build(recipe.model, recipe.train.seed)
        if formats:  # the time does not depend on the values
            shapes = {name: whole.get_parameter(name).shape for name in formats}
            means = {name: torch.tensor(1 / shape[1]).expand(shape) for name, shape in shapes.items()}
            quantise_matrices(model, {name: (values, formats[name]) for name, values in means.items()})
        model = prepare_for_training(model, recipe, fresh)
        self.task = task
        self.processes = processes
        self.learner = Learner(model, recipe, task, processes, precision)
        self._micro_batches = processes.local_micro_batches(recipe.train.accumulate)
        self._stream = task.batches("train", processes.shard(recipe.train.accumulate))
        self._steps_done = 0
        accumulate = recipe.train.accumulate
        self._rollout_period = 1
        if isinstance(task.examples, OnPolicyExamples):
            task.examples.measuring = True
            self._rollout_period = -(-task.examples.rollout_batches // accumulate)
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
        self.targets = self.learner.recipe.train.accumulate / self._micro_batches * tokens / count
        return time.perf_counter() - start

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

    def evaluation(self, split: str, limit: int | None) -> float:
        """Estimated seconds to evaluate a trained model on at most `limit` samples, the same in all processes."""
        start = time.perf_counter()
        scores = self.learner.evaluate(split, limit)
        if scores is None:
            raise KeyboardInterrupt
        growth = self.task.objective.evaluation_growth(scores)
        return self.processes.broadcast_object(growth * (time.perf_counter() - start))


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
    seconds = processes.broadcast_object(seconds)  # decides what all processes do
    meter = SpeedMeter(recipe, fresh, task, processes, precision)
    step_seconds = meter.seconds_per_step(min(max(_MEASURE_FRACTION * seconds, _MIN_MEASURE), _MAX_MEASURE))
    evaluation = _evaluation_seconds(meter, "validation", recipe.train.evaluate_limit, seconds)
    if not evaluate_final:
        return Speed(*processes.broadcast_object([step_seconds, evaluation]))
    final = _evaluation_seconds(meter, task.final_split, None, seconds)
    playing_seconds = task.objective.report_cost() * evaluation
    final_sample_seconds = final / max(1, task.count(task.final_split))
    if playing_seconds > 0 or isinstance(task.examples, OnPolicyExamples):
        report_seconds = playing_seconds + _AGENT_REPORT_SECONDS
    elif MIN_EVALUATED * final_sample_seconds > _EVALUATION_FRACTION * seconds:  # generating samples is as slow
        report_seconds = samples * final_sample_seconds + _REPORT_SECONDS
    else:
        start = time.perf_counter()
        with meter.learner.evaluating() as model:
            if processes.is_main and samples:  # with an almost untrained model
                task.samples(model, samples)
        report_seconds = time.perf_counter() - start + _REPORT_SECONDS
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
    overhead = 0.5 * seconds_per_step  # at most; the seconds per step that do not grow with the batch
    for _ in range(_WARM_UP + 1):
        _synchronize(processes.device)
        start = time.perf_counter()
        meter.learner.optimizer.step(0.0)
        _synchronize(processes.device)
        overhead = min(overhead, time.perf_counter() - start)
    units = getattr(recipe.train, batch_setting.removeprefix("train.")) * recipe.train.accumulate
    measured = [meter.targets / (seconds_per_step - overhead), overhead, meter.targets / units, meter.targets]
    return Throughput(*processes.broadcast_object(measured))


def _synchronize(device: torch.device) -> None:
    """Wait until the GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class StepTimes:
    """Seconds of training steps. A program only queues a step for a GPU, which computes it later: events measure it,
    and its time is known once the GPU has passed them, so that no step waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._start: Any = None
        self._queued: deque[tuple[Any, Any]] = deque()

    def begin(self) -> None:
        """A step begins."""
        self._start = self._now()

    def finished(self) -> list[float]:
        """The seconds of the steps that have ended since the last call; the step that began last is queued by now."""
        end = self._now()
        if not self._on_gpu:
            return [end - self._start]
        self._queued.append((self._start, end))
        seconds: list[float] = []
        while self._queued and self._queued[0][1].query():
            start, end = self._queued.popleft()
            seconds.append(start.elapsed_time(end) / 1000)
        return seconds

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


_USABLE_FRACTION = 0.985  # fraction of the remaining time that is planned; the rest is for checkpoints and log lines
_EVALUATIONS = 10  # evaluations per run, if they fit in their share of the time
_MAX_EVALUATIONS = 20  # maximum evaluations in a run limited by the amount of data, where they decide its length
_IMPROVING_WINDOW = 3  # a run still improves if one of this many evaluations is better: few samples give noisy scores
# Share of the time for evaluations; the second value if they decide when training ends.
_EVALUATION_SHARE, _EARLY_STOPPING_SHARE = 0.05, 0.2
_MIN_CHANGE, _MIN_CHANGED_STEPS = 0.03, 3  # smaller changes to the remaining steps are ignored
_REVISIONS = 12  # revisions of the plan: one after each twelfth of the remaining steps
_SLEEP_FACTOR = 20.0  # if a step takes 20 times as long as usual plus these seconds, the machine was asleep or stopped
_SLEEP_SECONDS = 5.0


def plan_steps(train: TrainConfig, speed: Speed, seconds: float, early_stopping: bool = False) -> TrainConfig:
    """`train` with the steps that fit in `seconds`, including evaluations and the work after the last step.

    If `evaluate_every` is 0, the run has ten evaluations, or fewer so that they take at most 5 % of the time (20 % if
    they decide when training ends: `early_stopping`).
    """
    usable = _USABLE_FRACTION * seconds - speed.ending
    if train.evaluate_every:
        steps = int(usable / (speed.step + speed.evaluation / train.evaluate_every))
        interval = train.evaluate_every
    else:
        evaluations = _affordable_evaluations(speed, usable, _EVALUATIONS, early_stopping)
        steps = int((usable - evaluations * speed.evaluation) / speed.step)
        interval = -(-max(steps, 1) // evaluations)
    if steps < 1:
        raise UserError(
            f"only {max(seconds, 0):.0f} s are left for training, but a step takes {format_number(speed.step)} s, an "
            f"evaluation {format_number(speed.evaluation)} s and the final results {format_number(speed.ending)} s; "
            "increase --minutes, or lower train.evaluate_limit"
        )
    return replace(train, steps=steps, evaluate_every=interval)


def _affordable_evaluations(speed: Speed, seconds: float, limit: int, early_stopping: bool) -> int:
    """The number of evaluations that fit in their share of the time: 1 to `limit`."""
    share = _EARLY_STOPPING_SHARE if early_stopping else _EVALUATION_SHARE
    return limit if speed.evaluation <= 0 else min(max(1, int(share * seconds / speed.evaluation)), limit)


def plan_recipe(
    recipe: Recipe, speed: Speed, seconds: float, max_steps: int | None = None, early_stopping: bool = False
) -> Recipe:
    """`recipe` with as many steps as fit in `seconds` (at most `max_steps`) and a schedule in steps."""
    train = plan_steps(recipe.train, speed, seconds, early_stopping)
    if max_steps is not None and max_steps < train.steps:
        interval = -(-max_steps // _affordable_evaluations(speed, seconds, _MAX_EVALUATIONS, early_stopping))
        train = replace(train, steps=max_steps, evaluate_every=recipe.train.evaluate_every or interval)
    return replace(recipe, train=train, schedule=recipe.schedule.planned(train.steps))


@dataclass
class TimeBudget:
    """A run's time budget: `seconds` on the `clock`, and the measured speed.

    Other programs may slow the machine down at any time. So the plan is revised after each twelfth of the remaining
    steps, using the speed since the last revision. A new plan is adopted only if all steps so far would have had the
    same learning rates, so that the recipe with the new number of steps repeats the run bit for bit.
    """

    clock: Clock
    seconds: float
    speed: Speed
    max_steps: int | None = None  # maximum for this amount of data, by the evaluations so far; None: unlimited
    patience: int | None = None  # evaluations without improvement after which the run winds down
    may_grow: bool = True  # whether the plan grows while evaluations improve
    is_final: bool = False  # whether the first plan is never changed
    has_interval: bool = False  # whether the evaluation interval was set, so it stays
    _measured_from: tuple[int, float] = (0, 0.0)
    _next_revision: int = 0
    _typical_step: float = 0.0
    _slept_seconds: float = 0.0
    _final_share: float = field(init=False)  # seconds for evaluating the final split, of those left at the start

    def __post_init__(self) -> None:
        self._final_share = FINAL_SHARE * self.seconds_left()

    def seconds_left(self) -> float:
        return self.seconds - self.clock.elapsed()

    def final_evaluation_seconds(self) -> float:
        """Seconds for evaluating the final split: unlimited if the complete split takes less than its share of the
        time; otherwise the remaining time, but at least half of that share.
        """
        if self.speed.final < self._final_share:
            return math.inf
        return max(self.seconds_left() - self._report_seconds(), 0.5 * self._final_share)

    def _report_seconds(self) -> float:
        """Seconds for samples, pictures and the report."""
        return self.speed.ending - min(self.speed.final, self._final_share)

    def record_step(self, seconds: float) -> None:
        """Record how long a step took; if it is far longer than usual, the machine was asleep."""
        if self._typical_step and seconds > _SLEEP_FACTOR * self._typical_step + _SLEEP_SECONDS:
            self.clock.leave_out(seconds - self._typical_step)
            self._slept_seconds += seconds - self._typical_step
        else:
            self._typical_step = seconds if not self._typical_step else 0.9 * self._typical_step + 0.1 * seconds

    def record_evaluation(self, seconds: float) -> None:
        """Record how long an evaluation took, and scale the estimate for the final one accordingly."""
        if self.speed.evaluation > 0:
            final = self.speed.final * seconds / self.speed.evaluation
            ending = self._report_seconds() + min(final, self._final_share)
            self.speed = self.speed._replace(evaluation=seconds, ending=ending, final=final)

    def update_max_steps(self, recipe: Recipe, step: int, stale: int) -> bool:
        """Whether the evaluation after `step` changes the maximum number of steps; `stale` counts evaluations since the
        best.

        The learning rate decay is postponed while evaluations improve, that is, while the best so far is one of the
        last three and in the last half. After `patience` evaluations without improvement, the learning rate decays to 0
        over the same number of intervals, which ends the run.
        """
        previous, train = self.max_steps, recipe.train
        if previous is None or self.is_final:
            return False
        decay_start, next_evaluation = recipe.schedule.decay_start(train.steps), step + train.evaluation_interval
        improving = stale < _IMPROVING_WINDOW and 2 * stale <= step // train.evaluation_interval
        if self.may_grow and improving and decay_start is not None and step < decay_start <= next_evaluation:
            self.max_steps = max(previous, -(-train.steps * (next_evaluation + 1) // decay_start))
        elif self.patience is not None and stale >= self.patience:
            self.max_steps = min(previous, step + self.patience * train.evaluation_interval)
        return self.max_steps != previous

    def is_revision_due(self, step: int, steps: int) -> bool:
        """Whether the plan is revised after `step` of `steps`; the first call schedules the first revision."""
        if not self._next_revision:
            self._next_revision = step + max(2, (steps - step) // _REVISIONS)
        return step == self._next_revision and not self.is_final

    def start_measuring(self, step: int, seconds: float) -> None:
        """Start measuring the speed from here: `step` updates took `seconds`."""
        self._measured_from, self._slept_seconds = (step, seconds), 0.0

    def revise(self, recipe: Recipe, done: int, seconds: float, evaluated: bool) -> Recipe | None:
        """The recipe with revised steps, schedule and evaluation interval after `done` steps in `seconds`. None to
        keep the current one. If the run has been `evaluated`, or its evaluation interval was set, that stays the same.
        """
        steps = recipe.train.steps
        first_step, first_seconds = self._measured_from
        step_seconds = (
            (seconds - first_seconds - self._slept_seconds) / (done - first_step)
            if done > first_step
            else self._typical_step
        )
        self.start_measuring(done, seconds)
        self._next_revision = done + max(2, (steps - done) // _REVISIONS)
        interval = recipe.train.evaluation_interval
        usable = _USABLE_FRACTION * self.seconds_left() - self.speed.ending - self.speed.evaluation
        remaining = max(int(done < steps), int(usable / (step_seconds + self.speed.evaluation / interval)))
        new_steps = done + remaining if self.max_steps is None else min(done + remaining, self.max_steps)
        if abs(new_steps - steps) <= max(_MIN_CHANGED_STEPS, _MIN_CHANGE * (steps - done)):
            return None
        schedule = recipe.schedule.rescheduled(done, steps, new_steps)
        if not evaluated and not self.has_interval:
            interval = max(done + 1, round(interval * new_steps / steps))
        if schedule is None:
            return None
        return replace(recipe, train=replace(recipe.train, steps=new_steps, evaluate_every=interval), schedule=schedule)
