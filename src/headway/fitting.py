"""A generic recipe fitted to a user's data, minutes and machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from headway.domains import scale_of
from headway.models import build
from headway.recipes import open_task
from headway.train import Recipe, Task
from headway.train.budget import Clock, Meter
from headway.train.distributed import Processes
from headway.train.precision import choose as choose_precision
from headway.train.scale import Fit, Pace, Scale, choose, explained, settled, with_user

_SHARE, _LEAST, _MOST = 0.003, 0.15, 2.0  # of the time goes into measuring one size, but within these seconds
_BEFORE = 0.94  # of the minutes is training: the rest are evaluations and the judgement at the end
_LATER = 12  # times as many minutes, of which a plan says what they would be good for


class Fitted(NamedTuple):
    """A recipe with all that was open, and its task over the data."""

    recipe: Recipe
    task: Task


@dataclass
class Fitting:
    """The data of a generic recipe, opened once, and how fast models of several sizes learn from them here.

    `user` are the settings that are not chosen. Raises UserError for what cannot be trained.
    """

    recipe: Recipe
    user: Mapping[str, Any]
    minutes: float
    clock: Clock
    device: torch.device
    scale: Scale
    paces: dict[str, Pace] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._folder = TemporaryDirectory()
        self.workspace = Path(self._folder.name)
        self.processes = Processes(self.device)
        paths = [Path(path) for path in self.recipe.data]
        found = self.scale.settle(self.recipe, paths, self.minutes)
        self.recipe = with_user(self.recipe, found.settings, self.user)
        self.reason = found.reason
        self.task = open_task(self.recipe, self.workspace)
        self.task.save(self.workspace)
        self.unique = self.scale.amount(self.task)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def fit(self) -> Fitted:
        """The size of least loss foretold, its batches, rates and regularisation."""
        seconds = self._training_seconds(self.minutes)
        best, fits = choose(self.recipe, self.scale, self.user, self.unique, seconds, self.pace)
        reasons = (*filter(None, [self.reason]), *explained(best, fits, self.scale, self.unique, seconds))
        later = self._later(fits)
        if later is not None and later.parameters > 1.2 * best.parameters:
            reasons = (*reasons, f"in {_LATER} times the minutes a model of {later.parameters:,} would learn more")
        chosen = replace(settled(self.recipe, best, self.scale, self.unique, self.user), reasons=reasons)
        return Fitted(chosen, self._reopened(chosen))

    def pace(self, recipe: Recipe) -> Pace:
        """How fast the model of a recipe learns here."""
        key = repr(recipe.model)
        if key not in self.paces:
            self.paces[key] = self._measured(recipe)
        return self.paces[key]

    def _measured(self, recipe: Recipe) -> Pace:
        sized = replace(recipe, model=self.task.adapt(recipe.model))
        name, _ = choose_precision(sized.train.precision, _shapes(sized), self.device)
        meter = Meter(sized, (), self.task, self.processes, name)
        each = meter.each(min(max(_SHARE * 60 * self.minutes, _LEAST), _MOST))
        overhead = min(meter.overhead(), 0.5 * each)
        samples = sized.train.accumulate * (sized.train.batch_size or 0)  # of which each may have several targets
        counted = samples if self.scale.batch == "train.batch_size" else meter.targets
        found = [counted / (each - overhead), overhead]
        return Pace(*self.processes.tell(found))

    def _training_seconds(self, minutes: float) -> float:
        return self.processes.tell(_BEFORE * 60 * minutes - self.clock.worked())

    def _later(self, fits: Sequence[Fit]) -> Fit | None:
        """The size that more minutes would be best for, with paces that are told from those measured."""
        last = fits[-1]

        def pace(recipe: Recipe) -> Pace:
            known = self.paces.get(repr(recipe.model))
            if known is not None:
                return known
            times = Fit.size(recipe) / last.parameters
            return Pace(last.pace.targets / times, last.pace.overhead * times)

        seconds = self._training_seconds(_LATER * self.minutes)
        return choose(self.recipe, self.scale, self.user, self.unique, seconds, pace)[0]

    def _reopened(self, recipe: Recipe) -> Task:
        """The task under the settings that were chosen, with the codec that it has made."""
        same = recipe.task == self.recipe.task
        batches = all(
            getattr(recipe.train, name) == getattr(self.recipe.train, name) for name in ("batch_tokens", "batch_size")
        )
        return self.task if same and batches else open_task(recipe, self.workspace)


def fitting(
    recipe: Recipe, user: Mapping[str, Any], minutes: float, clock: Clock, device: torch.device
) -> Fitting | None:
    """The fitting of a generic recipe to the time there is; None for a recipe whose size is its own, or the user's."""
    scale = scale_of(recipe.name)
    if scale is None or recipe.start is not None or "model" in user:
        return None
    return Fitting(recipe, user, minutes, clock, device, scale)


def _shapes(recipe: Recipe) -> nn.Module:
    with torch.device("meta"):
        return build(recipe.model, seed=None)
