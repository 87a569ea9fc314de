"""Choose the size of a generic recipe for the data, the minutes and the machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import nn

from headway.config import applicable
from headway.data.array_store import build_deadline
from headway.errors import ConfigError, UserError
from headway.learn.formatting import format_count, format_number
from headway.learn.objective import Baseline
from headway.learn.parallel.processes import Processes
from headway.learn.plan.budget import Clock, Throughput, measure_throughput
from headway.learn.plan.expected import ExpectedScore, Facts, expected_score, kind_of, references
from headway.learn.plan.scale import Scale, Settings, overlaps, shape_of, with_user_settings, without_user_settings
from headway.learn.recipe import Recipe, open_task
from headway.learn.task import DataSummary, Task
from headway.nn.models import ModelConfig, describe, outline

TRAINING_SHARE = 0.94  # share of the minutes for training; the rest is for evaluations, also at the end
_BATCH_SETTINGS = ("train.batch_tokens", "train.batch_size", "train.accumulate")
_MAX_REPEATS = 6  # maximum epochs, in multiples of `ScalingLaw.repeats`
_MIN_STEPS_FACTOR = 4  # minimum steps in a plan limited by the data, in multiples of `Scale.min_steps`
_MIN_READ_SECONDS = 10.0  # minimum seconds for reading data, so that an error can name enough minutes
_BUSY_FACTOR = 4  # how much slower than planned a machine may be
_BASELINE_RATE = 400  # training samples per minute for a quick classical method, within these limits:
_MIN_BASELINE_SAMPLES, _MAX_BASELINE_SAMPLES = 200, 2000
_MIN_RATED = 20  # validation samples below which chance decides the rate of a classical method
_LONGER_FACTOR = 12  # multiple of the minutes for which a plan also reports the best size


class LadderSize(NamedTuple):
    """A candidate size, with its settings (without the user's) and its recipe. `parameters` counts the active
    parameters per target, `size` all of them.
    """

    settings: Settings
    recipe: Recipe
    parameters: int
    size: int


class SizePlan(NamedTuple):
    """The plan for training a candidate size in the available time: the number of targets, `batch` units per batch, the
    predicted loss, and whether the data are `exhausted` before the time is up.
    """

    settings: Settings
    model: ModelConfig
    parameters: int
    size: int
    pace: Throughput
    batch: int
    targets: float
    loss: float
    exhausted: bool = False

    @property
    def steps(self) -> int:
        return int(self.targets / (self.batch * self.pace.share))


class ScaledRecipe(NamedTuple):
    """A recipe scaled to the data and the time, the plan of its size, its task if that was left open, the number of
    unique training targets, a summary of the data, the chosen settings (with them as the user's, a run has the same
    size), and the expected score, if it can be predicted.
    """

    recipe: Recipe
    plan: SizePlan
    task: Task | None
    unique_targets: int
    data: DataSummary
    settings: Settings
    expected: ExpectedScore | None = None


def ladder(recipe: Recipe, scale: Scale, user: Settings) -> list[LadderSize]:
    """The distinct candidate sizes under the user's settings, from small to large, without sizes whose heads do not
    divide the user's width. Raises ConfigError if no size is left.
    """
    candidates: list[LadderSize] = []
    errors: list[ConfigError] = []
    for settings in scale.sizes():
        sized_recipe = with_user_settings(recipe, settings, user)
        if any(sized_recipe.model == candidate.recipe.model for candidate in candidates):
            continue
        try:
            costs = describe(sized_recipe.model)
        except ConfigError as error:
            errors.append(error)
            continue
        own_settings, parameters = without_user_settings(settings, user), max(1, costs["flop_per_token"] // 2)
        candidates.append(LadderSize(own_settings, sized_recipe, parameters, costs["parameters"]))
    if not candidates:
        raise errors[0]
    return candidates


def choose_size(
    recipe: Recipe, scale: Scale, user: Settings, unique: int, seconds: float, pace: Callable[[Recipe], Throughput]
) -> tuple[SizePlan, list[SizePlan]]:
    """The size with the lowest predicted loss after `seconds` of training on `unique` targets, and all sizes
    considered.

    Sizes are tried in ascending order while the loss falls. Raises UserError if even the smallest learns nothing in the
    time.
    """
    plans: list[SizePlan] = []
    own_batch = any(overlaps(name, user) for name in _BATCH_SETTINGS)
    candidates = ladder(recipe, scale, user)
    for candidate in candidates:
        if plans and (plans[-1].steps < scale.min_steps or (len(plans) > 1 and plans[-1].loss > plans[-2].loss)):
            break
        # A batch of B targets takes t = o + B / p seconds, where o is the optimiser's time. With what it is worth
        # (`Scale.critical_batch`), the best batch size is B = sqrt(o p B'), or the measured one if the user has set it.
        # A batch has at most one epoch.
        measured = pace(candidate.recipe)
        targets = max(seconds, 0.0) * measured.targets
        if own_batch:
            batch, measured = max(1, round(measured.step)), measured._replace(share=1.0)
        else:
            critical_batch = scale.critical_batch(targets)
            best_batch = math.sqrt(max(measured.overhead * measured.targets, 1.0) * critical_batch) / measured.share
            max_batch = min(scale.max_batch, max(1, int(unique / measured.share)))
            nearest_power, largest = 2 ** round(math.log2(max(best_batch, 1.0))), 2 ** int(math.log2(max_batch))
            counts_samples = scale.batch_setting == "train.batch_size"  # otherwise a batch has at least one row
            min_batch = min(scale.min_batch, largest) if counts_samples else scale.min_batch
            batch = max(min_batch, min(nearest_power, largest))
        step = batch * measured.share  # targets per step
        targets = max(seconds, 0.0) * step / (measured.overhead + step / measured.targets)
        loss = scale.law.loss(candidate.parameters, targets / (1 + step / scale.critical_batch(targets)), unique)
        # The number of epochs is limited to what still improves the model.
        max_targets = max(_MAX_REPEATS * scale.law.repeats * unique, _MIN_STEPS_FACTOR * scale.min_steps * step)
        size = candidate.settings, candidate.recipe.model, candidate.parameters, candidate.size
        plans.append(SizePlan(*size, measured, batch, min(targets, max_targets), loss, targets > max_targets))
    best = min(plans, key=lambda plan: plan.loss)
    # A size and batch that an earlier plan chose are kept on a machine that is busier now.
    min_steps = scale.min_steps // _BUSY_FACTOR if own_batch and len(candidates) == 1 else scale.min_steps
    if best.steps < min_steps:
        needed_seconds = min_steps * (best.pace.overhead + best.batch * best.pace.share / best.pace.targets)
        description = "a model of this size" if len(candidates) == 1 else "the smallest model"
        raise UserError(
            f"only {max(seconds, 0):.0f} s are left for training, and {description} can take only {best.steps} steps; "
            f"increase --minutes by {format_number(max(0.1, (needed_seconds - seconds) / 60))}"
        )
    return best, plans


def size_settings(recipe: Recipe, plan: SizePlan, scale: Scale, unique: int, user: Settings) -> Settings:
    """The settings of a planned size, with its batch size, learning rates and regularisation."""
    sized_recipe = with_user_settings(recipe, plan.settings, user)
    width, depth = shape_of(sized_recipe.model)
    return {
        **plan.settings,
        scale.batch_setting: plan.batch,
        **scale.regularise(sized_recipe, plan.targets / max(1, unique), plan.parameters / max(1, unique)),
        **scale.learning_rates(recipe, width, depth),
    }


def active_parameters(model: nn.Module | ModelConfig) -> int:
    """The active parameters per target: half of the floating-point operations in a forward pass."""
    return max(1, describe(model)["flop_per_token"] // 2)


def scale_recipe(
    recipe: Recipe,
    scale: Scale,
    user: Mapping[str, Any],
    minutes: float,
    clock: Clock,
    device: torch.device,
    known: dict[str, Throughput] | None = None,
    opens_task: bool = False,
    baselines: dict[tuple[str, int], Baseline | None] | None = None,
) -> ScaledRecipe:
    """The recipe with the size of the lowest predicted loss after `minutes`, and its batches, learning rates and
    regularisation. The `user` settings stay fixed. With `opens_task`, its task is left open.

    `known` are the throughputs measured so far, and `baselines` the scores of classical methods; new ones are added.
    Raises UserError for a recipe that cannot be
    trained.
    """
    processes, known = Processes(device), {} if known is None else known
    data_settings = scale.data_settings(recipe, recipe.files(list(map(Path, recipe.data))), minutes)
    recipe = with_user_settings(recipe, data_settings.settings, user)
    with TemporaryDirectory() as folder:
        with build_deadline(max(_MIN_READ_SECONDS, 60 * minutes - clock.elapsed())):
            task = open_task(recipe, Path(folder))
        kept_task = None
        try:
            task.save(Path(folder))
            recipe = replace(recipe, model=task.adapt(recipe.model))
            unique = scale.unique_targets(task)
            data = DataSummary.of(task, unique)

            def pace(sized: Recipe) -> Throughput:
                key = repr((sized.model, sized.task))
                if key not in known:
                    outlined = outline(sized.model)
                    known[key] = measure_throughput(sized, outlined, task, processes, scale.batch_setting, minutes)
                return known[key]

            def extrapolated_pace(sized: Recipe) -> Throughput:
                cost = active_parameters(sized.model) / plans[-1].parameters
                measured = plans[-1].pace
                estimate = Throughput(measured.targets / cost, measured.overhead * cost, measured.share)
                return known.get(repr((sized.model, sized.task)), estimate)

            expected, lines = _expectation(recipe, task, minutes, baselines)
            values, lines = processes.broadcast_object([None if expected is None else list(expected), lines])
            expected = None if values is None else ExpectedScore(*values)
            seconds = processes.broadcast_object(TRAINING_SHARE * 60 * minutes - clock.elapsed())
            best, plans = choose_size(recipe, scale, user, unique, seconds, pace)
            larger = None  # the size that would be better with more time
            if scale.calibrated:
                longer = processes.broadcast_object(TRAINING_SHARE * 60 * (_LONGER_FACTOR * minutes) - clock.elapsed())
                larger = choose_size(recipe, scale, user, unique, longer, extrapolated_pace)[0].size
            reasons = (*_reasons(best, plans, scale, data_settings.reason, larger), *lines)
            sized = size_settings(recipe, best, scale, unique, user)
            chosen = replace(with_user_settings(recipe, sized, user), reasons=reasons)
            settings = without_user_settings({**data_settings.settings, **sized}, user)
            if opens_task:
                batches = (chosen.train.batch_tokens, chosen.train.batch_size)
                is_same = chosen.task == recipe.task and batches == (recipe.train.batch_tokens, recipe.train.batch_size)
                kept_task = task if is_same else open_task(chosen, Path(folder))  # reuses the codec
        finally:
            if task is not kept_task:
                task.close()
    return ScaledRecipe(chosen, best, kept_task, unique, data, applicable(recipe, settings, user), expected)


def _expectation(
    recipe: Recipe, task: Task, minutes: float, baselines: dict[tuple[str, int], Baseline | None] | None
) -> tuple[ExpectedScore | None, list[str]]:
    """The expected score after the minutes, if there are references for the recipe and enough validation samples, and
    lines for people.
    """
    if all(reference.facts.recipe != recipe.name for reference in references()):
        return None, []
    limit = min(_MAX_BASELINE_SAMPLES, max(_MIN_BASELINE_SAMPLES, int(_BASELINE_RATE * minutes)))
    baselines, key = {} if baselines is None else baselines, (repr(recipe.task), limit)
    if key not in baselines:
        baselines[key] = task.objective.baseline(task.examples, limit)
    baseline = baselines[key]
    if baseline is not None and kind_of(baseline.metric) == "rate" and task.count("validation") < _MIN_RATED:
        return None, []
    train, validation, tested = (task.count(split) for split in ("train", "validation", task.final_split))
    facts = Facts(recipe.name, minutes, train, baseline, (validation, tested))
    expected = expected_score(facts, references())
    return expected, [] if expected is None else expected.lines(baseline, task.final_split)


def _reasons(
    choice: SizePlan, plans: Sequence[SizePlan], scale: Scale, data_reason: str, larger: int | None
) -> tuple[str, ...]:
    """Why this size was chosen, for people; `larger` is the best size with more time."""
    width, depth = shape_of(choice.model)
    batch = f"{choice.batch:,} {'tokens' if scale.batch_setting.endswith('tokens') else 'samples'}"
    layers = "1 layer" if depth == 1 else f"{depth} layers"
    growth = "; trains longer while validation improves" if choice.exhausted else ""
    reasons = [data_reason] if data_reason else []
    reasons.append(f"{format_count(choice.size)} parameters (width {width}, {layers}), batches of {batch}{growth}")
    others = {format_count(plan.size): plan.loss - choice.loss for plan in plans if plan is not choice}
    if scale.calibrated and others:
        gaps = [f"{f'{gap:.2f}' if gap >= 0.01 else 'under 0.01'} more for {size}" for size, gap in others.items()]
        reasons.append(f"lowest predicted loss of {len(plans)} sizes: {', '.join(gaps)} parameters")
    if larger is not None and larger > 1.2 * choice.size:
        reasons.append(f"with {_LONGER_FACTOR} times the minutes, {larger:,} parameters would be better")
    return tuple(reasons)


def outgrown_message(recipe: Recipe, scale: Scale | None, task: Task, targets: int, minutes: float) -> str | None:
    """A message if a run has continued for so long that a larger model would have reached a lower loss in that time;
    otherwise None.
    """
    if scale is None or not scale.calibrated or recipe.start is not None:
        return None
    unique, own_size = scale.unique_targets(task), active_parameters(recipe.model)
    sizes = {active_parameters(task.adapt(rung.recipe.model)) for rung in ladder(recipe, scale, {})}
    larger_size = min((size for size in sizes if size > 1.2 * own_size), default=None)
    if larger_size is None:
        return None
    larger_loss = scale.law.loss(larger_size, targets * own_size / larger_size, unique)
    if larger_loss > scale.law.loss(own_size, targets, unique):
        return None
    return (
        f"the model is now too small: in {format_number(minutes)} minutes a new model with "
        f"{format_number(larger_size / own_size)} times the parameters would reach a lower loss"
    )
