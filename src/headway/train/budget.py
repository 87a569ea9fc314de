"""How many steps fit into a given time: measured on a copy of the model that is thrown away, and looked at once more
during the run.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from headway.errors import UserError
from headway.models import build
from headway.train.distributed import Processes
from headway.train.freezing import prepared
from headway.train.learner import Learner
from headway.train.recipe import Recipe, TrainConfig
from headway.train.task import Task

_WARM_UP = 3  # steps not timed
_SHARE = 0.04  # of the time goes into measuring, but within these seconds
_LEAST, _MOST = 0.5, 6.0
_MARGIN = 0.97  # of what is left is planned: checkpoints, and a machine that slows down
_EVALUATIONS = 10  # a run, if they do not cost more than this share of it
_EVALUATION_SHARE = 0.15
_CHANGE = 0.1  # a plan that would change by less stays as it is


class Speed(NamedTuple):
    """Seconds for a step and for an evaluation."""

    step: float
    evaluation: float


def measure(
    recipe: Recipe, fresh: Collection[str], task: Task, processes: Processes, precision: str, seconds: float
) -> Speed:
    """The speed of `recipe` on this machine, from the first batches of its data, for a run of about `seconds`."""
    model = prepared(build(recipe.model, recipe.train.seed), recipe, fresh)
    learner = Learner(model, recipe, task, processes, precision)
    share = processes.share_of(recipe.train.accumulate)
    stream = task.batches("train", processes.shard)

    def steps(first: int, count: int) -> float:
        _wait(processes.device)
        start = time.perf_counter()
        for step in range(first, first + count):
            learner.update(step, [next(stream) for _ in range(share)])
        _wait(processes.device)
        return time.perf_counter() - start

    steps(0, _WARM_UP)
    rough = steps(_WARM_UP, 2) / 2
    window = min(max(_SHARE * seconds, _LEAST), _MOST)
    count = processes.tell(max(2, min(1000, round(window / rough))))
    each = steps(_WARM_UP + 2, count) / count
    start = time.perf_counter()
    if processes.first:
        with learner.evaluating() as model:
            task.evaluate(model, "validation", recipe.train.evaluate_limit)
    return Speed(*processes.tell([each, time.perf_counter() - start]))


def plan(train: TrainConfig, speed: Speed, seconds: float) -> TrainConfig:
    """`train` with the steps that fit into `seconds`, evaluations included.

    Where `evaluate_every` is 0, there are ten evaluations or, where they are slow, as few as take 15 % of the time.
    """
    usable = _MARGIN * seconds
    if train.evaluate_every:
        steps = int(usable / (speed.step + speed.evaluation / train.evaluate_every))
        every = train.evaluate_every
    else:
        fitting = int(_EVALUATION_SHARE * usable / speed.evaluation) if speed.evaluation > 0 else _EVALUATIONS
        evaluations = min(max(1, fitting), _EVALUATIONS)
        steps = int((usable - evaluations * speed.evaluation) / speed.step)
        every = 0 if evaluations == _EVALUATIONS else -(-max(steps, 1) // evaluations)
    if steps < 1:
        raise UserError(
            f"{max(seconds, 0):.0f} s are left for training, but a step takes {speed.step:.2g} s and an evaluation "
            f"{speed.evaluation:.2g} s; give more --minutes, or set train.evaluate_limit lower"
        )
    return replace(train, steps=steps, evaluate_every=every)


@dataclass(frozen=True)
class SecondLook:
    """Whether other programs slowed the machine down while it was measured, or do so since, is seen during the run.

    `asked` are the settings before any plan, `deadline` is a time of time.perf_counter. The look is before the first
    evaluation of either plan, and only a plan is taken under which all steps so far would have had the same rates, as
    those of a flat start have: so the recipe with the new steps repeats the run bit for bit, from its first step.
    """

    asked: TrainConfig
    speed: Speed
    deadline: float

    def at(self, train: TrainConfig) -> int:
        """The step after which the plan `train` is looked at."""
        quarter = train.steps // 4
        return quarter if self.asked.evaluate_every else min(quarter, train.evaluation_interval)

    def plan(self, recipe: Recipe, done: int, seconds: float) -> TrainConfig:
        """The plan after `done` steps, the last of which took `seconds` each: a new one, or that of the recipe."""
        train, schedule = recipe.train, recipe.schedule
        evaluation = self.speed.evaluation * seconds / self.speed.step
        left = self.deadline - time.perf_counter()
        try:
            rest = plan(self.asked, Speed(seconds, evaluation), left)
        except UserError:  # no time is left: it goes on as it was planned
            return train
        steps = done + rest.steps
        if abs(steps - train.steps) < _CHANGE * train.steps:
            return train
        if any(schedule.factor(step, steps) != schedule.factor(step, train.steps) for step in range(done)):
            return train
        whole = replace(rest, precision=train.precision, steps=steps)
        if self.asked.evaluate_every:
            return whole
        return replace(whole, evaluate_every=max(done, whole.evaluation_interval))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
