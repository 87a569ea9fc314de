"""The loop of a run: steps, and between them log lines, evaluations and checkpoints; Ctrl-C ends it at
the next step.
"""

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
    """RunState was stopped by the user, and can go on from its last checkpoint. The command line exits with 130.

    `where` says how far it came, `remedy` how it goes on.
    """

    def __init__(self, where: str, remedy: str) -> None:
        super().__init__(where, remedy)
        self.where, self.remedy = where, remedy

    def __str__(self) -> str:
        return f"{self.where}; {self.remedy}"


_HANGUP = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()  # the terminal was closed; not on Windows


class Interrupts:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request, so that no step is cut in half; a second one breaks
    off.
    """

    def __init__(self) -> None:
        self.requested = False
        self._breakable = False

    def __enter__(self) -> Interrupts:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            for number in (signal.SIGINT, signal.SIGTERM, *_HANGUP):
                if number not in _HANGUP or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Inside, the first signal breaks off at once: for work that changes nothing, such as an evaluation."""
        self._breakable = True
        try:
            yield
        finally:
            self._breakable = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested, True
        if again or self._breakable:
            raise KeyboardInterrupt


# The loss at the end from the loss now, the slope of the training loss, and the share of the steps that is done.
Foretell = Callable[[float, float, float], LossForecast]
EARLY, LATE = 0.25, 0.6  # of a run, before and after which nothing is predicted
_TOLD, _SETTLED = 0.1, 3  # a plan that changed by less at so many looks is told if it differs by more from the first


class Loop:
    """Trains a run that was started to the end of its recipe."""

    def __init__(
        self, run: RunState, journal: Journal, interrupts: Interrupts, foretell: Foretell | None = None
    ) -> None:
        """`foretell` says from an evaluation how the run will end."""
        self.run = run
        self.journal = journal
        self.interrupts = interrupts
        self.foretell = foretell
        self._planned: int | None = run.recipe.train.steps  # at first; None once another number was told
        self._ended = False  # by an evaluation
        self._steady = 0  # looks at the plan since it changed by much

    def train(self) -> None:
        """Train to the last step, or until no evaluation has been better for `train.patience` ones.

        The budget may change the number of steps on the way.
        """
        run, progress, accumulate = self.run, self.run.progress, self.run.recipe.train.accumulate
        share = run.processes.share_of(accumulate)
        stream = run.task.batches("train", run.processes.shard, progress.step * accumulate)
        overdue = self._evaluation_due() and progress.evaluated < progress.step  # stopped between a step and this
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
        """Judge the mean of the last checkpoints' weights, and keep it if it is better."""
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
        if self._line_due():  # as at every step that a checkpoint may be written of, where there are several processes
            self.journal.flush()
            run.learner.gather()
        self.journal.show()
        if run.budget is not None:
            run.budget.stepped(time.perf_counter() - start)

    def _look(self, budget: TimeBudget) -> None:
        """Plan anew by the speed since the last look."""
        before = self.run.recipe.train.steps
        steps, first = self._revise(budget), self._planned
        self._steady = self._steady + 1 if abs(steps - before) <= _TOLD * before else 0
        if first is None or self._steady < _SETTLED or abs(steps - first) <= _TOLD * first:
            return
        self._planned = None  # it has settled, and is told once
        self.journal.display.say(f"{steps:,} steps fit into the time instead of {first:,}, by the speed so far")

    def _weigh(self, budget: TimeBudget) -> None:
        """Go on for longer, or end soon, by the evaluations so far."""
        run, progress, before = self.run, self.run.progress, self.run.recipe.train.steps
        if not run.processes.tell(budget.weigh(run.recipe, progress.step, progress.stale)):
            return
        steps = self._revise(budget)
        if steps < before and progress.stale:
            self.journal.display.say(
                f"the last {progress.stale} evaluations were not better: the learning rate falls to 0 by step {steps:,}"
            )

    def _revise(self, budget: TimeBudget) -> int:
        """The steps of the run, once the budget has revised its plan."""
        run = self.run
        found = budget.revise(run.recipe, run.progress.step, self.journal.seconds(), run.progress.evaluated > 0)
        revised = run.processes.tell(None if found is None else to_dict(found.of(run.recipe)))
        if revised is not None:
            run.adopt(from_dict(Recipe, revised))
            self.journal.plan(run.recipe.train.steps)
        return run.recipe.train.steps

    def _keep_trunk(self) -> None:
        """Save where the rate begins to fall: a longer run goes on from there."""
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
        """Alone at once; with others where all of them read the same sum."""
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
                    run.task.save(run.directory.path)  # what it has come to know beside its weights
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
        """Say what is wrong with a model, and end where it is unusable or needs no more training."""
        run, best = self.run, self.run.progress.best or {}
        if fault is not None and best.get("step") == run.progress.step:  # nothing better is known
            when = "" if run.progress.step else "before the first step "
            self.journal.display.say(f"caution: {when}{fault}; start from a model that answers")
            return
        enough = run.task.finished(metrics) if run.progress.step else None
        if fault is not None:
            self.journal.display.say(f"caution: {fault}; training ends, and the model of step {best['step']:,} stays")
        elif enough is not None:
            self.journal.display.say(f"training ends: {enough}")
        self._ended = fault is not None or enough is not None

    def _foretell(self, metrics: dict[str, Any]) -> None:
        """After an early evaluation, predict how the run will end."""
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
        """What the first process measures; None where Ctrl-C breaks it off. What changes weights to and fro is not
        broken off.
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
        if not run.saved:  # else the model may hold other weights: the mean of checkpoints
            self.journal.flush()
            self._checkpoint()
        raise UserInterrupt(
            f"stopped at step {run.progress.step:,} of {run.recipe.train.steps:,}",
            f"{run.directory.path} goes on from there with --resume",
        )
