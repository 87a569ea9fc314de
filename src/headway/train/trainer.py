"""The trainer: from a recipe and a task to a run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headway.checkpoints import native
from headway.checkpoints.durable import remove
from headway.config import from_dict, to_dict
from headway.errors import ConfigError, UserError
from headway.kernels import is_deterministic
from headway.models import EncoderDecoderConfig, TwoTowerConfig, build, describe
from headway.train.budget import SecondLook, measure, plan
from headway.train.checkpoint import Checkpoints, Progress
from headway.train.display import Display, open_display
from headway.train.distributed import Processes
from headway.train.heap import kept_heap
from headway.train.interrupt import Interrupts, UserInterrupt
from headway.train.journal import Journal
from headway.train.learner import Learner
from headway.train.log import MetricsFile, check_loggers, open_loggers, read_metrics, truncate_metrics
from headway.train.loop import Loop
from headway.train.memory import check_memory
from headway.train.precision import Precision, choose
from headway.train.recipe import Recipe, difference, read_recipe, write_recipe
from headway.train.run import Run, RunDirectory, environment
from headway.train.start import Agreement, agree, initial_model, keep_symbols, open_start
from headway.train.task import Task


class Trainer:
    """Trains the model of a recipe on a task.

    `minutes` fixes `train.steps` by the measured speed, so that the whole takes about so long; `spent` are the seconds
    of it that have gone already (starting the process, reading the data). The recipe written to the run's directory has
    these steps and the precision chosen: trained again, on the same machine and threads, it gives the same bits.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        run_directory: Path,
        *,
        device: torch.device | str | None = None,
        threads: int | None = None,
        progress: bool = True,
        minutes: float | None = None,
        spent: float = 0.0,
    ) -> None:
        if minutes is not None and minutes <= 0:
            raise UserError(f"{minutes:g} minutes; give a number above 0")
        if threads is not None:
            torch.set_num_threads(threads)
        self.start = time.perf_counter() - spent
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.processes = Processes(torch.device(chosen))
        self.task = task
        model = task.adapt(recipe.model)
        self.recipe = replace(recipe, model=model if recipe.start is None else keep_symbols(model, recipe.model))
        self.directory = RunDirectory(run_directory)
        self.shown = progress and self.processes.first
        self.minutes = minutes
        self.fresh: tuple[str, ...] = ()  # parameters that the start does not have
        self._agreement: Agreement | None = None
        self._look: SecondLook | None = None
        self._before = 0.0  # seconds that earlier processes were at this run
        self.precision = Precision(recipe.train.precision, "as set")
        self._costs = describe(self.recipe.model)

    def fit(self, resume: bool = False) -> Run:
        """Train to the end and give the run with its best model.

        With `resume`, a run that is here goes on from its last checkpoint, to the bit as if it had never stopped.
        Raises UserInterrupt after Ctrl-C, when a checkpoint is written.
        """
        try:
            with kept_heap():
                self._fit(resume)
        finally:  # after an interrupt too: a process that ends within its group may be aborted
            self.processes.leave()
        return self._open()

    def _fit(self, resume: bool) -> None:
        self.processes.share_of(self.recipe.train.accumulate)
        check_loggers()
        found = self.processes.tell(self.directory.claim(resume) if self.processes.first else None)
        status = self.directory.read_status() if found else {}
        if found:
            self._follow(status)
        if status.get("status") != "finished":
            if not found:
                self._begin()
            else:
                check_memory(self.recipe, self.fresh, self.processes.device)
            self._train()
        self.processes.tell(None)  # all wait until the first has written

    def _follow(self, status: dict[str, Any]) -> None:
        """Take over the recipe of the run that is here, which must be the same one."""
        recorded = read_recipe(self.directory.recipe)
        train = self.recipe.train
        self._check_asked(status)
        if status.get("minutes") is not None:
            train = replace(train, steps=recorded.train.steps, evaluate_every=recorded.train.evaluate_every)
        if train.precision == "auto":
            train = replace(train, precision=recorded.train.precision)
        goal = status.get("goal", self.task.goal)
        if goal != self.task.goal:
            raise UserError(
                f"{self.directory.path} was judged by {goal}, and is now by {self.task.goal}; give it the data and the "
                "environment that it was started with (HEADWAY_ENV, where that is one of your own)"
            )
        changed = difference(recorded, replace(self.recipe, train=train))
        if changed:
            raise UserError(
                f"{self.directory.path} was started with another recipe: {changed}; "
                "resume it with its own settings, or choose another directory with --run"
            )
        self.recipe = recorded
        self.fresh = tuple(status.get("fresh", ()))
        self.minutes = status.get("minutes")
        self._before = status.get("elapsed") or 0.0
        self.precision = Precision(recorded.train.precision, status.get("precision_reason", "as recorded"))

    def _check_asked(self, status: dict[str, Any]) -> None:
        """UserError for what is asked beside the recipe and is not as it was."""
        minutes = status.get("minutes")
        if self.minutes is not None and self.minutes != minutes:
            begun = "without minutes" if minutes is None else f"for {minutes:g} minutes"
            raise UserError(
                f"{self.directory.path} was started {begun}, not for {self.minutes:g}; leave --minutes out, or choose "
                "another directory with --run"
            )
        deterministic = status.get("deterministic", False)
        if deterministic != is_deterministic():
            way = "with" if deterministic else "without"
            raise UserError(f"{self.directory.path} was started {way} --deterministic; resume it {way} it")

    def _begin(self) -> None:
        """Settle what is left open (precision, steps) and write down what will be trained."""
        start = None if self.recipe.start is None else open_start(self.recipe.start)
        if start is not None:
            self._agreement = agree(self.recipe.model, start.model, self.recipe.start or "")
            self.fresh = self._agreement.fresh
        elif self.recipe.adapter is not None:
            raise ConfigError("an adapter needs weights that it is added to; give a model to start from (--from)")
        check_memory(self.recipe, self.fresh, self.processes.device)
        if self.processes.first:
            self.directory.create()
        self.precision = self._choose_precision()
        train = replace(self.recipe.train, precision=self.precision.name)
        if self.minutes is not None:
            left = 60 * self.minutes - (time.perf_counter() - self.start)
            speed = measure(self.recipe, self.fresh, self.task, self.processes, self.precision.name, left)
            deadline = self.start + 60 * self.minutes
            self._look = SecondLook(train, speed, deadline)
            train = plan(train, speed, deadline - time.perf_counter())
        recipe = replace(self.recipe, train=train)
        self.recipe = from_dict(Recipe, self.processes.tell(to_dict(recipe)))
        if self.processes.first:
            remove(self.directory.metrics)
            if start is not None:
                start.usage.save(self.directory.path)
            self.task.save(self.directory.path)
            write_recipe(self.recipe, self.directory.recipe)
            self._write_status("running", Progress())

    def _choose_precision(self) -> Precision:
        setting = self.recipe.train.precision
        with torch.device("meta"):  # only the shapes of its matrices are looked at
            model = build(self.recipe.model, seed=None)
        tokens = next(iter(self.task.batches("train"))).computed if setting == "auto" else 0
        found = choose(setting, model, tokens, self.processes.device)
        return Precision(*self.processes.tell(list(found)))

    def _train(self) -> None:
        recipe, first = self.recipe, self.processes.first
        keep = max(recipe.train.keep, recipe.train.average)
        checkpoints = Checkpoints(self.directory.checkpoints, keep, recipe.train.checkpoint_interval)
        if first:
            checkpoints.clean()
        model = initial_model(recipe, self.fresh, self.directory.base, bool(checkpoints.all()), first)
        learner = Learner(model, recipe, self.task, self.processes, self.precision.name)
        progress = checkpoints.load_newest(learner) or Progress()
        self._before = max(self._before, progress.seconds)  # of a run that was killed nothing later is known
        metrics = self._open_metrics(progress) if first else None
        display = self._open_display()
        loggers = [metrics, *open_loggers(self.directory.path, to_dict(recipe))] if metrics else []
        journal = Journal(recipe.train.steps, progress, loggers, display)
        self._announce(display, progress, learner)
        try:
            with Interrupts() as interrupts:
                loop = Loop(learner, progress, self.directory, checkpoints, metrics, journal, interrupts)
                loop.run(self._look, lambda recipe: self._adopt(recipe, progress, display))
                if recipe.train.average:
                    loop.average_checkpoints()
            self._write_status("finished", progress)
        except UserInterrupt:
            self._write_status("interrupted", progress)
            raise
        finally:
            display.close()
            journal.close()

    def _adopt(self, recipe: Recipe, progress: Progress, display: Display) -> None:
        """Go on with another number of steps than was planned."""
        display.say(f"planned anew by the speed since: {recipe.train.steps:,} steps, not {self.recipe.train.steps:,}")
        self.recipe = recipe
        if self.processes.first:
            write_recipe(recipe, self.directory.recipe)
            self._write_status("running", progress)

    def _open_metrics(self, progress: Progress) -> MetricsFile:
        truncate_metrics(self.directory.metrics, progress.step, progress.evaluated)
        return MetricsFile(self.directory.metrics)

    def _open_display(self) -> Display:
        flop = 3 * self._costs["flop_per_token"]  # forward, and backward twice as much
        if isinstance(self.recipe.model, (EncoderDecoderConfig, TwoTowerConfig)):
            flop /= 2  # which `describe` gives for a pair of tokens
        device = self.processes.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        unit = getattr(self.task, "unit", "token")
        return open_display(self.shown, self.recipe.train.steps, flop, name, unit)

    def _announce(self, display: Display, progress: Progress, learner: Learner) -> None:
        steps = self.recipe.train.steps
        name, reason = self.precision
        display.say(f"training {steps:,} steps in {self.directory.path}; matrix products in {name} ({reason})")
        if self.minutes is not None:
            display.say(f"as many as fit into {self.minutes:g} minutes at the speed measured")
        if self._agreement is not None:
            display.say(f"from {self.recipe.start}: {self._agreement}")
        if self.recipe.adapter is not None:
            trained, whole = learner.trained, self._costs["parameters"]
            display.say(f"{self.recipe.adapter.title}: {trained:,} trained weights beside {whole:,} that stay")
        for part, start in self.recipe.task.starts().items():
            display.say(f"{part} from {start}")
        if self.recipe.train.frozen:
            names, stay = ", ".join(self.recipe.train.frozen), self._costs["parameters"] - learner.trained
            display.say(f"frozen: {names}; {learner.trained:,} weights are trained and {stay:,} stay as they are")
        if progress.step:
            display.say(f"resuming after step {progress.step:,}")

    def _write_status(self, status: str, progress: Progress) -> None:
        if not self.processes.first:
            return
        self.directory.write_status(
            {
                "status": status,
                "recipe": self.recipe.name,
                "parameters": self._costs["parameters"],
                "steps": self.recipe.train.steps,
                "step": progress.step,
                "tokens": progress.tokens,
                "seconds": round(progress.seconds, 3),
                "elapsed": round(self._before + time.perf_counter() - self.start, 3),
                "minutes": self.minutes,
                "precision": self.precision.name,
                "precision_reason": self.precision.reason,
                "fresh": list(self.fresh),
                "goal": self.task.goal,
                "best": progress.best,
                **environment(self.processes.device, self.processes.world),
            }
        )

    def _open(self) -> Run:
        directory = self.directory
        model = native.load_model(directory.path, self.processes.device)
        summary, metrics = directory.read_status(), read_metrics(directory.metrics)
        return Run(directory.path, self.recipe, model, self.task, metrics, summary)
