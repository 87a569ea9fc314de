"""A task small enough to test the trainer with: count upwards, modulo a few symbols.

Run as a program it trains in a directory of its own (for tests that kill, interrupt or multiply processes).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from headway.config import override, parse_value, register
from headway.models import BlockConfig, Loss, ModelConfig, StackConfig, TransformerConfig
from headway.train import WHOLE, Recipe, Run, Shard, TaskConfig, TrainConfig, Trainer, UserInterrupt

SYMBOLS = 11
LENGTH = 8


@dataclass(frozen=True)
class CountingBatch:
    ids: Tensor
    labels: Tensor

    @property
    def tokens(self) -> int:
        return int((self.labels >= 0).sum())

    @property
    def computed(self) -> int:
        return self.ids.numel()

    def to(self, device: torch.device | str) -> CountingBatch:
        return CountingBatch(self.ids.to(device), self.labels.to(device))


@register("test_counting")
@dataclass(frozen=True)
class CountingConfig(TaskConfig):
    rows: int = 4
    losses: int = 1

    def open(self, recipe: Recipe, data: Sequence[Path] | None, workspace: Path) -> Counting:
        return Counting(self, recipe.train.seed)


class Counting:
    goal = "loss"
    goal_better: Literal["min", "max"] = "min"

    def __init__(self, config: CountingConfig, seed: int, delay: float = 0.0) -> None:
        self.config = config
        self.seed = seed
        self.delay = delay

    def adapt(self, model: ModelConfig) -> ModelConfig:
        assert isinstance(model, TransformerConfig)
        return replace(model, symbols=SYMBOLS)

    def batch(self, k: int) -> CountingBatch:
        generator = np.random.default_rng((self.seed, k))
        start = generator.integers(SYMBOLS, size=(self.config.rows, 1))
        ids = torch.from_numpy((start + np.arange(LENGTH + 1)) % SYMBOLS)
        labels = ids[:, 1:].clone()
        labels[torch.from_numpy(generator.random(labels.shape) < 0.3)] = -100  # counts differ between batches
        return CountingBatch(ids[:, :-1], labels)

    def batches(self, split: str, shard: Shard = WHOLE, start: int = 0) -> Iterator[CountingBatch]:
        if split != "train":
            yield from (self.batch(10**6 + k) for k in range(2))
            return
        k = start + shard.rank
        while True:
            time.sleep(self.delay)
            yield self.batch(k)
            k += shard.world

    def loss(self, model: nn.Module, batch: CountingBatch) -> dict[str, Loss]:
        x = model(batch.ids).x
        losses = {"next": model.heads["vocabulary"].loss(x, batch.labels)}  # type: ignore[union-attr,operator]
        if self.config.losses == 2:
            first = batch.labels[:, :3]
            losses["first"] = model.heads["vocabulary"].loss(x[:, :3], first)  # type: ignore[union-attr,operator]
        return losses

    def evaluate(self, model: nn.Module, split: str = "validation", limit: int | None = None) -> dict[str, float]:
        losses = [self.loss(model, batch)["next"] for batch in self.batches(split)]
        return {"loss": sum(loss.total.item() for loss in losses) / sum(loss.count for loss in losses)}

    def count(self, split: str) -> int:
        return 2

    def samples(self, model: nn.Module, count: int) -> list[dict[str, str]]:
        return []

    def save(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text("{}")


class CountedCounting(Counting):
    """With counts known ahead."""

    def counts(self, batch: CountingBatch) -> dict[str, int]:
        return {"next": batch.tokens, "first": int((batch.labels[:, :3] >= 0).sum())}


def counting_recipe(**settings: Any) -> Recipe:
    """`counting_recipe(steps=3, optim="muon")`: settings of `train`, whole parts, or dotted keys."""
    recipe = Recipe(
        "counting",
        "text",
        "counts upwards",
        (),
        TransformerConfig(width=16, stack=StackConfig(blocks=(BlockConfig(dropout=0.1),))).set_heads(2),
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
    task = Counting(recipe.task, recipe.train.seed, delay)  # type: ignore[arg-type]
    return Trainer(recipe, task, directory, device="cpu", threads=1, progress=False, minutes=minutes).fit(resume)


if __name__ == "__main__":
    settings = dict(pair.split("=") for pair in sys.argv[3:])
    delay = float(settings.pop("delay", 0))
    recipe = counting_recipe(**{name: parse_value(value) for name, value in settings.items()})
    try:
        train(Path(sys.argv[1]), recipe, sys.argv[2] == "resume", delay)
    except UserInterrupt as interrupt:
        print(interrupt)
        sys.exit(130)
