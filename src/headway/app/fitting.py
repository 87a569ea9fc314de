"""Scale a generic recipe to the user's data, minutes and machine, and plan runs for several numbers of minutes without
training.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from headway.app.recipes import begin_task
from headway.card import Card, shows
from headway.data.store import within
from headway.domains import scale_of
from headway.errors import UserError
from headway.evaluation import open_task
from headway.learn import Recipe, Task
from headway.learn.budget import Clock, Meter, measure, planned
from headway.learn.distributed import Processes
from headway.learn.examples import Explored
from headway.learn.loop import Foretell
from headway.learn.memory import check_memory, training_bytes
from headway.learn.precision import choose as choose_precision
from headway.learn.scale import (
    Fit,
    Pace,
    Scale,
    choose,
    computing,
    digits,
    explained,
    ladder,
    settled,
    shape_of,
    with_user,
)
from headway.learn.start import (
    UNJUDGED_EPOCHS,
    Tuned,
    agree,
    gentle_rate,
    keep_symbols,
    open_start,
    tuned,
    unjudged,
)
from headway.nn.models import describe, outline

_SHARE, _LEAST, _MOST = 0.003, 0.15, 2.0  # share of the time for measuring one size, with limits in seconds
_BEFORE = 0.94  # share of the minutes for training; the rest is for evaluations, also at the end
_GRACE = 10.0  # seconds for reading data in any case, so that an error can name enough minutes
_PATIENCE = 3  # evaluations without improvement
_PROBED, _FORWARD = 0.25, 3  # share of the time for fitting a head; how much faster a forward pass is than a step
_READ_ANEW = 2.0  # epochs beyond which a run stops early
_LATER = 12  # factor of the minutes for which a plan also reports the best size


class Fitted(NamedTuple):
    """A complete recipe, its task over the data, the maximum steps at first for the amount of data, and the number of
    evaluations without improvement after which the run stops early.
    """

    recipe: Recipe
    task: Task
    most: int | None = None
    patience: int | None = None


@shows
class Plan(NamedTuple):
    """The plan of a run for a number of minutes: parameters, width and layers of the model, `batch` tokens or samples
    per step, steps, `epochs` (None: unknown), bytes of memory for the training state, and the reasons. If the minutes
    are too few to learn anything, only `reasons` is set.
    """

    minutes: float
    reasons: tuple[str, ...]
    parameters: int | None = None
    width: int | None = None
    layers: int | None = None
    batch: int | None = None
    steps: int | None = None
    epochs: float | None = None
    memory: int | None = None

    def card(self) -> Card:
        """A summary of the sizes, with the reasons as a table."""
        facts = {name: getattr(self, name) for name in ("parameters", "width", "layers", "batch", "steps", "epochs")}
        memory = None if self.memory is None else f"{self.memory / 2**20:,.0f} MiB"
        refused = self.reasons[0] if self.steps is None and self.reasons else None
        facts |= {"memory": memory, "refused because": refused}
        return Card(f"Plan of {self.minutes:g} minutes", facts, [{"reason": reason} for reason in self.reasons])


@dataclass
class Fitting:
    """The data of a generic recipe, opened once, and the measured throughput of models of several sizes.

    `user_settings` stay fixed. Raises UserError for a recipe that cannot be trained.
    """

    recipe: Recipe
    user: Mapping[str, Any]
    minutes: float
    clock: Clock
    device: torch.device
    scale: Scale
    paces: dict[str, Pace] = field(default_factory=dict)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.workspace = Path(stack.enter_context(TemporaryDirectory()))
            self.processes = Processes(self.device)
            paths = [Path(path) for path in self.recipe.data]
            found = self.scale.settle(self.recipe, paths, self.minutes)
            self.recipe = with_user(self.recipe, found.settings, self.user)
            self.reason = found.reason
            with within(max(_GRACE, 60 * self.minutes - self.clock.worked())):
                self.task = open_task(self.recipe, self.workspace)
            self._given: Task | None = None
            stack.callback(self._close)
            self.task.save(self.workspace)
            self.recipe = replace(self.recipe, model=self.task.adapt(self.recipe.model))
            self.unique = self.scale.amount(self.task)
            self._held = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def _close(self) -> None:
        """Close the task, unless it was returned."""
        if self.task is not self._given:
            self.task.close()

    def fit(self) -> Fitted:
        """Choose the size with the lowest predicted loss, with its batches, learning rates and regularisation."""
        chosen, fit = self._chosen()
        changed = chosen.task != self.recipe.task or any(
            getattr(chosen.train, name) != getattr(self.recipe.train, name) for name in ("batch_tokens", "batch_size")
        )
        self._given = open_task(chosen, self.workspace) if changed else self.task  # reuses the codec
        most = fit.steps if fit.exhausted and not _endless(self._given, self.user) else None
        return Fitted(chosen, self._given, most)

    def plan(self) -> Plan:
        """The plan that `choose_setup` would follow."""
        chosen, fit = self._chosen()
        width, layers = shape_of(chosen.model)
        model = outline(chosen.model)
        return Plan(
            self.minutes,
            chosen.reasons,
            describe(model)["parameters"],
            width,
            layers,
            fit.batch,
            fit.steps,
            fit.seen / max(1, self.unique),
            sum(training_bytes(chosen, model).values()),
        )

    def _chosen(self) -> tuple[Recipe, Fit]:
        seconds = self._training_seconds(self.minutes)
        best, fits = choose(self.recipe, self.scale, self.user, self.unique, seconds, self.pace)
        compared = fits if self.scale.fitted else [best]
        reasons = (*filter(None, [self.reason]), *explained(best, compared, self.scale, self.unique, seconds))
        later = self._later(fits) if self.scale.fitted else None
        if later is not None and later.size > 1.2 * best.size:
            reasons = (*reasons, f"in {_LATER} times the minutes a model of {later.size:,} would reach a lower loss")
        return replace(settled(self.recipe, best, self.scale, self.unique, self.user), reasons=reasons), best

    def pace(self, recipe: Recipe) -> Pace:
        """The training throughput of a recipe's model on this machine, measured once."""
        key = _key(recipe)
        if key not in self.paces:
            self.paces[key] = self._measured(recipe)
        return self.paces[key]

    def _measured(self, recipe: Recipe) -> Pace:
        model = outline(recipe.model)
        return _timed(recipe, model, self.task, self.processes, self.scale.batch, self.minutes)

    def _training_seconds(self, minutes: float) -> float:
        return self.processes.tell(_BEFORE * 60 * minutes - self.clock.worked())

    def _later(self, fits: Sequence[Fit]) -> Fit | None:
        """The best size for more minutes, with throughputs extrapolated from those measured."""
        last = fits[-1]

        def pace(recipe: Recipe) -> Pace:
            known = self.paces.get(_key(recipe))
            if known is not None:
                return known
            times = computing(recipe.model) / last.parameters
            return Pace(last.pace.targets / times, last.pace.overhead * times, last.pace.share)

        seconds = self._training_seconds(_LATER * self.minutes)
        return choose(self.recipe, self.scale, self.user, self.unique, seconds, pace)[0]


def _timed(
    recipe: Recipe,
    model: nn.Module,
    task: Task,
    processes: Processes,
    batch: str,
    minutes: float,
    fresh: Collection[str] = (),
) -> Pace:
    """The throughput of a recipe; `model` is the outline of its model."""
    name, _ = choose_precision(recipe.train.precision, model, processes.device)
    meter = Meter(recipe, fresh, task, processes, name)
    each = meter.each(min(max(_SHARE * 60 * minutes, _LEAST), _MOST))
    overhead = min(meter.overhead(), 0.5 * each)
    units = getattr(recipe.train, batch.removeprefix("train.")) * recipe.train.accumulate
    return Pace(*processes.tell([meter.targets / (each - overhead), overhead, meter.targets / units, meter.targets]))


def tune(
    recipe: Recipe, user: Mapping[str, Any], minutes: float, clock: Clock, device: torch.device, directory: Path
) -> Fitted | None:
    """Plan fine-tuning of a generic recipe: batches and steps for the number of samples and the time; None for a
    recipe without a start, or one that is not generic.
    """
    scale = scale_of(recipe.name)
    if scale is None or recipe.start is None:
        return None
    chosen, task, found = _tuned(recipe, scale, user, minutes, clock, device, directory)
    most = None if _endless(task, user) else found.useful
    # Other metrics are noisy on few samples, and one or two epochs do not overfit.
    patience = _PATIENCE if task.goal == "loss" and found.epochs > _READ_ANEW else None
    return Fitted(chosen, task, most, patience)


def _tuned(
    recipe: Recipe,
    scale: Scale,
    user: Mapping[str, Any],
    minutes: float,
    clock: Clock,
    device: torch.device,
    directory: Path,
) -> tuple[Recipe, Task, Tuned]:
    """A generic recipe for fine-tuning with batches for the samples and the time, its task, and the plan."""
    assert recipe.start is not None
    start = open_start(recipe.start).model
    name, recipe = recipe.start, with_user(recipe, scale.started(recipe), user)
    task, processes = begin_task(recipe, directory), Processes(device)
    sized = with_user(recipe, scale.settle_start(recipe, task), user)
    if sized != recipe:
        task.close()
        recipe, task = sized, begin_task(sized, directory)
    known = replace(recipe, model=keep_symbols(task.adapt(recipe.model), recipe.model))
    model = outline(known.model)
    pace = _timed(known, model, task, processes, scale.batch, minutes, agree(model, start, name).fresh)
    recipe, shallow = _shallower(recipe, user, start, task, scale.amount(task), 60 * minutes * pace.targets)
    pace = pace._replace(targets=pace.targets * computing(known.model) / computing(task.adapt(recipe.model)))
    seconds = processes.tell(_BEFORE * 60 * minutes - clock.worked())
    row = recipe.task.context or 1 if scale.batch == "train.batch_tokens" else 1
    own = getattr(recipe.train, scale.batch.removeprefix("train.")) if scale.batch in user else None
    samples, targets = task.count("train"), scale.amount(task)
    most = UNJUDGED_EPOCHS if unjudged(task) else math.inf
    found = tuned(samples, targets, pace, seconds, scale.batch, row, own, scale.large, most)
    settings = dict(found.settings)
    if task.objective.gentle and recipe.train.linear_probe:
        settings["optim.lr"] = gentle_rate(recipe.optim.lr, samples)
        read = int(_PROBED * seconds * _FORWARD * pace.targets * samples / max(1, targets))
        settings["train.linear_probe"] = max(recipe.train.linear_probe, min(read, samples))
    chosen = replace(with_user(recipe, settings, user), reasons=(*shallow, found.reason))
    if chosen.train != recipe.train or shallow:
        task.close()
        task = begin_task(chosen, directory)
    return chosen, task, found


def _fresh(recipe: Recipe) -> tuple[str, ...]:
    """The parameters that the start of a recipe does not have; empty without a start."""
    if recipe.start is None:
        return ()
    return agree(outline(recipe.model), open_start(recipe.start).model, recipe.start).fresh


_PROBED_SHARE = 0.03  # share of the time for choosing the number of layers
_FEWEST_PROBED, _MOST_PROBED = 100, 500  # samples for choosing the number of layers


def _shallower(
    recipe: Recipe, user: Mapping[str, Any], start: nn.Module, task: Task, amount: int, trained: float
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with only the layers of its `start` that the task needs, and the reasons. The model stays unchanged if
    the user set it, if it has an adapter (adapters load into the complete start), and if the time is too short:
    `trained_targets` is the number of targets that fit into the time, and `amount` that of the data.
    """
    read = 3 * _PROBED_SHARE * trained  # a forward pass takes a third of a step's time
    limit = min(
        int(read / 2 * task.count("train") / max(1, amount)), _MOST_PROBED
    )  # samples, of each of training and validation
    if limit < _FEWEST_PROBED or recipe.adapter is not None or any(key.split(".")[0] == "model" for key in user):
        return recipe, ()
    depth, layers = task.depth(start, limit), shape_of(recipe.model)[1]
    if depth is None or depth == layers:
        return recipe, ()
    why = f"the first {depth} of {layers} layers: linear heads on later layers score worse on validation"
    return with_user(recipe, {"model.depth": depth}, user), (why,)


def _endless(task: Task, user: Mapping[str, Any]) -> bool:
    """Whether steps have no upper limit: the user set their number, or the model generates its training data."""
    return "train.steps" in user or isinstance(task.examples, Explored)


def fitting(
    recipe: Recipe, user: Mapping[str, Any], minutes: float, clock: Clock, device: torch.device
) -> Fitting | None:
    """A planner that scales a generic recipe to the time; None if the recipe or the user sets the model size."""
    scale = scale_of(recipe.name)
    if scale is None or recipe.start is not None or "model" in user:
        return None
    return Fitting(recipe, user, minutes, clock, device, scale)


def foretelling(recipe: Recipe) -> Foretell | None:
    """The function that predicts the final loss from an early evaluation; None for domains without one."""
    scale = scale_of(recipe.name)
    return None if scale is None or scale.descent is None or recipe.start is not None else scale.descent.forecast


def outgrown(recipe: Recipe, task: Task, seen: int, minutes: float) -> str | None:
    """A message if a run continued for so long that a larger model would have reached a lower loss in its total time;
    otherwise None.
    """
    scale = scale_of(recipe.name)
    if scale is None or not scale.fitted or recipe.start is not None:
        return None
    unique, own = scale.amount(task), computing(recipe.model)
    sizes = {computing(task.adapt(rung.recipe.model)) for rung in ladder(recipe, scale, {})}
    larger = min((size for size in sizes if size > 1.2 * own), default=None)
    if larger is None:
        return None
    if scale.law.loss(larger, seen * own / larger, unique) > scale.law.loss(own, seen, unique):
        return None
    return (
        f"the model is now too small: in {digits(minutes)} minutes a new model with {digits(larger / own)} times the "
        "parameters would reach a lower loss"
    )


def _key(recipe: Recipe) -> str:
    """The settings that determine the throughput."""
    return repr((recipe.model, recipe.task))


def plans(
    recipe: Recipe, user: Mapping[str, Any], minutes: Sequence[float], device: torch.device, spent: float
) -> list[Plan]:
    """A plan for each number of minutes; `spent` seconds have passed before the data are opened.

    The size of a generic recipe is planned for each number of minutes. For a recipe with a fixed size, or one that
    fine-tunes, only the steps are planned. Too few minutes give a plan with an error message; raises UserError if all
    are too few.
    """
    paces: dict[str, Pace] = {}
    found, first = [], None
    scaled = fitting(recipe, user, minutes[0], Clock(), device) is not None
    fixed = None if scaled else _Fixed(recipe, user, minutes, device, spent)
    for number in minutes:
        try:
            found.append(_fitted(recipe, user, number, device, spent, paces) if fixed is None else fixed.plan(number))
        except UserError as error:
            first = first or error
            found.append(Plan(number, (str(error),)))
    if first is not None and all(plan.steps is None for plan in found):
        raise first
    return found


def _fitted(
    recipe: Recipe,
    user: Mapping[str, Any],
    minutes: float,
    device: torch.device,
    spent: float,
    paces: dict[str, Pace],
) -> Plan:
    one = fitting(recipe, user, minutes, Clock(spent), device)
    assert one is not None  # it is None for all numbers of minutes or for none
    one.paces = paces
    with one:
        return one.plan()


class _Fixed:
    """Plans for a recipe with a fixed size, its own or that of its start, measured once."""

    def __init__(
        self,
        recipe: Recipe,
        user: Mapping[str, Any],
        minutes: Sequence[float],
        device: torch.device,
        spent: float,
    ) -> None:
        clock, processes, scale = Clock(spent), Processes(device), scale_of(recipe.name)
        self.most: int | None = None
        with TemporaryDirectory() as folder:
            if scale is not None and recipe.start is not None:
                given = scale, user, min(minutes), Clock(), device, Path(folder)
                recipe, task, found = _tuned(recipe, *given)
                self.most = None if _endless(task, user) else found.useful
            else:
                task = begin_task(recipe, Path(folder))
            try:
                adapted = task.adapt(recipe.model)
                self.recipe = replace(
                    recipe, model=adapted if recipe.start is None else keep_symbols(adapted, recipe.model)
                )
                model, fresh = outline(self.recipe.model), _fresh(self.recipe)
                self.parameters = describe(model)["parameters"]
                precision, _ = choose_precision(self.recipe.train.precision, model, device)
                check_memory(self.recipe, model, fresh, device)
                self.memory = sum(training_bytes(self.recipe, model).values())
                self.speed = measure(self.recipe, fresh, task, processes, precision, 60 * min(minutes), judged=True)
                self.batch = next(task.batches("train")).tokens * self.recipe.train.accumulate  # targets per step
                self.targets = None if scale is None else max(1, scale.amount(task))
            finally:
                task.close()
        self.spent = clock.worked()

    def plan(self, minutes: float) -> Plan:
        recipe = planned(self.recipe, self.speed, 60 * minutes - self.spent, self.most)
        width, layers = shape_of(recipe.model)
        steps = recipe.train.steps
        whose = "the recipe" if recipe.start is None else recipe.start
        reasons = [f"the model size is fixed by {whose}"]
        if self.most is not None and steps == self.most:
            reasons.append("more epochs do not improve the model")
        times = f"a step takes {digits(self.speed.step)} s, an evaluation {digits(self.speed.evaluation)} s"
        return Plan(
            minutes,
            ("; ".join([*reasons, times]),),
            self.parameters,
            width,
            layers,
            self.batch,
            steps,
            None if self.targets is None else steps * self.batch / self.targets,
            self.memory,
        )
