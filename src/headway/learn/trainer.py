"""The trainer: from a recipe and a task to a run."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from headway.config import from_dict, to_dict
from headway.errors import ConfigError, UserError
from headway.formats import native
from headway.formats.published import nearest_family
from headway.formats.usage import read_usage
from headway.io.durable import remove
from headway.learn.adapters import merged
from headway.learn.anomalies import describe_samples
from headway.learn.checkpoint import Checkpoints, step_of
from headway.learn.display import open_display
from headway.learn.examples import OnPolicyExamples
from headway.learn.fine_tuning import TensorMatch, adapted_model, initial_model, initial_rows, match_tensors, open_start
from headway.learn.formatting import format_epochs, format_minutes
from headway.learn.interrupts import STEP_SECONDS, Interrupts, UserInterrupt
from headway.learn.learner import Learner
from headway.learn.memory import check_memory, retained_heap
from headway.learn.objective import Objective
from headway.learn.parallel.equality import check_equal_processes
from headway.learn.parallel.processes import Processes
from headway.learn.parallel.saving import gathered, is_sharded
from headway.learn.plan.budget import Clock, Speed, StepTimes, TimeBudget, measure_speed, plan_recipe
from headway.learn.plan.expected import ExpectedScore
from headway.learn.plan.plans import has_few_validation_samples
from headway.learn.plan.scale import EARLY_FRACTION, LATE_FRACTION, LossPredictor, slope_of
from headway.learn.precision import Precision, choose_precision
from headway.learn.recipe import Recipe, check_model, read_recipe, write_recipe
from headway.learn.resume import extended_recipe, fingerprint, resumed_recipe, shortened_recipe
from headway.learn.run import PredictedLoss, Progress, Run, RunDirectory, environment, read_metrics
from headway.learn.task import Task, unit_of
from headway.learn.training_log import MetricsFile, TrainingLog, check_loggers, open_loggers, truncate_metrics
from headway.nn.models import (
    EncoderDecoderConfig,
    TokenEmbedConfig,
    TransformerConfig,
    TwoTowerConfig,
    describe,
    outline,
)

# A plan is reported if it differs by 10 % from the first and was stable for 3 revisions.
_REPORTED_CHANGE, _STABLE_REVISIONS = 0.1, 3


class Trainer:
    """Trains a recipe's model on a task.

    `minutes` determines `train.steps` from the measured speed, so that the process takes about that long in total,
    including startup, reading data and the final evaluation. `clock` measures the elapsed time. With `evaluate_final`,
    the time includes evaluating the finished model and generating `samples` samples. `predict_loss` forecasts the final
    loss early, and `expected` is the expected score. The first plan has at most `max_steps` steps and grows while
    evaluations improve; after `patience` evaluations without improvement, the run winds down. The recipe in the run's
    directory has the final steps and precision: training it again on the same machine with the same number of threads
    gives the same bits.

    While it trains, `recipe` is the current recipe and `progress` the state of the run. Only the main process writes
    files.
    """

    learner: Learner  # the model, once it is built
    log: TrainingLog
    interrupts: Interrupts

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        run_directory: Path | RunDirectory,
        *,
        device: torch.device | str | None = None,
        threads: int | None = None,
        progress: bool = True,
        minutes: float | None = None,
        clock: Clock | None = None,
        evaluate_final: bool = False,
        samples: int = 0,
        predict_loss: LossPredictor | None = None,
        expected: ExpectedScore | None = None,
        max_steps: int | None = None,
        patience: int | None = None,
    ) -> None:
        if minutes is not None and minutes <= 0:
            raise UserError(f"minutes is {minutes:g}; use a number above 0")
        if threads is not None:
            torch.set_num_threads(threads)
        torch_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.processes = Processes(torch_device, recipe.parallel.timeout)
        self.recipe = replace(
            recipe,
            model=adapted_model(recipe, task),
            task=replace(recipe.task, **task.chosen_settings),
            reasons=(*recipe.reasons, *(reason for reason in task.reasons if reason not in recipe.reasons)),
        )
        self.task = task
        self.directory = run_directory if isinstance(run_directory, RunDirectory) else RunDirectory(run_directory)
        self.clock = clock or Clock()
        self.minutes = minutes  # the run's planned duration
        self.shows_progress = progress and self.processes.is_main
        self.evaluate_final, self.samples = evaluate_final, samples
        self.predict_loss = predict_loss
        self.expected = None if expected is None else expected.result()
        self.max_steps, self.patience = max_steps, patience
        self.outline = outline(self.recipe.model)  # the model without weights
        self.costs = describe(self.outline)
        self.precision = Precision(recipe.train.precision, "as set")
        self.fresh: tuple[str, ...] = ()  # newly initialised parameters
        self.trained: int | None = None  # the number of trainable parameters, known once there is a model
        self.earlier_seconds = 0.0  # the time that earlier processes spent training
        self.budget: TimeBudget | None = None
        self.progress = Progress()
        self.data: dict[str, int | str] = {}  # the data fingerprint, equal in all processes
        self.metrics: MetricsFile | None = None
        self.checkpoints, self.pre_decay = (
            Checkpoints(folder) for folder in (self.directory.checkpoints, self.directory.pre_decay)
        )
        self.extended = False  # whether the run continues beyond its original plan
        self.head_fitted = False  # whether this process fitted the head, which has not been trained since
        self._tensor_match: TensorMatch | None = None
        self._damage_messages: list[str] = []  # about damaged checkpoints and different processors
        self._saved_step = 0  # the step of the last checkpoint
        self._is_over = False  # whether an evaluation ended the run
        self._reported_plan: int | None = None  # the first plan; None once a changed plan was reported
        self._stable_revisions = 0  # revisions since the plan last changed much

    def fit(self, resume: bool = False, finish: bool = False) -> Run:
        """Train to the end and return the run with its best model.

        With `resume`, an existing run continues from its last checkpoint, bit for bit as if it had never stopped. A run
        that has finished, or was started with different minutes, continues for `minutes` more, from where its learning
        rate started to decay. With `finish`, a stopped run winds down: its learning rate decays to 0 within a tenth of
        the steps so far. Raises UserInterrupt after Ctrl-C, once a checkpoint is written.
        """
        lock = self.directory.locked() if self.processes.is_main else nullcontext()
        with self.processes as processes, retained_heap(), lock:
            if processes.world > 1 and isinstance(self.task.examples, OnPolicyExamples):
                raise UserError(
                    f"{self.recipe.name} trains on samples of its own model, which cannot be split over "
                    f"{processes.world} processes; train with one process"
                )
            processes.local_micro_batches(self.recipe.train.accumulate)
            check_loggers()
            exists = processes.broadcast_object(self.directory.claim(resume) if processes.is_main else None)
            is_exact = read_recipe(self.directory.recipe).parallel.exact if exists else self._starts_exact
            self.data, warning = check_equal_processes(processes, self.recipe, fingerprint(self.task), bool(is_exact))
            self._damage_messages += [] if warning is None else [warning]
            status = self.directory.read_status() if exists else {}
            is_finished = status.get("status") == "finished"
            if exists:
                self._continue(status, is_finished, finish)
            else:
                self._begin()
            if not is_finished or self.budget is not None:
                self._train()
            processes.broadcast_object(None)  # all processes wait until the main process has written its files
        directory = self.directory
        device = self.processes.device if self.processes.is_main else torch.device("cpu")  # the others do not use it
        model = native.load_model(directory.path, device, self.outline)
        check_model(self.recipe, model.config, directory.path)  # type: ignore[arg-type]
        del self.outline  # it is the model now
        metrics, status = read_metrics(directory.metrics), directory.read_status()
        return Run(directory.path, self.recipe, model, self.task, metrics, status)

    @property
    def _starts_exact(self) -> bool:
        """Whether a new run adds gradients exactly."""
        exact, processes = self.recipe.parallel.exact, self.processes
        return processes.world > 1 and processes.device.type == "cpu" if exact is None else exact

    def _begin(self) -> None:
        """Choose the remaining settings (precision, steps), and write the new run's recipe and status."""
        device = self.processes.device
        part, adapter = self.recipe.task.start_part, self.recipe.adapter
        pretrained = None if self.recipe.start is None else open_start(self.recipe.start, adapter, part)
        if pretrained is not None:
            self._tensor_match = match_tensors(self.outline, pretrained.model, self.recipe.start or "")
            self.fresh = self._tensor_match.fresh
        elif self.recipe.adapter is not None:
            raise ConfigError("an adapter needs a pretrained model; choose one with --from")
        self.recipe = replace(self.recipe, parallel=replace(self.recipe.parallel, exact=self._starts_exact))
        check_memory(self.recipe, self.outline, self.fresh, device, self._shards, self.processes.is_main)
        self.precision = Precision(
            *self.processes.broadcast_object(list(choose_precision(self.recipe.train.precision, self.outline, device)))
        )
        recipe = replace(self.recipe, train=replace(self.recipe.train, precision=self.precision.name))
        if self.minutes is not None:
            speed = self._measure_speed(recipe, 60 * self.minutes)
            seconds_left = 60 * self.minutes - self.clock.elapsed() - self._head_fit_seconds(speed)
            recipe = plan_recipe(recipe, speed, seconds_left, self.max_steps, self.task.evaluates_start)
        self.recipe = from_dict(Recipe, self.processes.broadcast_object(to_dict(recipe)))
        if self.processes.is_main:
            remove(self.directory.metrics)
            remove(self.directory.base)
            if pretrained is not None:  # the training data of a pretrained model are unknown
                pretrained.usage.save(self.directory.path)
            elif (statistics := self.task.examples.input_statistics()) is not None:
                statistics.save(self.directory.path)
            self.task.save(self.directory.path)
        self._write_recipe()
        self.write_status("running")

    def _continue(self, status: dict[str, Any], is_finished: bool, finish: bool) -> None:
        """Load the recipe of the existing run, and extend or shorten the run if that was requested."""
        requested, processes = self.minutes, self.processes
        if processes.is_main and (not is_finished or requested is not None):
            self._damage_messages += self.checkpoints.set_aside_damaged() + self.pre_decay.set_aside_damaged()
        processes.broadcast_object(None)  # all processes read the checkpoints after the main process has checked them
        recorded = read_recipe(self.directory.recipe)
        self.recipe = resumed_recipe(self.recipe, recorded, status, self.task.goal, self.data, self.directory.path)
        if self.recipe != recorded:  # the same data in another place, which the run uses from now on
            self._write_recipe()
        self.fresh = tuple(status.get("fresh", ()))
        self.minutes = status.get("minutes")
        self.expected = status.get("expected")
        self.earlier_seconds = status.get("elapsed") or 0.0
        self.precision = Precision(recorded.train.precision, status.get("precision_reason", "as recorded"))
        check_memory(self.recipe, self.outline, self.fresh, processes.device, self._shards, processes.is_main)
        is_evaluated = is_finished and bool(status.get("scores"))
        if requested is not None and (is_evaluated or requested != status.get("minutes")):
            # Go back to the last checkpoint before the learning rate started to decay.
            checkpoints = [*self.pre_decay.all(), *self.checkpoints.all()]
            start, recipe = extended_recipe(
                self.recipe, status, checkpoints, requested, self.directory.path, self.clock, self._measure_speed
            )
            self.recipe = from_dict(Recipe, processes.broadcast_object(to_dict(recipe)))
            self.extended = True
            self.expected = None  # it was for fewer minutes
            self.minutes = requested + (status.get("minutes") or round((status.get("elapsed") or 0.0) / 60, 4))
            self.progress = Progress(step=step_of(start), best=status.get("best"))
            if processes.is_main:
                self.checkpoints.go_back_to(start, status.get("best"))
            self._write_recipe()
            self.write_status("running")
            processes.broadcast_object(None)
        elif finish:
            step = max(map(step_of, self.checkpoints.all()), default=0)
            self.recipe = shortened_recipe(self.recipe, step, is_finished, self.directory.path)
            self._write_recipe()
            processes.broadcast_object(None)

    @property
    def _shards(self) -> int:
        return self.recipe.parallel.sizes(self.processes.world)[1]

    def _measure_speed(self, recipe: Recipe, seconds: float) -> Speed:
        """Measure a recipe's speed on this machine, and create the run's time budget of `seconds`."""
        arguments = recipe, self.fresh, self.task, self.processes, self.precision.name
        speed = measure_speed(*arguments, seconds - self.clock.elapsed(), self.evaluate_final, self.samples)
        may_grow = recipe.start is None or not has_few_validation_samples(self.task)
        is_final = bool(recipe.parallel.exact)  # measured times must not change the result
        limits = self.max_steps, self.patience, may_grow, is_final, recipe.train.evaluate_every > 0
        self.budget = TimeBudget(self.clock, seconds, speed, *limits)
        return speed

    def _head_fit_seconds(self, speed: Speed) -> float:
        """Estimated seconds to fit a new head, which takes as long as an evaluation, and to evaluate it."""
        train, task = self.recipe.train, self.task
        limit, evaluated = train.linear_probe, task.count("validation")
        fits_head = type(task.objective).fit_head is not Objective.fit_head
        if not fits_head or limit == 0 or not any("heads" in key.split(".") for key in self.fresh):
            return 0.0
        evaluated = min(evaluated, train.evaluate_limit or evaluated)
        samples_read = sum(min(limit, task.count(split)) for split in ("train", "validation"))
        return speed.evaluation * (1 + samples_read / evaluated)

    def _train(self) -> None:
        """Build the model, load the newest checkpoint if there is one, and train to the end of the recipe."""
        recipe, device, is_main = self.recipe, self.processes.device, self.processes.is_main
        if is_main:
            remove(self.directory.digests)
            self.checkpoints.clean()
        has_checkpoint = bool(self.checkpoints.all())
        limit = 0 if has_checkpoint or recipe.start is None or not self.fresh else recipe.train.linear_probe
        with initial_rows(recipe, self.processes, needs_all=limit > 0):
            model = initial_model(recipe, self.fresh, self.directory.base, has_checkpoint, is_main)
        examples, objective = self.task.examples, self.task.objective
        self.head_fitted = limit > 0 and objective.fit_head(model.to(device), examples, self.fresh, limit)
        self.learner = Learner(model, recipe, self.task, self.processes, self.precision.name)
        self.trained = self.learner.trained
        self.progress = self.checkpoints.load_newest(self.learner, self.task.goal) or Progress()
        self._saved_step = self.progress.step
        self.earlier_seconds = max(self.earlier_seconds, self.progress.seconds)  # a killed run has no later time
        if is_main:
            evaluated = self.progress.evaluated if has_checkpoint else -1
            truncate_metrics(self.directory.metrics, self.progress.step, evaluated)
            self.metrics = MetricsFile(self.directory.metrics)
        flop = 3 * self.costs["flop_per_token"]  # forward plus backward, which costs twice as much
        if isinstance(recipe.model, (EncoderDecoderConfig, TwoTowerConfig)):
            flop /= 2  # `describe` counts a pair of tokens for these
        device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        display = open_display(self.shows_progress, recipe.train.steps, flop, device_name, unit_of(self.task))
        loggers = [self.metrics, *open_loggers(self.directory.path, to_dict(recipe))] if self.metrics else []
        describe_step = partial(describe_samples, self.task.examples, accumulate=recipe.train.accumulate)
        self.log = TrainingLog(recipe, self.progress, loggers, display, describe_step)
        for line in self._announcements():
            display.print_line(line)
        try:
            with Interrupts(self._broken_off, several=self.processes.world > 1) as self.interrupts:
                self._loop()
                if recipe.train.average:  # evaluate the mean of the last checkpoints' weights; save it if it is better
                    count = self.checkpoints.average_newest(self.learner, recipe.train.average)
                    self.learner.average = None
                    self._evaluate(f"mean of {count} checkpoints")
            if self.progress.best is None:
                raise UserError(
                    f"{self.task.goal} was not finite in any evaluation, so no model was saved; lower optim.lr, or "
                    "check the validation data"
                )
            self.write_status("finished")
        except UserInterrupt:
            self.write_status("interrupted")
            raise
        finally:
            display.close()
            for logger in loggers:
                logger.close()

    def _announcements(self) -> Iterator[str]:
        """What people should know when training starts."""
        recipe, progress = self.recipe, self.progress
        total, trained = self.costs["parameters"], self.learner.trained
        epochs = self._epochs(recipe.train.steps)
        steps = f"{recipe.train.steps:,} steps{'' if epochs is None else f' ({format_epochs(epochs)})'}"
        if self.minutes is not None:
            steps += f", as many as fit in {format_minutes(self.minutes)} at the measured speed"
        yield f"training for {steps}, in {self.directory.path}"
        yield f"computing in {self.precision.name} ({self.precision.reason})"
        if not progress.step:
            yield from recipe.reasons
            is_text_model = isinstance(recipe.model, TransformerConfig) and isinstance(
                recipe.model.embed, TokenEmbedConfig
            )
            obstacle = nearest_family(recipe.model) if is_text_model and recipe.start is None else None
            if obstacle is not None:
                yield f"`headway export` cannot write this model in a published format: {obstacle}"
        if self._tensor_match is not None:
            yield f"initialised from {recipe.start}: {self._tensor_match}"
        if self.head_fitted:
            yield "initialised the head by a linear fit on the model's features; training may improve it"
        if recipe.adapter is not None:
            yield f"{recipe.adapter.title}: {trained:,} trainable and {total:,} frozen parameters"
        for part, start in recipe.task.part_starts().items():
            yield f"{part} initialised from {start}"
        if recipe.train.frozen:
            names, frozen_count = ", ".join(recipe.train.frozen), total - trained
            yield f"frozen: {names}; {trained:,} trainable and {frozen_count:,} frozen parameters"
        if progress.step:
            yield f"resuming after step {progress.step:,}"
        yield from self._damage_messages

    def _loop(self) -> None:
        """Train to the last step, or until `train.patience` evaluations in a row bring no improvement. The budget may
        change the number of steps during training.
        """
        progress, accumulate = self.progress, self.recipe.train.accumulate
        self._reported_plan, times = self.recipe.train.steps, StepTimes(self.processes.device)
        share = self.processes.local_micro_batches(accumulate)
        stream = self.task.batches("train", self.processes.shard(accumulate), progress.step * accumulate)
        is_overdue = self._evaluation_due() and progress.evaluated < progress.step  # stopped just before it
        is_new_start = progress.step == 0 and progress.best is None and self.recipe.start is not None
        if self.head_fitted or is_overdue or (is_new_start and self.task.evaluates_start):
            self._evaluate()
        if self.budget is not None:
            self.budget.start_measuring(progress.step, progress.seconds)
        while progress.step < self.recipe.train.steps and not self._exhausted():
            if 0 < progress.step == self.recipe.schedule.decay_start(self.recipe.train.steps):
                self.log.flush()
                self.learner.gather()
                with self.log.paused():  # where an extended run continues
                    self.pre_decay.save(self.learner, progress)
            times.begin()
            with self.interrupts.step(), self.processes.timer.step(), self.learner.products():
                batches = [next(stream) for _ in range(share)]
                update = self.learner.update(progress.step, batches, lambda: self.interrupts.requested)
            progress.step += 1
            totals = (sum(batch.tokens for batch in batches), sum(batch.computed for batch in batches))
            self.log.add(update, *(round(accumulate / share * total) for total in totals))
            train = self.recipe.train
            periods = (self.log.interval, train.evaluation_interval, train.checkpoint_interval)
            if progress.step == train.steps or any(progress.step % period == 0 for period in periods):
                self.log.flush()
                self.learner.gather()
                if slow := self.processes.slow_process():
                    self.log.display.print_line(slow)
            self.log.show()
            if self.budget is not None:
                for seconds in times.finished():
                    self.budget.record_step(seconds)
            if self.budget is not None and self.budget.is_revision_due(progress.step, self.recipe.train.steps):
                self._revise_plan(self.budget)
            if self.processes.should_stop(progress.step, self.interrupts.requested, update.stop, update.stop_later):
                self._stop()
            if self._evaluation_due():
                self._evaluate()
            train = self.recipe.train
            if progress.step % train.checkpoint_interval == 0 or progress.step == train.steps or self._exhausted():
                self._checkpoint()

    def _evaluation_due(self) -> bool:
        step, train = self.progress.step, self.recipe.train
        return step > 0 and (step % train.evaluation_interval == 0 or step == train.steps)

    def _exhausted(self) -> bool:
        patience = self.recipe.train.patience
        return self._is_over or (patience is not None and self.progress.stale >= patience)

    def _revise_plan(self, budget: TimeBudget) -> None:
        """Revise the plan using the speed since the last revision."""
        previous_steps, first_plan = self.recipe.train.steps, self._reported_plan
        steps = self._apply_revision(budget)
        is_stable = abs(steps - previous_steps) <= _REPORTED_CHANGE * previous_steps
        self._stable_revisions = self._stable_revisions + 1 if is_stable else 0
        if first_plan is None or self._stable_revisions < _STABLE_REVISIONS:
            return
        if abs(steps - first_plan) > _REPORTED_CHANGE * first_plan:
            self._reported_plan = None  # reported once, when it is stable
            self.log.display.print_line(
                f"at the current speed, the run takes {steps:,} steps instead of the planned {first_plan:,}"
            )

    def _apply_revision(self, budget: TimeBudget) -> int:
        """Let the budget revise the plan; return the run's number of steps."""
        revision = budget.revise(self.recipe, self.progress.step, self.log.seconds(), self.progress.evaluated > 0)
        recipe_data = self.processes.broadcast_object(None if revision is None else to_dict(revision))
        if recipe_data is not None:
            self.recipe = self.learner.recipe = from_dict(Recipe, recipe_data)
            self._write_recipe()
            self.write_status("running")
            self.log.set_recipe(self.recipe)
        return self.recipe.train.steps

    def _evaluate(self, weights: str | None = None) -> None:
        """Evaluate the model, save it if it is the best so far, and decide whether the run ends."""
        progress, budget = self.progress, self.budget
        weights = weights or ("trained" if self.learner.average is None else "moving average")
        with self.log.paused():
            start = time.perf_counter()
            metrics = self._measure()
            if metrics is not None:
                failure_reason, is_best = self.task.objective.failure_reason(metrics, progress.best), False
                if failure_reason is None or progress.best is None:
                    is_best = progress.record(metrics, self.task.goal, self.task.goal_better)
                else:  # the model is not saved
                    progress.stale, progress.evaluated = progress.stale + 1, progress.step
                seconds = time.perf_counter() - start
                self.log.evaluation(metrics, seconds, weights, is_best)
                if self.processes.is_main and isinstance(self.task.examples, OnPolicyExamples):
                    self.task.save(self.directory.path)  # what it has learned besides its weights
                self._forecast_loss(metrics)
                if budget is not None:
                    budget.record_evaluation(seconds)
                if is_best:
                    self._save_model()
                step, best, print_line = progress.step, progress.best or {}, self.log.display.print_line
                stop_reason = self.task.objective.stop_reason(metrics) if step else None
                if failure_reason is not None and best.get("step") == step:  # there is no better model
                    when = "" if step else "before the first step "
                    print_line(f"warning: {when}{failure_reason}; start from a model that gives answers")
                elif failure_reason is not None:
                    print_line(f"warning: {failure_reason}; stopping with the model from step {best['step']:,}")
                    self._is_over = True
                elif stop_reason is not None:
                    print_line(f"stopping training: {stop_reason}")
                    self._is_over = True
        if metrics is None:
            self._stop()
        if budget is None or self._is_over or not 0 < progress.step < self.recipe.train.steps:
            return
        previous_steps = self.recipe.train.steps
        if not self.processes.broadcast_object(budget.update_max_steps(self.recipe, progress.step, progress.stale)):
            return
        steps = self._apply_revision(budget)
        if steps < previous_steps and progress.stale:
            self.log.display.print_line(
                f"no improvement in {progress.stale} evaluations; decaying the learning rate to 0 by step {steps:,}"
            )

    def _save_model(self) -> None:
        """Write the model as it is evaluated, and an adapter separately as well."""
        recipe, directory, processes = self.recipe, self.directory, self.processes
        if recipe.adapter is None and is_sharded(self.learner.saved_tensors()):
            with self.learner.averaged(), gathered(self.learner.saved_tensors(), processes) as whole:
                if processes.is_main:
                    native.save_tensors(whole, recipe.model, directory.path)
            return
        with self.learner.evaluating() as model:
            if processes.is_main:
                native.save_tensors(merged(model), recipe.model, directory.path)
            if processes.is_main and recipe.adapter is not None:
                family = read_usage(directory.path).family
                recipe.adapter.save(model, recipe.start or "", directory.adapter, family)

    def _measure(self) -> dict[str, float] | None:
        """The metrics; None if a signal interrupts the evaluation. Swapping weights is not interrupted."""
        limit, interrupts = self.recipe.train.evaluate_limit, self.interrupts
        return self.learner.evaluate("validation", limit, interrupts.breakable, lambda: interrupts.requested)

    def _forecast_loss(self, metrics: dict[str, Any]) -> None:
        """Predict the final loss after an early evaluation."""
        progress, steps, loss_now = self.progress, self.recipe.train.steps, metrics.get("loss", math.nan)
        is_early = EARLY_FRACTION * steps <= progress.step <= LATE_FRACTION * steps
        if self.predict_loss is None or progress.forecast is not None or not is_early or not 0 < loss_now < math.inf:
            return
        lines = read_metrics(self.directory.metrics) if self.processes.is_main else []
        training = [(line["step"], line["loss"]) for line in lines if "split" not in line and line.get("loss")]
        slope = slope_of(training, progress.step)
        if slope is None:
            return
        low, loss, high = self.predict_loss(loss_now, slope, progress.step / steps)
        progress.forecast = PredictedLoss(step=progress.step, loss=loss, loss_interval=[low, high])
        self.log.display.print_line(f"predicted final validation loss: {loss:.3g} ({low:.3g} to {high:.3g})")

    def _checkpoint(self) -> None:
        """Save everything needed to resume from here."""
        self.directory.check_lock()
        with self.log.paused():
            if self.metrics is not None:
                self.metrics.sync()
            train = self.recipe.train
            keep = max(train.keep_checkpoints, train.average)
            self.checkpoints.save(self.learner, self.progress, keep, train.checkpoint_interval)
            self._saved_step = self.progress.step

    def _stop(self) -> NoReturn:
        """Stop all processes after this step, with a checkpoint."""
        step, processes = self.progress.step, self.processes
        self.interrupts.ignore_repeats()
        if self._saved_step != step:  # otherwise the model may contain averaged checkpoints
            self.log.flush()
            self.learner.gather()
            self._checkpoint()
        where = f"stopped at step {step:,} of {self.recipe.train.steps:,}"
        received = torch.zeros(signal.NSIG, device=processes.device)  # some processes have received no signal (0)
        received[self.interrupts.number] = 1
        number = max(processes.sum(received).nonzero().flatten().tolist()) or signal.SIGINT
        raise UserInterrupt(where, f"resume {self.directory.path} with --resume", number, is_agreed=True)

    def _broken_off(self, number: int) -> UserInterrupt:
        """The interrupt of a step that takes too long to wait for its end."""
        where = f"stopped during step {self.progress.step + 1:,}, which takes more than {STEP_SECONDS:g} s and is lost"
        remedy = f"resume {self.directory.path} after step {self._saved_step:,} with --resume"
        return UserInterrupt(where, remedy, number)

    def _epochs(self, steps: int) -> float | None:
        """The number of epochs in `steps` steps; None if the model generates its own samples."""
        batches = self._batches_per_epoch
        return None if batches is None else steps * self.recipe.train.accumulate / batches

    @cached_property
    def _batches_per_epoch(self) -> float | None:
        return self.task.examples.batches_per_epoch()

    def _write_recipe(self) -> None:
        if self.processes.is_main:
            write_recipe(self.recipe, self.directory.recipe)

    def write_status(self, status: str) -> None:
        """Write run.json."""
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
                "epochs": self._epochs(progress.step),
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
                "expected": self.expected,
                **environment(self.processes.device, self.processes.world),
            }
        )
