"""The recipe `pronounce` with other mixers: the experiments on a real task from one sequence to another."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.claims.claim import Values
from headway.compare import matching_width
from headway.models import describe
from headway.recipes import configured, open_task
from headway.train import Task, Trainer

WITHOUT_ORDER = "attention, without positions"


@dataclass(frozen=True)
class Budget:
    """Steps of a run, and of those in which each of the learning `rates` is tried before; the best is then used."""

    steps: int = 500
    trial_steps: int = 80
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    evaluations: int = 10
    words: int = 300  # of an evaluation


def tuned(budget: Budget, variant: str, seed: int) -> Values:
    """A run of the variant at the best of the rates, by the loss after the short runs with the same seed."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        recipe = configured("pronounce", None, {}, seed)
        task = open_task(recipe, place / "task")
        tried = {
            rate: run(budget, variant, seed, rate, budget.trial_steps, 1, task, place / f"try-{rate:g}")["loss"][-1]
            for rate in budget.rates
        }
        best = min(tried, key=lambda rate: tried[rate])
        found = run(budget, variant, seed, best, budget.steps, budget.evaluations, task, place / "run")
    return {**found, "rate": best, "tried": {f"{rate:g}": loss for rate, loss in tried.items()}}


def settings_of(budget: Budget, variant: str, rate: float, steps: int, evaluations: int) -> Mapping[str, Any]:
    """AdamW for all, which favours no mixer; attention is the recipe's own."""
    mixer: dict[str, Any] = {"model.encoder.embed.positions": None} if variant == WITHOUT_ORDER else {}
    if not variant.startswith("attention"):
        mixer = {"model.mixer": variant}
    return {
        **mixer,
        "optim.kind": "adamw",
        "optim.lr": rate,
        "optim.weight_decay": 0.0,
        "train.steps": steps,
        "train.evaluate_every": -(-steps // evaluations),
        "train.evaluate_limit": budget.words,
        "train.precision": "fp32",
        "schedule.warmup": 0.1,
    }


def run(
    budget: Budget, variant: str, seed: int, rate: float, steps: int, evaluations: int, task: Task, place: Path
) -> dict[str, Any]:
    """Validation by seconds of training: losses and phoneme error rates, at the size of the recipe's own model."""
    recipe = configured("pronounce", None, settings_of(budget, variant, rate, steps, evaluations), seed)
    own = describe(task.adapt(configured("pronounce", None, {}, seed).model))["parameters"]
    width = matching_width(task.adapt(recipe.model), own)
    if width is not None:
        changed = {**settings_of(budget, variant, rate, steps, evaluations), "model.width": width}
        recipe = configured("pronounce", None, changed, seed)
    task.save(place)
    done = Trainer(recipe, task, place, device="cpu", progress=False).fit()
    lines = [line for line in done.metrics if line.get("split") == "validation"]
    return {
        "parameters": done.summary["parameters"],
        "seconds": [line["seconds"] for line in lines],
        "loss": [line["loss"] for line in lines],
        "per": [line["per"] for line in lines],
    }


def seconds_to(values: Values, target: float) -> tuple[float, bool]:
    """When the error rate first fell to `target`, on the line between two evaluations; else the whole time, and False.

    The rate before training counts as 1.
    """
    before = (0.0, 1.0)
    for after in zip(values["seconds"], values["per"]):
        if after[1] <= target:
            share = (before[1] - target) / (before[1] - after[1]) if before[1] > after[1] else 1.0
            return before[0] + min(1.0, share) * (after[0] - before[0]), True
        before = after
    return values["seconds"][-1], False
