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
from headway.learn.scale import digits
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
_IMPROVING = 3  # of so many evaluations in a row one is better: scores of few samples rise by fits and starts
_EVALUATION_SHARE, _CHECKED_SHARE = 0.05, 0.2  # the latter where evaluations decide when training ends
_CHANGE, _FEW_STEPS = 0.03, 3  # a plan whose rest would not change by more stays as it is
_LOOKS = 12  # a plan is looked at after such a part of what is left
_PAGE = 0.8  # seconds for pictures and the page
_PLAYED = 2.0  # and for samples and page where they are not timed before, as they would play
_FINAL_SHARE = 0.1  # of the time: the most that the evaluation on the final split takes
_MEASURED = 0.01  # of the time goes into measuring how long an evaluation takes, but at least
FEW = 64  # samples are evaluated
_NAP = 20.0  # times as long as the others, and these seconds: a step in which the machine was asleep, or stopped
_NAP_SECONDS = 5.0


class Speed(NamedTuple):
    """Seconds for a step, for an evaluation, for all that follows the last step, and for an evaluation of all of the
    final split, of which there may be time for a part only.
    """

    step: float
    evaluation: float
    ending: float = 0.0
    final: float = 0.0


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

    def samples(self, count: int) -> float:
        """Seconds for so many samples, by a model that has learnt next to nothing."""
        start = time.perf_counter()
        if self.processes.first and count:
            with self.learner.evaluating() as model:
                self.task.samples(model, count)
        return time.perf_counter() - start

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
    samples: int = 0,
) -> Speed:
    """The speed of `recipe` on this machine, from the first batches of its data, for a run of about `seconds`.

    What follows the last step, where it is `judged`, is the judgement of the best model on the final split, so many
    `samples` and its page, and what it plays.
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
    elif FEW * each_final > _MEASURED * seconds:  # its samples are written as slowly
        shown = samples * each_final + _PAGE
    else:
        shown = meter.samples(samples) + _PAGE
    ending = min(final, _FINAL_SHARE * seconds) + shown
    return Speed(*processes.tell([each, evaluation, ending, final]))


def _evaluating(meter: Meter, split: str, limit: int | None, seconds: float) -> float:
    """Seconds for an evaluation of at most `limit` samples of a split, from a few of them or, if these are quick, from
    as many as take a hundredth of all `seconds`. A model that has learnt nothing may take longer than one that has, as
    it may write without end.
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
            f"{max(seconds, 0):.0f} s are left for training, but a step takes {digits(speed.step)} s, an evaluation "
            f"{digits(speed.evaluation)} s and what follows them {digits(speed.ending)} s; give more --minutes, or set "
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
    grows: bool = True  # whether the plan grows while evaluations improve
    _since: tuple[int, float] = (0, 0.0)
    _next: int = 0
    _typical: float = 0.0
    _slept: float = 0.0

    def left(self) -> float:
        return self.seconds - self.clock.worked()

    def for_final(self) -> float:
        """Seconds for the evaluation on the final split: no limit where all of it takes less than its share of the
        time, as was planned; else what is left, or half of that share.
        """
        share = _FINAL_SHARE * self.seconds
        return math.inf if self.speed.final < share else max(self.left() - self._shown(), 0.5 * share)

    def _shown(self) -> float:
        """Seconds for samples, pictures and the page."""
        return self.speed.ending - min(self.speed.final, _FINAL_SHARE * self.seconds)

    def stepped(self, seconds: float) -> None:
        """After a step: one that took far longer than the others is one in which the machine slept."""
        if self._typical and seconds > _NAP * self._typical + _NAP_SECONDS:
            self.clock.leave_out(seconds - self._typical)
            self._slept += seconds - self._typical
        else:
            self._typical = seconds if not self._typical else 0.9 * self._typical + 0.1 * seconds

    def evaluated(self, seconds: float) -> None:
        """After an evaluation: what it took is expected of the others, and of the final one in proportion."""
        if self.speed.evaluation > 0:
            final = self.speed.final * seconds / self.speed.evaluation
            ending = self._shown() + min(final, _FINAL_SHARE * self.seconds)
            self.speed = self.speed._replace(evaluation=seconds, ending=ending, final=final)

    def weigh(self, recipe: Recipe, step: int, stale: int) -> bool:
        """Whether the evaluation after `step`, with `stale` ones since the best, changes the steps that the amount of
        data allows.

        While evaluations improve, the learning rate does not begin to fall: one of the last three, and of the last half
        of them, was better than all before. After `patience` ones without a better one it falls to 0 within as many
        intervals, which ends the run.
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
        if abs(wanted - steps) <= max(_FEW_STEPS, _CHANGE * (steps - done)):
            return None
        schedule = recipe.schedule.moved(done, steps, wanted)
        if not judged:
            every = max(done + 1, round(every * wanted / steps))
        return None if schedule is None else Revision(wanted, schedule, every)


def wait(device: torch.device) -> None:
    """Until all that was asked of a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
