"""The trainer: from a recipe and a task to a run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headway.config import from_dict, to_dict
from headway.errors import ConfigError, UserError
from headway.formats.durable import remove
from headway.formats.published import nearest_form
from headway.learn.budget import Clock, Speed, TimeBudget, measure, plan, planned
from headway.learn.checkpoint import step_of
from headway.learn.distributed import Processes
from headway.learn.fingerprint import agreed, differences, fingerprint
from headway.learn.journal import Display, Journal, epochs_text, open_display
from headway.learn.loop import Foretell, Interrupts, Loop, UserInterrupt
from headway.learn.memory import check_memory, kept_heap
from headway.learn.objective import Objective
from headway.learn.precision import Precision, choose
from headway.learn.recipe import Recipe, difference, read_recipe
from headway.learn.records import Progress
from headway.learn.run import Run, RunDirectory, check_loggers, open_loggers
from headway.learn.scale import digits
from headway.learn.start import Agreement, agree, keep_symbols, open_start, unjudged
from headway.learn.task import Task, unit_of
from headway.learn.training import RunState
from headway.nn.kernels import is_deterministic
from headway.nn.models import EncoderDecoderConfig, ModelConfig, TokenEmbedConfig, TransformerConfig, TwoTowerConfig

_FINISH = 10  # --finish decays the learning rate over 1 / 10 of the steps so far


class Trainer:
    """Trains the model of a recipe on a task.

    `minutes` determines `train.steps` from the measured speed, so that the process takes about that long in total,
    including startup, reading data and the final evaluation. `clock` measures the elapsed time; `evaluate_final` is
    whether the time includes an evaluation of the finished model and `samples` samples. `predict_loss` forecasts the
    final loss early. The first plan has at most `max_steps` steps and grows while evaluations improve; after `patience`
    evaluations without improvement the run ends soon. The recipe in the run's directory has the final steps and
    precision: training it again on the same machine and threads gives the same bits.
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
        judged: bool = False,
        samples: int = 0,
        foretell: Foretell | None = None,
        most: int | None = None,
        patience: int | None = None,
    ) -> None:
        if minutes is not None and minutes <= 0:
            raise UserError(f"minutes is {minutes:g}; use a number above 0")
        if threads is not None:
            torch.set_num_threads(threads)
        processes = Processes(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
        model = task.adapt(recipe.model)
        recipe = replace(recipe, model=model if recipe.start is None else keep_symbols(model, recipe.model))
        recipe = task.settled(recipe)
        place = run_directory if isinstance(run_directory, RunDirectory) else RunDirectory(run_directory)
        self.run = RunState(recipe, task, place, processes, clock or Clock(), minutes)
        self.shown = progress and processes.first
        self.judged, self.samples = judged, samples
        self.foretell = foretell
        self.most, self.patience = most, patience
        self.extended = False  # whether it continues beyond its original plan
        self._agreement: Agreement | None = None
        self._damaged: list[str] = []  # messages about damaged checkpoints

    def fit(self, resume: bool = False, finish: bool = False) -> Run:
        """Train to the end and return the run with its best model.

        With `resume`, an existing run continues from its last checkpoint, bit for bit as if it had never stopped. A run
        that is finished, or was started with other minutes, continues for `minutes` more, from where its learning rate
        began to decay. With `finish`, a stopped run ends soon: its learning rate decays to 0 within a tenth of the
        steps so far. Raises UserInterrupt after Ctrl-C, once a checkpoint is written.
        """
        try:
            with kept_heap(), self.holding():
                self._fit(resume, finish)
        finally:  # also after an interrupt: a process that exits inside its group may be aborted
            self.run.processes.leave()
        return self.run.opened()

    def holding(self) -> AbstractContextManager[None]:
        """Lock the run against other processes, for longer than `fit` does; the main process locks it for all."""
        return self.run.directory.holding() if self.run.processes.first else nullcontext()

    def left(self) -> float | None:
        """The seconds left for the evaluation on the final split; None for a run without minutes."""
        budget = self.run.budget
        return None if budget is None else budget.for_final()

    def _fit(self, resume: bool, finish: bool) -> None:
        run, processes = self.run, self.run.processes
        processes.share_of(run.recipe.train.accumulate)
        check_loggers()
        run.data = agreed(fingerprint(run.task), processes)
        found = processes.tell(run.directory.claim(resume) if processes.first else None)
        status = run.directory.read_status() if found else {}
        ended = status.get("status") == "finished"
        if not found:
            self._begin()
        else:
            if processes.first and (not ended or run.minutes is not None):
                self._damaged = run.checkpoints.set_aside_damaged() + run.trunk.set_aside_damaged()
            processes.tell(None)  # all processes read the checkpoints after the main process has checked them
            more = self._more(status)
            self._follow(status)
            if more is not None:
                self._extend(more, status)
            elif finish:
                self._shorten(ended)
        if not ended or run.budget is not None:
            self._train()
        processes.tell(None)  # all processes wait until the main process has written its files

    def _more(self, status: dict[str, Any]) -> float | None:
        """The requested minutes, if they extend the run beyond its original plan."""
        asked = self.run.minutes
        again = status.get("status") == "finished" and bool(status.get("scores"))
        return asked if asked is not None and (again or asked != status.get("minutes")) else None

    def _follow(self, status: dict[str, Any]) -> None:
        """Load the recipe of the existing run, which must agree with the requested one."""
        run = self.run
        recorded = read_recipe(run.directory.recipe)
        train, schedule = run.recipe.train, run.recipe.schedule
        deterministic = status.get("deterministic", False)
        if deterministic != is_deterministic():
            way = "with" if deterministic else "without"
            raise UserError(f"{run.directory.path} was started {way} --deterministic; resume it {way} it")
        if status.get("minutes") is not None:
            train = replace(train, steps=recorded.train.steps, evaluate_every=recorded.train.evaluate_every)
            schedule = recorded.schedule
        if train.precision == "auto":
            train = replace(train, precision=recorded.train.precision)
        goal = status.get("goal", run.task.goal)
        if goal != run.task.goal:
            raise UserError(
                f"{run.directory.path} was evaluated by {goal}, but is now evaluated by {run.task.goal}; resume it "
                "with its original data and environment (HEADWAY_ENV for your own environment)"
            )
        other = differences(status.get("data"), run.data)
        known = bool(run.data) and isinstance(status.get("data"), dict)
        data = recorded.data if known else run.recipe.data  # named datasets are compared by content, not by path
        changed = difference(recorded, replace(run.recipe, train=train, schedule=schedule, data=data))
        if other is not None and (changed is None or changed.startswith("model")):  # the data may change the model
            raise UserError(
                f"{run.directory.path} was trained on other data: the new data have {other}; pass the run's data, or "
                f"train a new run from it: --from {run.directory.path} --run NEW"
            )
        if changed:
            raise UserError(
                f"{run.directory.path} was started with another recipe: {changed}; "
                "resume it with its own settings, or choose another directory with --run"
            )
        run.recipe = replace(recorded, data=run.recipe.data)
        if run.recipe != recorded:  # the same data under another path, which the run uses from now on
            run.write_recipe()
        run.fresh = tuple(status.get("fresh", ()))
        run.minutes = status.get("minutes")
        run.before = status.get("elapsed") or 0.0
        run.precision = Precision(recorded.train.precision, status.get("precision_reason", "as recorded"))
        check_memory(run.recipe, run.outline, run.fresh, run.processes.device)

    def _begin(self) -> None:
        """Choose open settings (precision, steps) and write the recipe and status of the new run."""
        run, device = self.run, self.run.processes.device
        start = None if run.recipe.start is None else open_start(run.recipe.start)
        if start is not None:
            self._agreement = agree(run.outline, start.model, run.recipe.start or "")
            run.fresh = self._agreement.fresh
        elif run.recipe.adapter is not None:
            raise ConfigError("an adapter needs a pretrained model; choose one with --from")
        check_memory(run.recipe, run.outline, run.fresh, device)
        run.precision = Precision(*run.processes.tell(list(choose(run.recipe.train.precision, run.outline, device))))
        recipe = replace(run.recipe, train=replace(run.recipe.train, precision=run.precision.name))
        if run.minutes is not None:
            speed = self._measured(recipe, 60 * run.minutes)
            left = self._left(60 * run.minutes) - self._fitting_seconds(speed)
            recipe = planned(recipe, speed, left, self.most, run.task.judges_start)
        run.recipe = from_dict(Recipe, run.processes.tell(to_dict(recipe)))
        if run.processes.first:
            remove(run.directory.metrics)
            remove(run.directory.base)
            if start is not None:  # the training data of a pretrained model are unknown
                start.usage.save(run.directory.path)
            elif (met := run.task.met()) is not None:
                met.save(run.directory.path)
            run.task.save(run.directory.path)
        run.write_recipe()
        run.write_status("running")

    def _measured(self, recipe: Recipe, seconds: float) -> Speed:
        """Measure the speed of a recipe on this machine, and create the time budget of the run."""
        run = self.run
        given = recipe, run.fresh, run.task, run.processes, run.precision.name
        speed = measure(*given, self._left(seconds), self.judged, self.samples)
        grows = recipe.start is None or not unjudged(run.task)
        run.budget = TimeBudget(run.clock, seconds, speed, self.most, self.patience, grows)
        return speed

    def _fitting_seconds(self, speed: Speed) -> float:
        """Estimated seconds to fit a new head, which reads samples like an evaluation, and to evaluate it."""
        recipe, task = self.run.recipe, self.run.task
        limit, judged = recipe.train.linear_probe, task.count("validation")
        fits = type(task.objective).fit_head is not Objective.fit_head
        if not fits or limit == 0 or not any("heads" in key.split(".") for key in self.run.fresh):
            return 0.0
        judged = min(judged, recipe.train.evaluate_limit or judged)
        read = sum(min(limit, task.count(split)) for split in ("train", "validation"))
        return speed.evaluation * (1 + read / judged)

    def _left(self, seconds: float) -> float:
        """The remaining part of the total `seconds`."""
        return seconds - self.run.clock.worked()

    def _extend(self, minutes: float, status: dict[str, Any]) -> None:
        """Extend the run by `minutes`, from the last checkpoint before its learning rate began to decay."""
        run, recipe, place = self.run, self.run.recipe, self.run.directory.path
        steps = recipe.train.steps
        flat = recipe.schedule.flat(steps)
        saved = [] if flat is None else [*run.trunk.all(), *run.checkpoints.all()]
        begun = max((path for path in saved if step_of(path) <= (flat or 0)), key=step_of, default=None)
        if begun is None:
            raise UserError(
                f"{place} has no checkpoint from before its learning rate decayed, so it cannot be extended; start "
                "another run with more --minutes" + ("" if flat is not None else " and schedule=wsd")
            )
        done = step_of(begun)
        speed = self._measured(recipe, 60 * minutes)
        rest = plan(recipe.train, speed, self._left(60 * minutes))
        wanted = done + rest.steps
        if wanted <= max(steps, int(status.get("step") or 0)) and status.get("status") == "finished":
            needed = 1.1 * minutes * (steps - done) / rest.steps
            raise UserError(
                f"{place} has trained for {steps:,} steps, and its learning rate began to decay after {done:,}: "
                f"{minutes:g} more minutes reach only step {wanted:,}; use --minutes {digits(needed)} or more"
            )
        schedule = recipe.schedule.again(done, steps, wanted)
        if schedule is None:
            raise UserError(f"the schedule of {place} depends on its length; start another run with more --minutes")
        recipe = replace(recipe, schedule=schedule, train=replace(recipe.train, steps=wanted))
        run.recipe = from_dict(Recipe, run.processes.tell(to_dict(recipe)))
        self.extended = True
        run.minutes = minutes + (status.get("minutes") or round((status.get("elapsed") or 0.0) / 60, 4))
        run.progress = Progress(step=done, best=status.get("best"))
        if run.processes.first:
            run.checkpoints.go_back_to(begun, status.get("best"))
        run.write_recipe()
        run.write_status("running")
        run.processes.tell(None)

    def _shorten(self, ended: bool) -> None:
        """Decay the learning rate to 0 within a tenth of the steps so far."""
        run, recipe, place = self.run, self.run.recipe, self.run.directory.path
        done = max(map(step_of, run.checkpoints.all()), default=0)
        if ended or not done:
            state = "is already finished" if ended else "has no checkpoint yet"
            raise UserError(f"{place} {state}; remove --finish")
        wanted = min(recipe.train.steps, done + max(2, done // _FINISH))
        schedule = recipe.schedule.moved(done, recipe.train.steps, wanted)
        if schedule is None:
            raise UserError(
                f"the schedule of {place} depends on its length; remove --finish, or start another run with "
                "schedule=wsd"
            )
        run.recipe = replace(recipe, schedule=schedule, train=replace(recipe.train, steps=wanted))
        run.write_recipe()
        run.processes.tell(None)

    def _train(self) -> None:
        run = self.run
        run.start()
        display = self._open_display()
        loggers = [run.metrics, *open_loggers(run.directory.path, to_dict(run.recipe))] if run.metrics else []
        journal = Journal(run, loggers, display)
        self._announce(display)
        for problem in self._damaged:
            display.say(problem)
        try:
            with Interrupts() as interrupts:
                loop = Loop(run, journal, interrupts, self.foretell)
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
        return open_display(self.shown, run.recipe.train.steps, flop, name, unit_of(run.task))

    def _announce(self, display: Display) -> None:
        run, recipe, progress = self.run, self.run.recipe, self.run.progress
        name, reason = run.precision
        whole, trained = run.costs["parameters"], run.learner.trained
        epochs = run.epochs(recipe.train.steps)
        display.say(
            f"training for {recipe.train.steps:,} steps{'' if epochs is None else f' ({epochs_text(epochs)})'} in "
            f"{run.directory.path}; matrix products in {name} ({reason})"
        )
        if run.minutes is not None:
            display.say(f"this plan takes {run.minutes:g} minutes at the measured speed")
        for reason in recipe.reasons if not progress.step else ():
            display.say(reason)
        missing = None if progress.step or recipe.start is not None else _form_missing(recipe.model)
        if missing is not None:
            display.say(f"`headway export` cannot write this model in a published format: {missing}")
        if self._agreement is not None:
            display.say(f"initialised from {recipe.start}: {self._agreement}")
        if run.probed:
            display.say("the head was initialised by a linear fit on the model's features; training may improve it")
        if recipe.adapter is not None:
            display.say(f"{recipe.adapter.title}: {trained:,} trainable and {whole:,} frozen parameters")
        for part, start in recipe.task.starts().items():
            display.say(f"{part} initialised from {start}")
        if recipe.train.frozen:
            names, stay = ", ".join(recipe.train.frozen), whole - trained
            display.say(f"frozen: {names}; {trained:,} trainable and {stay:,} frozen parameters")
        if progress.step:
            display.say(f"resuming after step {progress.step:,}")


def _form_missing(model: ModelConfig) -> str | None:
    """Why a text model has no published format; None if it has one, and for other kinds of models."""
    texts = isinstance(model, TransformerConfig) and isinstance(model.embed, TokenEmbedConfig)
    return nearest_form(model) if texts else None
