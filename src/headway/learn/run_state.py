"""The state of a run during training."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

from torch import nn

from headway.formats import native
from headway.formats.usage import read_usage
from headway.io.durable import remove
from headway.learn.adapters import merged
from headway.learn.budget import Clock, TimeBudget
from headway.learn.checkpoint import Checkpoints
from headway.learn.distributed import Processes
from headway.learn.fine_tuning import initial_model
from headway.learn.learner import Learner
from headway.learn.precision import Precision
from headway.learn.recipe import Recipe, check_model, write_recipe
from headway.learn.run import MetricsFile, Run, RunDirectory, environment, truncate_metrics
from headway.learn.run_schemas import Progress, read_metrics
from headway.learn.task import Task, unit_of
from headway.nn.models import describe, outline

_NOISE_SAMPLES = 3.5  # accuracies that differ by fewer samples are considered equal
_FRACTION_GOALS = ("accuracy", "f1", "recall_at_1", "mean_recall_at_1", "exact_match")  # goals that are fractions


class RunState:
    """The state of a run during training: its current recipe, directory, progress, and the model, which exists once
    `start` was called.

    `minutes` is the planned duration, `earlier_seconds` the time that earlier processes spent training, `budget` the
    time budget if there is one, and `fresh` the newly initialised parameters. Only the main process writes files.
    """

    learner: Learner

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        directory: RunDirectory,
        processes: Processes,
        clock: Clock,
        minutes: float | None,
    ) -> None:
        self.recipe = recipe
        self.task = task
        self.directory = directory
        self.processes = processes
        self.clock = clock
        self.minutes = minutes
        self.costs = describe(self.outline)
        self.precision = Precision(recipe.train.precision, "as set")
        self.fresh: tuple[str, ...] = ()
        self.trained: int | None = None  # the number of trainable parameters, known once there is a model
        self.earlier_seconds = 0.0
        self.budget: TimeBudget | None = None
        self.progress = Progress()
        self.data: dict[str, int | str] = {}  # the data fingerprint, equal in all processes
        self.metrics: MetricsFile | None = None
        self.checkpoints = Checkpoints(directory.checkpoints)
        self.pre_decay = Checkpoints(directory.pre_decay)
        self.head_fitted = False  # whether this process fitted the head, which has not been trained since
        self._saved_step = 0  # the step of the last checkpoint

    @cached_property
    def outline(self) -> nn.Module:
        """The model without weights, for everything that needs only its structure."""
        return outline(self.recipe.model)

    def epochs(self, steps: int) -> float | None:
        """The number of epochs in `steps` steps; None if the model generates its own samples."""
        return (
            None if self._batches_per_epoch is None else steps * self.recipe.train.accumulate / self._batches_per_epoch
        )

    @cached_property
    def _batches_per_epoch(self) -> float | None:
        return self.task.examples.batches_per_epoch()

    def start(self) -> None:
        """Build the model, and load the newest checkpoint if there is one."""
        recipe, is_main = self.recipe, self.processes.is_main
        if is_main:
            remove(self.directory.digests)
            self.checkpoints.clean()
        has_checkpoint = bool(self.checkpoints.all())
        model = initial_model(recipe, self.fresh, self.directory.base, has_checkpoint, is_main)
        limit = 0 if has_checkpoint or recipe.start is None else recipe.train.linear_probe
        self.head_fitted = limit > 0 and self.task.fit_head(model.to(self.processes.device), self.fresh, limit)
        self.learner = Learner(model, recipe, self.task, self.processes, self.precision.name)
        self.trained = self.learner.trained
        self.progress = Progress()
        self.checkpoints.load_newest(self)
        self._saved_step = self.progress.step
        self.earlier_seconds = max(self.earlier_seconds, self.progress.seconds)  # a killed run has no later time
        if is_main:
            evaluated = self.progress.evaluated if has_checkpoint else -1
            truncate_metrics(self.directory.metrics, self.progress.step, evaluated)
            self.metrics = MetricsFile(self.directory.metrics)

    def change_recipe(self, recipe: Recipe) -> None:
        """Continue with a new recipe that has a different number of steps."""
        self.recipe = self.learner.recipe = recipe
        self.write_recipe()
        self.write_status("running")

    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return self.recipe.optim.lr * self.recipe.schedule.factor(self.progress.step - 1, self.recipe.train.steps)

    def record_evaluation(self, metrics: dict[str, Any]) -> bool:
        """Record an evaluation; return whether it is the best so far.

        If the goal differs by no more than chance (about three validation samples), the smaller loss is better.
        """
        progress, goal = self.progress, self.task.goal
        is_best = math.isfinite(metrics[goal])
        if is_best and progress.best is not None:
            sign = 1 if self.task.goal_better == "max" else -1
            gain = sign * (metrics[goal] - progress.best[goal])
            sample_count = metrics.get("words") or metrics.get("samples")
            tolerance = _NOISE_SAMPLES / sample_count if goal in _FRACTION_GOALS and sample_count else 0.0
            loss, best_loss = metrics.get("loss", math.inf), progress.best.get("loss", math.inf)
            is_best = gain > tolerance or (gain >= -tolerance and loss < best_loss)
        if is_best:
            progress.best = {"step": progress.step, **metrics}
        progress.stale = 0 if is_best else progress.stale + 1
        progress.evaluated = progress.step
        return is_best

    def save_best_model(self) -> None:
        """Save the model as it is evaluated; an adapter is merged and also saved separately."""
        if not self.processes.is_main:
            return
        with self.learner.evaluating() as model:
            native.save_tensors(merged(model), self.recipe.model, self.directory.path)
            if self.recipe.adapter is not None:
                family = read_usage(self.directory.path).family
                self.recipe.adapter.save(model, self.recipe.start or "", self.directory.adapter, family)

    def skip_evaluation(self) -> None:
        """Record the evaluation of a model that is not saved."""
        self.progress.stale += 1
        self.progress.evaluated = self.progress.step

    @property
    def is_saved(self) -> bool:
        """Whether the last step has a checkpoint."""
        return self._saved_step == self.progress.step

    def checkpoint(self) -> None:
        """Save everything needed to resume from here."""
        if self.metrics is not None:
            self.metrics.sync()
            train = self.recipe.train
            self.checkpoints.save(self, max(train.keep_checkpoints, train.average), train.checkpoint_interval)
            self._saved_step = self.progress.step

    def write_recipe(self) -> None:
        if self.processes.is_main:
            write_recipe(self.recipe, self.directory.recipe)

    def write_status(self, status: str) -> None:
        if not self.processes.is_main:
            return
        progress = self.progress
        self.directory.write_status(
            {
                "status": status,
                "recipe": self.recipe.name,
                "parameters": self.costs["parameters"],
                "trained": self.trained,
                "steps": self.recipe.train.steps,
                "step": progress.step,
                "tokens": progress.tokens,
                "epochs": self.epochs(progress.step),
                "seconds": round(progress.seconds, 3),
                "elapsed": round(self.earlier_seconds + self.clock.elapsed(), 3),
                "minutes": self.minutes,
                "precision": self.precision.name,
                "precision_reason": self.precision.reason,
                "fresh": list(self.fresh),
                "goal": self.task.goal,
                "unit": unit_of(self.task),
                "data": self.data,
                "best": progress.best,
                "forecast": progress.forecast,
                **environment(self.processes.device, self.processes.world),
            }
        )

    def finished_run(self) -> Run:
        """The finished run, with its best model."""
        directory = self.directory
        model = native.load_model(directory.path, self.processes.device, self.outline)
        check_model(self.recipe, model.config, directory.path)  # type: ignore[arg-type]
        del self.outline  # it is the model now
        return Run(
            directory.path, self.recipe, model, self.task, read_metrics(directory.metrics), directory.read_status()
        )
