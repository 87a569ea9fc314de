"""A task small enough to test the trainer with: count upwards, modulo a few symbols.

Run as a program it trains in a directory of its own (for tests that kill, interrupt or multiply processes).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from headway.app.cli.main import run_job
from headway.config import override, parse_value
from headway.config_kinds import register
from headway.learn import FULL_SHARD, Recipe, Run, Shard, Task, TaskConfig, TrainConfig, Trainer
from headway.learn.examples import Batch, Examples
from headway.learn.objective import Objective
from headway.nn.models import BlockConfig, Loss, ModelConfig, StackConfig, TransformerConfig

SYMBOLS = 11
LENGTH = 8


@register("test_counting")
@dataclass(frozen=True)
class CountingConfig(TaskConfig):
    rows: int = 4
    losses: int = 1

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Task:
        return counting(self, recipe.train.seed)


class Counts(Examples):
    """Rows that count upwards; the counts of targets differ between batches."""

    final_split = "validation"

    def __init__(self, config: CountingConfig, seed: int, delay: float = 0.0) -> None:
        self.config, self.seed, self.delay = config, seed, delay

    def adapt(self, model: ModelConfig) -> ModelConfig:
        assert isinstance(model, TransformerConfig)
        return replace(model, vocab_size=SYMBOLS)

    def batch(self, k: int) -> Batch:
        generator = np.random.default_rng((self.seed, k))
        start = generator.integers(SYMBOLS, size=(self.config.rows, 1))
        ids = torch.from_numpy((start + np.arange(LENGTH + 1)) % SYMBOLS)
        labels = ids[:, 1:].clone()
        labels[torch.from_numpy(generator.random(labels.shape) < 0.3)] = -100
        return Batch((ids[:, :-1],), labels, int((labels >= 0).sum()), labels.numel())

    def batches(self, split: str, shard: Shard = FULL_SHARD, start: int = 0) -> Iterator[Batch]:
        if split != "train":
            yield from (self.batch(10**6 + k) for k in range(2))
            return
        for k in shard.indices(start):
            time.sleep(self.delay)
            yield self.batch(k)

    def count(self, split: str) -> int:
        return 2

    def save(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text("{}")


class CountOn(Objective[Counts]):
    """The next number, and once more the first three where there are two `losses`, whose counts are told ahead if
    `ahead`.
    """

    def __init__(self, losses: int = 1, ahead: bool = False) -> None:
        self.losses, self.ahead = losses, ahead

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"next": batch.tokens, "first": int((batch.targets[:, :3] >= 0).sum())} if self.ahead else {}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        x = model(*batch.inputs).x
        losses = {"next": model.heads["vocabulary"].loss(x, batch.targets)}  # type: ignore[union-attr,operator]
        if self.losses == 2:
            first = batch.targets[:, :3]
            losses["first"] = model.heads["vocabulary"].loss(x[:, :3], first)  # type: ignore[union-attr,operator]
        return losses

    def evaluate(self, model: nn.Module, examples: Counts, split: str, limit: int | None = None) -> dict[str, Any]:
        losses = [self.loss(model, batch)["next"] for batch in examples.batches(split)]
        return {"loss": sum(loss.total.item() for loss in losses) / sum(loss.count for loss in losses)}


def counting(config: CountingConfig, seed: int, delay: float = 0.0, ahead: bool = False) -> Task:
    return Task(Counts(config, seed, delay), CountOn(config.losses, ahead))


def counting_recipe(**settings: Any) -> Recipe:
    """`counting_recipe(steps=3, optim="muon")`: settings of `train`, whole parts, or dotted keys."""
    recipe = Recipe(
        "counting",
        "text",
        "counts upwards",
        (),
        override(TransformerConfig(width=16, stack=StackConfig(blocks=(BlockConfig(dropout=0.1),))), {"heads": 2}),
        CountingConfig(),
        train=TrainConfig(steps=20, precision="fp32"),
    )
    parts = ("optim", "schedule")
    whole = {key if "." in key or key in parts else f"train.{key}": value for key, value in settings.items()}
    return override(recipe, whole)


def train(
    directory: Path, recipe: Recipe, resume: bool = False, delay: float = 0.0, minutes: float | None = None
) -> Run:
    """Train on one thread without a display; `delay` slows each batch by so many seconds."""
    task = counting(recipe.task, recipe.train.seed, delay)  # type: ignore[arg-type]
    return Trainer(recipe, task, directory, device="cpu", threads=1, progress=False, minutes=minutes).fit(resume)


if __name__ == "__main__":
    settings = dict(pair.split("=") for pair in sys.argv[3:])
    delay = float(settings.pop("delay", 0))
    recipe = counting_recipe(**{name: parse_value(value) for name, value in settings.items()})
    sys.exit(run_job(lambda: train(Path(sys.argv[1]), recipe, sys.argv[2] == "resume", delay) and None, debug=False))
