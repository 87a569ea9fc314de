"""Variants of a recipe, with the sizes that they will be trained in."""

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
from headway.evaluation import open_task
from headway.learn import Recipe, Task, TaskConfig
from headway.nn.models import ModelConfig, describe

# Values of these make models of different sizes, which cannot be compared at equal sizes.
_SETS_THE_SIZE = ("model.symbols", "task.size", "task.codec")
_COUNTED = 50  # batches


@dataclass(frozen=True)
class Variant:
    """One combination of the compared settings, and its model as data make it; `width` is None where it stayed as it
    was.
    """

    name: str
    recipe: Recipe
    model: ModelConfig
    parameters: int
    width: int | None = None


class Tasks:
    """One task for each task config, whose codec all variants with that config use: trained once, and kept below
    `directory`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._opened: dict[TaskConfig, tuple[Task, ModelConfig]] = {}

    def of(self, recipe: Recipe) -> Task:
        """The task that was opened for the first recipe with this task config."""
        if recipe.task not in self._opened:
            place = self.directory / str(len(self._opened) + 1)
            self._opened[recipe.task] = open_task(recipe, place), recipe.model
        return self._opened[recipe.task][0]

    def save(self) -> None:
        """Keep the codecs of all that was opened."""
        for number, (task, _) in enumerate(self._opened.values(), 1):
            task.save(self.directory / str(number))

    def adapted(self, recipe: Recipe) -> ModelConfig:
        """The model of a recipe as it will be trained.

        Tasks may keep what they were told of a model: one with another model is asked of a task of its own, which is
        opened as training will open it.
        """
        task = self.of(recipe)
        if recipe.model == self._opened[recipe.task][1]:
            return task.adapt(recipe.model)
        with self._own(recipe) as own:
            return own.adapt(recipe.model)

    def lasting(self, recipe: Recipe, tokens: int) -> Recipe:
        """`recipe` with as many steps as see about so many `tokens`, by the first batches that it is trained on."""
        with self._own(recipe) as own:
            seen = [batch.tokens for batch in islice(own.batches("train"), _COUNTED)]
        each = recipe.train.accumulate * sum(seen) / len(seen)
        steps = max(1, round(tokens / each))
        return replace(recipe, train=replace(recipe.train, steps=steps), schedule=recipe.schedule.planned(steps))

    @contextmanager
    def _own(self, recipe: Recipe) -> Iterator[Task]:
        """A task of its own for a recipe, with the codec of all."""
        with TemporaryDirectory() as place:
            self.of(recipe).save(Path(place))
            own = open_task(recipe, Path(place))
            try:
                yield own
            finally:
                own.close()


def variants(
    recipe: Recipe, grid: Mapping[str, Sequence[Any]], adapted: Callable[[Recipe], ModelConfig]
) -> list[Variant]:
    """Every combination of the grid's values, with its size; `adapted` gives the model of a recipe as data make it."""
    if not any(len(values) > 1 for values in grid.values()):
        raise UserError("there is only one variant; give several values, as in --set model.mixer=attention,lstm")
    # Whether the grid itself says how large models are: by a width, or by what makes some larger than others.
    sized = "model.width" in grid or any(len(grid[key]) > 1 for key in _SETS_THE_SIZE if key in grid)
    found: list[Variant] = []
    for values in product(*grid.values()):
        settings = dict(zip(grid, values))
        name = _name({key: value for key, value in settings.items() if len(grid[key]) > 1})
        if not name.strip("."):  # which would be the folder of the comparison, or the one above it
            raise UserError(f"a variant would be called {name!r}; give values with letters or digits")
        if any(name == other.name for other in found):
            raise UserError(f"two variants would be called {name!r}; give values that differ in letters or digits")
        chosen = override(recipe, settings)
        model = adapted(chosen)
        size = describe(model)["parameters"]
        matched = None
        if found and any(key.startswith("model.") for key in grid) and not sized:
            matched = matching_width(model, found[0].parameters)
        if matched is not None:
            chosen = override(chosen, {"model.width": matched})
            model = override(model, {"width": matched})
            size = describe(model)["parameters"]
        found.append(Variant(name, chosen, model, size, matched))
    return found


def matching_width(model: ModelConfig, parameters: int) -> int | None:
    """The width, a multiple of what the model needs, that brings the parameters nearest; None to leave it as it is."""
    own = describe(model)["parameters"]
    if own == parameters:
        return None
    step = _step(to_dict(model))

    def size(width: int) -> int:
        return describe(override(model, {"width": width}))["parameters"]

    width = nearest_width(size, parameters, step)
    return width if abs(size(width) - parameters) < abs(own - parameters) else None


def nearest_width(size: Callable[[int], int], parameters: int, step: int = 1) -> int:
    """The width, a multiple of `step`, whose `size` is nearest to so many parameters; sizes grow with the width."""
    low, high = 1, 2
    while size(step * high) < parameters:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(step * middle) < parameters else (low, middle)
    return step * min((low, high), key=lambda n: abs(size(step * n) - parameters))


def _step(plain: Any) -> int:
    """What the width has to be a multiple of."""
    rotary = any(key == "rotary" and item is not None for key, item in _settings(plain))
    step = math.lcm(*_heads(plain)) * (2 if rotary else 1)  # rotary positions need even heads
    for key, item in _settings(plain):
        if key == "kind" and item in ("sinusoidal", "sinusoid_table"):
            step = math.lcm(step, 2)
        if isinstance(item, Mapping) and item.get("stem") == "convolutional":  # it doubles channels up to the width
            step = math.lcm(step, max(1, item["patch"][0] // 2))
    return step


def _heads(plain: Any) -> list[int]:
    return [1, *(item for key, item in _settings(plain) if key in ("heads", "kv_heads") and isinstance(item, int))]


def _settings(plain: Any) -> Iterator[tuple[str, Any]]:
    """All names and values in plain data, at any depth."""
    inner = plain.values() if isinstance(plain, Mapping) else plain if isinstance(plain, list) else ()
    yield from plain.items() if isinstance(plain, Mapping) else ()
    for item in inner:
        yield from _settings(item)


def _name(settings: Mapping[str, Any]) -> str:
    """The value that is compared, or each under the last word of its key."""
    if len(settings) == 1:
        return _text(next(iter(settings.values())))
    return ",".join(f"{key.split('.')[-1]}={_text(value)}" for key, value in settings.items())


def _text(value: Any) -> str:
    """A value as part of a name that is also a folder's."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.,:=+-]+", "", text)
