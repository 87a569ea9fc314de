"""Plans: the recipe and task that a run trains in the minutes, and what `hw.plan` reports without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from headway.errors import UserError
from headway.io.summary_card import SummaryCard, summary_repr
from headway.learn.distributed import Processes
from headway.learn.examples import OnPolicyExamples
from headway.learn.fine_tuning import keep_vocabulary, match_tensors, open_new_task, open_start
from headway.learn.formatting import format_number
from headway.learn.memory import check_memory, training_bytes
from headway.learn.plan.budget import plan_recipe
from headway.learn.plan.choose import scale_recipe
from headway.learn.plan.law import LossPredictor
from headway.learn.plan.measure import Clock, Throughput, measure_speed
from headway.learn.plan.scale import Scale, shape_of
from headway.learn.plan.tuning import tune_recipe
from headway.learn.precision import choose_precision
from headway.learn.recipe import Recipe
from headway.learn.task import Task
from headway.nn.models import describe, outline

_PATIENCE = 3  # evaluations without improvement
_PATIENCE_EPOCHS = 2.0  # epochs beyond which a run stops early


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


def loss_predictor(scale: Scale | None, recipe: Recipe) -> LossPredictor | None:
    """The function that predicts the final loss from an early evaluation; None for domains without one."""
    return None if scale is None or scale.descent is None or recipe.start is not None else scale.descent.forecast


def can_scale(recipe: Recipe, scale: Scale | None, user: Mapping[str, Any]) -> bool:
    """Whether a plan chooses the model size: not if it is set by the recipe, its start or the user."""
    return scale is not None and recipe.start is None and "model" not in user


def plan_run(
    recipe: Recipe,
    scale: Scale | None,
    user: Mapping[str, Any],
    minutes: float | None,
    clock: Clock,
    device: torch.device,
    directory: Path,
) -> TrainingSetup:
    """What to train in the folder `directory`. With `minutes` and a `scale`, a recipe is scaled, or batches and steps
    for fine-tuning its start are chosen; the settings that the `user` set stay.
    """
    if minutes is not None and scale is not None and recipe.start is not None:
        recipe, task, plan = tune_recipe(recipe, scale, user, minutes, clock, device, directory)
        # Other metrics are noisy on few samples, and one or two epochs do not overfit.
        patience = _PATIENCE if task.goal == "loss" and plan.epochs > _PATIENCE_EPOCHS else None
        return TrainingSetup(recipe, task, None if _has_unlimited_steps(task, user) else plan.useful, patience)
    if minutes is None or scale is None or not can_scale(recipe, scale, user):
        return TrainingSetup(recipe, open_new_task(recipe, directory))
    scaled = scale_recipe(recipe, scale, user, minutes, clock, device, opens_task=True)
    assert scaled.task is not None
    is_limited = scaled.plan.exhausted and not _has_unlimited_steps(scaled.task, user)
    return TrainingSetup(scaled.recipe, scaled.task, scaled.plan.steps if is_limited else None)


def _has_unlimited_steps(task: Task, user: Mapping[str, Any]) -> bool:
    """Whether steps have no upper limit: the user set their number, or the model generates its training data."""
    return "train.steps" in user or isinstance(task.examples, OnPolicyExamples)


def make_plans(
    recipe: Recipe,
    scale: Scale | None,
    user: Mapping[str, Any],
    minutes: Sequence[float],
    device: torch.device,
    spent: float,
) -> list[Plan]:
    """A plan for each number of minutes; `spent` seconds have passed before the data is opened.

    The size of a generic recipe is planned for each number of minutes. For a recipe with a fixed size, or one that
    fine-tunes, only the steps are planned. With too few minutes, a plan has an error message; raises UserError if all
    are too few.
    """
    if scale is not None and can_scale(recipe, scale, user):
        planner = partial(_scaled_plan, recipe, scale, user, device, spent, {})
    else:
        planner = _fixed_size_planner(recipe, scale, user, min(minutes), device, spent)
    plans, first_error = [], None
    for duration in minutes:
        try:
            plans.append(planner(duration))
        except UserError as error:
            first_error = first_error or error
            plans.append(Plan(duration, (str(error),)))
    if first_error is not None and all(plan.steps is None for plan in plans):
        raise first_error
    return plans


def _scaled_plan(
    recipe: Recipe,
    scale: Scale,
    user: Mapping[str, Any],
    device: torch.device,
    spent: float,
    known: dict[str, Throughput],
    minutes: float,
) -> Plan:
    """The plan for a size that is chosen for the minutes."""
    chosen, size_plan, _, unique = scale_recipe(recipe, scale, user, minutes, Clock(spent), device, known)
    width, layers = shape_of(chosen.model)
    model = outline(chosen.model)
    return Plan(
        minutes,
        chosen.reasons,
        describe(model)["parameters"],
        width,
        layers,
        size_plan.batch,
        size_plan.steps,
        size_plan.targets / max(1, unique),
        sum(training_bytes(chosen, model).values()),
    )


def _fixed_size_planner(
    recipe: Recipe,
    scale: Scale | None,
    user: Mapping[str, Any],
    min_minutes: float,
    device: torch.device,
    spent: float,
) -> Callable[[float], Plan]:
    """The function from minutes to plans of a recipe with a fixed size, its own or its start's. Measures once."""
    clock, processes, max_steps = Clock(spent), Processes(device), None
    with TemporaryDirectory() as folder:
        if scale is not None and recipe.start is not None:
            recipe, task, tuning = tune_recipe(recipe, scale, user, min_minutes, Clock(), device, Path(folder))
            max_steps = None if _has_unlimited_steps(task, user) else tuning.useful
        else:
            task = open_new_task(recipe, Path(folder))
        try:
            adapted = task.adapt(recipe.model)
            recipe = replace(recipe, model=adapted if recipe.start is None else keep_vocabulary(adapted, recipe.model))
            model, start, fresh = outline(recipe.model), recipe.start, ()
            if start is not None:
                fresh = match_tensors(model, open_start(start).model, start).fresh
            costs = describe(model)
            precision, _ = choose_precision(recipe.train.precision, model, device)
            check_memory(recipe, model, fresh, device)
            memory = sum(training_bytes(recipe, model).values())
            speed = measure_speed(recipe, fresh, task, processes, precision, 60 * min_minutes, evaluate_final=True)
            batch = next(task.batches("train")).tokens * recipe.train.accumulate  # targets per step
            unique = None if scale is None else max(1, scale.unique_targets(task))
        finally:
            task.close()
    elapsed = clock.elapsed()

    def plan(minutes: float) -> Plan:
        steps = plan_recipe(recipe, speed, 60 * minutes - elapsed, max_steps).train.steps
        reason = f"the model size is fixed by {'the recipe' if start is None else start}"
        if max_steps is not None and steps == max_steps:
            reason += "; more epochs do not improve the model"
        reason += f"; a step takes {format_number(speed.step)} s, an evaluation {format_number(speed.evaluation)} s"
        epochs = None if unique is None else steps * batch / unique
        return Plan(minutes, (reason,), costs["parameters"], *shape_of(recipe.model), batch, steps, epochs, memory)

    return plan
