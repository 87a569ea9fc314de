"""The trainer: from a recipe and a task to a run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headway.config import from_dict, to_dict
from headway.errors import ConfigError, UserError
from headway.formats import native
from headway.formats.durable import remove
from headway.formats.published import nearest_form
from headway.learn.budget import Clock, Speed, StepsBudget, TimeBudget, measure, plan, planned
from headway.learn.checkpoint import Checkpoints, Progress, step_of
from headway.learn.distributed import Processes
from headway.learn.journal import Display, Journal, open_display
from headway.learn.learner import Learner
from headway.learn.loop import Foretell, Interrupts, Loop, UserInterrupt
from headway.learn.memory import check_memory, kept_heap
from headway.learn.precision import Precision, choose
from headway.learn.recipe import Recipe, difference, read_recipe, write_recipe
from headway.learn.run import (
    MetricsFile,
    Run,
    RunDirectory,
    check_loggers,
    environment,
    open_loggers,
    read_metrics,
    truncate_metrics,
)
from headway.learn.start import Agreement, agree, initial_model, keep_symbols, open_start
from headway.learn.task import Task, unit_of
from headway.nn.kernels import is_deterministic
from headway.nn.models import (
    EncoderDecoderConfig,
    ModelConfig,
    TokenEmbedConfig,
    TransformerConfig,
    TwoTowerConfig,
    build,
    describe,
)

_TOLD = 0.1  # a plan that changes by less is changed in silence
_FINISH = 10  # a run that is to end soon takes one step for so many that it has made


class Trainer:
    """Trains the model of a recipe on a task.

    `minutes` fixes `train.steps` by the measured speed, so that the whole takes about so long, all that came before it
    (starting the process, reading the data) and comes after it included; the `clock` tells what has gone, and `judged`
    whether the finished model is judged in that time, too; with `steps_alone` the minutes are those of its steps, and
    all else comes on top. `foretell` says early how it will end; no more
    than `most` steps are planned, however many minutes there are. The recipe
    written to the run's directory has these steps and the precision chosen: trained again, on the same machine and
    threads, it gives the same bits.
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
        clock: Clock | None = None,
        judged: bool = False,
        foretell: Foretell | None = None,
        most: int | None = None,
        steps_alone: bool = False,
    ) -> None:
        if minutes is not None and minutes <= 0:
            raise UserError(f"{minutes:g} minutes; give a number above 0")
        if threads is not None:
            torch.set_num_threads(threads)
        self.clock = clock or Clock()
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.processes = Processes(torch.device(chosen))
        self.task = task
        model = task.adapt(recipe.model)
        self.recipe = replace(recipe, model=model if recipe.start is None else keep_symbols(model, recipe.model))
        self.directory = RunDirectory(run_directory)
        self.shown = progress and self.processes.first
        self.minutes = minutes
        self.judged = judged
        self.foretell = foretell
        self.most = most
        self.steps_alone = steps_alone
        self.fresh: tuple[str, ...] = ()  # parameters that the start does not have
        self._agreement: Agreement | None = None
        self.extended = False  # whether it goes on for longer than it was begun for
        self._budget: TimeBudget | None = None
        self._damaged: list[str] = []  # what is wrong with checkpoints that it does not go on from
        self._before = 0.0  # seconds that earlier processes were at this run
        self.precision = Precision(recipe.train.precision, "as set")
        self._costs = describe(self.recipe.model)

    def fit(self, resume: bool = False, finish: bool = False) -> Run:
        """Train to the end and give the run with its best model.

        With `resume`, a run that is here goes on from its last checkpoint, to the bit as if it had never stopped. One
        that was finished, or was begun for other minutes, goes on for `minutes` more, from where its rate began to
        fall. With `finish`, one that was stopped ends soon: its rate falls to 0 within a tenth of the steps so far.
        Raises UserInterrupt after Ctrl-C, when a checkpoint is written.
        """
        try:
            with kept_heap(), self.holding():
                self._fit(resume, finish)
        finally:  # after an interrupt too: a process that ends within its group may be aborted
            self.processes.leave()
        return self._open()

    def holding(self) -> AbstractContextManager[None]:
        """Keep other processes out of the run, for longer than `fit` alone does; the first process does it for all."""
        return self.directory.holding() if self.processes.first else nullcontext()

    def left(self) -> float | None:
        """The seconds that its minutes leave for what follows; None where they say nothing of it."""
        return None if self._budget is None or self.steps_alone else self._budget.for_judgement()

    def _fit(self, resume: bool, finish: bool) -> None:
        self.processes.share_of(self.recipe.train.accumulate)
        check_loggers()
        found = self.processes.tell(self.directory.claim(resume) if self.processes.first else None)
        status = self.directory.read_status() if found else {}
        ended = status.get("status") == "finished"
        if not found:
            self._begin()
        else:
            if self.processes.first and (not ended or self.minutes is not None):
                for folder in (self.directory.checkpoints, self.directory.trunk):
                    self._damaged += Checkpoints(folder, 1, 1).set_aside_damaged()
            self.processes.tell(None)  # all read what the first has left
            more = self._more(status)
            self._follow(status)
            if more is not None:
                self._extend(more, status)
            elif finish:
                self._shorten(ended)
        if not ended or self._budget is not None:
            self._train()
        self.processes.tell(None)  # all wait until the first has written

    def _more(self, status: dict[str, Any]) -> float | None:
        """The minutes that are asked for beyond those that the run was begun for."""
        asked = self.minutes
        again = status.get("status") == "finished" and bool(status.get("scores"))
        return asked if asked is not None and (again or asked != status.get("minutes")) else None

    def _follow(self, status: dict[str, Any]) -> None:
        """Take over the recipe of the run that is here, which must be the same one."""
        recorded = read_recipe(self.directory.recipe)
        train, schedule = self.recipe.train, self.recipe.schedule
        deterministic = status.get("deterministic", False)
        if deterministic != is_deterministic():
            way = "with" if deterministic else "without"
            raise UserError(f"{self.directory.path} was started {way} --deterministic; resume it {way} it")
        if status.get("minutes") is not None:
            train = replace(train, steps=recorded.train.steps, evaluate_every=recorded.train.evaluate_every)
            schedule = recorded.schedule
        if train.precision == "auto":
            train = replace(train, precision=recorded.train.precision)
        goal = status.get("goal", self.task.goal)
        if goal != self.task.goal:
            raise UserError(
                f"{self.directory.path} was judged by {goal}, and is now by {self.task.goal}; give it the data and the "
                "environment that it was started with (HEADWAY_ENV, where that is one of your own)"
            )
        changed = difference(recorded, replace(self.recipe, train=train, schedule=schedule))
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
        check_memory(self.recipe, self.fresh, self.processes.device)

    def _begin(self) -> None:
        """Settle what is left open (precision, steps) and write down what will be trained."""
        start = None if self.recipe.start is None else open_start(self.recipe.start)
        if start is not None:
            self._agreement = agree(self.recipe.model, start.model, self.recipe.start or "")
            self.fresh = self._agreement.fresh
        elif self.recipe.adapter is not None:
            raise ConfigError("an adapter needs weights that it is added to; give a model to start from (--from)")
        check_memory(self.recipe, self.fresh, self.processes.device)
        self.precision = self._choose_precision()
        recipe = replace(self.recipe, train=replace(self.recipe.train, precision=self.precision.name))
        if self.minutes is not None:
            speed = self._measured(recipe, 60 * self.minutes)
            recipe = planned(recipe, speed, self._left(60 * self.minutes), self.most)
        self.recipe = from_dict(Recipe, self.processes.tell(to_dict(recipe)))
        if self.processes.first:
            remove(self.directory.metrics)
            remove(self.directory.base)
            if start is not None:  # what a model met before it came here is not known
                start.usage.save(self.directory.path)
            elif (met := self.task.met()) is not None:
                met.save(self.directory.path)
            self.task.save(self.directory.path)
            write_recipe(self.recipe, self.directory.recipe)
            self._write_status("running", Progress())

    def _measured(self, recipe: Recipe, seconds: float) -> Speed:
        """The speed of a recipe on this machine; the budget of the run begins with it."""
        given = recipe, self.fresh, self.task, self.processes, self.precision.name
        speed = measure(*given, self._left(seconds), self.judged, self.steps_alone)
        kind = StepsBudget if self.steps_alone else TimeBudget
        self._budget = kind(self.clock, seconds, speed, self.most)
        return speed

    def _left(self, seconds: float) -> float:
        """What is left of the `seconds` that there are for all of it, or for the steps alone."""
        return seconds if self.steps_alone else seconds - self.clock.worked()

    def _extend(self, minutes: float, status: dict[str, Any]) -> None:
        """Go on for so many minutes more, from where the rate began to fall, or from the last step before."""
        recipe, directory = self.recipe, self.directory
        steps = recipe.train.steps
        flat = recipe.schedule.flat(steps)
        places = [] if flat is None else [*Checkpoints(directory.trunk, 1, 1).all(), *self._saved()]
        begun = max((place for place in places if step_of(place) <= (flat or 0)), key=step_of, default=None)
        if begun is None:
            raise UserError(
                f"{directory.path} has no checkpoint of a time before its rate fell, from which it could go on; start "
                "another run with more --minutes" + ("" if flat is not None else ", and with schedule=wsd")
            )
        done = step_of(begun)
        speed = self._measured(recipe, 60 * minutes)
        rest = plan(recipe.train, speed, self._left(60 * minutes))
        wanted = done + rest.steps
        if wanted <= max(steps, int(status.get("step") or 0)) and status.get("status") == "finished":
            needed = 1.1 * minutes * (steps - done) / rest.steps
            raise UserError(
                f"{directory.path} has made {steps:,} steps, and its rate began to fall after {done:,}: {minutes:g} "
                f"minutes more lead to {wanted:,}; give at least {needed:.2g}"
            )
        schedule = recipe.schedule.again(done, steps, wanted)
        if schedule is None:
            raise UserError(
                f"the schedule of {directory.path} depends on its steps; start another run with more --minutes"
            )
        recipe = replace(recipe, schedule=schedule, train=replace(recipe.train, steps=wanted))
        self.recipe = from_dict(Recipe, self.processes.tell(to_dict(recipe)))
        self.extended = True
        self.minutes = minutes + (status.get("minutes") or round((status.get("elapsed") or 0.0) / 60, 4))
        if self.processes.first:
            Checkpoints(directory.checkpoints, 1, 1).go_back_to(begun, status.get("best"))
            write_recipe(self.recipe, directory.recipe)
            self._write_status("running", Progress(step=done, best=status.get("best")))
        self.processes.tell(None)

    def _saved(self) -> list[Path]:
        return Checkpoints(self.directory.checkpoints, 1, 1).all()

    def _shorten(self, ended: bool) -> None:
        """Let the rate fall to 0 within a tenth of the steps so far."""
        recipe, directory = self.recipe, self.directory
        done = max(map(step_of, self._saved()), default=0)
        if ended or not done:
            state = "is finished already" if ended else "has no checkpoint yet"
            raise UserError(f"{directory.path} {state}; leave --finish out")
        wanted = min(recipe.train.steps, done + max(2, done // _FINISH))
        schedule = recipe.schedule.moved(done, recipe.train.steps, wanted)
        if schedule is None:
            raise UserError(
                f"the rates of {directory.path} so far hang on its number of steps; leave --finish out, or start "
                "another run with schedule=wsd"
            )
        self.recipe = replace(recipe, schedule=schedule, train=replace(recipe.train, steps=wanted))
        if self.processes.first:
            write_recipe(self.recipe, directory.recipe)
        self.processes.tell(None)

    def _choose_precision(self) -> Precision:
        setting = self.recipe.train.precision
        with torch.device("meta"):  # only the shapes of its matrices are looked at
            model = build(self.recipe.model, seed=None)
        found = choose(setting, model, self.processes.device)
        return Precision(*self.processes.tell(list(found)))

    def _train(self) -> None:
        recipe, first = self.recipe, self.processes.first
        keep = max(recipe.train.keep, recipe.train.average)
        checkpoints = Checkpoints(self.directory.checkpoints, keep, recipe.train.checkpoint_interval)
        if first:
            remove(self.directory.digests)
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
        for problem in self._damaged:
            display.say(problem)
        try:
            with Interrupts() as interrupts:
                place = self.directory
                known = self._budget, self.foretell
                loop = Loop(learner, progress, place, checkpoints, metrics, journal, interrupts, *known)
                loop.run(lambda recipe: self._adopt(recipe, progress, display))
                if recipe.train.average:
                    loop.average_checkpoints()
            if progress.best is None:
                raise UserError(
                    f"no evaluation gave a number ({self.task.goal} is never finite), so there is no model to keep; "
                    "lower optim.lr, or look at the validation data"
                )
            self._write_status("finished", progress)
        except UserInterrupt:
            self._write_status("interrupted", progress)
            raise
        finally:
            display.close()
            journal.close()

    def _adopt(self, recipe: Recipe, progress: Progress, display: Display) -> None:
        """Go on with another number of steps than was planned."""
        steps, before = recipe.train.steps, self.recipe.train.steps
        if abs(steps - before) > _TOLD * before:
            display.say(f"planned anew by the speed since: {steps:,} steps, not {before:,}")
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
        return open_display(self.shown, self.recipe.train.steps, flop, name, unit_of(self.task))

    def _announce(self, display: Display, progress: Progress, learner: Learner) -> None:
        steps = self.recipe.train.steps
        name, reason = self.precision
        display.say(f"training {steps:,} steps in {self.directory.path}; matrix products in {name} ({reason})")
        if self.minutes is not None:
            what = " of steps alone" if self.steps_alone else ""
            display.say(f"as many as fit into {self.minutes:g} minutes{what} at the speed measured")
        for reason in self.recipe.reasons if not progress.step else ():
            display.say(reason)
        missing = None if progress.step or self.recipe.start is not None else _form_missing(self.recipe.model)
        if missing is not None:
            display.say(f"this model has no published form, which `headway export` writes: {missing}")
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
                "elapsed": round(self._before + self.clock.worked(), 3),
                "minutes": self.minutes,
                "precision": self.precision.name,
                "precision_reason": self.precision.reason,
                "fresh": list(self.fresh),
                "goal": self.task.goal,
                "unit": unit_of(self.task),
                "best": progress.best,
                "forecast": progress.forecast,
                **environment(self.processes.device, self.processes.world),
            }
        )

    def _open(self) -> Run:
        directory = self.directory
        model = native.load_model(directory.path, self.processes.device)
        summary, metrics = directory.read_status(), read_metrics(directory.metrics)
        return Run(directory.path, self.recipe, model, self.task, metrics, summary)


def _form_missing(model: ModelConfig) -> str | None:
    """What keeps a model of texts from a published form; others have them, or not, by their kind."""
    texts = isinstance(model, TransformerConfig) and isinstance(model.embed, TokenEmbedConfig)
    return nearest_form(model) if texts else None
