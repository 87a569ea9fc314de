"""The trainer: from a recipe and a task to a run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headway.config import from_dict, to_dict
from headway.errors import ConfigError, UserError
from headway.formats.published import nearest_family
from headway.io.durable import remove
from headway.learn.budget import Clock, Speed, TimeBudget, measure_speed, plan_recipe, plan_steps
from headway.learn.checkpoint import step_of
from headway.learn.distributed import Processes
from headway.learn.fine_tuning import (
    TensorMatch,
    has_few_validation_samples,
    keep_vocabulary,
    match_tensors,
    open_start,
)
from headway.learn.fingerprint import check_equal_data, differences, fingerprint
from headway.learn.loop import Interrupts, Loop, LossPredictor, UserInterrupt
from headway.learn.memory import check_memory, retained_heap
from headway.learn.objective import Objective
from headway.learn.precision import Precision, choose_precision
from headway.learn.recipe import Recipe, difference, read_recipe
from headway.learn.run import Run, RunDirectory, check_loggers, open_loggers
from headway.learn.run_schemas import Progress
from headway.learn.run_state import RunState
from headway.learn.scaling import format_minutes, format_number
from headway.learn.task import Task, unit_of
from headway.learn.training_log import Display, TrainingLog, format_epochs, open_display
from headway.nn.kernels import is_deterministic
from headway.nn.models import EncoderDecoderConfig, ModelConfig, TokenEmbedConfig, TransformerConfig, TwoTowerConfig

_FINISH_FRACTION = 10  # --finish decays the learning rate over 1 / 10 of the steps so far


class Trainer:
    """Trains a recipe's model on a task.

    `minutes` determines `train.steps` from the measured speed, so that the process takes about that long in total,
    including startup, reading data and the final evaluation. `clock` measures the elapsed time. With `evaluate_final`,
    the time includes evaluating the finished model and generating `samples` samples. `predict_loss` forecasts the final
    loss early. The first plan has at most `max_steps` steps and grows while evaluations improve; after `patience`
    evaluations without improvement, the run winds down. The recipe in the run's directory has the final steps and
    precision: training it again on the same machine with the same number of threads gives the same bits.
    """

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
        max_steps: int | None = None,
        patience: int | None = None,
    ) -> None:
        if minutes is not None and minutes <= 0:
            raise UserError(f"minutes is {minutes:g}; use a number above 0")
        if threads is not None:
            torch.set_num_threads(threads)
        processes = Processes(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
        model = task.adapt(recipe.model)
        recipe = replace(recipe, model=model if recipe.start is None else keep_vocabulary(model, recipe.model))
        recipe = task.resolve_settings(recipe)
        directory = run_directory if isinstance(run_directory, RunDirectory) else RunDirectory(run_directory)
        self.run = RunState(recipe, task, directory, processes, clock or Clock(), minutes)
        self.shows_progress = progress and processes.is_main
        self.evaluate_final, self.samples = evaluate_final, samples
        self.predict_loss = predict_loss
        self.max_steps, self.patience = max_steps, patience
        self.extended = False  # whether the run continues beyond its original plan
        self._tensor_match: TensorMatch | None = None
        self._damage_messages: list[str] = []  # messages about damaged checkpoints

    def fit(self, resume: bool = False, finish: bool = False) -> Run:
        """Train to the end and return the run with its best model.

        With `resume`, an existing run continues from its last checkpoint, bit for bit as if it had never stopped. A run
        that has finished, or was started with different minutes, continues for `minutes` more, from where its learning
        rate started to decay. With `finish`, a stopped run winds down: its learning rate decays to 0 within a tenth of
        the steps so far. Raises UserInterrupt after Ctrl-C, once a checkpoint is written.
        """
        try:
            with retained_heap(), self.locked():
                self._fit(resume, finish)
        finally:  # also after an interrupt: a process that exits while in the group may be aborted
            self.run.processes.close()
        return self.run.finished_run()

    def locked(self) -> AbstractContextManager[None]:
        """Lock the run against other processes for longer than `fit` does. The main process locks it for all."""
        return self.run.directory.locked() if self.run.processes.is_main else nullcontext()

    def seconds_left(self) -> float | None:
        """The seconds left for evaluating the final split; None for a run without minutes."""
        budget = self.run.budget
        return None if budget is None else budget.final_evaluation_seconds()

    def _fit(self, resume: bool, finish: bool) -> None:
        run, processes = self.run, self.run.processes
        processes.local_micro_batches(run.recipe.train.accumulate)
        check_loggers()
        run.data = check_equal_data(fingerprint(run.task), processes)
        exists = processes.broadcast_object(run.directory.claim(resume) if processes.is_main else None)
        status = run.directory.read_status() if exists else {}
        is_finished = status.get("status") == "finished"
        if not exists:
            self._begin()
        else:
            if processes.is_main and (not is_finished or run.minutes is not None):
                self._damage_messages = run.checkpoints.set_aside_damaged() + run.pre_decay.set_aside_damaged()
            processes.broadcast_object(
                None
            )  # all processes read the checkpoints after the main process has checked them
            extra_minutes = self._extra_minutes(status)
            self._load_existing(status)
            if extra_minutes is not None:
                self._extend(extra_minutes, status)
            elif finish:
                self._finish_early(is_finished)
        if not is_finished or run.budget is not None:
            self._train()
        processes.broadcast_object(None)  # all processes wait until the main process has written its files

    def _extra_minutes(self, status: dict[str, Any]) -> float | None:
        """The requested minutes, if they extend the run beyond its original plan."""
        requested = self.run.minutes
        is_finished = status.get("status") == "finished" and bool(status.get("scores"))
        return requested if requested is not None and (is_finished or requested != status.get("minutes")) else None

    def _load_existing(self, status: dict[str, Any]) -> None:
        """Load the recipe of the existing run, which must agree with the requested one."""
        run = self.run
        recorded = read_recipe(run.directory.recipe)
        train, schedule = run.recipe.train, run.recipe.schedule
        deterministic = status.get("deterministic", False)
        if deterministic != is_deterministic():
            preposition = "with" if deterministic else "without"
            raise UserError(
                f"{run.directory.path} was started {preposition} --deterministic; resume it {preposition} it"
            )
        if status.get("minutes") is not None:
            train = replace(train, steps=recorded.train.steps, evaluate_every=recorded.train.evaluate_every)
            schedule = recorded.schedule
        if train.precision == "auto":
            train = replace(train, precision=recorded.train.precision)
        goal = status.get("goal", run.task.goal)
        if goal != run.task.goal:
            raise UserError(
                f"{run.directory.path} selected its best model by {goal}, but would now use {run.task.goal}; resume it "
                "with its original data and environment (HEADWAY_ENV for your own environment)"
            )
        data_difference = differences(status.get("data"), run.data)
        has_fingerprint = bool(run.data) and isinstance(status.get("data"), dict)
        data = (
            recorded.data if has_fingerprint else run.recipe.data
        )  # named datasets are compared by content, not by path
        changed = difference(recorded, replace(run.recipe, train=train, schedule=schedule, data=data))
        if data_difference is not None and (
            changed is None or changed.startswith("model")
        ):  # the data may change the model
            raise UserError(
                f"{run.directory.path} was trained on other data: the new data have {data_difference}; pass the run's "
                f"data, or train a new run from it: --from {run.directory.path} --run NEW"
            )
        if changed:
            raise UserError(
                f"{run.directory.path} was started with another recipe: {changed}; "
                "resume it with its own settings, or choose another directory with --run"
            )
        run.recipe = replace(recorded, data=run.recipe.data)
        if run.recipe != recorded:  # the same data in another place, which the run uses from now on
            run.write_recipe()
        run.fresh = tuple(status.get("fresh", ()))
        run.minutes = status.get("minutes")
        run.earlier_seconds = status.get("elapsed") or 0.0
        run.precision = Precision(recorded.train.precision, status.get("precision_reason", "as recorded"))
        check_memory(run.recipe, run.outline, run.fresh, run.processes.device)

    def _begin(self) -> None:
        """Choose the remaining settings (precision, steps), and write the new run's recipe and status."""
        run, device = self.run, self.run.processes.device
        pretrained = None if run.recipe.start is None else open_start(run.recipe.start)
        if pretrained is not None:
            self._tensor_match = match_tensors(run.outline, pretrained.model, run.recipe.start or "")
            run.fresh = self._tensor_match.fresh
        elif run.recipe.adapter is not None:
            raise ConfigError("an adapter needs a pretrained model; choose one with --from")
        check_memory(run.recipe, run.outline, run.fresh, device)
        run.precision = Precision(
            *run.processes.broadcast_object(list(choose_precision(run.recipe.train.precision, run.outline, device)))
        )
        recipe = replace(run.recipe, train=replace(run.recipe.train, precision=run.precision.name))
        if run.minutes is not None:
            speed = self._measure_speed(recipe, 60 * run.minutes)
            seconds_left = self._remaining(60 * run.minutes) - self._head_fit_seconds(speed)
            recipe = plan_recipe(recipe, speed, seconds_left, self.max_steps, run.task.evaluates_start)
        run.recipe = from_dict(Recipe, run.processes.broadcast_object(to_dict(recipe)))
        if run.processes.is_main:
            remove(run.directory.metrics)
            remove(run.directory.base)
            if pretrained is not None:  # the training data of a pretrained model are unknown
                pretrained.usage.save(run.directory.path)
            elif (statistics := run.task.input_statistics()) is not None:
                statistics.save(run.directory.path)
            run.task.save(run.directory.path)
        run.write_recipe()
        run.write_status("running")

    def _measure_speed(self, recipe: Recipe, seconds: float) -> Speed:
        """Measure a recipe's speed on this machine, and create the run's time budget."""
        run = self.run
        arguments = recipe, run.fresh, run.task, run.processes, run.precision.name
        speed = measure_speed(*arguments, self._remaining(seconds), self.evaluate_final, self.samples)
        may_grow = recipe.start is None or not has_few_validation_samples(run.task)
        run.budget = TimeBudget(run.clock, seconds, speed, self.max_steps, self.patience, may_grow)
        return speed

    def _head_fit_seconds(self, speed: Speed) -> float:
        """Estimated seconds to fit a new head, which takes as long as an evaluation, and to evaluate it."""
        recipe, task = self.run.recipe, self.run.task
        limit, evaluated = recipe.train.linear_probe, task.count("validation")
        fits_head = type(task.objective).fit_head is not Objective.fit_head
        if not fits_head or limit == 0 or not any("heads" in key.split(".") for key in self.run.fresh):
            return 0.0
        evaluated = min(evaluated, recipe.train.evaluate_limit or evaluated)
        samples_read = sum(min(limit, task.count(split)) for split in ("train", "validation"))
        return speed.evaluation * (1 + samples_read / evaluated)

    def _remaining(self, seconds: float) -> float:
        """The remaining part of the total `seconds`."""
        return seconds - self.run.clock.elapsed()

    def _extend(self, minutes: float, status: dict[str, Any]) -> None:
        """Extend the run by `minutes`, from the last checkpoint before its learning rate started to decay."""
        run, recipe, path = self.run, self.run.recipe, self.run.directory.path
        steps = recipe.train.steps
        decay_start = recipe.schedule.decay_start(steps)
        candidates = [] if decay_start is None else [*run.pre_decay.all(), *run.checkpoints.all()]
        start_checkpoint = max(
            (path for path in candidates if step_of(path) <= (decay_start or 0)), key=step_of, default=None
        )
        if start_checkpoint is None:
            raise UserError(
                f"{path} has no checkpoint from before its learning rate decayed, so it cannot be extended; start "
                "a new run with more --minutes" + ("" if decay_start is not None else " and schedule=wsd")
            )
        start_step = step_of(start_checkpoint)
        speed = self._measure_speed(recipe, 60 * minutes)
        extra_train = plan_steps(recipe.train, speed, self._remaining(60 * minutes))
        new_steps = start_step + extra_train.steps
        if new_steps <= max(steps, int(status.get("step") or 0)) and status.get("status") == "finished":
            minimum_minutes = 1.1 * minutes * (steps - start_step) / extra_train.steps
            raise UserError(
                f"{path} has trained for {steps:,} steps, and its learning rate started to decay after {start_step:,}: "
                f"{minutes:g} more minutes reach only step {new_steps:,}; use --minutes "
                f"{format_number(minimum_minutes)} or more"
            )
        schedule = recipe.schedule.extended(start_step, steps, new_steps)
        if schedule is None:
            raise UserError(
                f"the learning rate schedule in {path} depends on its length; start a new run with more --minutes"
            )
        recipe = replace(recipe, schedule=schedule, train=replace(recipe.train, steps=new_steps))
        run.recipe = from_dict(Recipe, run.processes.broadcast_object(to_dict(recipe)))
        self.extended = True
        run.minutes = minutes + (status.get("minutes") or round((status.get("elapsed") or 0.0) / 60, 4))
        run.progress = Progress(step=start_step, best=status.get("best"))
        if run.processes.is_main:
            run.checkpoints.go_back_to(start_checkpoint, status.get("best"))
        run.write_recipe()
        run.write_status("running")
        run.processes.broadcast_object(None)

    def _finish_early(self, is_finished: bool) -> None:
        """Decay the learning rate to 0 within a tenth of the steps so far."""
        run, recipe, path = self.run, self.run.recipe, self.run.directory.path
        current_step = max(map(step_of, run.checkpoints.all()), default=0)
        if is_finished or not current_step:
            state = "is already finished" if is_finished else "has no checkpoint yet"
            raise UserError(f"{path} {state}; remove --finish")
        new_steps = min(recipe.train.steps, current_step + max(2, current_step // _FINISH_FRACTION))
        schedule = recipe.schedule.rescheduled(current_step, recipe.train.steps, new_steps)
        if schedule is None:
            raise UserError(
                f"the schedule in {path} depends on its length; remove --finish, or start a new run with schedule=wsd"
            )
        run.recipe = replace(recipe, schedule=schedule, train=replace(recipe.train, steps=new_steps))
        run.write_recipe()
        run.processes.broadcast_object(None)

    def _train(self) -> None:
        run = self.run
        run.start()
        display = self._open_display()
        loggers = [run.metrics, *open_loggers(run.directory.path, to_dict(run.recipe))] if run.metrics else []
        journal = TrainingLog(run, loggers, display)
        self._announce(display)
        for problem in self._damage_messages:
            display.print_line(problem)
        try:
            with Interrupts() as interrupts:
                loop = Loop(run, journal, interrupts, self.predict_loss)
                loop.train()
                if run.recipe.train.average:
                    loop.average_checkpoints()
            if run.progress.best is None:
                raise UserError(
                    f"{run.task.goal} was not finite in any evaluation, so no model was saved; lower optim.lr, or "
                    "check the validation data"
                )
            run.write_status("finished")
        except UserInterrupt:
            run.write_status("interrupted")
            raise
        finally:
            display.close()
            journal.close()

    def _open_display(self) -> Display:
        run, device = self.run, self.run.processes.device
        flop = 3 * run.costs["flop_per_token"]  # forward plus backward, which costs twice as much
        if isinstance(run.recipe.model, (EncoderDecoderConfig, TwoTowerConfig)):
            flop /= 2  # `describe` counts a pair of tokens for these
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        return open_display(self.shows_progress, run.recipe.train.steps, flop, name, unit_of(run.task))

    def _announce(self, display: Display) -> None:
        run, recipe, progress = self.run, self.run.recipe, self.run.progress
        name, reason = run.precision
        total, trained = run.costs["parameters"], run.learner.trained
        epochs = run.epochs(recipe.train.steps)
        steps = f"{recipe.train.steps:,} steps{'' if epochs is None else f' ({format_epochs(epochs)})'}"
        pace = "" if run.minutes is None else f", as many as fit in {format_minutes(run.minutes)} at the measured speed"
        display.print_line(f"training for {steps}{pace}, in {run.directory.path}")
        display.print_line(f"computing in {name} ({reason})")
        for reason in recipe.reasons if not progress.step else ():
            display.print_line(reason)
        obstacle = None if progress.step or recipe.start is not None else _export_obstacle(recipe.model)
        if obstacle is not None:
            display.print_line(f"`headway export` cannot write this model in a published format: {obstacle}")
        if self._tensor_match is not None:
            display.print_line(f"initialised from {recipe.start}: {self._tensor_match}")
        if run.head_fitted:
            display.print_line("initialised the head by a linear fit on the model's features; training may improve it")
        if recipe.adapter is not None:
            display.print_line(f"{recipe.adapter.title}: {trained:,} trainable and {total:,} frozen parameters")
        for part, start in recipe.task.part_starts().items():
            display.print_line(f"{part} initialised from {start}")
        if recipe.train.frozen:
            names, frozen_count = ", ".join(recipe.train.frozen), total - trained
            display.print_line(f"frozen: {names}; {trained:,} trainable and {frozen_count:,} frozen parameters")
        if progress.step:
            display.print_line(f"resuming after step {progress.step:,}")


def _export_obstacle(model: ModelConfig) -> str | None:
    """Why a text model has no published format; None if it has one, and for other kinds of models."""
    is_text_model = isinstance(model, TransformerConfig) and isinstance(model.embed, TokenEmbedConfig)
    return nearest_family(model) if is_text_model else None
