"""A recipe: all that a training run is, as frozen data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from headway.config import differences, dumps, from_dict, setting, to_dict
from headway.errors import ConfigError, UserError
from headway.formats.durable import read_json, write_text
from headway.learn.adapters import AdapterConfig
from headway.learn.optim import AdamWConfig, OptimConfig
from headway.learn.schedule import CosineConfig, ScheduleConfig
from headway.learn.task import TaskConfig
from headway.nn.models import ModelConfig
from headway.received import shown

_NOT_IN_NAMES = '/\\:*?"<>|'  # of recipes, because no file system has them all
_LONGEST_NAME = 128  # bytes

# Settings beyond these are mistakes: no machine does as much, or has the memory for a micro-batch or a list of them.
_MOST = {
    "steps": 10**9,
    "batch_tokens": 1 << 24,
    "batch_size": 1 << 20,
    "accumulate": 10_000,
    "keep": 10**6,
    "average": 10**6,
}


@dataclass(frozen=True)
class TrainConfig:
    """How long and in what portions a model is trained.

    steps: updates; each learns from `accumulate` micro-batches, over all processes together.
    batch_tokens, batch_size: the size of a micro-batch, in tokens or in samples.
    clip: the most that the gradient's norm may be.
    evaluate_every, checkpoint_every: in steps; 0 means ten evaluations a run, and a checkpoint at each.
    evaluate_limit: the most samples of an evaluation.
    keep: how many checkpoints stay, the newest.
    ema: the decay of a moving average of the weights, which is then what is evaluated and kept.
    average: the run ends with the mean of so many last checkpoints, which is kept if it is better.
    precision: of matrix products in training; "auto" goes by the processor. Evaluation is always fp32.
    linear_probe: in a run that starts from a model, the most training samples to whose vectors a fresh head of classes
        is fitted before the first step; 0: the head starts as drawn.
    patience: training ends after so many evaluations without a better one.
    frozen: parts of the model that stay as they are ("tower"), parameters, or patterns of their names ("*.bias").
    """

    steps: int = 1000
    batch_tokens: int | None = None  # tokens of a micro-batch, where batch_size is none
    batch_size: int | None = None  # samples of a micro-batch
    accumulate: int = 1  # micro-batches of a step, over all processes together
    clip: float | None = 1.0
    evaluate_every: int = 0  # in steps; 0: ten times a run
    evaluate_limit: int | None = None
    checkpoint_every: int = 0  # in steps; 0: at each evaluation
    keep: int = 2
    ema: float | None = None
    average: int = 0
    seed: int = 1234  # of weights, order, dropout and all else that is drawn
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False  # whether torch.compile compiles the model
    linear_probe: int = 4096  # training samples that a fresh head is fitted to, in a run that starts from a model
    patience: int | None = None
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counted = (
            "steps",
            "accumulate",
            "keep",
            "batch_tokens",
            "batch_size",
            "patience",
            "evaluate_limit",
        )
        for name in (*counted, "evaluate_every", "checkpoint_every", "average", "seed", "linear_probe"):
            value, least = getattr(self, name), 1 if name in counted else 0
            if value is not None and value < least:
                raise ConfigError(f"train.{name} is {value}; give {least} or more")
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None and value > most:
                raise ConfigError(f"train.{name} is {value:,}; give {most:,} or less")
        if self.seed >= 2**63:
            raise ConfigError(f"train.seed is {self.seed}; give a number below 2^63")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ConfigError(f"train.clip is {self.clip}; give a number above 0, or none")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"train.ema is {self.ema}; give a decay between 0 and 1 such as 0.999, or none")

    def rows(self, context: int) -> int:
        """Rows of `context` tokens in a micro-batch: batch_size, or what batch_tokens holds; ConfigError for none."""
        if self.batch_size is not None:
            return self.batch_size
        if self.batch_tokens is None:
            raise ConfigError("neither train.batch_tokens nor train.batch_size is set; set one of them")
        if self.batch_tokens < context:
            raise ConfigError(
                f"train.batch_tokens {self.batch_tokens} is less than a row of {context} tokens; give {context} or more"
            )
        return self.batch_tokens // context

    @property
    def evaluation_interval(self) -> int:
        """Steps between evaluations."""
        return self.evaluate_every or -(-self.steps // 10)

    @property
    def checkpoint_interval(self) -> int:
        """Steps between checkpoints."""
        return self.checkpoint_every or self.evaluation_interval


@setting(TrainConfig, "frozen")
def _frozen(train: TrainConfig, value: Any) -> TrainConfig:
    """A list, or names with commas between them."""
    names = [name for name in value.split(",") if name] if isinstance(value, str) else value or ()
    return replace(train, frozen=from_dict(tuple[str, ...], names, "train.frozen"))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Recipe:
    """All that a training run is, as data: recipe.json. docs/settings.md lists the settings below each field.

    data: the names of known data sets; () means the user's own data.
    expected: in words, the score and time to expect.
    start: the run or published model whose weights the run begins with; None draws them from the seed.
    adapter: what is trained instead of these weights, which then stay as they are.
    reasons: why the settings that were chosen for data, minutes and machine were chosen.
    """

    name: str
    domain: str
    description: str
    data: tuple[str, ...]
    model: ModelConfig
    task: TaskConfig
    optim: OptimConfig = AdamWConfig()
    schedule: ScheduleConfig = CosineConfig()
    train: TrainConfig = TrainConfig()
    expected: str = ""
    start: str | None = None
    adapter: AdapterConfig | None = None
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """ConfigError for a name that is not one, as runs are written to a folder of that name."""
        name = self.name
        odd = next((each for each in name if each in _NOT_IN_NAMES or not each.isprintable()), None)
        if not name or len(name.encode()) > _LONGEST_NAME or odd is not None or name.strip(". ") != name:
            raise ConfigError(
                f"the recipe's name is {shown(name)!r}; use letters, digits and hyphens, at most {_LONGEST_NAME} bytes"
            )

    def row_length(self, wanted: int | None) -> int:
        """Tokens of a row: the `wanted` ones (task.context), none for all that the model takes. ConfigError for none at
        all and for more than that.
        """
        most = self.model.context
        context = wanted or most
        if context is None:
            raise ConfigError("neither task.context nor model.context is set; set task.context to the tokens of a row")
        if most is not None and context > most:
            raise ConfigError(f"task.context {context} exceeds model.context {most}; lower it, or raise model.context")
        return context

    def files(self, data: Sequence[Path] | None) -> list[Path]:
        """The files that are given, or else those of the recipe's known sets. UserError for a set that is not here."""
        from headway.data import find_set  # whose catalogue is of no use to a model that is trained

        return [path for name in self.data for path in find_set(name)] if data is None else list(data)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a JSON file, read strictly: an unknown key or kind is a ConfigError that names it."""
    return from_dict(Recipe, read_json(path), str(path))


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as JSON, in one step."""
    write_text(path, dumps(recipe))


def difference(first: Recipe, second: Recipe) -> str | None:
    """The first setting in which two recipes differ, as "optim.lr is 0.1, not 0.2"; None where they are equal.

    Names and descriptions do not count.
    """
    for field in fields(Recipe):
        if field.name not in ("name", "description", "expected", "reasons"):
            one, two = (to_dict(getattr(recipe, field.name)) for recipe in (first, second))
            found = next(differences(one, two, field.name), None)
            if found:
                return found
    return None


def check_model(recipe: Recipe, model: ModelConfig, directory: Path) -> None:
    """UserError for a model that is not of the configuration in the recipe of its run."""
    if model != recipe.model:
        changed = next(differences(to_dict(model), to_dict(recipe.model), "model"), "its kind")
        raise UserError(
            f"the weights in {directory} do not belong to its recipe.json ({changed}); restore both from one copy"
        )


def batch_size_of(recipe: Recipe) -> int:
    """The samples of a micro-batch; ConfigError for a recipe that counts tokens."""
    train = recipe.train
    if train.batch_size is None or train.batch_tokens is not None:
        raise ConfigError(
            f"train.batch_size is {train.batch_size} and train.batch_tokens {train.batch_tokens}; batches of this task "
            "are made by samples: set train.batch_size alone"
        )
    return train.batch_size
