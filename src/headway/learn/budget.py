"""The steps that fit in a given time: measured on a throwaway copy of the model, and revised during the run."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from headway.errors import UserError
from headway.given import shown
from headway.learn.distributed import Processes
from headway.learn.examples import Explored
from headway.learn.learner import Learner
from headway.learn.recipe import Recipe, TrainConfig
from headway.learn.scale import digits
from headway.learn.schedule import ScheduleConfig
from headway.learn.start import prepared
from headway.learn.task import Task
from headway.nn.models import build

_WARM_UP = 1  # untimed steps after the first
_SHARE = 0.02  # fraction of the time for measuring the speed, within these seconds:
_LEAST, _MOST = 0.3, 6.0
_MARGIN = 0.985  # fraction of the remaining time that is planned; the rest is for checkpoints and log lines
_EVALUATIONS = 10  # evaluations per run, if they fit in their share of the time
_OFTEN = 20  # evaluations of a run that the amount of data limits, because they decide its length
_IMPROVING = 3  # one better evaluation among so many counts as improving, because scores of few samples are noisy
_EVALUATION_SHARE, _CHECKED_SHARE = 0.05, 0.2  # time for evaluations; the latter if they decide when training ends
_CHANGE, _FEW_STEPS = 0.03, 3  # smaller changes to the remaining steps are ignored
_LOOKS = 12  # the plan is revised after each 1 / 12 of the remaining steps
_PAGE = 0.8  # seconds for pictures and the report
_PLAYED = 2.0  # seconds for samples and the report of agents, which are not measured
_FINAL_SHARE = 0.1  # maximum fraction of the time for the evaluation on the final split
_MEASURED = 0.01  # fraction of the time for measuring an evaluation, with at least this many samples:
FEW = 64
_NAP = 20.0  # a step that takes 20 times as long as usual plus these seconds: the machine was asleep or stopped
_NAP_SECONDS = 5.0


class Speed(NamedTuple):
    """Seconds per step, per evaluation, for everything after the last step, and for an evaluation of the complete final
    split, which may be cut to the available time.
    """

    step: float
    evaluation: float
    ending: float = 0.0
    final: float = 0.0


def check_minutes(minutes: Sequence[float]) -> None:
    """UserError for minutes that are not positive numbers."""
    for number in minutes:
        if not isinstance(number, (int, float)) or not 0 < number < math.inf:
            raise UserError(f"minutes is {shown(number)}; use numbers above 0")


class Clock:
    """A monotonic clock of the seconds that a run has worked, `spent` of them before now, without the time passed to
    `leave_out`.
    """

    def __init__(self, spent: float = 0.0) -> None:
        self._start = time.perf_counter() - spent

    def worked(self) -> float:
        return time.perf_counter() - self._start

    def leave_out(self, seconds: float) -> None:
        self._start += seconds


class Meter:
    """Measures the speed of a recipe on a throwaway model."""

    def __init__(
        self, recipe: Recipe, fresh: Collection[str], task: Task, processes: Processes, precision: str
    ) -> None:
        model = prepared(build(recipe.model, recipe.train.seed), recipe, fresh)
        self.task = task
        self.processes = processes
        self.learner = Learner(model, recipe, task, processes, precision)
        self._share = processes.share_of(recipe.train.accumulate)
        self._stream = task.batches("train", processes.shard)
        self._done = 0
        accumulate = recipe.train.accumulate
        explorer = task.examples if isinstance(task.examples, Explored) else None
        self._period = 1 if explorer is None else -(-explorer.period // accumulate)
        self.targets = 0.0  # mean target tokens per step

    def steps(self, count: int) -> float:
        """Seconds for `count` steps."""
        wait(self.processes.device)
        start = time.perf_counter()
        tokens = 0
        for _ in range(count):
            batches = [next(self._stream) for _ in range(self._share)]
            self.learner.update(self._done, batches)
            self._done += 1
            tokens += sum(batch.tokens for batch in batches)
        wait(self.processes.device)
        self.targets = self.processes.world * tokens / count
        return time.perf_counter() - start

    def overhead(self) -> float:
        """Seconds per step that do not grow with the batch: those of the optimiser."""
        times = []
        for _ in range(_WARM_UP + 1):
            wait(self.processes.device)
            start = time.perf_counter()
            self.learner.optimizer.step(0.0)
            wait(self.processes.device)
            times.append(time.perf_counter() - start)
        return min(times)

    def each(self, seconds: float) -> float:
        """Seconds per step, measured for about `seconds`; if the first step (or the first period of an on-policy task)
        takes longer than that, only that one is used.
        """
        period = self._period
        first = self.steps(period) / period
        if self.processes.tell(first * period > seconds):
            return first
        self.steps(_WARM_UP * period)
        rough = self.steps(period)
        count = self.processes.tell(period * max(2, min(1000, round(seconds / rough))))
        return self.steps(count) / count

    def samples(self, count: int) -> float:
        """Seconds for `count` samples of an almost untrained model."""
        start = time.perf_counter()
        if self.processes.first and count:
            with self.learner.evaluating() as model:
                self.task.samples(model, count)
        return time.perf_counter() - start

    def evaluation(self, split: str, limit: int | None) -> float:
        """Estimated seconds for an evaluation of a trained model on at most `limit` samples."""
        start = time.perf_counter()
        longer = 1.0
        if self.processes.first:
            with self.learner.evaluating() as model:
                scores = self.task.evaluate(model, split, limit)
            longer = self.task.lengthening(scores)
        return longer * (time.perf_counter() - start)


def measure(
    recipe: Recipe,
    fresh: Collection[str],
    task: Task,
    processes: Processes,
    precision: str,
    seconds: float,
    judged: bool,
    samples: int = 0,
) -> Speed:
    """Measure the speed of `recipe` on this machine with the first batches of its data, for a run of about `seconds`.

    With `evaluate_final`, the time after the last step includes the final evaluation of the best model, `samples`
    samples, the report, and episodes that it plays.
    """
    meter = Meter(recipe, fresh, task, processes, precision)
    each = meter.each(min(max(_SHARE * seconds, _LEAST), _MOST))
    evaluation = _evaluating(meter, "validation", recipe.train.evaluate_limit, seconds)
    if not judged:
        return Speed(*processes.tell([each, evaluation]))
    final, played = _evaluating(meter, task.final_split, None, seconds), task.showing() * evaluation
    each_final = final / max(1, task.count(task.final_split))
    if played > 0 or isinstance(task.examples, Explored):
        shown = played + _PLAYED
    elif FEW * each_final > _MEASURED * seconds:  # generating samples is as slow
        shown = samples * each_final + _PAGE
    else:
        shown = meter.samples(samples) + _PAGE
    ending = min(final, _FINAL_SHARE * seconds) + shown
    return Speed(*processes.tell([each, evaluation, ending, final]))


def _evaluating(meter: Meter, split: str, limit: int | None, seconds: float) -> float:
    """Seconds for an evaluation of at most `limit` samples of a split, extrapolated from a few samples or, if these are
    fast, from as many as take 1 % of `seconds`. An untrained model may take longer than a trained one, because it may
    not generate EOS.
    """
    count = meter.task.count(split)
    count = count if limit is None else min(limit, count)
    some = min(FEW, count)
    took = meter.evaluation(split, some)
    more = min(count, int(some * _MEASURED * seconds / max(took, 1e-9)))
    if more > 2 * some:
        some, took = more, meter.evaluation(split, more)
    return took * count / max(1, some)


def plan(train: TrainConfig, speed: Speed, seconds: float, checked: bool = False) -> TrainConfig:
    """`train` with the steps that fit in `seconds`, including evaluations and the work after the last step.

    If `evaluate_every` is 0, the run has ten evaluations, or fewer so that they take at most 5 % of the time (20 % if
    they decide when training ends: `early_stopping`).
    """
    usable = _MARGIN * seconds - speed.ending
    if train.evaluate_every:
        steps = int(usable / (speed.step + speed.evaluation / train.evaluate_every))
        every = train.evaluate_every
    else:
        evaluations = _affordable(speed, usable, _EVALUATIONS, checked)
        steps = int((usable - evaluations * speed.evaluation) / speed.step)
        every = -(-max(steps, 1) // evaluations)
    if steps < 1:
        raise UserError(
            f"{max(seconds, 0):.0f} s are left for training, but a step takes {digits(speed.step)} s, an evaluation "
            f"{digits(speed.evaluation)} s and the final results {digits(speed.ending)} s; use more --minutes, or "
            "lower train.evaluate_limit"
        )
    return replace(train, steps=steps, evaluate_every=every)


def _affordable(speed: Speed, seconds: float, most: int, checked: bool) -> int:
    """The number of evaluations that fit in their share of the time: 1 to `limit`."""
    share = _CHECKED_SHARE if checked else _EVALUATION_SHARE
    return most if speed.evaluation <= 0 else min(max(1, int(share * seconds / speed.evaluation)), most)


def planned(recipe: Recipe, speed: Speed, seconds: float, most: int | None = None, checked: bool = False) -> Recipe:
    """`recipe` with the steps that fit in `seconds`, at most `max_steps`, and a schedule in steps."""
    train = plan(recipe.train, speed, seconds, checked)
    if most is not None and most < train.steps:
        every = -(-most // _affordable(speed, seconds, _OFTEN, checked))
        train = replace(train, steps=most, evaluate_every=recipe.train.evaluate_every or every)
    return replace(recipe, train=train, schedule=recipe.schedule.planned(train.steps))


class Revision(NamedTuple):
    """A revised plan: steps, schedule and evaluation interval."""

    steps: int
    schedule: ScheduleConfig
    evaluate_every: int

    def of(self, recipe: Recipe) -> Recipe:
        """`recipe` with this plan."""
        train = replace(recipe.train, steps=self.steps, evaluate_every=self.evaluate_every)
        return replace(recipe, train=train, schedule=self.schedule)


@dataclass
class TimeBudget:
    """The time budget of a run: `seconds` of the `clock`, and the measured speed.

    Other programs may slow the machine down at any time. So the plan is revised after each twelfth of the remaining
    steps, by the speed since the last revision. A new plan is used only if all steps so far would have had the same
    learning rates: the recipe with the new steps repeats the run bit for bit from its first step.
    """

    clock: Clock
    seconds: float
    speed: Speed
    most: int | None = None  # steps that the amount of data justifies, by the evaluations so far; None: unlimited
    patience: int | None = None  # evaluations without a better one after which the run ends soon
    grows: bool = True  # whether the plan grows while evaluations improve
    _since: tuple[int, float] = (0, 0.0)
    _next: int = 0
    _typical: float = 0.0
    _slept: float = 0.0

    def left(self) -> float:
        return self.seconds - self.clock.worked()

    def for_final(self) -> float:
        """Seconds for the evaluation on the final split: unlimited if the complete split takes less than its share of
        the time, otherwise the remaining time, but at least half of that share.
        """
        share = _FINAL_SHARE * self.seconds
        return math.inf if self.speed.final < share else max(self.left() - self._shown(), 0.5 * share)

    def _shown(self) -> float:
        """Seconds for samples, pictures and the report."""
        return self.speed.ending - min(self.speed.final, _FINAL_SHARE * self.seconds)

    def stepped(self, seconds: float) -> None:
        """Record the time of a step; a far longer one than usual means that the machine was asleep."""
        if self._typical and seconds > _NAP * self._typical + _NAP_SECONDS:
            self.clock.leave_out(seconds - self._typical)
            self._slept += seconds - self._typical
        else:
            self._typical = seconds if not self._typical else 0.9 * self._typical + 0.1 * seconds

    def evaluated(self, seconds: float) -> None:
        """Record the time of an evaluation, and scale the estimate of the final one accordingly."""
        if self.speed.evaluation > 0:
            final = self.speed.final * seconds / self.speed.evaluation
            ending = self._shown() + min(final, _FINAL_SHARE * self.seconds)
            self.speed = self.speed._replace(evaluation=seconds, ending=ending, final=final)

    def weigh(self, recipe: Recipe, step: int, stale: int) -> bool:
        """Whether the evaluation after `step`, with `stale` evaluations since the best, changes the maximum number of
        steps.

        The decay of the learning rate is postponed while evaluations improve: one of the last three, and of the last
        half of them, was the best so far. After `patience` evaluations without improvement the learning rate decays to
        0 within as many intervals, which ends the run.
        """
        before, train = self.most, recipe.train
        if before is None:
            return False
        flat, following = recipe.schedule.flat(train.steps), step + train.evaluation_interval
        improving = stale < _IMPROVING and 2 * stale <= step // train.evaluation_interval
        if self.grows and improving and flat is not None and step < flat <= following:
            self.most = max(before, -(-train.steps * (following + 1) // flat))
        elif self.patience is not None and stale >= self.patience:
            self.most = min(before, step + self.patience * train.evaluation_interval)
        return self.most != before

    def due(self, step: int, steps: int) -> bool:
        """Whether the plan is revised after `step` of `steps`; the first call schedules the first revision."""
        if not self._next:
            self._next = step + max(2, (steps - step) // _LOOKS)
        return step == self._next

    def begin(self, step: int, seconds: float) -> None:
        """Start measuring the speed from here: `step` updates took `seconds`."""
        self._since, self._slept = (step, seconds), 0.0

    def revise(self, recipe: Recipe, done: int, seconds: float, judged: bool) -> Revision | None:
        """The revised plan after `done` steps that took `seconds`; None to keep the current one. If the run has been
        `evaluated`, the evaluation interval stays.
        """
        steps = recipe.train.steps
        begun, before = self._since
        each = (seconds - before - self._slept) / (done - begun) if done > begun else self._typical
        self.begin(done, seconds)
        self._next = done + max(2, (steps - done) // _LOOKS)
        every = recipe.train.evaluation_interval
        usable = _MARGIN * self.left() - self.speed.ending - self.speed.evaluation
        rest = max(int(done < steps), int(usable / (each + self.speed.evaluation / every)))
        wanted = done + rest if self.most is None else min(done + rest, self.most)
        if abs(wanted - steps) <= max(_FEW_STEPS, _CHANGE * (steps - done)):
            return None
        schedule = recipe.schedule.moved(done, steps, wanted)
        if not judged:
            every = max(done + 1, round(every * wanted / steps))
        return None if schedule is None else Revision(wanted, schedule, every)


def wait(device: torch.device) -> None:
    """Wait until the GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
