"""Plans: the recipe and task that a run trains in the minutes, also for fine-tuning a model that has learnt before, and
what `hw.plan` reports without training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from headway.errors import UserError
from headway.io.summary_card import SummaryCard, summary_repr
from headway.learn.adapters import AdapterConfig
from headway.learn.examples import OnPolicyExamples
from headway.learn.fine_tuning import adapted_model, match_tensors, open_new_task, open_start
from headway.learn.formatting import format_number, format_seconds
from headway.learn.memory import check_memory, training_bytes
from headway.learn.objective import Baseline
from headway.learn.parallel.processes import Processes
from headway.learn.plan.budget import Clock, Throughput, measure_speed, measure_throughput, plan_recipe
from headway.learn.plan.choose import TRAINING_SHARE, active_parameters, scale_recipe
from headway.learn.plan.expected import ExpectedScore, format_score
from headway.learn.plan.scale import LossPredictor, Scale, Settings, shape_of, with_user_settings
from headway.learn.precision import choose_precision
from headway.learn.recipe import Recipe
from headway.learn.task import DataSummary, Task
from headway.nn.models import describe, outline

# The model whose learning rate was tuned: all-MiniLM-L6-v2 on the 77 intents in banking77.
_WIDTH, _BASE_RATE = 384, 4e-4
_MIN_RATE, _MAX_RATE = 1e-5, 3e-3  # minimum and maximum learning rate
# Learning rate for adapters: factor on the full model's rate, and maximum.
_ADAPTER_FACTOR, _MAX_ADAPTER_RATE = 10.0, 1e-2
_EPOCH_SCALE, _MIN_EPOCHS, _MAX_EPOCHS = 600.0, 3.0, 40.0
_MIN_VALIDATION = 50  # minimum validation samples for early stopping
FEW_VALIDATION_EPOCHS = 15.0  # maximum epochs if there are fewer validation samples than that, whatever the scores
_MANY_SAMPLES = 10_000  # with more samples than this, the learning rate no longer depends on their number
_MIN_BATCH, _MAX_BATCH = 8, 64  # minimum and maximum samples per batch
_MIN_STEPS = 300  # preferred minimum number of steps
_MIN_SEQUENCE_BATCH, _MIN_SEQUENCE_STEPS = 2, 1000  # the same for samples with several targets each
# Share of the time for fitting a head; how much faster a forward pass is than a step.
_HEAD_SHARE, _FORWARD_SPEEDUP = 0.25, 3
_LAYER_CHOICE_SHARE = 0.03  # share of the time for choosing the number of layers
_MIN_PROBE_SAMPLES, _MAX_PROBE_SAMPLES = 100, 500  # samples for choosing the number of layers


class TuningPlan(NamedTuple):
    """A fine-tuning plan: batch settings, steps, epochs, and the reason to show to people. `useful` is the initial
    number of steps that this amount of data justifies; `steps` is that number, or fewer if only fewer fit in the time.
    """

    settings: Settings
    useful: int
    steps: int
    epochs: float
    reason: str


def tuning_optimizer(width: int, adapter: AdapterConfig | None, factor: float = 1.0) -> Settings:
    """Optimiser and schedule for a model of this `width`, or for its adapter; `factor` scales the learning rate.

    The learning rate falls with the square of the width: 4e-4 at 384 (all-MiniLM-L6-v2, the recipe banking77), 1e-4 at
    768 (Devlin et al. 2019 try 2e-5 to 5e-5 with a schedule that decays from the start), and 1e-5 from 2,400 up, in
    line with the 1e-5 to 2e-5 commonly used for models with billions of parameters. Models of width 64 learn 50
    dialogues faster at 3e-3 than at 1e-3. Adapters use ten times the rate (Schulman et al. 2025, "LoRA without
    regret").
    """
    rate = min(max(_BASE_RATE * (_WIDTH / width) ** 2, _MIN_RATE), _MAX_RATE)
    if adapter is not None:
        rate = min(_ADAPTER_FACTOR * rate, _MAX_ADAPTER_RATE)
    rate = float(f"{factor * rate:.2g}")
    return {
        "optim": {"kind": "adamw", "lr": rate, "betas": [0.9, 0.98], "weight_decay": 0.01},
        "schedule": {"kind": "wsd", "warmup": 0.06, "decay": 0.8},
    }


def has_few_validation_samples(task: Task) -> bool:
    """Whether there are too few validation samples to decide how long to train a model whose head was fitted."""
    return task.objective.small_data_lr and task.count("validation") < _MIN_VALIDATION


def tuning_epochs(samples: int) -> float:
    """Epochs of fine-tuning: 40 for a few hundred samples, 6 for 10,000, 3 for 40,000 or more; evaluations decide when
    to end.
    """
    return min(max(_EPOCH_SCALE / math.sqrt(max(1, samples)), _MIN_EPOCHS), _MAX_EPOCHS)


def plan_tuning(
    samples: int,
    targets: int,
    pace: Throughput,
    seconds: float,
    batch_setting: str,
    min_batch: int = 1,
    own_batch: int | None = None,
    max_samples: int = _MAX_BATCH,
    max_epochs: float = _MAX_EPOCHS,
) -> TuningPlan:
    """The plan for fine-tuning for `seconds` at a measured `pace`, on `samples` samples with `targets` targets in
    total.

    `batch_setting` is the recipe's batch size setting, `min_batch` its minimum (one row of tokens), `own_batch` the
    user's value, `max_samples` the maximum samples per batch, and `max_epochs` the maximum number of epochs. Batches
    are large enough to be efficient and small enough to allow a few hundred steps.
    """
    targets_per_sample = targets / max(1, samples)
    epochs = min(tuning_epochs(samples), max_epochs)
    min_samples, min_steps = (
        (_MIN_SEQUENCE_BATCH, _MIN_SEQUENCE_STEPS) if targets_per_sample > 2 else (_MIN_BATCH, _MIN_STEPS)
    )
    batch_samples = min(max(samples * epochs / min_steps, min_samples), max_samples)
    units = own_batch or max(
        min_batch, 2 ** round(math.log2(max(1.0, batch_samples * targets_per_sample / pace.share)))
    )
    step_targets = units * pace.share  # targets per step
    useful = max(1, math.ceil(epochs * targets / step_targets))
    steps = max(1, min(useful, int(seconds / (pace.overhead + step_targets / pace.targets))))
    epochs_read = steps * step_targets / max(1, targets)
    data_limited = steps == useful
    reason = (
        f"{format_number(epochs)} epochs of {samples:,} samples, and more while validation improves"
        if data_limited
        else (
            f"as many epochs of {samples:,} samples as fit in {format_seconds(max(0.0, seconds))}; "
            f"{format_number(epochs)} would be better"
        )
    )
    return TuningPlan({batch_setting: units}, useful, steps, epochs_read, reason)


def tune_recipe(
    recipe: Recipe,
    scale: Scale,
    user: Mapping[str, Any],
    minutes: float,
    clock: Clock,
    device: torch.device,
    directory: Path,
) -> tuple[Recipe, Task, TuningPlan]:
    """A generic recipe for fine-tuning its start, with batches for the samples and the time, its task, and the plan."""
    assert recipe.start is not None
    start = open_start(recipe.start, recipe.adapter, recipe.task.start_part).model
    recipe = with_user_settings(recipe, scale.tuning_settings(recipe), user)
    task, processes = open_new_task(recipe, directory), Processes(device)
    sized_recipe = with_user_settings(recipe, scale.tuning_data_settings(recipe, task), user)
    if sized_recipe != recipe:
        task.close()
        recipe, task = sized_recipe, open_new_task(sized_recipe, directory)
    samples, targets, batch_setting = task.count("train"), scale.unique_targets(task), scale.batch_setting
    adapted = replace(recipe, model=adapted_model(recipe, task))
    model = outline(adapted.model)
    fresh = match_tensors(model, start, recipe.start or "").fresh
    pace = measure_throughput(adapted, model, task, processes, batch_setting, minutes, fresh)
    # Keep only the layers that the task needs, unless the user set the model or the time is too short to choose. An
    # adapter loads into the complete start. A forward pass takes a third of a step's time.
    reasons: tuple[str, ...] = ()
    forward_targets = 3 * _LAYER_CHOICE_SHARE * 60 * minutes * pace.targets
    limit = min(int(forward_targets / 2 * samples / max(1, targets)), _MAX_PROBE_SAMPLES)  # training or validation
    sets_model = any(key.split(".")[0] == "model" for key in user)
    if limit >= _MIN_PROBE_SAMPLES and recipe.adapter is None and not sets_model:
        depth, layers = task.objective.depth(start, task.examples, limit), shape_of(recipe.model)[1]
        if depth is not None and depth != layers:
            recipe = with_user_settings(recipe, {"model.depth": depth}, user)
            reasons = (f"the first {depth} of {layers} layers: linear heads on later layers score worse on validation",)
    speedup = active_parameters(adapted.model) / active_parameters(task.adapt(recipe.model))
    pace = pace._replace(targets=pace.targets * speedup)
    seconds = processes.broadcast_object(TRAINING_SHARE * 60 * minutes - clock.elapsed())
    row = recipe.task.context or 1 if batch_setting == "train.batch_tokens" else 1
    user_batch = getattr(recipe.train, batch_setting.removeprefix("train.")) if batch_setting in user else None
    max_epochs = FEW_VALIDATION_EPOCHS if has_few_validation_samples(task) else math.inf
    plan = plan_tuning(
        samples, targets, pace, seconds, batch_setting, row, user_batch, scale.max_tuning_batch, max_epochs
    )
    settings = dict(plan.settings)
    if task.objective.small_data_lr and recipe.train.linear_probe:
        # The head is fitted before the first step. Fewer samples allow fewer steps, and a large learning rate then only
        # destroys pretrained features, so below 10,000 samples it falls with the square root of their number (tested
        # with all-MiniLM-L6-v2 on 64 to 150 intents with 3 to 30 texts each: docs/decisions/0025).
        settings["optim.lr"] = float(f"{recipe.optim.lr * min(1.0, math.sqrt(samples / _MANY_SAMPLES)):.2g}")
        head_samples = int(_HEAD_SHARE * seconds * _FORWARD_SPEEDUP * pace.targets * samples / max(1, targets))
        settings["train.linear_probe"] = max(recipe.train.linear_probe, min(head_samples, samples))
    all_reasons = (*recipe.reasons, *reasons, plan.reason)
    chosen = replace(with_user_settings(recipe, settings, user), reasons=all_reasons)
    if chosen.train != recipe.train or reasons:
        task.close()
        task = open_new_task(chosen, directory)
    return chosen, task, plan


_PATIENCE = 3  # evaluations without improvement
_PATIENCE_EPOCHS = 2.0  # epochs beyond which a run stops early


class TrainingSetup(NamedTuple):
    """A complete recipe, its task over the data, the initial maximum steps for this amount of data, and the number of
    evaluations without improvement after which the run stops early, and the expected score.
    """

    recipe: Recipe
    task: Task
    max_steps: int | None = None
    patience: int | None = None
    expected: ExpectedScore | None = None


@summary_repr
class Plan(NamedTuple):
    """A run's plan for a number of minutes: the model's parameters, width and layers, `batch` tokens or samples
    per step, steps, `epochs` (None: unknown), bytes of memory for the training state, the reasons, a summary of the
    data, and the chosen `settings`, with which `train` has this size whatever it measures. If the minutes are too few
    to learn anything, only `reasons` is set. `expected` is the expected score, if it can be predicted.
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
    data: DataSummary | None = None
    settings: Settings | None = None
    expected: ExpectedScore | None = None

    def card(self) -> SummaryCard:
        """A summary of the sizes, with a table of reasons."""
        facts = {name: getattr(self, name) for name in ("parameters", "width", "layers", "batch", "steps", "epochs")}
        memory = None if self.memory is None else f"{self.memory / 2**20:,.0f} MiB"
        expected = None if self.expected is None else format_score(self.expected.metric, self.expected.score)
        refused = self.reasons[0] if self.steps is None and self.reasons else None
        facts |= {"memory": memory, "expected score": expected, "refused because": refused}
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
        max_steps = None if isinstance(task.examples, OnPolicyExamples) else plan.useful
        return TrainingSetup(recipe, task, max_steps, patience)
    if minutes is None or scale is None or not can_scale(recipe, scale, user):
        return TrainingSetup(recipe, open_new_task(recipe, directory))
    scaled = scale_recipe(recipe, scale, user, minutes, clock, device, opens_task=True)
    assert scaled.task is not None
    # A model that makes its training data always has new samples.
    is_limited = scaled.plan.exhausted and not isinstance(scaled.task.examples, OnPolicyExamples)
    max_steps = scaled.plan.steps if is_limited else None
    return TrainingSetup(scaled.recipe, scaled.task, max_steps, expected=scaled.expected)


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
        known: dict[str, Throughput] = {}
        baselines: dict[tuple[str, int], Baseline | None] = {}

        def scaled_plan(duration: float) -> Plan:
            chosen, size, _, unique, data, settings, expected = scale_recipe(
                recipe, scale, user, duration, Clock(spent), device, known, baselines=baselines
            )
            model = outline(chosen.model)
            shape, memory = shape_of(chosen.model), sum(training_bytes(chosen, model).values())
            amounts = size.batch, size.steps, size.targets / max(1, unique), memory
            parameters = describe(model)["parameters"]
            return Plan(duration, chosen.reasons, parameters, *shape, *amounts, data, settings, expected)

        planner: Callable[[float], Plan] = scaled_plan
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


def _fixed_size_planner(
    recipe: Recipe, scale: Scale | None, user: Mapping[str, Any], min_minutes: float, device: torch.device, spent: float
) -> Callable[[float], Plan]:
    """The function from minutes to plans of a recipe with a fixed size, its own or its start's. Measures once."""
    clock, processes = Clock(spent), Processes(device)
    with TemporaryDirectory() as folder:
        recipe, task, max_steps, *_ = plan_run(recipe, scale, user, min_minutes, Clock(), device, Path(folder))
        try:
            recipe = replace(recipe, model=adapted_model(recipe, task))
            model, start, fresh = outline(recipe.model), recipe.start, ()
            if start is not None:
                pretrained = open_start(start, recipe.adapter, recipe.task.start_part).model
                fresh = match_tensors(model, pretrained, start).fresh
            costs = describe(model)
            precision, _ = choose_precision(recipe.train.precision, model, device)
            memory = check_memory(recipe, model, fresh, device)
            speed = measure_speed(recipe, fresh, task, processes, precision, 60 * min_minutes, evaluate_final=True)
            batch = next(task.batches("train")).tokens * recipe.train.accumulate  # targets per step
            unique = None if scale is None else max(1, scale.unique_targets(task))
            data = DataSummary.of(task, unique or task.count("train"))
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
        return Plan(
            minutes, (reason,), costs["parameters"], *shape_of(recipe.model), batch, steps, epochs, memory, data
        )

    return plan
