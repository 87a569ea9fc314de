"""The training loop: steps, log lines, evaluations and checkpoints; Ctrl-C ends it at the next step."""

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
from headway.learn.examples import Batch, Explored
from headway.learn.journal import Journal
from headway.learn.outlook import LossForecast, slope_of
from headway.learn.recipe import Recipe
from headway.learn.records import PredictedLoss, read_metrics
from headway.learn.training import RunState


class UserInterrupt(KeyboardInterrupt):
    """The user stopped training, which can resume from the last checkpoint. The command line exits with 130.

    `where` names the step, `remedy` how to resume.
    """

    def __init__(self, where: str, remedy: str) -> None:
        super().__init__(where, remedy)
        self.where, self.remedy = where, remedy

    def __str__(self) -> str:
        return f"{self.where}; {self.remedy}"


_HANGUP = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()  # the terminal was closed; not on Windows


class Interrupts:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request, so that the current step completes; a second signal
    interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._breakable = False

    def __enter__(self) -> Interrupts:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # the only thread that can set handlers
            for number in (signal.SIGINT, signal.SIGTERM, *_HANGUP):
                if number not in _HANGUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Inside the context the first signal interrupts at once: for work without side effects, such as evaluation."""
        self._breakable = True
        try:
            yield
        finally:
            self._breakable = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested, True
        if again or self._breakable:
            raise KeyboardInterrupt


# The final loss from the current loss, the slope of the training loss, and the completed fraction of the steps.
Foretell = Callable[[float, float, float], LossForecast]
EARLY, LATE = 0.25, 0.6  # fractions of a run between which the final loss is predicted
_TOLD, _SETTLED = 0.1, 3  # report a plan that differs by 10 % from the first and was stable in 3 revisions


class Loop:
    """Trains a started run to the end of its recipe."""

    def __init__(
        self, run: RunState, journal: Journal, interrupts: Interrupts, foretell: Foretell | None = None
    ) -> None:
        """`predict_loss` forecasts the final loss from an early evaluation."""
        self.run = run
        self.journal = journal
        self.interrupts = interrupts
        self.foretell = foretell
        self._planned: int | None = run.recipe.train.steps  # the first plan; None once another number was reported
        self._ended = False  # by an evaluation
        self._steady = 0  # revisions since the plan changed by much

    def train(self) -> None:
        """Train to the last step, or until `train.patience` evaluations in a row were not better.

        The budget may change the number of steps during training.
        """
        run, progress, accumulate = self.run, self.run.progress, self.run.recipe.train.accumulate
        share = run.processes.share_of(accumulate)
        stream = run.task.batches("train", run.processes.shard, progress.step * accumulate)
        overdue = self._evaluation_due() and progress.evaluated < progress.step  # stopped just before it
        begins = progress.step == 0 and progress.best is None and run.recipe.start is not None
        if run.probed or overdue or (begins and run.task.judges_start):
            self._evaluate()
        if run.budget is not None:
            run.budget.begin(progress.step, progress.seconds)
        while progress.step < run.recipe.train.steps and not self._exhausted():
            self._keep_trunk()
            self._step(stream, share)
            if run.budget is not None and run.budget.due(progress.step, run.recipe.train.steps):
                self._look(run.budget)
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
            run.budget.stepped(time.perf_counter() - start)

    def _look(self, budget: TimeBudget) -> None:
        """Revise the plan by the speed since the last revision."""
        before = self.run.recipe.train.steps
        steps, first = self._revise(budget), self._planned
        self._steady = self._steady + 1 if abs(steps - before) <= _TOLD * before else 0
        if first is None or self._steady < _SETTLED or abs(steps - first) <= _TOLD * first:
            return
        self._planned = None  # reported once, when it is stable
        self.journal.display.say(f"at the speed so far, {steps:,} steps fit in the time instead of {first:,}")

    def _weigh(self, budget: TimeBudget) -> None:
        """Extend the run or end it soon, depending on the evaluations so far."""
        run, progress, before = self.run, self.run.progress, self.run.recipe.train.steps
        if not run.processes.tell(budget.weigh(run.recipe, progress.step, progress.stale)):
            return
        steps = self._revise(budget)
        if steps < before and progress.stale:
            self.journal.display.say(
                f"no improvement in {progress.stale} evaluations: the learning rate decays to 0 by step {steps:,}"
            )

    def _revise(self, budget: TimeBudget) -> int:
        """Let the budget revise the plan; returns the steps of the run."""
        run = self.run
        found = budget.revise(run.recipe, run.progress.step, self.journal.seconds(), run.progress.evaluated > 0)
        revised = run.processes.tell(None if found is None else to_dict(found.of(run.recipe)))
        if revised is not None:
            run.adopt(from_dict(Recipe, revised))
            self.journal.plan(run.recipe.train.steps)
        return run.recipe.train.steps

    def _keep_trunk(self) -> None:
        """Save a checkpoint where the learning rate begins to decay, from which an extended run continues."""
        run, step = self.run, self.run.progress.step
        if step == run.recipe.schedule.flat(run.recipe.train.steps) and step > 0:
            self.journal.flush()
            run.learner.gather()
            if run.processes.first:
                with self.journal.paused():
                    run.trunk.save(run)

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
        return self._ended or (patience is not None and self.run.progress.stale >= patience)

    def _should_stop(self) -> bool:
        """A single process stops at once; several stop at a step where all of them read the same sum."""
        if self.run.processes.world == 1:
            return self.interrupts.requested
        return self._line_due() and self._update.stop()

    def _evaluate(self, weights: str | None = None) -> None:
        run = self.run
        weights = weights or ("trained" if run.learner.average is None else "moving average")
        with self.journal.paused():
            start = time.perf_counter()
            metrics = self._measured()
            if metrics is not None:
                best = run.progress.best
                fault = run.task.fault(metrics, best)
                better = False
                if fault is None or best is None:
                    better = run.judge(metrics)
                else:
                    run.pass_over()
                took = time.perf_counter() - start
                self.journal.evaluation(metrics, took, weights, better)
                if run.processes.first and isinstance(run.task.examples, Explored):
                    run.task.save(run.directory.path)  # what it has learned in addition to its weights
                self._foretell(metrics)
                if run.budget is not None:
                    run.budget.evaluated(took)
                if better:
                    run.keep_model()
                self._end(fault, metrics)
        if metrics is None:
            self._stop()
        if run.budget is not None and not self._ended and 0 < run.progress.step < run.recipe.train.steps:
            self._weigh(run.budget)

    def _end(self, fault: str | None, metrics: dict[str, Any]) -> None:
        """Report why a model is unusable or needs no more training, and end the run."""
        run, best = self.run, self.run.progress.best or {}
        if fault is not None and best.get("step") == run.progress.step:  # there is no better model
            when = "" if run.progress.step else "before the first step "
            self.journal.display.say(f"warning: {when}{fault}; start from a model that answers")
            return
        enough = run.task.finished(metrics) if run.progress.step else None
        if fault is not None:
            self.journal.display.say(f"warning: {fault}; training ends with the model of step {best['step']:,}")
        elif enough is not None:
            self.journal.display.say(f"training ends: {enough}")
        self._ended = fault is not None or enough is not None

    def _foretell(self, metrics: dict[str, Any]) -> None:
        """After an early evaluation, predict the final loss."""
        run, progress, steps = self.run, self.run.progress, self.run.recipe.train.steps
        early = EARLY * steps <= progress.step <= LATE * steps
        known = metrics.get("loss", math.nan)
        if self.foretell is None or progress.forecast is not None or not early or not 0 < known < math.inf:
            return
        lines = read_metrics(run.directory.metrics) if run.processes.first else []
        training = [(line["step"], line["loss"]) for line in lines if "split" not in line and line.get("loss")]
        slope = slope_of(training, progress.step)
        if slope is None:
            return
        low, loss, high = self.foretell(known, slope, progress.step / steps)
        progress.forecast = PredictedLoss(step=progress.step, loss=loss, loss_interval=[low, high])
        self.journal.display.say(f"predicted final validation loss: {loss:.3g} ({low:.3g} to {high:.3g})")

    def _measured(self) -> dict[str, float] | None:
        """The metrics that the main process measures; None if Ctrl-C interrupts it. Swapping weights is not
        interrupted.
        """
        run = self.run
        try:
            if not run.processes.first:
                with self.interrupts.breakable():
                    return run.processes.tell(None)
            with run.learner.evaluating() as model, self.interrupts.breakable():
                found = run.task.evaluate(model, "validation", run.recipe.train.evaluate_limit)
            return run.processes.tell(found)
        except KeyboardInterrupt:
            return None

    def _checkpoint(self) -> None:
        if self.run.processes.first:
            with self.journal.paused():
                self.run.checkpoint()

    def _stop(self) -> NoReturn:
        run = self.run
        if not run.saved:  # otherwise the model may contain the mean of checkpoints
            self.journal.flush()
            self._checkpoint()
        raise UserInterrupt(
            f"stopped at step {run.progress.step:,} of {run.recipe.train.steps:,}",
            f"continue {run.directory.path} with --resume",
        )
