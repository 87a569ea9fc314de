"""How generic recipes grow with the data, the minutes and the machine: scales, as data, and the scaling law that
predicts losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from headway.config import applicable, override
from headway.data.prepared.shard_index import ShardIndex
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
)


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = floor + size N^-alpha + data D'^-beta in nats per target, for N active parameters and D targets
    (Hoffmann et al. 2022, equation 2), of which `unique` are distinct.

    Repeated data are worth less in each epoch (Muennighoff et al. 2023, equation 5): after U unique targets and R
    further epochs, D' = U + U r (1 - exp(-R / r)), where r is `repeats`. Parameters beyond those that U targets can
    train lose value in the same way, with `excess`. The defaults use the papers' exponents, which also hold far below
    the papers' model sizes, and about a seventh of the papers' `size` and `data`, which fits within 0.03
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
        # the compute-optimal number of parameters for so many targets
        optimal = (self.alpha * self.size / (self.beta * self.data)) ** (1 / self.alpha)
        optimal *= unique_seen ** (self.beta / self.alpha)

        def worth(total: float, first: float, limit: float) -> float:
            """The value of a total whose part beyond `first` is worth less and less, at most `limit` times `first`."""
            return first * (1 + limit * (1 - math.exp(-(total / first - 1) / limit)))

        effective_parameters = worth(parameters, min(parameters, optimal), self.excess)
        effective_targets = worth(targets, unique_seen, self.repeats)
        return self.floor + self.size * effective_parameters**-self.alpha + self.data * effective_targets**-self.beta


class LossForecast(NamedTuple):
    """The predicted final validation loss, and an 80 % interval."""

    low: float
    loss: float
    high: float


# The final loss from the current loss, the slope of the training loss, and the completed fraction of the steps.
LossPredictor = Callable[[float, float, float], LossForecast]
EARLY_FRACTION, LATE_FRACTION = 0.25, 0.6  # fractions of a run between which the final loss is predicted
_MIN_SLOPE = 0.02  # added to the slope, because a flat curve may become steeper


@dataclass(frozen=True)
class Descent:
    """How a domain's validation loss continues to fall: by a factor of f^p after a fraction f of the steps.

    p is `middle` times (slope of the training loss at that point + 0.02); in 80 % of runs the factor was between
    `low` and `high` instead of `middle`. A negative `low` allows rising losses. benchmarks/predictions.py fits all
    three.
    """

    low: float
    middle: float
    high: float

    def forecast(self, loss: float, slope: float, fraction: float) -> LossForecast:
        """Predict the final loss for a run whose validation loss is `loss` after a `fraction` of its steps."""
        slope_floor = max(slope, 0.0) + _MIN_SLOPE
        low, middle, high = (loss * fraction ** (factor * slope_floor) for factor in (self.high, self.middle, self.low))
        return LossForecast(low, middle, high)

    @staticmethod
    def matching_middle(loss: float, slope: float, fraction: float, final_loss: float) -> float:
        """The `middle` that would have predicted the final loss exactly."""
        return math.log(final_loss / loss) / math.log(fraction) / (max(slope, 0.0) + _MIN_SLOPE)


def slope_of(training: Sequence[tuple[int, float]], step: int) -> float | None:
    """The slope of the training loss before a step, as the exponent of a power law in the number of steps (positive
    while the loss falls), from the means over the last quarter of the steps and the quarter before it. `training` has
    (step, mean loss since the previous entry). None if either quarter has no loss above 0.
    """
    means = []
    for first, last in ((0.5 * step, 0.75 * step), (0.75 * step, step)):
        losses = [loss for line_step, loss in training if first < line_step <= last and loss > 0]
        if not losses:
            return None
        means.append(sum(losses) / len(losses))
    return math.log(means[0] / means[1]) / math.log(0.875 / 0.625)


Settings = Mapping[str, Any]
Shapes = Sequence[tuple[int, int | list[int], int]]  # width, depth (per stack if there are several), heads
T = TypeVar("T")

_WIDTH, _DEPTH = 128, 4  # width and depth of the models for which learning rates were tuned


class DataSettings(NamedTuple):
    """Settings that depend on the data but are needed before the data are opened, with a short reason."""

    settings: Settings
    reason: str = ""


def _learning_rates(recipe: Recipe, width: int, depth: int) -> Settings:
    """Muon's steps have a fixed spectral norm, so its learning rate transfers across widths (Yang et al. 2023). Sums
    over layers grow with the square root of the depth, so steps shrink by that factor. The head's learning rate
    falls with the width that it sums over. All were tuned at width 128, with 4 layers and each recipe's own batch size.
    """
    optim = recipe.optim
    if not isinstance(optim, MuonConfig):
        return {"optim.lr": optim.lr * _WIDTH / width}
    depth_factor = math.sqrt(_DEPTH / depth)
    return {"optim.lr": optim.lr * depth_factor, "optim.head_lr": optim.adam_lr * _WIDTH / width}


@dataclass(frozen=True)
class Scale:
    """How a generic recipe scales. Each domain lists one for each recipe name in SCALES of its `recipes` module.

    law: predicts losses by size; its losses appear in the reasons only if it is `calibrated` on runs in the domain.
    descent: predicts final losses from early evaluations, if it was fitted for the domain.
    batch_setting: the setting for the batch size, which is between `min_batch` and `max_batch`.
    noise_scale: the critical batch size in targets is this times the square root of the number of targets (McCandlish
        et al. 2018; the square root is from Bergsma et al. 2025).
    min_steps: the number of steps that a model needs to learn anything.
    max_tuning_batch, tuning_lr_factor: fine-tuning uses at most this many samples per batch, and this factor times the
        usual learning rate.
    shapes: widths, depths and heads, from small to large. `width_settings` all take the width.
    dropout: by epochs, as (limit, rate); the last limit is infinite. With `forgets`, epochs are weighted by the number
        of parameters per unique target, up to 1, because small models forget most of their training data.
    unique_targets: the number of unique training targets: tokens or samples.
    data_settings: the settings that are needed before the data at the paths are opened for a number of minutes:
        vocabulary size, row length, image size, split sizes.
    regularisation: further settings that prevent memorisation over a number of epochs.
    learning_rates: the learning rates for a width and depth.
    start_settings: settings of a recipe that starts from a model, also without minutes.
    tuning_settings, tuning_data_settings: settings for fine-tuning, the second after the data are opened.
    """

    law: ScalingLaw = ScalingLaw()
    batch_setting: str = "train.batch_tokens"
    min_batch: int = 512
    max_batch: int = 16384
    noise_scale: float = 8.0
    calibrated: bool = False
    descent: Descent | None = None
    min_steps: int = 60
    max_tuning_batch: int = 64
    tuning_lr_factor: float = 1.0
    shapes: Shapes = ()
    width_settings: tuple[str, ...] = ("model.width",)
    dropout: Sequence[tuple[float, float]] = ()
    forgets: bool = False
    unique_targets: Callable[[Task], int] = lambda task: task.count("train")
    data_settings: Callable[[Recipe, Sequence[Path], float], DataSettings] = lambda recipe, paths, minutes: (
        DataSettings({})
    )
    regularisation: Callable[[Recipe, float], Settings] = lambda recipe, epochs: {}
    learning_rates: Callable[[Recipe, int, int], Settings] = _learning_rates
    start_settings: Settings = field(default_factory=dict)
    tuning_settings: Callable[[Recipe], Settings] = lambda recipe: {}
    tuning_data_settings: Callable[[Recipe, Task], Settings] = lambda recipe, task: {}

    def critical_batch(self, targets: float) -> float:
        """The batch size B' in targets for a number of targets. N targets in batches of B are worth N / (1 + B / B')
        (McCandlish et al. 2018, equation 2.11).
        """
        return self.noise_scale * math.sqrt(max(targets, 1.0))

    def sizes(self) -> list[dict[str, Any]]:
        """Model settings, from small to large."""
        return [
            {**dict.fromkeys(self.width_settings, width), "model.depth": depth, "model.heads": heads}
            for width, depth, heads in self.shapes
        ]

    def regularise(self, recipe: Recipe, epochs: float, crowd: float) -> dict[str, Any]:
        """Settings that prevent memorisation over this many epochs; `crowd` is the number of parameters per unique
        target.
        """
        pressure = epochs * min(1.0, crowd) if self.forgets else epochs
        dropout = {"model.dropout": lookup(self.dropout, pressure)} if self.dropout else {}
        return {**dropout, **self.regularisation(recipe, epochs)}


def held_out_shares(samples: int, limit: int = 1000) -> dict[str, float]:
    """Held-out fractions for a number of samples: 5 %, or up to 20 % to reach 100 samples, but at most `limit`."""
    fraction = min(max(0.05, min(0.2, 100 / max(1, samples))), limit / max(1, samples))
    return {"task.split.validation": round(fraction, 6), "task.split.test": round(fraction, 6)}


def contrasted_settings(samples: int, batch_size: int) -> dict[str, Any]:
    """The held-out share of samples that are contrasted with each other, and a smaller batch than `batch_size` if it
    would have more samples than there are for training.
    """
    share = held_out_shares(samples)["task.split.validation"]
    training = max(2, int(samples * (1 - share)))
    batch = {} if training >= batch_size else {"train.batch_size": 2 ** int(math.log2(training))}
    return {"task.split.validation": share, **batch}


def episode_settings(recordings: int, minutes: float, min_episodes: int, max_episodes: int) -> dict[str, Any]:
    """Settings of tasks that are evaluated by playing: more minutes allow more episodes per evaluation. A tenth of the
    recordings is held out for each split, from 2 to 50.
    """
    episodes = min(max_episodes, max(min_episodes, round(min_episodes * math.sqrt(minutes))))
    share = round(min(0.2, max(2 / recordings, min(0.1, 50 / recordings))), 6)
    return {"task.episodes": episodes, "task.split.validation": share, "task.split.test": share}


# Batches are counted in steps of episodes, each of which is predicted in every window that contains it.
ACTING_SCALE = Scale(min_batch=320, max_batch=20480, dropout=((100, 0.0), (math.inf, 0.1)))


def vocabulary_settings(
    vocabularies: Sequence[tuple[float, int]], samples: int, characters: int, noun: str
) -> DataSettings:
    """A vocabulary that grows with the text (sizes by the number of characters), and held-out shares."""
    vocab_size = lookup(vocabularies, characters)
    mean_length = f"{characters / max(1, samples):.0f} characters on average"
    reason = f"a vocabulary of {vocab_size:,} for {samples:,} {noun} of {mean_length}"
    return DataSettings({"task.size": vocab_size, **held_out_shares(samples)}, reason)


def prepared_settings(index: ShardIndex) -> DataSettings:
    """The vocabulary of prepared data, and held-out shares."""
    vocab_size = int(index.details["vocab_size"])
    settings = {"task.size": vocab_size, **held_out_shares(index.counts["samples"])}
    return DataSettings(settings, f"the vocabulary of {vocab_size:,} tokens of the prepared data")


def lookup(table: Sequence[tuple[float, T]], number: float) -> T:
    """The value for the first limit above a number, in a table whose last limit is infinite."""
    return next(value for limit, value in table if number < limit)


def overlaps(key: str, user_settings: Collection[str]) -> bool:
    """Whether the user has set a setting directly, in part, or as part of a larger setting (`optim`)."""
    return any(
        key == user_key or key.startswith(user_key + ".") or user_key.startswith(key + ".")
        for user_key in user_settings
    )


def without_user_settings(settings: Settings, user: Collection[str]) -> dict[str, Any]:
    """Settings without those that the user has set."""
    return {key: value for key, value in settings.items() if not overlaps(key, user)}


def with_user_settings(recipe: Recipe, settings: Settings, user: Settings) -> Recipe:
    """`recipe` with the chosen settings that apply to it, overridden by the user's."""
    return override(recipe, {**applicable(recipe, without_user_settings(settings, user), user), **user})


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
