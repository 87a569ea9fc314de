"""Variants of a recipe, at comparable model sizes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from headway.config import override, to_dict
from headway.errors import UserError
from headway.learn import Recipe, Task, TaskConfig
from headway.learn.examples import OnPolicyExamples
from headway.learn.fine_tuning import open_new_task
from headway.learn.recipe import open_task
from headway.nn.models import ModelConfig, describe

# Different values of these settings change the model size, so sizes cannot be matched.
_SIZE_SETTINGS = ("model.vocab_size", "task.size", "task.codec")
_NUM_COUNTED = 50  # batches to count tokens in


@dataclass(frozen=True)
class Variant:
    """One combination of the compared settings, with its model adapted to the data; `width` is None if it was not
    adjusted.
    """

    name: str
    recipe: Recipe
    model: ModelConfig
    parameters: int
    width: int | None = None


class SharedTasks:
    """One task per task config. Its codec is trained once, stored below `directory`, and shared by all variants with
    that config.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._opened: dict[TaskConfig, tuple[Task, ModelConfig]] = {}

    def get(self, recipe: Recipe) -> Task:
        """The task of the first recipe with this task config."""
        if recipe.task not in self._opened:
            path = self.directory / str(len(self._opened) + 1)
            self._opened[recipe.task] = open_new_task(recipe, path), recipe.model
        return self._opened[recipe.task][0]

    def save(self) -> None:
        """Store the codecs of all opened tasks."""
        for number, (task, _) in enumerate(self._opened.values(), 1):
            task.save(self.directory / str(number))

    def adapted_model(self, recipe: Recipe) -> ModelConfig:
        """A recipe's model as it will be trained.

        A task may store properties of the model, so a recipe with another model gets a separate task, opened as
        training will open it.
        """
        task = self.get(recipe)
        if recipe.model == self._opened[recipe.task][1]:
            return task.adapt(recipe.model)
        with self._separate_task(recipe) as separate_task:
            return separate_task.adapt(recipe.model)

    def with_token_budget(self, recipe: Recipe, tokens: int) -> Recipe:
        """The recipe with enough steps for about `tokens` tokens, estimated from its first training batches."""
        if isinstance(self.get(recipe).examples, OnPolicyExamples):
            raise UserError(f"{recipe.name} trains on samples of its own model; compare by minutes instead of tokens")
        with self._separate_task(recipe) as separate_task:
            token_counts = [batch.tokens for batch in islice(separate_task.batches("train"), _NUM_COUNTED)]
        tokens_per_step = recipe.train.accumulate * sum(token_counts) / len(token_counts)
        steps = max(1, round(tokens / tokens_per_step))
        return replace(recipe, train=replace(recipe.train, steps=steps), schedule=recipe.schedule.planned(steps))

    @contextmanager
    def _separate_task(self, recipe: Recipe) -> Iterator[Task]:
        """A separate task for a recipe, with the shared codec."""
        with TemporaryDirectory() as workspace:
            self.get(recipe).save(Path(workspace))
            task = open_task(recipe, Path(workspace))
            try:
                yield task
            finally:
                task.close()


def variants(
    recipe: Recipe, grid: Mapping[str, Sequence[Any]], adapt: Callable[[Recipe], ModelConfig]
) -> list[Variant]:
    """Every combination of the grid's values, with its size; `adapt` returns the model of a recipe for the data."""
    if not any(len(values) > 1 for values in grid.values()):
        raise UserError("there is only one variant; pass several values, as in --set model.mixer=attention,lstm")
    # Whether the grid itself sets the model size, through a width or another setting.
    sets_size = "model.width" in grid or any(len(grid[key]) > 1 for key in _SIZE_SETTINGS if key in grid)
    all_variants: list[Variant] = []
    for values in product(*grid.values()):
        settings = dict(zip(grid, values))
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
        # values as parts of a folder name
        compared = {key: re.sub(r"[^\w.,:=+-]+", "", texts[key]) for key in settings if len(grid[key]) > 1}
        name = ",".join(f"{key.split('.')[-1]}={value}" for key, value in compared.items())
        if len(compared) == 1:
            (name,) = compared.values()
        if not name.strip("."):  # it would be the comparison directory or its parent
            raise UserError(f"a variant would be named {name!r}; use values with letters or digits")
        if any(name == earlier.name for earlier in all_variants):
            raise UserError(f"two variants would be named {name!r}; use values that differ in letters or digits")
        variant_recipe = override(recipe, settings)
        model = adapt(variant_recipe)
        size = describe(model)["parameters"]
        matched_width = None
        if all_variants and any(key.startswith("model.") for key in grid) and not sets_size:
            matched_width = matching_width(model, all_variants[0].parameters)
        if matched_width is not None:
            variant_recipe = override(variant_recipe, {"model.width": matched_width})
            model = override(model, {"width": matched_width})
            size = describe(model)["parameters"]
        all_variants.append(Variant(name, variant_recipe, model, size, matched_width))
    return all_variants


def matching_width(model: ModelConfig, parameters: int) -> int | None:
    """The width that gets closest to `parameters` parameters; None to keep the model's."""
    num_parameters = describe(model)["parameters"]
    if num_parameters == parameters:
        return None
    settings = list(_iter_settings(to_dict(model)))
    heads = [item for key, item in settings if key in ("heads", "kv_heads") and isinstance(item, int)]
    step = math.lcm(1, *heads)
    if any(key == "rotary" and item is not None for key, item in settings):
        step *= 2  # rotary positions need even heads
    for key, item in settings:
        if key == "kind" and item in ("sinusoidal", "sinusoid_table"):
            step = math.lcm(step, 2)
        if isinstance(item, Mapping) and item.get("stem") == "convolutional":  # it doubles its channels up to the width
            step = math.lcm(step, max(1, item["patch"][0] // 2))

    def size(width: int) -> int:
        return describe(override(model, {"width": width}))["parameters"]

    width = nearest_width(size, parameters, step)
    return width if abs(size(width) - parameters) < abs(num_parameters - parameters) else None


def nearest_width(size: Callable[[int], int], parameters: int, step: int = 1) -> int:
    """The multiple of `step` whose `size` is closest to `parameters`; sizes must grow with the width."""
    low, high = 1, 2
    while size(step * high) < parameters:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(step * middle) < parameters else (low, middle)
    return step * min((low, high), key=lambda n: abs(size(step * n) - parameters))


def _iter_settings(plain: Any) -> Iterator[tuple[str, Any]]:
    """All names and values in plain data, at any depth."""
    inner = plain.values() if isinstance(plain, Mapping) else plain if isinstance(plain, list) else ()
    yield from plain.items() if isinstance(plain, Mapping) else ()
    for item in inner:
        yield from _iter_settings(item)
