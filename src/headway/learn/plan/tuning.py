"""Plan fine-tuning: learning rates, batches, layers and epochs for a model that has learnt before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from headway.learn.adapters import AdapterConfig
from headway.learn.distributed import Processes
from headway.learn.fine_tuning import keep_vocabulary, match_tensors, open_new_task, open_start
from headway.learn.formatting import format_number, format_seconds
from headway.learn.plan.choose import TRAINING_SHARE, active_parameters
from headway.learn.plan.measure import Clock, Throughput, measure_throughput
from headway.learn.plan.scale import Scale, Settings, shape_of, with_user_settings
from headway.learn.recipe import Recipe
from headway.learn.task import Task
from headway.nn.models import outline

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


def planned_epochs(samples: int) -> float:
    """The number of epochs planned at first: 40 for a few hundred samples, 6 for 10,000, 3 for 40,000 or more.
    Evaluations decide whether training continues.
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
    epochs = min(planned_epochs(samples), max_epochs)
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
            f"as many epochs of {samples:,} samples as fit in {format_seconds(seconds)}; "
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
    start = open_start(recipe.start).model
    recipe = with_user_settings(recipe, scale.tuning_settings(recipe), user)
    task, processes = open_new_task(recipe, directory), Processes(device)
    sized_recipe = with_user_settings(recipe, scale.tuning_data_settings(recipe, task), user)
    if sized_recipe != recipe:
        task.close()
        recipe, task = sized_recipe, open_new_task(sized_recipe, directory)
    samples, targets, batch_setting = task.count("train"), scale.unique_targets(task), scale.batch_setting
    adapted = replace(recipe, model=keep_vocabulary(task.adapt(recipe.model), recipe.model))
    model = outline(adapted.model)
    fresh = match_tensors(model, start, recipe.start or "").fresh
    pace = measure_throughput(adapted, model, task, processes, batch_setting, minutes, fresh)
    recipe, layer_reasons = _with_fewer_layers(recipe, user, start, task, targets, 60 * minutes * pace.targets)
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
    chosen = replace(with_user_settings(recipe, settings, user), reasons=(*layer_reasons, plan.reason))
    if chosen.train != recipe.train or layer_reasons:
        task.close()
        task = open_new_task(chosen, directory)
    return chosen, task, plan


def _with_fewer_layers(
    recipe: Recipe, user: Mapping[str, Any], start: nn.Module, task: Task, amount: int, trained_targets: float
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with only the layers of its `start` that the task needs, and the reasons. The model stays unchanged if
    the user set it, if it has an adapter (adapters load into the complete start), and if the time is too short:
    `trained_targets` is the number of targets that fit into the time, and `amount` the number in the data.
    """
    forward_targets = 3 * _LAYER_CHOICE_SHARE * trained_targets  # a forward pass takes a third of a step's time
    limit = min(
        int(forward_targets / 2 * task.count("train") / max(1, amount)), _MAX_PROBE_SAMPLES
    )  # samples, in each of training and validation
    if limit < _MIN_PROBE_SAMPLES or recipe.adapter is not None or any(key.split(".")[0] == "model" for key in user):
        return recipe, ()
    depth, layers = task.depth(start, limit), shape_of(recipe.model)[1]
    if depth is None or depth == layers:
        return recipe, ()
    reason = f"the first {depth} of {layers} layers: linear heads on later layers score worse on validation"
    return with_user_settings(recipe, {"model.depth": depth}, user), (reason,)
