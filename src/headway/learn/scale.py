"""Auto-scaling of generic recipes: size, batch and learning rates for the data, the minutes and the machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import nn

from headway.config import applicable, override
from headway.errors import ConfigError, UserError
from headway.learn.optim import MuonConfig
from headway.learn.outlook import Descent
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
class Law:
    """L(N, D) = floor + size N^-alpha + data D'^-beta in nats per target, for N active parameters and D targets
    (Hoffmann et al. 2022, equation 2), of which `unique` are different.

    Repeated data are worth less per epoch (Muennighoff et al. 2023, equation 5): after U unique targets and R further
    epochs, D' = U + U r (1 - exp(-R / r)) with r `repeats`. Parameters beyond those that U targets can train are worth
    less in the same way, with `excess`. The defaults have the papers' exponents, which also hold far below the papers'
    sizes, and the papers' ratio of `size` to `data`: for models of 0.3 to 1 million parameters on a 3 MB novel for two
    and four core-minutes (benchmarks/results/budget.json), a seventh of both fits within 0.03. The terms differ between
    texts, so only differences between sizes matter here.
    """

    floor: float = 2.0
    size: float = 61.0
    alpha: float = 0.34
    data: float = 62.0
    beta: float = 0.28
    repeats: float = 15.39
    excess: float = 5.31

    def loss(self, parameters: float, seen: float, unique: float) -> float:
        """The loss after `targets` training targets, of which `unique` are different; infinite for 0."""
        if seen <= 0 or unique <= 0:
            return math.inf
        fed = min(seen, unique)
        read = _discounted(fed, seen / fed - 1, self.repeats)
        fitting = min(parameters, self.fed(fed))
        sized = _discounted(fitting, parameters / fitting - 1, self.excess)
        return self.floor + self.size * sized**-self.alpha + self.data * read**-self.beta

    def fed(self, targets: float) -> float:
        """The compute-optimal number of parameters for a number of targets."""
        return (self.alpha * self.size / (self.beta * self.data)) ** (1 / self.alpha) * targets ** (
            self.beta / self.alpha
        )


def _discounted(first: float, more: float, worth: float) -> float:
    """`first`, plus `repetitions` of it with diminishing value, which is at most `limit` times `first`."""
    return first * (1 + worth * (1 - math.exp(-more / worth)))


Settings = Mapping[str, Any]
Shapes = Sequence[tuple[int, int | list[int], int]]  # width, depth (per stack if there are several), heads
T = TypeVar("T")

_WIDTH, _DEPTH = 128, 4  # of the models for which learning rates were tuned
_BATCHES = ("train.batch_tokens", "train.batch_size", "train.accumulate")
_ENOUGH = 6  # maximum epochs, in multiples of `ScalingLaw.repeats`
_FEWEST = 4  # minimum steps of a plan that the data limit, in multiples of `Scale.min_steps`


class Settled(NamedTuple):
    """Settings that depend on the data and are needed before the data are opened, with a short reason."""

    settings: Settings
    reason: str = ""


class Pace(NamedTuple):
    """The training speed of a model on this machine: targets per second, and the fixed seconds per step (the
    optimiser's). A batch has `share` targets per unit of its size: 0.5 if only half of its tokens are predicted. The
    measured steps had `step` targets each.
    """

    targets: float
    overhead: float
    share: float = 1.0
    step: float = 1.0


class Rung(NamedTuple):
    """A candidate size: its settings without the user's, the recipe of this size, the active parameters per target, and
    all parameters of the model (`size`).
    """

    settings: Settings
    recipe: Recipe
    parameters: int
    size: int


class Fit(NamedTuple):
    """The plan for a candidate size in the available time: number of targets, `batch` units per batch, the predicted
    loss, and whether the data are `exhausted` before the time.
    """

    settings: Settings
    model: ModelConfig
    parameters: int
    size: int
    pace: Pace
    batch: int
    seen: float
    loss: float
    exhausted: bool = False

    @property
    def steps(self) -> int:
        return int(self.seen / (self.batch * self.pace.share))


@dataclass(frozen=True)
class Scale:
    """How a generic recipe scales. Each domain lists one per recipe name in `scale.SCALES`.

    `law` predicts losses by size; its losses appear in the reasons only if it is `calibrated` to runs of the domain.
    `descent` predicts final losses from early evaluations, if it was fitted for the domain.

    `batch_setting` is the setting for the batch size, between `min_batch` and `max_batch`. `noise_scale` times the
    square root of the number of targets is the critical batch size in targets (McCandlish et al. 2018; the square root:
    Bergsma et al. 2025). `unit` is what `unique_targets` counts, for people. A model needs at least `min_steps` steps
    to learn something. Fine-tuning uses batches of at most `max_tuning_batch` samples and `tuning_lr_factor` times the
    usual learning rate. `shapes` are widths, depths and heads, from small to large.
    """

    law: Law = field(default_factory=Law)
    batch: str = "train.batch_tokens"
    least: int = 512
    most: int = 16384
    noise: float = 8.0
    unit: str = "token"
    fitted: bool = False
    descent: Descent | None = None
    few: int = 60
    large: int = 64
    shapes: Shapes = ()
    tuning: float = 1.0

    def settle(self, recipe: Recipe, paths: Sequence[Path], minutes: float) -> Settled:
        """Settings that are needed before the data are opened: vocabulary size, row length, image size, split sizes."""
        return Settled({})

    def settle_start(self, recipe: Recipe, task: Task) -> Settings:
        """Settings of a fine-tuning run that depend on the opened data: row length, split sizes."""
        return {}

    def started(self, recipe: Recipe) -> Settings:
        """Further settings of a fine-tuning run."""
        return {}

    def sizes(self, recipe: Recipe) -> Sequence[Settings]:
        """Settings of models, from small to large."""
        return [
            {"model.width": width, "model.depth": depth, "model.heads": heads} for width, depth, heads in self.shapes
        ]

    def amount(self, task: Task) -> int:
        """The number of unique training targets: tokens or samples."""
        return task.count("train")

    def regularised(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        """Regularisation against memorisation over so many epochs; `crowd` is the number of parameters per unique
        target.
        """
        return {}

    def rates(self, recipe: Recipe, width: int, depth: int, batch: int) -> Settings:
        """The learning rates of a size.

        Muon's steps have a fixed spectral norm, so its learning rate transfers across widths (Yang et al. 2023). Sums
        over layers grow with the square root of the depth, so steps shrink by it. The head's learning rate falls with
        the width that it sums over. All were tuned at width 128, 4 layers, and each recipe's own batch size.
        """
        optim = recipe.optim
        if not isinstance(optim, MuonConfig):
            return {"optim.lr": optim.lr * _WIDTH / width}
        deep = math.sqrt(_DEPTH / depth)
        return {"optim.lr": optim.lr * deep, "optim.head_lr": optim.adam_lr * _WIDTH / width}

    def held_out(self, samples: int, most: int = 1000) -> Settings:
        """Held-out fractions for a number of samples: 5 %, at most `limit` samples, and a larger fraction of few."""
        share = min(max(0.05, min(0.2, 100 / max(1, samples))), most / max(1, samples))
        return {"task.split.validation": round(share, 6), "task.split.test": round(share, 6)}


def below(table: Sequence[tuple[float, T]], number: float) -> T:
    """The value of the first limit above a number, in a table whose last limit is infinite."""
    return next(value for limit, value in table if number < limit)


def strain(epochs: float, crowd: float) -> float:
    """Epochs weighted by the capacity to memorise: small models forget most of their training data."""
    return epochs * min(1.0, crowd)


def taken(settings: Settings, user: Collection[str]) -> dict[str, Any]:
    """Settings without those that the user has set, directly, as part of a larger setting (`optim`), or in part."""
    return {key: value for key, value in settings.items() if not any(_overlap(key, own) for own in user)}


def _overlap(key: str, own: str) -> bool:
    return key == own or key.startswith(own + ".") or own.startswith(key + ".")


def with_user(recipe: Recipe, settings: Settings, user: Settings) -> Recipe:
    """`recipe` with the chosen settings that apply to it, overridden by the user's."""
    return override(recipe, {**applicable(recipe, taken(settings, user), user), **user})


def ladder(recipe: Recipe, scale: Scale, user: Settings) -> list[Rung]:
    """The distinct candidate sizes under the user's settings, from small to large, without those whose heads do not
    divide the user's width. ConfigError if no size is left.
    """
    found: list[Rung] = []
    faults: list[ConfigError] = []
    for settings in scale.sizes(recipe):
        sized = with_user(recipe, settings, user)
        if any(sized.model == other.recipe.model for other in found):
            continue
        try:
            costs = describe(sized.model)
            found.append(Rung(taken(settings, user), sized, max(1, costs["flop_per_token"] // 2), costs["parameters"]))
        except ConfigError as error:
            faults.append(error)
    if not found:
        raise faults[0]
    return found


def choose(
    recipe: Recipe,
    scale: Scale,
    user: Settings,
    unique: int,
    seconds: float,
    pace: Callable[[Recipe], Pace],
) -> tuple[Fit, list[Fit]]:
    """The size with the lowest predicted loss after `seconds` of training on `unique` targets, and all sizes
    considered.

    Sizes are tried in ascending order while the loss falls. UserError if even the smallest learns nothing in the time.
    """
    fits: list[Fit] = []
    own = any(_overlap(name, key) for name in _BATCHES for key in user)
    rungs = ladder(recipe, scale, user)
    for rung in rungs:
        if fits and (fits[-1].steps < scale.few or (len(fits) > 1 and fits[-1].loss > fits[-2].loss)):
            break
        fits.append(fitted(rung, scale, unique, seconds, pace(rung.recipe), own))
    best = min(fits, key=lambda fit: fit.loss)
    if best.steps < scale.few:
        needed = scale.few * (best.pace.overhead + best.batch * best.pace.share / best.pace.targets)
        which = "a model of this size" if len(rungs) == 1 else "the smallest model"
        raise UserError(
            f"{max(seconds, 0):.0f} s are left for training, in which {which} makes only {best.steps} steps; increase "
            f"--minutes by {digits(max(0.1, (needed - seconds) / 60))}"
        )
    return best, fits


def fitted(rung: Rung, scale: Scale, unique: int, seconds: float, pace: Pace, own: bool = False) -> Fit:
    """The plan for a size in `seconds`, with the best batch size, or with the measured one if the user has set it
    (`own_batch`). The number of epochs is limited to what still improves the model.

    A batch of B targets takes t = o + B / p seconds, with o of the optimiser, and N targets are worth N / (1 + B / B')
    (McCandlish et al. 2018, equation 2.11), with the noise scale B': the best batch size is B = sqrt(o p B').
    """
    settings, recipe, parameters, size = rung
    seen = max(seconds, 0.0) * pace.targets
    noise = scale.noise * math.sqrt(max(seen, 1.0))
    wanted = math.sqrt(max(pace.overhead * pace.targets, 1.0) * noise)
    most = min(scale.most, max(1, int(unique / pace.share)))  # a batch has at most one epoch
    batch = max(scale.least, min(_power(wanted / pace.share), 2 ** int(math.log2(most))))
    if own:
        batch, pace = max(1, round(pace.step)), pace._replace(share=1.0)
    each = batch * pace.share  # targets
    seen = max(seconds, 0.0) * each / (pace.overhead + each / pace.targets)
    loss = scale.law.loss(parameters, seen / (1 + each / noise), unique)
    enough = max(_ENOUGH * scale.law.repeats * unique, _FEWEST * scale.few * each)
    return Fit(settings, recipe.model, parameters, size, pace, batch, min(seen, enough), loss, seen > enough)


def _power(number: float) -> int:
    """The power of two nearest to a number."""
    return 2 ** round(math.log2(max(number, 1.0)))


def computing(model: nn.Module | ModelConfig) -> int:
    """The active parameters per target: half of the floating point operations of a forward pass."""
    return max(1, describe(model)["flop_per_token"] // 2)


def settled(recipe: Recipe, fit: Fit, scale: Scale, unique: int, user: Settings) -> Recipe:
    """The recipe with a planned size and its batch size, learning rates and regularisation."""
    sized = with_user(recipe, fit.settings, user)
    width, depth = shape_of(sized.model)
    batch = {scale.batch: fit.batch}
    regular = scale.regularised(sized, fit.seen / max(1, unique), fit.parameters / max(1, unique))
    settings = {**fit.settings, **batch, **regular, **scale.rates(recipe, width, depth, fit.batch)}
    return with_user(recipe, settings, user)


def shape_of(model: ModelConfig) -> tuple[int, int]:
    """Width and depth of a model; of its decoder if it has several stacks, or of the observation encoder of a robot."""
    if isinstance(model, ActConfig):
        model = model.trunk.encoder
    elif isinstance(model, (EncoderDecoderConfig, CaptionerConfig)):
        model = model.decoder
    elif isinstance(model, TwoTowerConfig):
        model = model.left
    if not isinstance(model, TransformerConfig):
        return _WIDTH, _DEPTH
    return model.width, len(model.stack.blocks) or _DEPTH


def explained(choice: Fit, fits: Sequence[Fit], scale: Scale, unique: int, seconds: float) -> tuple[str, ...]:
    """The reasons for the chosen size, for people."""
    width, depth = shape_of(choice.model)
    epochs = choice.seen / max(1, unique)
    steps = f"steps of {choice.batch:,} {'tokens' if scale.batch.endswith('tokens') else 'samples'}"
    read = f"{_count(choice.seen)} {scale.unit}s ({digits(epochs)} epochs)"
    fitting = f"in {span(seconds)}"
    told = "at first, and more while validation improves" if choice.exhausted else fitting
    first = f"{_count(choice.size)} parameters (width {width}, {depth} layers), {steps}: {read} {told}"
    others = [fit for fit in fits if fit is not choice]
    told = ", ".join(f"{_count(fit.size)}: {fit.loss - choice.loss:+.2f}" for fit in others)
    return (first, f"lowest predicted loss of {len(fits)} sizes ({told})") if others else (first,)


def digits(number: float) -> str:
    """A number for people: 430 and 1,230 as integers, smaller ones with two digits, never with an exponent."""
    return f"{number:,.0f}" if abs(number) >= 9.95 else f"{float(f'{number:.2g}'):.10f}".rstrip("0").rstrip(".")


def span(seconds: float) -> str:
    """A duration for people: 41 s, or 1.8 minutes."""
    return f"{digits(seconds)} s" if seconds < 60 else f"{digits(seconds / 60)} minutes"


def _count(number: float) -> str:
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2g}{name}" if number < 100 * size else f"{number / size:.0f}{name}"
    return f"{number:.0f}"
