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

from headway.app.recipes import open_new_task
from headway.data.array_store import build_deadline
from headway.domains import scale_of
from headway.errors import UserError
from headway.learn import Recipe, Task
from headway.learn.budget import Clock, SpeedMeter, measure_speed, plan_recipe
from headway.learn.distributed import Processes
from headway.learn.examples import OnPolicyExamples
from headway.learn.fine_tuning import (
    FEW_VALIDATION_EPOCHS,
    TuningPlan,
    has_few_validation_samples,
    keep_vocabulary,
    match_tensors,
    open_start,
    plan_tuning,
    small_data_rate,
)
from headway.learn.loss_forecast import LossPredictor
from headway.learn.memory import check_memory, training_bytes
from headway.learn.precision import choose_precision as choose_precision
from headway.learn.scaling import (
    Scale,
    SizePlan,
    Throughput,
    active_parameters,
    choose_size,
    explain_choice,
    format_number,
    ladder,
    shape_of,
    with_size,
    with_user_settings,
)
from headway.model_evaluation import open_task
from headway.nn.models import describe, outline
from headway.summary_card import SummaryCard, summary_repr

_MEASURE_SHARE, _MIN_MEASURE_SECONDS, _MAX_MEASURE_SECONDS = (
    0.003,
    0.15,
    2.0,
)  # share of the time for measuring one size, limited in seconds
_TRAINING_SHARE = 0.94  # share of the minutes for training; the rest is for evaluations, also at the end
_MIN_READ_SECONDS = 10.0  # minimum seconds for reading data, so that an error can name enough minutes
_PATIENCE = 3  # evaluations without improvement
_HEAD_SHARE, _FORWARD_SPEEDUP = (
    0.25,
    3,
)  # share of the time for fitting a head; how much faster a forward pass is than a step
_PATIENCE_EPOCHS = 2.0  # epochs beyond which a run stops early
_LONGER_FACTOR = 12  # multiple of the minutes for which a plan also reports the best size


class TrainingSetup(NamedTuple):
    """A complete recipe, its task over the data, the initial maximum steps for this amount of data, and the number of
    evaluations without improvement after which the run stops early.
    """

    recipe: Recipe
    task: Task
    max_steps: int | None = None
    patience: int | None = None


@summary_repr
class Plan(NamedTuple):
    """A run's plan for a number of minutes: the model's parameters, width and layers, `batch` tokens or samples
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

    def card(self) -> SummaryCard:
        """A summary of the sizes, with a table of reasons."""
        facts = {name: getattr(self, name) for name in ("parameters", "width", "layers", "batch", "steps", "epochs")}
        memory = None if self.memory is None else f"{self.memory / 2**20:,.0f} MiB"
        refused = self.reasons[0] if self.steps is None and self.reasons else None
        facts |= {"memory": memory, "refused because": refused}
        return SummaryCard(f"Plan of {self.minutes:g} minutes", facts, [{"reason": reason} for reason in self.reasons])


@dataclass
class SizePlanner:
    """The data of a generic recipe, opened once, and the measured throughput of models of several sizes.

    `user_settings` stay fixed. Raises UserError for a recipe that cannot be trained.
    """

    recipe: Recipe
    user_settings: Mapping[str, Any]
    minutes: float
    clock: Clock
    device: torch.device
    scale: Scale
    throughputs: dict[str, Throughput] = field(default_factory=dict)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.workspace = Path(stack.enter_context(TemporaryDirectory()))
            self.processes = Processes(self.device)
            paths = [Path(path) for path in self.recipe.data]
            data_settings = self.scale.data_settings(self.recipe, paths, self.minutes)
            self.recipe = with_user_settings(self.recipe, data_settings.settings, self.user_settings)
            self.reason = data_settings.reason
            with build_deadline(max(_MIN_READ_SECONDS, 60 * self.minutes - self.clock.elapsed())):
                self.task = open_task(self.recipe, self.workspace)
            self._final_task: Task | None = None
            stack.callback(self._close)
            self.task.save(self.workspace)
            self.recipe = replace(self.recipe, model=self.task.adapt(self.recipe.model))
            self.unique_targets = self.scale.unique_targets(self.task)
            self._resources = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def _close(self) -> None:
        """Close the task, unless it was returned."""
        if self.task is not self._final_task:
            self.task.close()

    def choose_setup(self) -> TrainingSetup:
        """Choose the size with the lowest predicted loss, and its batches, learning rates and regularisation."""
        chosen, size_plan = self._choose_size()
        changed = chosen.task != self.recipe.task or any(
            getattr(chosen.train, name) != getattr(self.recipe.train, name) for name in ("batch_tokens", "batch_size")
        )
        self._final_task = open_task(chosen, self.workspace) if changed else self.task  # reuses the codec
        max_steps = (
            size_plan.steps
            if size_plan.exhausted and not _has_unlimited_steps(self._final_task, self.user_settings)
            else None
        )
        return TrainingSetup(chosen, self._final_task, max_steps)

    def plan(self) -> Plan:
        """The plan of `choose_setup`."""
        chosen, size_plan = self._choose_size()
        width, layers = shape_of(chosen.model)
        model = outline(chosen.model)
        return Plan(
            self.minutes,
            chosen.reasons,
            describe(model)["parameters"],
            width,
            layers,
            size_plan.batch,
            size_plan.steps,
            size_plan.targets / max(1, self.unique_targets),
            sum(training_bytes(chosen, model).values()),
        )

    def _choose_size(self) -> tuple[Recipe, SizePlan]:
        seconds = self._training_seconds(self.minutes)
        best, size_plans = choose_size(
            self.recipe, self.scale, self.user_settings, self.unique_targets, seconds, self.throughput
        )
        compared = size_plans if self.scale.calibrated else [best]
        reasons = (
            *filter(None, [self.reason]),
            *explain_choice(best, compared, self.scale),
        )
        longer_plan = self._plan_for_longer(size_plans) if self.scale.calibrated else None
        if longer_plan is not None and longer_plan.size > 1.2 * best.size:
            reasons = (
                *reasons,
                f"with {_LONGER_FACTOR} times the minutes, {longer_plan.size:,} parameters would be better",
            )
        return replace(
            with_size(self.recipe, best, self.scale, self.unique_targets, self.user_settings), reasons=reasons
        ), best

    def throughput(self, recipe: Recipe) -> Throughput:
        """The training throughput of a recipe's model on this machine, measured once."""
        key = _throughput_key(recipe)
        if key not in self.throughputs:
            self.throughputs[key] = self._measure(recipe)
        return self.throughputs[key]

    def _measure(self, recipe: Recipe) -> Throughput:
        model = outline(recipe.model)
        return _measure_throughput(recipe, model, self.task, self.processes, self.scale.batch_setting, self.minutes)

    def _training_seconds(self, minutes: float) -> float:
        return self.processes.broadcast_object(_TRAINING_SHARE * 60 * minutes - self.clock.elapsed())

    def _plan_for_longer(self, size_plans: Sequence[SizePlan]) -> SizePlan | None:
        """The best size for more minutes, with throughputs extrapolated from those measured."""
        last_plan = size_plans[-1]

        def throughput(recipe: Recipe) -> Throughput:
            known = self.throughputs.get(_throughput_key(recipe))
            if known is not None:
                return known
            relative_cost = active_parameters(recipe.model) / last_plan.parameters
            return Throughput(
                last_plan.pace.targets / relative_cost, last_plan.pace.overhead * relative_cost, last_plan.pace.share
            )

        seconds = self._training_seconds(_LONGER_FACTOR * self.minutes)
        return choose_size(self.recipe, self.scale, self.user_settings, self.unique_targets, seconds, throughput)[0]


def _measure_throughput(
    recipe: Recipe,
    model: nn.Module,
    task: Task,
    processes: Processes,
    batch: str,
    minutes: float,
    fresh: Collection[str] = (),
) -> Throughput:
    """A recipe's throughput; `model` is an outline of its model."""
    name, _ = choose_precision(recipe.train.precision, model, processes.device)
    meter = SpeedMeter(recipe, fresh, task, processes, name)
    seconds_per_step = meter.seconds_per_step(
        min(max(_MEASURE_SHARE * 60 * minutes, _MIN_MEASURE_SECONDS), _MAX_MEASURE_SECONDS)
    )
    overhead = min(meter.overhead(), 0.5 * seconds_per_step)
    units = getattr(recipe.train, batch.removeprefix("train.")) * recipe.train.accumulate
    return Throughput(
        *processes.broadcast_object(
            [meter.targets / (seconds_per_step - overhead), overhead, meter.targets / units, meter.targets]
        )
    )


def plan_fine_tuning(
    recipe: Recipe,
    user_settings: Mapping[str, Any],
    minutes: float,
    clock: Clock,
    device: torch.device,
    directory: Path,
) -> TrainingSetup | None:
    """Plan fine-tuning of a generic recipe: batches and steps for the number of samples and the time; None for a
    recipe without a start, or one that is not generic.
    """
    scale = scale_of(recipe.name)
    if scale is None or recipe.start is None:
        return None
    chosen, task, tuning_plan = _prepare_fine_tuning(recipe, scale, user_settings, minutes, clock, device, directory)
    max_steps = None if _has_unlimited_steps(task, user_settings) else tuning_plan.useful
    # Other metrics are noisy on few samples, and one or two epochs do not overfit.
    patience = _PATIENCE if task.goal == "loss" and tuning_plan.epochs > _PATIENCE_EPOCHS else None
    return TrainingSetup(chosen, task, max_steps, patience)


def _prepare_fine_tuning(
    recipe: Recipe,
    scale: Scale,
    user_settings: Mapping[str, Any],
    minutes: float,
    clock: Clock,
    device: torch.device,
    directory: Path,
) -> tuple[Recipe, Task, TuningPlan]:
    """A generic recipe for fine-tuning with batches for the samples and the time, its task, and the plan."""
    assert recipe.start is not None
    start = open_start(recipe.start).model
    name, recipe = recipe.start, with_user_settings(recipe, scale.tuning_settings(recipe), user_settings)
    task, processes = open_new_task(recipe, directory), Processes(device)
    sized_recipe = with_user_settings(recipe, scale.tuning_data_settings(recipe, task), user_settings)
    if sized_recipe != recipe:
        task.close()
        recipe, task = sized_recipe, open_new_task(sized_recipe, directory)
    adapted = replace(recipe, model=keep_vocabulary(task.adapt(recipe.model), recipe.model))
    model = outline(adapted.model)
    throughput = _measure_throughput(
        adapted, model, task, processes, scale.batch_setting, minutes, match_tensors(model, start, name).fresh
    )
    recipe, layer_reasons = _with_fewer_layers(
        recipe, user_settings, start, task, scale.unique_targets(task), 60 * minutes * throughput.targets
    )
    throughput = throughput._replace(
        targets=throughput.targets * active_parameters(adapted.model) / active_parameters(task.adapt(recipe.model))
    )
    seconds = processes.broadcast_object(_TRAINING_SHARE * 60 * minutes - clock.elapsed())
    row = recipe.task.context or 1 if scale.batch_setting == "train.batch_tokens" else 1
    user_batch = (
        getattr(recipe.train, scale.batch_setting.removeprefix("train."))
        if scale.batch_setting in user_settings
        else None
    )
    samples, targets = task.count("train"), scale.unique_targets(task)
    max_epochs = FEW_VALIDATION_EPOCHS if has_few_validation_samples(task) else math.inf
    tuning_plan = plan_tuning(
        samples, targets, throughput, seconds, scale.batch_setting, row, user_batch, scale.max_tuning_batch, max_epochs
    )
    settings = dict(tuning_plan.settings)
    if task.objective.small_data_lr and recipe.train.linear_probe:
        settings["optim.lr"] = small_data_rate(recipe.optim.lr, samples)
        head_samples = int(_HEAD_SHARE * seconds * _FORWARD_SPEEDUP * throughput.targets * samples / max(1, targets))
        settings["train.linear_probe"] = max(recipe.train.linear_probe, min(head_samples, samples))
    chosen = replace(with_user_settings(recipe, settings, user_settings), reasons=(*layer_reasons, tuning_plan.reason))
    if chosen.train != recipe.train or layer_reasons:
        task.close()
        task = open_new_task(chosen, directory)
    return chosen, task, tuning_plan


def _new_parameters(recipe: Recipe) -> tuple[str, ...]:
    """The parameters that are missing from a recipe's start; empty without a start."""
    if recipe.start is None:
        return ()
    return match_tensors(outline(recipe.model), open_start(recipe.start).model, recipe.start).fresh


_LAYER_CHOICE_SHARE = 0.03  # share of the time for choosing the number of layers
_MIN_PROBE_SAMPLES, _MAX_PROBE_SAMPLES = 100, 500  # samples for choosing the number of layers


def _with_fewer_layers(
    recipe: Recipe, user_settings: Mapping[str, Any], start: nn.Module, task: Task, amount: int, trained_targets: float
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with only the layers of its `start` that the task needs, and the reasons. The model stays unchanged if
    the user set it, if it has an adapter (adapters load into the complete start), and if the time is too short:
    `trained_targets` is the number of targets that fit into the time, and `amount` the number in the data.
    """
    forward_targets = 3 * _LAYER_CHOICE_SHARE * trained_targets  # a forward pass takes a third of a step's time
    limit = min(
        int(forward_targets / 2 * task.count("train") / max(1, amount)), _MAX_PROBE_SAMPLES
    )  # samples, in each of training and validation
    if (
        limit < _MIN_PROBE_SAMPLES
        or recipe.adapter is not None
        or any(key.split(".")[0] == "model" for key in user_settings)
    ):
        return recipe, ()
    depth, layers = task.depth(start, limit), shape_of(recipe.model)[1]
    if depth is None or depth == layers:
        return recipe, ()
    reason = f"the first {depth} of {layers} layers: linear heads on later layers score worse on validation"
    return with_user_settings(recipe, {"model.depth": depth}, user_settings), (reason,)


def _has_unlimited_steps(task: Task, user_settings: Mapping[str, Any]) -> bool:
    """Whether steps have no upper limit: the user set their number, or the model generates its training data."""
    return "train.steps" in user_settings or isinstance(task.examples, OnPolicyExamples)


def size_planner(
    recipe: Recipe, user_settings: Mapping[str, Any], minutes: float, clock: Clock, device: torch.device
) -> SizePlanner | None:
    """A planner that scales a generic recipe to the time; None if the recipe or the user sets the model size."""
    scale = scale_of(recipe.name)
    if scale is None or recipe.start is not None or "model" in user_settings:
        return None
    return SizePlanner(recipe, user_settings, minutes, clock, device, scale)


def loss_predictor(recipe: Recipe) -> LossPredictor | None:
    """The function that predicts the final loss from an early evaluation; None for domains without one."""
    scale = scale_of(recipe.name)
    return None if scale is None or scale.descent is None or recipe.start is not None else scale.descent.forecast


def outgrown_message(recipe: Recipe, task: Task, trained_targets: int, minutes: float) -> str | None:
    """A message if a run has continued for so long that a larger model would have reached a lower loss in that time;
    otherwise None.
    """
    scale = scale_of(recipe.name)
    if scale is None or not scale.calibrated or recipe.start is not None:
        return None
    unique_targets, own_size = scale.unique_targets(task), active_parameters(recipe.model)
    sizes = {active_parameters(task.adapt(rung.recipe.model)) for rung in ladder(recipe, scale, {})}
    larger_size = min((size for size in sizes if size > 1.2 * own_size), default=None)
    if larger_size is None:
        return None
    if scale.law.loss(larger_size, trained_targets * own_size / larger_size, unique_targets) > scale.law.loss(
        own_size, trained_targets, unique_targets
    ):
        return None
    return (
        f"the model is now too small: in {format_number(minutes)} minutes a new model with "
        f"{format_number(larger_size / own_size)} times the "
        "parameters would reach a lower loss"
    )


def _throughput_key(recipe: Recipe) -> str:
    """The settings that determine the throughput."""
    return repr((recipe.model, recipe.task))


def make_plans(
    recipe: Recipe, user_settings: Mapping[str, Any], minutes: Sequence[float], device: torch.device, spent: float
) -> list[Plan]:
    """A plan for each number of minutes; `spent` seconds have passed before the data is opened.

    The size of a generic recipe is planned for each number of minutes. For a recipe with a fixed size, or one that
    fine-tunes, only the steps are planned. With too few minutes, a plan has an error message; raises UserError if all
    are too few.
    """
    throughputs: dict[str, Throughput] = {}
    planned, first_error = [], None
    is_scalable = size_planner(recipe, user_settings, minutes[0], Clock(), device) is not None
    fixed_planner = None if is_scalable else _FixedSizePlanner(recipe, user_settings, minutes, device, spent)
    for duration in minutes:
        try:
            planned.append(
                _plan_scaled(recipe, user_settings, duration, device, spent, throughputs)
                if fixed_planner is None
                else fixed_planner.plan(duration)
            )
        except UserError as error:
            first_error = first_error or error
            planned.append(Plan(duration, (str(error),)))
    if first_error is not None and all(plan.steps is None for plan in planned):
        raise first_error
    return planned


def _plan_scaled(
    recipe: Recipe,
    user_settings: Mapping[str, Any],
    minutes: float,
    device: torch.device,
    spent: float,
    throughputs: dict[str, Throughput],
) -> Plan:
    planner = size_planner(recipe, user_settings, minutes, Clock(spent), device)
    assert planner is not None  # it is None for all numbers of minutes or for none
    planner.throughputs = throughputs
    with planner:
        return planner.plan()


class _FixedSizePlanner:
    """Plans for a recipe with a fixed size, its own or its start's, measured once."""

    def __init__(
        self,
        recipe: Recipe,
        user_settings: Mapping[str, Any],
        minutes: Sequence[float],
        device: torch.device,
        spent: float,
    ) -> None:
        clock, processes, scale = Clock(spent), Processes(device), scale_of(recipe.name)
        self.max_steps: int | None = None
        with TemporaryDirectory() as folder:
            if scale is not None and recipe.start is not None:
                tuning_arguments = scale, user_settings, min(minutes), Clock(), device, Path(folder)
                recipe, task, tuning_plan = _prepare_fine_tuning(recipe, *tuning_arguments)
                self.max_steps = None if _has_unlimited_steps(task, user_settings) else tuning_plan.useful
            else:
                task = open_new_task(recipe, Path(folder))
            try:
                adapted = task.adapt(recipe.model)
                self.recipe = replace(
                    recipe, model=adapted if recipe.start is None else keep_vocabulary(adapted, recipe.model)
                )
                model, fresh = outline(self.recipe.model), _new_parameters(self.recipe)
                self.parameters = describe(model)["parameters"]
                precision, _ = choose_precision(self.recipe.train.precision, model, device)
                check_memory(self.recipe, model, fresh, device)
                self.memory = sum(training_bytes(self.recipe, model).values())
                self.speed = measure_speed(
                    self.recipe, fresh, task, processes, precision, 60 * min(minutes), evaluate_final=True
                )
                self.batch = next(task.batches("train")).tokens * self.recipe.train.accumulate  # targets per step
                self.targets = None if scale is None else max(1, scale.unique_targets(task))
            finally:
                task.close()
        self.spent = clock.elapsed()

    def plan(self, minutes: float) -> Plan:
        recipe = plan_recipe(self.recipe, self.speed, 60 * minutes - self.spent, self.max_steps)
        width, layers = shape_of(recipe.model)
        steps = recipe.train.steps
        size_source = "the recipe" if recipe.start is None else recipe.start
        reasons = [f"the model size is fixed by {size_source}"]
        if self.max_steps is not None and steps == self.max_steps:
            reasons.append("more epochs do not improve the model")
        times = (
            f"a step takes {format_number(self.speed.step)} s, an evaluation {format_number(self.speed.evaluation)} s"
        )
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
