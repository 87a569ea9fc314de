"""How many steps fit in a given time: planned from the measured speed and revised during the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from headway.errors import UserError
from headway.learn.formatting import format_number
from headway.learn.plan.measure import FINAL_SHARE, Clock, Speed
from headway.learn.recipe import Recipe, TrainConfig

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
    _measured_from: tuple[int, float] = (0, 0.0)
    _next_revision: int = 0
    _typical_step: float = 0.0
    _slept_seconds: float = 0.0

    def seconds_left(self) -> float:
        return self.seconds - self.clock.elapsed()

    def final_evaluation_seconds(self) -> float:
        """Seconds for evaluating the final split: unlimited if the complete split takes less than its share of the
        time; otherwise the remaining time, but at least half of that share.
        """
        share = FINAL_SHARE * self.seconds
        return math.inf if self.speed.final < share else max(self.seconds_left() - self._report_seconds(), 0.5 * share)

    def _report_seconds(self) -> float:
        """Seconds for samples, pictures and the report."""
        return self.speed.ending - min(self.speed.final, FINAL_SHARE * self.seconds)

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
            ending = self._report_seconds() + min(final, FINAL_SHARE * self.seconds)
            self.speed = self.speed._replace(evaluation=seconds, ending=ending, final=final)

    def update_max_steps(self, recipe: Recipe, step: int, stale: int) -> bool:
        """Whether the evaluation after `step` changes the maximum number of steps; `stale` counts evaluations since the
        best.

        The learning rate decay is postponed while evaluations improve, that is, while the best so far is one of the
        last three and in the last half. After `patience` evaluations without improvement, the learning rate decays to 0
        over the same number of intervals, which ends the run.
        """
        previous, train = self.max_steps, recipe.train
        if previous is None:
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
        return step == self._next_revision

    def start_measuring(self, step: int, seconds: float) -> None:
        """Start measuring the speed from here: `step` updates took `seconds`."""
        self._measured_from, self._slept_seconds = (step, seconds), 0.0

    def revise(self, recipe: Recipe, done: int, seconds: float, evaluated: bool) -> Recipe | None:
        """The recipe with revised steps, schedule and evaluation interval after `done` steps in `seconds`. None to
        keep the current one. If the run has been `evaluated`, the evaluation interval stays the same.
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
        if not evaluated:
            interval = max(done + 1, round(interval * new_steps / steps))
        if schedule is None:
            return None
        return replace(recipe, train=replace(recipe.train, steps=new_steps, evaluate_every=interval), schedule=schedule)
