"""Recipes: the complete configuration of a training run, as frozen data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from torch import nn

from headway.config import differences, dumps, from_dict, setting, to_dict
from headway.config_kinds import family
from headway.errors import ConfigError, UserError
from headway.io.arguments import format_value
from headway.io.durable import read_json, write_text
from headway.io.files import format_path
from headway.learn.adapters import AdapterConfig
from headway.learn.optim import AdamWConfig, OptimConfig
from headway.learn.schedule import CosineConfig, ScheduleConfig, WSDConfig
from headway.learn.task import Task
from headway.nn.models import ModelConfig

_FORBIDDEN_CHARACTERS = '/\\:*?"<>|'  # not allowed in recipe names because some file systems forbid them
_MAX_NAME_BYTES = 128  # bytes

# Larger settings are mistakes: no machine trains that long or has that much memory.
_MAX_SETTINGS = {
    "steps": 10**9,
    "batch_tokens": 1 << 24,
    "batch_size": 1 << 20,
    "accumulate": 10_000,
    "keep_checkpoints": 10**6,
    "average": 10**6,
}


@dataclass(frozen=True)
class TrainConfig:
    """Training length, batches, evaluation and checkpoints.

    steps: number of updates; each uses `accumulate` micro-batches across all processes.
    batch_tokens, batch_size: micro-batch size, in tokens or in samples.
    clip: maximum gradient norm.
    evaluate_every, checkpoint_every: interval in steps; 0 means ten evaluations per run, with a checkpoint at each.
    evaluate_limit: maximum number of samples per evaluation.
    keep_checkpoints: number of newest checkpoints to keep.
    ema: decay for a moving average of the weights, which is then evaluated and saved instead.
    average: number of last checkpoints whose mean is evaluated at the end and saved if it is better.
    precision: precision of matrix products in training; "auto" depends on the processor. Evaluation always uses fp32.
    linear_probe: when fine-tuning, the maximum number of training samples to fit a new classification head to before
        the first step, by their features; 0: initialise the head randomly.
    patience: number of evaluations without improvement after which training ends.
    frozen: what not to train: model parts ("tower"), parameters, or name patterns ("*.bias").
    recompute: recompute the activations of every n-th block in the backward pass instead of keeping them; 0: of none,
        1: of all.
    """

    steps: int = 1000
    batch_tokens: int | None = None  # tokens per micro-batch, unless batch_size is set
    batch_size: int | None = None  # samples per micro-batch
    accumulate: int = 1  # micro-batches per step, across all processes
    clip: float | None = 1.0
    evaluate_every: int = 0  # in steps; 0: ten times per run
    evaluate_limit: int | None = None
    checkpoint_every: int = 0  # in steps; 0: at each evaluation
    keep_checkpoints: int = 2
    ema: float | None = None
    average: int = 0
    seed: int = 1234  # seed for weights, data order, dropout and all other sampling
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False  # whether to compile the model with torch.compile
    linear_probe: int = 4096  # training samples to fit a new head to when fine-tuning
    patience: int | None = None
    frozen: tuple[str, ...] = ()
    recompute: int = 0

    def __post_init__(self) -> None:
        positive = (
            "steps",
            "accumulate",
            "keep_checkpoints",
            "batch_tokens",
            "batch_size",
            "patience",
            "evaluate_limit",
        )
        for name in (*positive, "evaluate_every", "checkpoint_every", "average", "seed", "linear_probe", "recompute"):
            value, minimum = getattr(self, name), 1 if name in positive else 0
            if value is not None and value < minimum:
                raise ConfigError(f"train.{name} is {value}; use {minimum} or more")
        for name, maximum in _MAX_SETTINGS.items():
            value = getattr(self, name)
            if value is not None and value > maximum:
                raise ConfigError(f"train.{name} is {value:,}; use {maximum:,} or less")
        if self.seed >= 2**63:
            raise ConfigError(f"train.seed is {self.seed}; use a number below 2^63")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ConfigError(f"train.clip is {self.clip}; use a number above 0, or none")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"train.ema is {self.ema}; use a decay between 0 and 1, such as 0.999, or none")

    def rows(self, context: int) -> int:
        """Rows of `context` tokens per micro-batch: batch_size, or as many as batch_tokens allows. Raises ConfigError
        for 0.
        """
        if self.batch_size is not None:
            return self.batch_size
        if self.batch_tokens is None:
            raise ConfigError("neither train.batch_tokens nor train.batch_size is set; set one of them")
        if self.batch_tokens < context:
            raise ConfigError(
                f"train.batch_tokens={self.batch_tokens} is less than a row of {context} tokens; use {context} or more"
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


@dataclass(frozen=True)
class ParallelConfig:
    """How several processes share a run. All but `exact` may change when the run resumes.

    exact: sum gradients as integers, so that any number of processes gives the same bits; none: if the run starts with
        several processes on CPUs.
    shard: number of processes that share the weights of one copy of the model, each with its own rows; -1: all
        processes, divided by replicas.
    replicas: number of copies of the model; -1: all processes, divided by shard.
    timeout: seconds without a heartbeat after which a process counts as lost.
    """

    exact: bool | None = None
    shard: int = 1
    replicas: int = -1
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("shard", "replicas"):
            value = getattr(self, name)
            if value < 1 and value != -1:
                raise ConfigError(f"parallel.{name} is {value}; use a number of processes, or -1 for as many as fit")
        if self.shard == self.replicas == -1:
            raise ConfigError("parallel.shard and parallel.replicas are both -1; set one of them")
        if not 1 <= self.timeout < math.inf:
            raise ConfigError(f"parallel.timeout is {self.timeout:g}; use 1 second or more")

    def sizes(self, world: int) -> tuple[int, int]:
        """Replicas and shards for `world` processes. Raises ConfigError if they do not use all processes."""
        shard = world // self.replicas if self.shard == -1 else self.shard
        replicas = world // shard if self.replicas == -1 and shard else self.replicas
        if replicas * shard != world:
            divisors = ", ".join(str(number) for number in range(1, world + 1) if world % number == 0)
            raise ConfigError(
                f"parallel.shard={self.shard} and parallel.replicas={self.replicas} do not use {world} processes; "
                f"use numbers whose product is {world}, from {divisors}"
            )
        return replicas, shard


@setting(TrainConfig, "frozen")
def _frozen(train: TrainConfig, value: Any) -> TrainConfig:
    """Accept a list, or comma-separated names."""
    names = [name for name in value.split(",") if name] if isinstance(value, str) else value or ()
    return replace(train, frozen=from_dict(tuple[str, ...], names, "train.frozen"))  # type: ignore[arg-type]


class PartStart(Protocol):
    """Part of a run or published model that initialises part of another model."""

    def open(self) -> nn.Module:
        """Load the part with its weights."""
        ...


@family
@dataclass(frozen=True)
class TaskConfig:
    """A task as data."""

    generates_data: ClassVar[bool] = False  # whether it needs neither the user's data nor a named dataset
    extra_files: ClassVar[tuple[str, ...]] = ()  # additional files next to the model, needed by runs that start from it
    prepared_kinds: ClassVar[tuple[str, ...]] = ()  # the kinds of prepared data that it reads from shards
    changeable: ClassVar[tuple[str, ...]] = ()  # settings that may be others when a run is resumed
    start_part: ClassVar[str | None] = None  # the part of an encoder-decoder from which a run starts; None: all of it

    @property
    def context(self) -> int | None:
        """The maximum number of tokens per row; None if the task does not determine it."""
        return None

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        """Read the data (None: the recipe's own data), train or load the codec, and return the task.

        `workspace` is the run's directory.
        """
        raise NotImplementedError

    def part_starts(self) -> dict[str, PartStart]:
        """Pretrained parts of the model, by part name."""
        return {}


@dataclass(frozen=True)
class Recipe:
    """The complete configuration of a training run, saved as recipe.json. docs/reference/settings lists all settings.

    data: names of known data sets, or paths; () if the user passes data.
    expected: the expected score and time, in words.
    start: the run or published model that initialises the weights; None: random weights from the seed.
    adapter: the adapter to train instead of these weights, which are then frozen.
    reasons: why the automatic settings were chosen for the data, minutes and machine.
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
    parallel: ParallelConfig = ParallelConfig()
    expected: str = ""
    start: str | None = None
    adapter: AdapterConfig | None = None
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid name, because runs are written to a folder with that name."""
        name = self.name
        invalid = next(
            (character for character in name if character in _FORBIDDEN_CHARACTERS or not character.isprintable()), None
        )
        if not name or len(name.encode()) > _MAX_NAME_BYTES or invalid is not None or name.strip(". ") != name:
            raise ConfigError(
                f"the recipe's name is {format_path(name)!r}; use letters, digits and hyphens, at most "
                f"{_MAX_NAME_BYTES} bytes"
            )

    def row_length(self, context: int | None) -> int:
        """Tokens per row: `context` (task.context), or the model's context if it is None. Raises ConfigError if neither
        is set, or if it exceeds the model's context.
        """
        model_context = self.model.context
        row_length = context or model_context
        if row_length is None:
            raise ConfigError(
                "neither task.context nor model.context is set; set task.context to the number of tokens per row"
            )
        if model_context is not None and row_length > model_context:
            raise ConfigError(
                f"task.context={row_length} exceeds model.context={model_context}; lower it, or raise model.context"
            )
        return row_length

    def files(self, data: Sequence[Path] | None) -> list[Path]:
        """`data`, with prepared files unpacked, or, if it is None, the files of the recipe's datasets. Raises UserError
        for a dataset that is not downloaded, and for prepared data of a kind that the task does not read.
        """
        from headway.data import find_set  # neither is needed for inference
        from headway.data.prepared.packed_files import unpacked_paths

        if data is None:
            return [path for name in self.data for path in find_set(name)]
        return [inner for path in data for inner in unpacked_paths(path, self.task.prepared_kinds)]


def open_task(recipe: Recipe, workspace: Path, data: str | Path | Sequence[str | Path] | None = None) -> Task:
    """The task of a recipe on `data`, or on the data that the recipe names."""
    from headway.data.registry import KNOWN_SETS

    paths = [Path(path) for path in (recipe.data if data is None else path_list(data))]
    uses_known_data = data is None and all(name in KNOWN_SETS for name in recipe.data)
    return recipe.task.open(recipe, None if uses_known_data else paths, workspace)


def path_list(data: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """The data as a list of paths. UserError for anything else."""
    paths = [data] if isinstance(data, (str, Path)) else list(data)
    for path in paths:
        if not isinstance(path, (str, Path)):
            raise UserError(f"the data contain {format_value(path)}; pass file paths")
    return paths


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a JSON file. An unknown key or kind raises a ConfigError that names it."""
    return from_dict(Recipe, read_json(path), str(path))


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as JSON, atomically."""
    write_text(path, dumps(recipe))


def difference(first: Recipe, second: Recipe) -> str | None:
    """The first setting in which two recipes differ, as "optim.lr is 0.1, not 0.2"; None if they are equal.

    Names and descriptions are ignored.
    """
    for field in fields(Recipe):
        if field.name not in ("name", "description", "expected", "reasons"):
            first_data, second_data = (to_dict(getattr(recipe, field.name)) for recipe in (first, second))
            change = next(differences(first_data, second_data, field.name), None)
            if change:
                return change
    return None


def check_model(recipe: Recipe, model: ModelConfig, directory: Path) -> None:
    """Raise UserError for a model whose configuration differs from its run's recipe."""
    if model != recipe.model:
        changed = next(differences(to_dict(model), to_dict(recipe.model), "model"), "its kind")
        raise UserError(
            f"the weights in {directory} do not match its recipe.json ({changed}); restore both from the same copy"
        )


def batch_size_of(recipe: Recipe) -> int:
    """The number of samples per micro-batch; raises ConfigError for a recipe that counts tokens."""
    train = recipe.train
    if train.batch_size is None or train.batch_tokens is not None:
        raise ConfigError(
            f"train.batch_size={train.batch_size} and train.batch_tokens={train.batch_tokens}, but this task "
            "counts samples per batch; set only train.batch_size"
        )
    return train.batch_size


def batch_tokens_of(recipe: Recipe, noun: str) -> int:
    """The number of tokens per micro-batch; raises ConfigError for a recipe that counts samples. `noun` names the
    batches.
    """
    train = recipe.train
    if train.batch_tokens is None or train.batch_size is not None:
        raise ConfigError(
            f"train.batch_size is {train.batch_size} and train.batch_tokens {train.batch_tokens}; {noun} batches are "
            "counted in tokens, so set only train.batch_tokens"
        )
    return train.batch_tokens


def generic(
    name: str,
    domain: str,
    description: str,
    *,
    model: ModelConfig,
    task: TaskConfig,
    optim: OptimConfig,
    train: TrainConfig,
    expected: str,
) -> Recipe:
    """A recipe without data of its own, for any number of steps: the warm-up and the decay are shares of them."""
    schedule = WSDConfig(warmup=0.02, decay=0.6)
    return Recipe(name, domain, description, (), model, task, optim, schedule, train, expected=expected)
