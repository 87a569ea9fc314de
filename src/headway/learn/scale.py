"""What a generic recipe leaves open, and how it is chosen: by the data, the minutes and the machine."""

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
    """L(N, D) = floor + size N^-alpha + data D'^-beta in nats a target, for N parameters that compute and D targets
    (Hoffmann et al. 2022, equation 2), of which `unique` are different ones.

    What is read again is worth less each time (Muennighoff et al. 2023, equation 5): after U different targets and R
    readings more, D' = U + U r (1 - exp(-R / r)) with r `repeats`; and parameters beyond those that U targets feed are
    worth less in the same way, with `excess`. The defaults have the papers' exponents, which hold far below their
    sizes, too, and the papers' share between `size` and `data`: for models of 0.3 to 1 million parameters that read a
    novel of 3 MB for two core-minutes and four (benchmarks/results/budget.json), a seventh of both fits within 0.03. Of
    another text all terms would be others, so it is differences between sizes that count here.
    """

    floor: float = 2.0
    size: float = 61.0
    alpha: float = 0.34
    data: float = 62.0
    beta: float = 0.28
    repeats: float = 15.39
    excess: float = 5.31

    def loss(self, parameters: float, seen: float, unique: float) -> float:
        """The loss after `seen` targets, of which `unique` are different ones; infinite after none."""
        if seen <= 0 or unique <= 0:
            return math.inf
        fed = min(seen, unique)
        read = _discounted(fed, seen / fed - 1, self.repeats)
        fitting = min(parameters, self.fed(fed))
        sized = _discounted(fitting, parameters / fitting - 1, self.excess)
        return self.floor + self.size * sized**-self.alpha + self.data * read**-self.beta

    def fed(self, targets: float) -> float:
        """The parameters at which one more is worth as much as the targets that its time would read."""
        return (self.alpha * self.size / (self.beta * self.data)) ** (1 / self.alpha) * targets ** (
            self.beta / self.alpha
        )


def _discounted(first: float, more: float, worth: float) -> float:
    """So many, and `more` times as many that are worth less and less: `worth` times as many at the most."""
    return first * (1 + worth * (1 - math.exp(-more / worth)))


Settings = Mapping[str, Any]
Shapes = Sequence[tuple[int, int | list[int], int]]  # width, depth (of each stack, where there are several), heads
T = TypeVar("T")

_WIDTH, _DEPTH = 128, 4  # of the models for which rates were tried
_BATCHES = ("train.batch_tokens", "train.batch_size", "train.accumulate")
_ENOUGH = 6  # times the readings after which what is read again is worth a third of what it was
_FEWEST = 4  # times the steps in which something is learnt: no plan has fewer for want of data


class Settled(NamedTuple):
    """Settings that the data decide before they are opened, and why, in a few words."""

    settings: Settings
    reason: str = ""


class Pace(NamedTuple):
    """How fast a model learns on this machine: targets a second, and seconds a step that no batch makes shorter (the
    optimiser's). A batch has `share` targets for each unit that it is counted by: a half where only half of its tokens
    are foretold. The steps timed had `step` targets each.
    """

    targets: float
    overhead: float
    share: float = 1.0
    step: float = 1.0


class Rung(NamedTuple):
    """A size of the ladder: its settings without the user's, the recipe of this size, the parameters that a target is
    multiplied by, and all parameters of the model (`size`).
    """

    settings: Settings
    recipe: Recipe
    parameters: int
    size: int


class Fit(NamedTuple):
    """A size of the ladder with what it comes to in the time there is: `seen` targets, in batches of `batch` units, the
    loss foretold; whether the data are `exhausted` before the time is.
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
    """How a generic recipe grows. A domain lists one for each of its own in `scale.SCALES`, by the recipe's name.

    `law` predicts losses by size; only where it is `fitted` to runs of this domain are its losses given as reasons.
    `descent` is how runs go on to fall, where that was fitted; without it no run's end is predicted.

    `batch` is the setting that batches are counted by, `least` and `most` are the smallest and largest of them, and
    `noise` times the square root of what is seen is where a larger batch stops to help (McCandlish et al. 2018; that it
    grows like a root: Bergsma et al. 2025), in targets. `unit` is what `amount` counts, for people; a model that has
    made `few` steps has learnt something. Batches of a run that starts from a model have at most `large` samples, and
    it takes `tuning` times the usual learning rate of fine-tuning. `shapes` are widths, depths and heads, from small to
    large.
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
        """What has to be known before the data are opened: vocabulary, length of rows, size of images, shares held
        out.
        """
        return Settled({})

    def settle_start(self, recipe: Recipe, task: Task) -> Settings:
        """What the data of a run that starts from a model decide once they are open: length of rows, shares held
        out.
        """
        return {}

    def started(self, recipe: Recipe) -> Settings:
        """What else is chosen for a run that starts from a model."""
        return {}

    def sizes(self, recipe: Recipe) -> Sequence[Settings]:
        """Settings of models, from small to large."""
        return [
            {"model.width": width, "model.depth": depth, "model.heads": heads} for width, depth, heads in self.shapes
        ]

    def amount(self, task: Task) -> int:
        """The different targets there are to learn from: tokens, or samples."""
        return task.count("train")

    def regularised(self, recipe: Recipe, epochs: float, crowd: float) -> Settings:
        """What keeps a model from learning by heart what it reads so many times; `crowd` is how many parameters it has
        for each different target.
        """
        return {}

    def rates(self, recipe: Recipe, width: int, depth: int, batch: int) -> Settings:
        """The rates of a size.

        Muon's steps have a spectral norm of their own, whatever the width, so that its rate carries over (Yang et al.
        2023); what is summed over layers grows by the root of their number, and steps shrink by it; the head's rate
        falls with the width that it sums over. All were tried at width 128, 4 layers, and each recipe's own batches.
        """
        optim = recipe.optim
        if not isinstance(optim, MuonConfig):
            return {"optim.lr": optim.lr * _WIDTH / width}
        deep = math.sqrt(_DEPTH / depth)
        return {"optim.lr": optim.lr * deep, "optim.head_lr": optim.adam_lr * _WIDTH / width}

    def held_out(self, samples: int, most: int = 1000) -> Settings:
        """Shares held out of so many samples: a twentieth, but no more than is needed to judge by; more of a few."""
        share = min(max(0.05, min(0.2, 100 / max(1, samples))), most / max(1, samples))
        return {"task.split.validation": round(share, 6), "task.split.test": round(share, 6)}


def below(table: Sequence[tuple[float, T]], number: float) -> T:
    """What a table of limits, the last of them infinite, has for the first limit above a number."""
    return next(value for limit, value in table if number < limit)


def strain(epochs: float, crowd: float) -> float:
    """How often a model reads what it has room to learn by heart: small ones forget most of what they read."""
    return epochs * min(1.0, crowd)


def taken(settings: Settings, user: Collection[str]) -> dict[str, Any]:
    """Settings without those that the user decides, as a whole (`optim`), in part, or by another name."""
    return {key: value for key, value in settings.items() if not any(_overlap(key, own) for own in user)}


def _overlap(key: str, own: str) -> bool:
    return key == own or key.startswith(own + ".") or own.startswith(key + ".")


def with_user(recipe: Recipe, settings: Settings, user: Settings) -> Recipe:
    """`recipe` with the chosen settings and, above them, the user's, whose mixer may lack a chosen one."""
    return override(recipe, {**applicable(recipe, taken(settings, user), user), **user})


def ladder(recipe: Recipe, scale: Scale, user: Settings) -> list[Rung]:
    """The sizes that the user's settings leave, each once, from small to large, without those whose heads do not divide
    a width that the user set. ConfigError where there is none.
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
    """The size of least loss foretold for so many seconds of training on `unique` targets, and all that were looked at.

    The way leads up the ladder while the loss falls. UserError where even the smallest learns nothing in the time.
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
            f"{max(seconds, 0):.0f} s are left for training, in which {which} makes {best.steps} steps and learns "
            f"nothing of use; give {digits(max(0.1, (needed - seconds) / 60))} --minutes more"
        )
    return best, fits


def fitted(rung: Rung, scale: Scale, unique: int, seconds: float, pace: Pace, own: bool = False) -> Fit:
    """What a size comes to in so many seconds, with the batches that suit it or, where the user has set their `own`,
    with those that were timed.

    What is read so often that it teaches next to nothing more is not read any more often.

    A batch of B targets takes t = o + B / p seconds, o those of the optimiser, and what N targets teach is worth N / (1
    + B / B') of them (McCandlish et al. 2018, equation 2.11), B' the noise scale: most is learnt at B = sqrt(o p B').
    """
    settings, recipe, parameters, size = rung
    seen = max(seconds, 0.0) * pace.targets
    noise = scale.noise * math.sqrt(max(seen, 1.0))
    wanted = math.sqrt(max(pace.overhead * pace.targets, 1.0) * noise)
    most = min(scale.most, max(1, int(unique / pace.share)))  # no batch holds more than there is
    batch = max(scale.least, min(_power(wanted / pace.share), 2 ** int(math.log2(most))))
    if own:
        batch, pace = max(1, round(pace.step)), pace._replace(share=1.0)
    each = batch * pace.share  # targets
    seen = max(seconds, 0.0) * each / (pace.overhead + each / pace.targets)
    loss = scale.law.loss(parameters, seen / (1 + each / noise), unique)
    enough = max(_ENOUGH * scale.law.repeats * unique, _FEWEST * scale.few * each)
    return Fit(settings, recipe.model, parameters, size, pace, batch, min(seen, enough), loss, seen > enough)


def _power(number: float) -> int:
    """The power of two next to a number."""
    return 2 ** round(math.log2(max(number, 1.0)))


def computing(model: nn.Module | ModelConfig) -> int:
    """The parameters that a target is multiplied by: half of the floating point operations of a forward pass."""
    return max(1, describe(model)["flop_per_token"] // 2)


def settled(recipe: Recipe, fit: Fit, scale: Scale, unique: int, user: Settings) -> Recipe:
    """The recipe at a size, with the batches, rates and regularisation that go with it."""
    sized = with_user(recipe, fit.settings, user)
    width, depth = shape_of(sized.model)
    batch = {scale.batch: fit.batch}
    regular = scale.regularised(sized, fit.seen / max(1, unique), fit.parameters / max(1, unique))
    settings = {**fit.settings, **batch, **regular, **scale.rates(recipe, width, depth, fit.batch)}
    return with_user(recipe, settings, user)


def shape_of(model: ModelConfig) -> tuple[int, int]:
    """Width and depth; of several stacks those of the one that writes, or of the one that reads what a robot sees."""
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
    """Why a size was chosen, for people."""
    width, depth = shape_of(choice.model)
    epochs = choice.seen / max(1, unique)
    steps = f"steps of {choice.batch:,} {'tokens' if scale.batch.endswith('tokens') else 'samples'}"
    read = f"{_count(choice.seen)} {scale.unit}s ({digits(epochs)} epochs)"
    fitting = f"fit into {span(seconds)}"
    told = "are planned at first, and more while validation improves" if choice.exhausted else fitting
    first = f"{_count(choice.size)} parameters (width {width}, {depth} layers) in {steps}: {read} {told}"
    others = [fit for fit in fits if fit is not choice]
    told = ", ".join(f"{_count(fit.size)}: {fit.loss - choice.loss:+.2f}" for fit in others)
    return (first, f"of {len(fits)} sizes the lowest loss predicted ({told})") if others else (first,)


def digits(number: float) -> str:
    """A number for people: 430 and 1,230 as whole numbers, smaller ones with two digits, and none with an exponent."""
    return f"{number:,.0f}" if abs(number) >= 9.95 else f"{float(f'{number:.2g}'):.10f}".rstrip("0").rstrip(".")


def span(seconds: float) -> str:
    """A time for people: 41 s, or 1.8 minutes."""
    return f"{digits(seconds)} s" if seconds < 60 else f"{digits(seconds / 60)} minutes"


def _count(number: float) -> str:
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2g}{name}" if number < 100 * size else f"{number / size:.0f}{name}"
    return f"{number:.0f}"
