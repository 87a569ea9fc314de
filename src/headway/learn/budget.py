"""How many steps fit into a given time: measured on a copy of the model that is thrown away, and looked at again and
again during the run.
"""

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
from headway.learn.schedule import ScheduleConfig
from headway.learn.start import prepared
from headway.learn.task import Task
from headway.nn.models import build

_WARM_UP = 1  # steps after the first not timed
_SHARE = 0.02  # of the time goes into measuring, but within these seconds
_LEAST, _MOST = 0.3, 6.0
_MARGIN = 0.985  # of what is left is planned: checkpoints, and lines that are written
_EVALUATIONS = 10  # a run, if they do not cost more than this share of it
_OFTEN = 20  # evaluations of a plan that the amount of data limits, whose length depends on them
_EVALUATION_SHARE, _CHECKED_SHARE = 0.05, 0.2  # the latter where evaluations decide when training ends
_CHANGE, _FEW_STEPS = 0.03, 3  # a plan whose rest would not change by more stays as it is
_LOOKS = 12  # a plan is looked at after such a part of what is left
_REPORT = 2.0  # seconds for samples, pictures and the page
_ENDING_SHARE = 0.06  # of the time: the most that the judgement at the end takes
FEW = 64  # samples from which the time of that judgement is told
_NAP = 20.0  # times as long as the others, and these seconds: a step in which the machine was asleep, or stopped
_NAP_SECONDS = 5.0


class Speed(NamedTuple):
    """Seconds for a step, for an evaluation, and for all that follows the last step."""

    step: float
    evaluation: float
    ending: float = 0.0


def check_minutes(minutes: Sequence[float]) -> None:
    """UserError for minutes that are no time."""
    for number in minutes:
        if not isinstance(number, (int, float)) or not 0 < number < math.inf:
            raise UserError(f"{shown(number)} minutes are no time; give numbers above 0")


class Clock:
    """Seconds that were worked since a run was begun, `spent` of them before. It neither jumps with the time of the day
    nor counts what is taken out of it (`leave_out`).
    """

    def __init__(self, spent: float = 0.0) -> None:
        self._start = time.perf_counter() - spent

    def worked(self) -> float:
        return time.perf_counter() - self._start

    def leave_out(self, seconds: float) -> None:
        self._start += seconds


class Meter:
    """Times steps of a recipe as it would be trained, on a model that is thrown away."""

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
        self.targets = 0.0  # of a step, in the mean

    def steps(self, count: int) -> float:
        """Seconds for so many steps."""
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
        """Seconds of a step that do not grow with its batch: those of the optimiser."""
        times = []
        for _ in range(_WARM_UP + 1):
            wait(self.processes.device)
            start = time.perf_counter()
            self.learner.optimizer.step(0.0)
            wait(self.processes.device)
            times.append(time.perf_counter() - start)
        return min(times)

    def each(self, seconds: float) -> float:
        """Seconds for a step, measured for about `seconds`; by the first one, or the first period of a task that
        explores, where that takes longer.
        """
        period = self._period
        first = self.steps(period) / period
        if self.processes.tell(first * period > seconds):
            return first
        self.steps(_WARM_UP * period)
        rough = self.steps(period)
        count = self.processes.tell(period * max(2, min(1000, round(seconds / rough))))
        return self.steps(count) / count

    def evaluation(self, split: str, limit: int | None) -> float:
        """Seconds for an evaluation of at most `limit` samples, by a model that has learnt."""
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
    steps_alone: bool = False,
) -> Speed:
    """The speed of `recipe` on this machine, from the first batches of its data, for a run of about `seconds`.

    What follows the last step, where it is `judged`, is the judgement of the best model on the final split, its samples
    and its page, and what it plays. Where the time is that of `steps_alone`, all else counts as nothing.
    """
    meter = Meter(recipe, fresh, task, processes, precision)
    each = meter.each(min(max(_SHARE * seconds, _LEAST), _MOST))
    if steps_alone:
        return Speed(processes.tell(each), 0.0)
    evaluation = meter.evaluation("validation", recipe.train.evaluate_limit)
    shown = task.showing() * evaluation
    ending = _ending(meter, seconds) + shown if judged else 0.0
    return Speed(*processes.tell([each, evaluation, ending]))


def _ending(meter: Meter, seconds: float) -> float:
    """Seconds for what follows the last step, told from a few samples of the final split. Where that is much it gets
    its share of the time, and judges fewer samples: a model that has learnt nothing may write without end.
    """
    task = meter.task
    split = task.final_split
    count = task.count(split)
    few = min(FEW, count)
    return min(meter.evaluation(split, few) * count / max(1, few), _ENDING_SHARE * seconds) + _REPORT


def plan(train: TrainConfig, speed: Speed, seconds: float, checked: bool = False) -> TrainConfig:
    """`train` with the steps that fit into `seconds`, evaluations and the end included.

    Where `evaluate_every` is 0, there are ten evaluations or, where they are slow, as few as take 5 % of the time; 20 %
    of a run that is `checked` by them.
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
            f"{max(seconds, 0):.0f} s are left for training, but a step takes {speed.step:.2g} s, an evaluation "
            f"{speed.evaluation:.2g} s and what follows them {speed.ending:.2g} s; give more --minutes, or set "
            "train.evaluate_limit lower"
        )
    return replace(train, steps=steps, evaluate_every=every)


def _affordable(speed: Speed, seconds: float, most: int, checked: bool) -> int:
    """How many evaluations take their share of the time: 1 to `most`."""
    share = _CHECKED_SHARE if checked else _EVALUATION_SHARE
    return most if speed.evaluation <= 0 else min(max(1, int(share * seconds / speed.evaluation)), most)


def planned(recipe: Recipe, speed: Speed, seconds: float, most: int | None = None, checked: bool = False) -> Recipe:
    """`recipe` with the steps that fit into `seconds`, or with `most` of them, and a schedule whose parts are steps."""
    train = plan(recipe.train, speed, seconds, checked)
    if most is not None and most < train.steps:
        every = -(-most // _affordable(speed, seconds, _OFTEN, checked))
        train = replace(train, steps=most, evaluate_every=recipe.train.evaluate_every or every)
    return replace(recipe, train=train, schedule=recipe.schedule.planned(train.steps))


class Revision(NamedTuple):
    """A plan that takes the place of another: how many steps, under which schedule, and how often they are judged."""

    steps: int
    schedule: ScheduleConfig
    evaluate_every: int

    def of(self, recipe: Recipe) -> Recipe:
        """`recipe` under this plan."""
        train = replace(recipe.train, steps=self.steps, evaluate_every=self.evaluate_every)
        return replace(recipe, train=train, schedule=self.schedule)


@dataclass
class TimeBudget:
    """The time of a run, `seconds` of the `clock`, and what is known of its costs.

    Other programs slow a machine down while it is measured, or later, or leave it. So the plan is looked at after every
    twelfth of what is left, by the speed since the last look, and only a plan is taken under which all steps so far
    would have had the same rates: the recipe with the new steps repeats the run bit for bit, from its first step.
    """

    clock: Clock
    seconds: float
    speed: Speed
    most: int | None = None  # steps that the amount of data allows, by the evaluations so far; None: any number
    patience: int | None = None  # evaluations without a better one after which the run ends soon
    few: int = _FEW_STEPS
    _since: tuple[int, float] = (0, 0.0)
    _next: int = 0
    _typical: float = 0.0
    _slept: float = 0.0

    def left(self) -> float:
        return self.seconds - self.clock.worked()

    def for_judgement(self) -> float:
        """Seconds for the judgement of the finished model: what is left of the time, or half of what was planned."""
        return max(self.left() - _REPORT, 0.5 * _ENDING_SHARE * self.seconds)

    def stepped(self, seconds: float) -> None:
        """After a step: one that took far longer than the others is one in which the machine slept."""
        if self._typical and seconds > _NAP * self._typical + _NAP_SECONDS:
            self.clock.leave_out(seconds - self._typical)
            self._slept += seconds - self._typical
        else:
            self._typical = seconds if not self._typical else 0.9 * self._typical + 0.1 * seconds

    def evaluated(self, seconds: float) -> None:
        """After an evaluation: what it took is expected of the others, and the end in proportion."""
        if self.speed.evaluation > 0:
            ending = self.speed.ending * min(1.0, seconds / self.speed.evaluation)
            self.speed = self.speed._replace(evaluation=seconds, ending=ending)

    def weigh(self, recipe: Recipe, step: int, stale: int) -> bool:
        """Whether the evaluation after `step`, with `stale` ones since the best, changes the steps that the amount of
        data allows.

        While evaluations improve, the learning rate does not begin to fall. After `patience` ones without a better one
        it falls to 0 within as many intervals, which ends the run.
        """
        before, train = self.most, recipe.train
        if before is None:
            return False
        flat, following = recipe.schedule.flat(train.steps), step + train.evaluation_interval
        if not stale and flat is not None and step < flat <= following:
            self.most = max(before, -(-train.steps * (following + 1) // flat))
        elif self.patience is not None and stale >= self.patience:
            self.most = min(before, step + self.patience * train.evaluation_interval)
        return self.most != before

    def due(self, step: int, steps: int) -> bool:
        """Whether the plan is to be looked at after `step` of `steps`; the first call tells from where on."""
        if not self._next:
            self._next = step + max(2, (steps - step) // _LOOKS)
        return step == self._next

    def begin(self, step: int, seconds: float) -> None:
        """Count from here: `step` updates are done, and took `seconds`."""
        self._since, self._slept = (step, seconds), 0.0

    def revise(self, recipe: Recipe, done: int, seconds: float, judged: bool) -> Revision | None:
        """The plan after `done` steps that took `seconds`, where it is to be another one. Evaluations that were made
        (`judged`) stay where they are.
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
        if abs(wanted - steps) <= max(self.few, _CHANGE * (steps - done)):
            return None
        schedule = recipe.schedule.moved(done, steps, wanted)
        if not judged:
            every = max(done + 1, round(every * wanted / steps))
        return None if schedule is None else Revision(wanted, schedule, every)


@dataclass
class StepsBudget(TimeBudget):
    """Time for the steps alone, and kept to the step: what comes before, between and after them takes none of it."""

    few: int = 0
    _asleep: float = 0.0

    def begin(self, step: int, seconds: float) -> None:
        self._asleep += self._slept
        super().begin(step, seconds)

    def left(self) -> float:
        """At the last look, before which so much was used."""
        return self.seconds - self._since[1] + self._asleep


def wait(device: torch.device) -> None:
    """Until all that was asked of a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
