"""Auto-scaling for generic recipes: choose size, batch and learning rates for the data, the minutes and the machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import nn

from headway.config import applicable, override
from headway.errors import ConfigError, UserError
from headway.learn.loss_forecast import Descent
from headway.learn.optim import MuonConfig
from headway.learn.recipe import Recipe
from headway.learn.task import Task
from headway.nn.models import (
    ActConfig,
    CaptionerConfig,
    EncoderDecoderConfig,
    ModelConfig,
    TransformerConfig,
    TwoTowerConfig,
    describe,
)


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = floor + size N^-alpha + data D'^-beta in nats per target, for N active parameters and D targets
    (Hoffmann et al. 2022, equation 2), of which `unique` are distinct.

    Repeated data are worth less in each epoch (Muennighoff et al. 2023, equation 5): after U unique targets and R
    further epochs, D' = U + U r (1 - exp(-R / r)), where r is `repeats`. Parameters beyond those that U targets can
    train lose value in the same way, with `excess`. The defaults use the papers' exponents, which also hold far below
    the papers' model sizes, and the papers' ratio of `size` to `data`. With a seventh of both, the law fits within 0.03
    for models with 0.3 to 1 million parameters trained on a 3 MB novel for two and four core-minutes
    (benchmarks/results/budget.json). The terms differ between datasets, so only differences between sizes matter here.
    """

    floor: float = 2.0
    size: float = 61.0
    alpha: float = 0.34
    data: float = 62.0
    beta: float = 0.28
    repeats: float = 15.39
    excess: float = 5.31

    def loss(self, parameters: float, targets: float, unique: float) -> float:
        """The loss after `targets` training targets, of which `unique` are distinct; infinite for 0."""
        if targets <= 0 or unique <= 0:
            return math.inf
        unique_seen = min(targets, unique)
        effective_targets = _with_diminishing_returns(unique_seen, targets / unique_seen - 1, self.repeats)
        useful_parameters = min(parameters, self.optimal_parameters(unique_seen))
        effective_parameters = _with_diminishing_returns(
            useful_parameters, parameters / useful_parameters - 1, self.excess
        )
        return self.floor + self.size * effective_parameters**-self.alpha + self.data * effective_targets**-self.beta

    def optimal_parameters(self, targets: float) -> float:
        """The compute-optimal number of parameters for a number of targets."""
        return (self.alpha * self.size / (self.beta * self.data)) ** (1 / self.alpha) * targets ** (
            self.beta / self.alpha
        )


def _with_diminishing_returns(first: float, repetitions: float, limit: float) -> float:
    """`first` plus its `repetitions`, whose diminishing value adds up to at most `limit` times `first`."""
    return first * (1 + limit * (1 - math.exp(-repetitions / limit)))


Settings = Mapping[str, Any]
Shapes = Sequence[tuple[int, int | list[int], int]]  # width, depth (per stack if there are several), heads
T = TypeVar("T")

_WIDTH, _DEPTH = 128, 4  # width and depth of the models for which learning rates were tuned
_BATCH_SETTINGS = ("train.batch_tokens", "train.batch_size", "train.accumulate")
_MAX_REPEATS = 6  # maximum epochs, in multiples of `ScalingLaw.repeats`
_MIN_STEPS_FACTOR = 4  # minimum steps in a plan limited by the data, in multiples of `Scale.min_steps`


class DataSettings(NamedTuple):
    """Settings that depend on the data but are needed before the data are opened, with a short reason."""

    settings: Settings
    reason: str = ""


class Throughput(NamedTuple):
    """A model's training speed on this machine: targets per second, and the fixed seconds per step (the optimiser's). A
    batch has `share` targets per unit of its size, for example 0.5 if only half of its tokens are predicted. The
    measured steps had `step` targets each.
    """

    targets: float
    overhead: float
    share: float = 1.0
    step: float = 1.0


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


@dataclass(frozen=True)
class Scale:
    """How a generic recipe scales. Each domain lists one for each recipe name in `scale.SCALES`.

    `law` predicts losses by size; its losses appear in the reasons only if it is `calibrated` on runs in the domain.
    `descent`, if it was fitted for the domain, predicts final losses from early evaluations.

    `batch_setting` is the setting for the batch size, which is between `min_batch` and `max_batch`. The critical batch
    size in targets is `noise_scale` times the square root of the number of targets (McCandlish et al. 2018; the square
    root is from Bergsma et al. 2025). `unit` is what `unique_targets` counts, for people. A model needs at least
    `min_steps` steps to learn anything. Fine-tuning uses batches of at most `max_tuning_batch` samples and
    `tuning_lr_factor` times the usual learning rate. `shapes` lists widths, depths and heads, from small to large.
    """

    law: ScalingLaw = field(default_factory=ScalingLaw)
    batch_setting: str = "train.batch_tokens"
    min_batch: int = 512
    max_batch: int = 16384
    noise_scale: float = 8.0
    unit: str = "token"
    calibrated: bool = False
    descent: Descent | None = None
    min_steps: int = 60
    max_tuning_batch: int = 64
    shapes: Shapes = ()
    tuning_lr_factor: float = 1.0

    def data_settings(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> DataSettings:
        """Settings that are needed before the data are opened: vocabulary size, row length, image size, split sizes."""
        return DataSettings({})

    def tuning_data_settings(self, recipe: Recipe, task: Task) -> Settings:
        """Settings for a fine-tuning run that depend on the opened data: row length, split sizes."""
        return {}

    def tuning_settings(self, recipe: Recipe) -> Settings:
        """Further settings for a fine-tuning run."""
        return {}

    def sizes(self, recipe: Recipe) -> Sequence[Settings]:
        """Model settings, from small to large."""
        return [
            {"model.width": width, "model.depth": depth, "model.heads": heads} for width, depth, heads in self.shapes
        ]

    def unique_targets(self, task: Task) -> int:
        """The number of unique training targets: tokens or samples."""
        return task.count("train")

    def regularisation(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        """Regularisation that prevents memorisation over this many epochs; `crowd` is the number of parameters per
        unique target.
        """
        return {}

    def learning_rates(self, recipe: Recipe, width: int, depth: int, batch: int) -> Settings:
        """The learning rates for a size.

        Muon's steps have a fixed spectral norm, so its learning rate transfers across widths (Yang et al. 2023). Sums
        over layers grow with the square root of the depth, so steps shrink by that factor. The head's learning rate
        falls with the width that it sums over. All were tuned at width 128, with 4 layers and each recipe's own batch
        size.
        """
        optim = recipe.optim
        if not isinstance(optim, MuonConfig):
            return {"optim.lr": optim.lr * _WIDTH / width}
        depth_factor = math.sqrt(_DEPTH / depth)
        return {"optim.lr": optim.lr * depth_factor, "optim.head_lr": optim.adam_lr * _WIDTH / width}

    def held_out_shares(self, samples: int, limit: int = 1000) -> Settings:
        """Held-out fractions for a number of samples: 5 %, at most `limit` samples, and a larger fraction if there are
        few.
        """
        fraction = min(max(0.05, min(0.2, 100 / max(1, samples))), limit / max(1, samples))
        return {"task.split.validation": round(fraction, 6), "task.split.test": round(fraction, 6)}


def lookup(table: Sequence[tuple[float, T]], number: float) -> T:
    """The value for the first limit above a number, in a table whose last limit is infinite."""
    return next(value for limit, value in table if number < limit)


def memorisation_pressure(epochs: float, crowd: float) -> float:
    """Epochs weighted by the capacity to memorise, because small models forget most of their training data."""
    return epochs * min(1.0, crowd)


def without_user_settings(settings: Settings, user: Collection[str]) -> dict[str, Any]:
    """Settings without those that the user has set directly, in part, or as part of a larger setting (`optim`)."""
    return {key: value for key, value in settings.items() if not any(_overlaps(key, user_key) for user_key in user)}


def _overlaps(key: str, user_key: str) -> bool:
    return key == user_key or key.startswith(user_key + ".") or user_key.startswith(key + ".")


def with_user_settings(recipe: Recipe, settings: Settings, user: Settings) -> Recipe:
    """`recipe` with the chosen settings that apply to it, overridden by the user's."""
    return override(recipe, {**applicable(recipe, without_user_settings(settings, user), user), **user})


def ladder(recipe: Recipe, scale: Scale, user: Settings) -> list[LadderSize]:
    """The distinct candidate sizes under the user's settings, from small to large, without sizes whose heads do not
    divide the user's width. Raises ConfigError if no size is left.
    """
    candidates: list[LadderSize] = []
    errors: list[ConfigError] = []
    for settings in scale.sizes(recipe):
        sized_recipe = with_user_settings(recipe, settings, user)
        if any(sized_recipe.model == candidate.recipe.model for candidate in candidates):
            continue
        try:
            costs = describe(sized_recipe.model)
            candidates.append(
                LadderSize(
                    without_user_settings(settings, user),
                    sized_recipe,
                    max(1, costs["flop_per_token"] // 2),
                    costs["parameters"],
                )
            )
        except ConfigError as error:
            errors.append(error)
    if not candidates:
        raise errors[0]
    return candidates


def choose_size(
    recipe: Recipe,
    scale: Scale,
    user: Settings,
    unique: int,
    seconds: float,
    pace: Callable[[Recipe], Throughput],
) -> tuple[SizePlan, list[SizePlan]]:
    """The size with the lowest predicted loss after `seconds` of training on `unique` targets, and all sizes
    considered.

    Sizes are tried in ascending order while the loss falls. Raises UserError if even the smallest learns nothing in the
    time.
    """
    plans: list[SizePlan] = []
    own_batch = any(_overlaps(name, key) for name in _BATCH_SETTINGS for key in user)
    candidates = ladder(recipe, scale, user)
    for candidate in candidates:
        if plans and (plans[-1].steps < scale.min_steps or (len(plans) > 1 and plans[-1].loss > plans[-2].loss)):
            break
        plans.append(plan_size(candidate, scale, unique, seconds, pace(candidate.recipe), own_batch))
    best = min(plans, key=lambda plan: plan.loss)
    if best.steps < scale.min_steps:
        needed_seconds = scale.min_steps * (best.pace.overhead + best.batch * best.pace.share / best.pace.targets)
        description = "a model of this size" if len(candidates) == 1 else "the smallest model"
        raise UserError(
            f"only {max(seconds, 0):.0f} s are left for training, and {description} can take only {best.steps} steps; "
            f"increase --minutes by {format_number(max(0.1, (needed_seconds - seconds) / 60))}"
        )
    return best, plans


def plan_size(
    candidate: LadderSize, scale: Scale, unique: int, seconds: float, pace: Throughput, own_batch: bool = False
) -> SizePlan:
    """The plan for training a size for `seconds`, with the best batch size, or with the measured one if the user has
    set it (`own_batch`). The number of epochs is limited to what still improves the model.

    A batch of B targets takes t = o + B / p seconds, where o is the optimiser's time, and N targets are worth N / (1 +
    B / B'), where B' is the noise scale (McCandlish et al. 2018, equation 2.11). So the best batch size is B = sqrt(o p
    B').
    """
    settings, recipe, parameters, size = candidate
    targets = max(seconds, 0.0) * pace.targets
    critical_batch = scale.noise_scale * math.sqrt(max(targets, 1.0))
    best_batch = math.sqrt(max(pace.overhead * pace.targets, 1.0) * critical_batch)
    max_batch = min(scale.max_batch, max(1, int(unique / pace.share)))  # a batch has at most one epoch
    batch = max(scale.min_batch, min(_nearest_power_of_two(best_batch / pace.share), 2 ** int(math.log2(max_batch))))
    if own_batch:
        batch, pace = max(1, round(pace.step)), pace._replace(share=1.0)
    batch_targets = batch * pace.share  # targets
    targets = max(seconds, 0.0) * batch_targets / (pace.overhead + batch_targets / pace.targets)
    loss = scale.law.loss(parameters, targets / (1 + batch_targets / critical_batch), unique)
    max_targets = max(_MAX_REPEATS * scale.law.repeats * unique, _MIN_STEPS_FACTOR * scale.min_steps * batch_targets)
    return SizePlan(
        settings, recipe.model, parameters, size, pace, batch, min(targets, max_targets), loss, targets > max_targets
    )


def _nearest_power_of_two(number: float) -> int:
    """The power of two nearest to a number."""
    return 2 ** round(math.log2(max(number, 1.0)))


def active_parameters(model: nn.Module | ModelConfig) -> int:
    """The active parameters per target: half of the floating-point operations in a forward pass."""
    return max(1, describe(model)["flop_per_token"] // 2)


def with_size(recipe: Recipe, plan: SizePlan, scale: Scale, unique: int, user: Settings) -> Recipe:
    """The recipe for a planned size, with its batch size, learning rates and regularisation."""
    sized_recipe = with_user_settings(recipe, plan.settings, user)
    width, depth = shape_of(sized_recipe.model)
    batch = {scale.batch_setting: plan.batch}
    regularisation = scale.regularisation(sized_recipe, plan.targets / max(1, unique), plan.parameters / max(1, unique))
    settings = {**plan.settings, **batch, **regularisation, **scale.learning_rates(recipe, width, depth, plan.batch)}
    return with_user_settings(recipe, settings, user)


def shape_of(model: ModelConfig) -> tuple[int, int]:
    """A model's width and depth: those of its decoder if it has several stacks, or of a robot's observation encoder."""
    if isinstance(model, ActConfig):
        model = model.encoder_decoder.encoder
    elif isinstance(model, (EncoderDecoderConfig, CaptionerConfig)):
        model = model.decoder
    elif isinstance(model, TwoTowerConfig):
        model = model.left
    if not isinstance(model, TransformerConfig):
        return _WIDTH, _DEPTH
    return model.width, len(model.stack.blocks) or _DEPTH


def explain_choice(choice: SizePlan, plans: Sequence[SizePlan], scale: Scale) -> tuple[str, ...]:
    """Why this size was chosen, for people."""
    width, depth = shape_of(choice.model)
    batch = f"{choice.batch:,} {'tokens' if scale.batch_setting.endswith('tokens') else 'samples'}"
    layers = "1 layer" if depth == 1 else f"{depth} layers"
    growth = "; trains longer while validation improves" if choice.exhausted else ""
    reason = f"{_format_count(choice.size)} parameters (width {width}, {layers}), batches of {batch}{growth}"
    others = {_format_count(plan.size): plan.loss - choice.loss for plan in plans if plan is not choice}
    gaps = [f"{f'{gap:.2f}' if gap >= 0.01 else 'under 0.01'} more for {size}" for size, gap in others.items()]
    return (reason, f"lowest predicted loss of {len(plans)} sizes: {', '.join(gaps)} parameters") if gaps else (reason,)


def format_number(number: float) -> str:
    """A number for people: 430 and 1,230 as integers, smaller ones with two digits, and no exponents."""
    return f"{number:,.0f}" if abs(number) >= 9.95 else f"{float(f'{number:.2g}'):.10f}".rstrip("0").rstrip(".")


def format_seconds(seconds: float) -> str:
    """A duration for people: 41 s, or 1.8 minutes."""
    return f"{format_number(seconds)} s" if seconds < 60 else format_minutes(float(format_number(seconds / 60)))


def format_minutes(minutes: float) -> str:
    """Minutes for people: 1 minute, or 2.5 minutes."""
    return "1 minute" if minutes == 1 else f"{minutes:g} minutes"


def _format_count(number: float) -> str:
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2g}{name}" if number < 100 * size else f"{number / size:.0f}{name}"
    return f"{number:.0f}"
