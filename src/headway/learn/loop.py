"""The loop of a run: steps, and between them log lines, evaluations and checkpoints; Ctrl-C ends it at
the next step.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from headway.config import from_dict, to_dict
from headway.formats import native
from headway.formats.usage import read_usage
from headway.learn.adapters import merged
from headway.learn.budget import TimeBudget
from headway.learn.checkpoint import Checkpoints, Progress
from headway.learn.examples import Batch, Explored
from headway.learn.journal import Journal
from headway.learn.learner import Learner
from headway.learn.recipe import Recipe
from headway.learn.run import MetricsFile, RunDirectory
from headway.learn.scale import LossForecast


class UserInterrupt(KeyboardInterrupt):
    """Training was stopped by the user, and can go on from its last checkpoint. The command line exits with 130.

    `where` says how far it came, `remedy` how it goes on.
    """

    def __init__(self, where: str, remedy: str) -> None:
        super().__init__(where, remedy)
        self.where, self.remedy = where, remedy

    def __str__(self) -> str:
        return f"{self.where}; {self.remedy}"


class Interrupts:
    """Turns the first SIGINT or SIGTERM into a request, so that no step is cut in half; a second one breaks off."""

    def __init__(self) -> None:
        self.requested = False
        self._breakable = False

    def __enter__(self) -> Interrupts:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
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


# The loss at the end from the loss now, what was seen until now, and what will have been seen then.
Foretell = Callable[[float, float, float], LossForecast]
_EARLY = 0.05  # of a run, before which nothing is foretold


class Loop:
    """Trains `learner` from where `progress` stands to the end of its recipe."""

    def __init__(
        self,
        learner: Learner,
        progress: Progress,
        directory: RunDirectory,
        checkpoints: Checkpoints,
        metrics: MetricsFile | None,
        journal: Journal,
        interrupts: Interrupts,
        budget: TimeBudget | None = None,
        foretell: Foretell | None = None,
    ) -> None:
        """`metrics` is None in all processes but the first, which writes nothing to disk; `budget` is the time there is
        for a run that has one, and `foretell` says from an evaluation how it will end.
        """
        self.learner = learner
        self.task = learner.task
        self.recipe = learner.recipe
        self.processes = learner.processes
        self.progress = progress
        self.directory = directory
        self.checkpoints = checkpoints
        self.metrics = metrics
        self.journal = journal
        self.interrupts = interrupts
        self.budget = budget
        self.foretell = foretell
        self.trunk = Checkpoints(directory.trunk, 1, 1)
        self._saved = progress.step

    def run(self, adopt: Callable[[Recipe], None] = lambda recipe: None) -> None:
        """Train to the last step, or until no evaluation has been better for `train.patience` ones.

        The budget may change the number of steps on the way; `adopt` is told the recipe with the new one.
        """
        progress, accumulate = self.progress, self.recipe.train.accumulate
        share = self.processes.share_of(accumulate)
        stream = self.task.batches("train", self.processes.shard, progress.step * accumulate)
        if self._evaluation_due() and progress.evaluated < progress.step:  # stopped between a step and its evaluation
            self._evaluate()
        if self.budget is not None:
            self.budget.begin(progress.step, progress.seconds)
        while progress.step < self.recipe.train.steps and not self._exhausted():
            self._keep_trunk()
            self._step(stream, share)
            if self.budget is not None and self.budget.due(progress.step, self.recipe.train.steps):
                self._look(self.budget, adopt)
            if self._should_stop():
                self._stop()
            if self._evaluation_due():
                self._evaluate()
            if self._checkpoint_due():
                self._checkpoint()

    def average_checkpoints(self) -> None:
        """Judge the mean of the last checkpoints' weights, and keep it if it is better."""
        count = self.checkpoints.mean_of_newest(self.learner, self.recipe.train.average)
        self.learner.average = None
        self._evaluate(f"mean of {count} checkpoints")

    def _step(self, stream: Iterator[Batch], share: int) -> None:
        start = time.perf_counter()
        batches = [next(stream) for _ in range(share)]
        self._update = self.learner.update(self.progress.step, batches, self.interrupts.requested)
        self.progress.step += 1
        world = self.processes.world
        self.journal.add(self._update, world * sum(b.tokens for b in batches), world * sum(b.computed for b in batches))
        if self._line_due():  # as at every step that a checkpoint may be written of, where there are several processes
            self._flush()
            self.learner.gather()
        self.journal.show()
        if self.budget is not None:
            self.budget.stepped(time.perf_counter() - start)

    def _look(self, budget: TimeBudget, adopt: Callable[[Recipe], None]) -> None:
        """Plan anew by the speed since the last look."""
        step = self.progress.step
        found = budget.revise(self.recipe, step, self.journal.seconds(), self.progress.evaluated > 0)
        told = self.processes.tell(None if found is None else to_dict(found.of(self.recipe)))
        if told is None:
            return
        self.recipe = self.learner.recipe = from_dict(Recipe, told)
        self.checkpoints.interval = self.recipe.train.checkpoint_interval
        self.journal.plan(self.recipe.train.steps)
        adopt(self.recipe)

    def _keep_trunk(self) -> None:
        """Save where the rate begins to fall: a longer run goes on from there."""
        if self.progress.step == self.recipe.schedule.flat(self.recipe.train.steps) and self.progress.step > 0:
            self._flush()
            self.learner.gather()
            if self.metrics is not None:
                with self.journal.paused():
                    self.trunk.save(self.learner, self.progress)

    def _checkpoint_due(self) -> bool:
        step, train = self.progress.step, self.recipe.train
        return step % train.checkpoint_interval == 0 or step == train.steps or self._exhausted()

    def _line_due(self) -> bool:
        step, train = self.progress.step, self.recipe.train
        periods = (self.journal.interval, train.evaluation_interval, train.checkpoint_interval)
        return step == train.steps or any(step % period == 0 for period in periods)

    def _evaluation_due(self) -> bool:
        step, train = self.progress.step, self.recipe.train
        return step > 0 and (step % train.evaluation_interval == 0 or step == train.steps)

    def _exhausted(self) -> bool:
        patience = self.recipe.train.patience
        return patience is not None and self.progress.stale >= patience

    def _should_stop(self) -> bool:
        """Alone at once; with others where all of them read the same sum."""
        if self.processes.world == 1:
            return self.interrupts.requested
        return self._line_due() and self._update.stop()

    def _flush(self) -> None:
        train = self.recipe.train
        factor = self.recipe.schedule.factor(self.progress.step - 1, train.steps)
        self.journal.flush(self.recipe.optim.lr * factor)

    def _evaluate(self, weights: str | None = None) -> None:
        weights = weights or ("trained" if self.learner.average is None else "moving average")
        with self.journal.paused():
            start = time.perf_counter()
            metrics = self._measured()
            if metrics is not None:
                better = self._judge(metrics)
                took = time.perf_counter() - start
                self.journal.evaluation(metrics, took, weights, better)
                if self.processes.first and isinstance(self.task.examples, Explored):
                    self.task.save(self.directory.path)  # what it has come to know beside its weights
                self._foretell(metrics)
                if self.budget is not None:
                    self.budget.evaluated(took)
                if better and self.processes.first:
                    self._keep()
        if metrics is None:
            self._stop()

    def _foretell(self, metrics: dict[str, Any]) -> None:
        """After the first evaluation, early in a run, tell how it will end."""
        progress, steps = self.progress, self.recipe.train.steps
        early = _EARLY * steps <= progress.step <= steps / 2
        if self.foretell is None or progress.forecast is not None or not early or "loss" not in metrics:
            return
        low, loss, high = self.foretell(metrics["loss"], progress.tokens, progress.tokens * steps / progress.step)
        progress.forecast = {"step": progress.step, "loss": loss, "loss_interval": [low, high]}
        self.journal.display.say(f"forecast from here: validation loss {loss:.3g} at the end ({low:.3g} to {high:.3g})")

    def _keep(self) -> None:
        """Save the model as it is judged; one with an adapter merged, and the adapter beside it."""
        with self.learner.evaluating() as model:
            native.save_tensors(merged(model), self.recipe.model, self.directory.path)
            if self.recipe.adapter is not None:
                family = read_usage(self.directory.path).family
                self.recipe.adapter.save(model, self.recipe.start or "", self.directory.adapter, family)

    def _measured(self) -> dict[str, float] | None:
        """What the first process measures; None where Ctrl-C breaks it off. What changes weights to and fro is not
        broken off.
        """
        try:
            if not self.processes.first:
                with self.interrupts.breakable():
                    return self.processes.tell(None)
            with self.learner.evaluating() as model, self.interrupts.breakable():
                found = self.task.evaluate(model, "validation", self.recipe.train.evaluate_limit)
            return self.processes.tell(found)
        except KeyboardInterrupt:
            return None

    def _judge(self, metrics: dict[str, Any]) -> bool:
        """Note an evaluation; whether it is the best so far."""
        progress, goal = self.progress, self.task.goal
        sign = 1 if self.task.goal_better == "min" else -1
        better = progress.best is None or sign * metrics[goal] < sign * progress.best[goal]
        if better:
            progress.best = {"step": progress.step, **metrics}
        progress.stale = 0 if better else progress.stale + 1
        progress.evaluated = progress.step
        return better

    def _checkpoint(self) -> None:
        if self.metrics is None:
            return
        with self.journal.paused():
            self.metrics.sync()
            self.checkpoints.save(self.learner, self.progress)
            self._saved = self.progress.step

    def _stop(self) -> NoReturn:
        if self._saved != self.progress.step:  # else the model may hold other weights: the mean of checkpoints
            self._flush()
            self._checkpoint()
        raise UserInterrupt(
            f"stopped at step {self.progress.step:,} of {self.recipe.train.steps:,}",
            f"{self.directory.path} goes on from there with --resume",
        )
