"""The training loop: steps, log lines, evaluations and checkpoints. Ctrl-C ends it at the next step."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from headway.config import from_dict, to_dict
from headway.learn.budget import TimeBudget
from headway.learn.examples import Batch, OnPolicyExamples
from headway.learn.loss_forecast import LossForecast, slope_of
from headway.learn.recipe import Recipe
from headway.learn.run_schemas import PredictedLoss, read_metrics
from headway.learn.run_state import RunState
from headway.learn.training_log import TrainingLog


class UserInterrupt(KeyboardInterrupt):
    """The user stopped training, which can be resumed from the last checkpoint. The command line exits with status 130.

    `where` names the step; `remedy` explains how to resume.
    """

    def __init__(self, where: str, remedy: str) -> None:
        super().__init__(where, remedy)
        self.where, self.remedy = where, remedy

    def __str__(self) -> str:
        return f"{self.where}; {self.remedy}"


_HANGUP_SIGNALS = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()  # the terminal was closed; not on Windows


class Interrupts:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a stop request, so that the current step completes. A second
    signal interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._is_breakable = False

    def __enter__(self) -> Interrupts:
        self._previous_handlers: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # the only thread that can set handlers
            for number in (signal.SIGINT, signal.SIGTERM, *_HANGUP_SIGNALS):
                if (
                    number not in _HANGUP_SIGNALS or signal.getsignal(number) is not signal.SIG_IGN
                ):  # nohup ignores SIGHUP
                    self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Inside this context, even the first signal interrupts at once: for work without side effects, such as
        evaluation.
        """
        self._is_breakable = True
        try:
            yield
        finally:
            self._is_breakable = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        already_requested, self.requested = self.requested, True
        if already_requested or self._is_breakable:
            raise KeyboardInterrupt


# The final loss from the current loss, the slope of the training loss, and the completed fraction of the steps.
LossPredictor = Callable[[float, float, float], LossForecast]
EARLY_FRACTION, LATE_FRACTION = 0.25, 0.6  # fractions of a run between which the final loss is predicted
_REPORTED_CHANGE, _STABLE_REVISIONS = (
    0.1,
    3,
)  # report a plan that differs by 10 % from the first and was stable for 3 revisions


class Loop:
    """Trains a started run to the end of its recipe."""

    def __init__(
        self, run: RunState, journal: TrainingLog, interrupts: Interrupts, predict_loss: LossPredictor | None = None
    ) -> None:
        """If `predict_loss` is set, the final loss is forecast from an early evaluation."""
        self.run = run
        self.journal = journal
        self.interrupts = interrupts
        self.predict_loss = predict_loss
        self._reported_plan: int | None = (
            run.recipe.train.steps
        )  # the first plan; None once a changed plan was reported
        self._is_over = False  # whether an evaluation ended the run
        self._stable_revisions = 0  # revisions since the plan last changed much

    def train(self) -> None:
        """Train to the last step, or until `train.patience` evaluations in a row bring no improvement.

        The budget may change the number of steps during training.
        """
        run, progress, accumulate = self.run, self.run.progress, self.run.recipe.train.accumulate
        share = run.processes.local_micro_batches(accumulate)
        stream = run.task.batches("train", run.processes.shard, progress.step * accumulate)
        evaluation_overdue = self._evaluation_due() and progress.evaluated < progress.step  # stopped just before it
        is_new_start = progress.step == 0 and progress.best is None and run.recipe.start is not None
        if run.head_fitted or evaluation_overdue or (is_new_start and run.task.evaluates_start):
            self._evaluate()
        if run.budget is not None:
            run.budget.start_measuring(progress.step, progress.seconds)
        while progress.step < run.recipe.train.steps and not self._exhausted():
            self._save_pre_decay()
            self._step(stream, share)
            if run.budget is not None and run.budget.is_revision_due(progress.step, run.recipe.train.steps):
                self._revise_plan(run.budget)
            if self._should_stop():
                self._stop()
            if self._evaluation_due():
                self._evaluate()
            if self._checkpoint_due():
                self._checkpoint()

    def average_checkpoints(self) -> None:
        """Evaluate the mean of the last checkpoints' weights, and save it if it is better."""
        count = self.run.checkpoints.average_newest(self.run)
        self.run.learner.average = None
        self._evaluate(f"mean of {count} checkpoints")

    def _step(self, stream: Iterator[Batch], share: int) -> None:
        start = time.perf_counter()
        run, batches = self.run, [next(stream) for _ in range(share)]
        self._update = run.learner.update(run.progress.step, batches, self.interrupts.requested)
        run.progress.step += 1
        world = run.processes.world
        self.journal.add(self._update, world * sum(b.tokens for b in batches), world * sum(b.computed for b in batches))
        if self._line_due():  # with several processes, also at every step that may write a checkpoint
            self.journal.flush()
            run.learner.gather()
        self.journal.show()
        if run.budget is not None:
            run.budget.record_step(time.perf_counter() - start)

    def _revise_plan(self, budget: TimeBudget) -> None:
        """Revise the plan using the speed since the last revision."""
        previous_steps = self.run.recipe.train.steps
        steps, first_plan = self._apply_revision(budget), self._reported_plan
        self._stable_revisions = (
            self._stable_revisions + 1 if abs(steps - previous_steps) <= _REPORTED_CHANGE * previous_steps else 0
        )
        if (
            first_plan is None
            or self._stable_revisions < _STABLE_REVISIONS
            or abs(steps - first_plan) <= _REPORTED_CHANGE * first_plan
        ):
            return
        self._reported_plan = None  # reported once, when it is stable
        self.journal.display.print_line(
            f"at the current speed, the run takes {steps:,} steps instead of the planned {first_plan:,}"
        )

    def _adjust_length(self, budget: TimeBudget) -> None:
        """Extend the run or wind it down, depending on the evaluations so far."""
        run, progress, previous_steps = self.run, self.run.progress, self.run.recipe.train.steps
        if not run.processes.broadcast_object(budget.update_max_steps(run.recipe, progress.step, progress.stale)):
            return
        steps = self._apply_revision(budget)
        if steps < previous_steps and progress.stale:
            self.journal.display.print_line(
                f"no improvement in {progress.stale} evaluations; decaying the learning rate to 0 by step {steps:,}"
            )

    def _apply_revision(self, budget: TimeBudget) -> int:
        """Let the budget revise the plan; return the run's number of steps."""
        run = self.run
        revision = budget.revise(run.recipe, run.progress.step, self.journal.seconds(), run.progress.evaluated > 0)
        recipe_data = run.processes.broadcast_object(
            None if revision is None else to_dict(revision.apply_to(run.recipe))
        )
        if recipe_data is not None:
            run.change_recipe(from_dict(Recipe, recipe_data))
            self.journal.set_steps(run.recipe.train.steps)
        return run.recipe.train.steps

    def _save_pre_decay(self) -> None:
        """Save a checkpoint where the learning rate starts to decay; an extended run continues from it."""
        run, step = self.run, self.run.progress.step
        if step == run.recipe.schedule.decay_start(run.recipe.train.steps) and step > 0:
            self.journal.flush()
            run.learner.gather()
            if run.processes.is_main:
                with self.journal.paused():
                    run.pre_decay.save(run)

    def _checkpoint_due(self) -> bool:
        step, train = self.run.progress.step, self.run.recipe.train
        return step % train.checkpoint_interval == 0 or step == train.steps or self._exhausted()

    def _line_due(self) -> bool:
        step, train = self.run.progress.step, self.run.recipe.train
        periods = (self.journal.interval, train.evaluation_interval, train.checkpoint_interval)
        return step == train.steps or any(step % period == 0 for period in periods)

    def _evaluation_due(self) -> bool:
        step, train = self.run.progress.step, self.run.recipe.train
        return step > 0 and (step % train.evaluation_interval == 0 or step == train.steps)

    def _exhausted(self) -> bool:
        patience = self.run.recipe.train.patience
        return self._is_over or (patience is not None and self.run.progress.stale >= patience)

    def _should_stop(self) -> bool:
        """A single process stops at once. Several processes stop at a step where all of them read the same sum."""
        if self.run.processes.world == 1:
            return self.interrupts.requested
        return self._line_due() and self._update.stop()

    def _evaluate(self, weights: str | None = None) -> None:
        run = self.run
        weights = weights or ("trained" if run.learner.average is None else "moving average")
        with self.journal.paused():
            start = time.perf_counter()
            metrics = self._measure()
            if metrics is not None:
                best = run.progress.best
                failure_reason = run.task.failure_reason(metrics, best)
                is_best = False
                if failure_reason is None or best is None:
                    is_best = run.record_evaluation(metrics)
                else:
                    run.skip_evaluation()
                seconds = time.perf_counter() - start
                self.journal.evaluation(metrics, seconds, weights, is_best)
                if run.processes.is_main and isinstance(run.task.examples, OnPolicyExamples):
                    run.task.save(run.directory.path)  # what it has learned besides its weights
                self._forecast_loss(metrics)
                if run.budget is not None:
                    run.budget.record_evaluation(seconds)
                if is_best:
                    run.save_best_model()
                self._check_end(failure_reason, metrics)
        if metrics is None:
            self._stop()
        if run.budget is not None and not self._is_over and 0 < run.progress.step < run.recipe.train.steps:
            self._adjust_length(run.budget)

    def _check_end(self, failure_reason: str | None, metrics: dict[str, Any]) -> None:
        """Report why a model is unusable or needs no more training, and end the run."""
        run, best = self.run, self.run.progress.best or {}
        if failure_reason is not None and best.get("step") == run.progress.step:  # there is no better model
            when = "" if run.progress.step else "before the first step "
            self.journal.display.print_line(f"warning: {when}{failure_reason}; start from a model that gives answers")
            return
        stop_reason = run.task.stop_reason(metrics) if run.progress.step else None
        if failure_reason is not None:
            self.journal.display.print_line(
                f"warning: {failure_reason}; stopping with the model from step {best['step']:,}"
            )
        elif stop_reason is not None:
            self.journal.display.print_line(f"stopping training: {stop_reason}")
        self._is_over = failure_reason is not None or stop_reason is not None

    def _forecast_loss(self, metrics: dict[str, Any]) -> None:
        """Predict the final loss after an early evaluation."""
        run, progress, steps = self.run, self.run.progress, self.run.recipe.train.steps
        is_early = EARLY_FRACTION * steps <= progress.step <= LATE_FRACTION * steps
        current_loss = metrics.get("loss", math.nan)
        if (
            self.predict_loss is None
            or progress.forecast is not None
            or not is_early
            or not 0 < current_loss < math.inf
        ):
            return
        lines = read_metrics(run.directory.metrics) if run.processes.is_main else []
        training = [(line["step"], line["loss"]) for line in lines if "split" not in line and line.get("loss")]
        slope = slope_of(training, progress.step)
        if slope is None:
            return
        low, loss, high = self.predict_loss(current_loss, slope, progress.step / steps)
        progress.forecast = PredictedLoss(step=progress.step, loss=loss, loss_interval=[low, high])
        self.journal.display.print_line(f"predicted final validation loss: {loss:.3g} ({low:.3g} to {high:.3g})")

    def _measure(self) -> dict[str, float] | None:
        """The metrics measured by the main process; None if Ctrl-C interrupts it. Swapping weights is not
        interrupted.
        """
        run = self.run
        try:
            if not run.processes.is_main:
                with self.interrupts.breakable():
                    return run.processes.broadcast_object(None)
            with run.learner.evaluating() as model, self.interrupts.breakable():
                scores = run.task.evaluate(model, "validation", run.recipe.train.evaluate_limit)
            return run.processes.broadcast_object(scores)
        except KeyboardInterrupt:
            return None

    def _checkpoint(self) -> None:
        if self.run.processes.is_main:
            with self.journal.paused():
                self.run.checkpoint()

    def _stop(self) -> NoReturn:
        run = self.run
        if not run.is_saved:  # otherwise the model may contain averaged checkpoints
            self.journal.flush()
            self._checkpoint()
        raise UserInterrupt(
            f"stopped at step {run.progress.step:,} of {run.recipe.train.steps:,}",
            f"resume {run.directory.path} with --resume",
        )
