"""What a recipe would come to in several numbers of minutes, told without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from headway.app.fitting import Plan, fitting
from headway.app.recipes import begin_task
from headway.errors import UserError
from headway.learn import Recipe, Task
from headway.learn.budget import Clock, Speed, measure, planned
from headway.learn.distributed import Processes
from headway.learn.memory import check_memory, training_bytes
from headway.learn.precision import choose as choose_precision
from headway.learn.scale import Pace, shape_of
from headway.nn.models import build, describe


def plans(
    recipe: Recipe, user: Mapping[str, Any], minutes: Sequence[float], device: torch.device, spent: float
) -> list[Plan]:
    """A plan for each number of minutes, of which `spent` seconds go before the data are opened.

    A generic recipe is fitted to each; of a recipe whose size is its own the steps are planned. Minutes that are too
    few have a plan that says so. UserError where that are all of them.
    """
    paces: dict[str, Pace] = {}
    found, first = [], None
    scaled = fitting(recipe, user, minutes[0], Clock(), device) is not None
    fixed = None if scaled else _Fixed(recipe, minutes, device, spent)
    for number in minutes:
        try:
            found.append(_fitted(recipe, user, number, device, spent, paces) if fixed is None else fixed.plan(number))
        except UserError as error:
            first = first or error
            found.append(Plan(number, (str(error),)))
    if first is not None and all(plan.steps is None for plan in found):
        raise first
    return found


def _fitted(
    recipe: Recipe,
    user: Mapping[str, Any],
    minutes: float,
    device: torch.device,
    spent: float,
    paces: dict[str, Pace],
) -> Plan:
    one = fitting(recipe, user, minutes, Clock(spent), device)
    assert one is not None  # as it is for any other number of minutes
    one.paces = paces
    with one:
        return one.plan()


class _Fixed:
    """A recipe whose size is its own, measured once."""

    def __init__(self, recipe: Recipe, minutes: Sequence[float], device: torch.device, spent: float) -> None:
        clock, self.processes = Clock(spent), Processes(device)
        with TemporaryDirectory() as folder:
            task = begin_task(recipe, Path(folder))
            try:
                self.recipe = replace(recipe, model=task.adapt(recipe.model))
                check_memory(self.recipe, (), device)
                self.speed, self.batch = self._measured(task, 60 * min(minutes))
            finally:
                task.close()
        self.spent = clock.worked()

    def _measured(self, task: Task, seconds: float) -> tuple[Speed, int]:
        """The speed, and the targets of a step."""
        with torch.device("meta"):
            shapes = build(self.recipe.model, seed=None)
        name, _ = choose_precision(self.recipe.train.precision, shapes, self.processes.device)
        speed = measure(self.recipe, (), task, self.processes, name, seconds, judged=True)
        return speed, next(task.batches("train")).tokens * self.recipe.train.accumulate

    def plan(self, minutes: float) -> Plan:
        recipe = planned(self.recipe, self.speed, 60 * minutes - self.spent)
        width, layers = shape_of(recipe.model)
        reason = f"the size is that of the recipe; a step takes {self.speed.step:.2g} s"
        return Plan(
            minutes,
            (f"{reason}, an evaluation {self.speed.evaluation:.2g} s",),
            describe(recipe.model)["parameters"],
            width,
            layers,
            self.batch,
            recipe.train.steps,
            None,
            sum(training_bytes(recipe).values()),
        )
