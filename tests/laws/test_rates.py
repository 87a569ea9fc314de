"""Rates carry over: what a few steps change in features and logits does not hang on a model's width or depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headway.config import override
from headway.domains import recipe, scale_of
from headway.learn import Recipe
from headway.learn.learner import Learner
from headway.learn.parallel.processes import Processes
from headway.learn.recipe import open_task
from headway.nn.models import build

STEPS = 8
WIDTHS, DEPTHS = (32, 64, 128), (2, 4, 8)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text("".join(f"{i} birds sang in the {i % 7} trees of {i * i} gardens.\n" for i in range(3000)))
    return path


def change(book: Path, tmp_path: Path, width: int, depth: int, rates: bool) -> tuple[float, float]:
    """Root mean squares of what STEPS steps change: of the last features, and of the logits."""
    asked = override(recipe("text"), {"task.size": 300, "train.batch_tokens": 512, "train.precision": "fp32"})
    asked = replace(asked, data=(str(book),))
    sized = override(asked, {"model.width": width, "model.depth": depth, "model.heads": width // 32})
    sized = override(sized, {"model.dropout": 0.0, "schedule": "constant", "schedule.warmup": 0})
    settings = scale_of("text").learning_rates(asked, width, depth)  # type: ignore[union-attr]
    sized = override(sized, settings if rates else {"optim": "adamw", "optim.lr": 4e-3})
    task = open_task(sized, tmp_path)
    sized = replace(sized, model=task.adapt(sized.model))
    learner = Learner(build(sized.model, 3), sized, task, Processes(torch.device("cpu")))
    batch = next(task.batches("validation"))

    def told() -> tuple[torch.Tensor, torch.Tensor]:
        with learner.evaluating() as model:
            encoded = model(*batch.inputs)
            return encoded.x, model.get_submodule("heads.vocabulary")(encoded.x)

    before, stream = told(), task.batches("train")
    for step in range(STEPS):
        learner.update(step, [next(stream)])
    first, second = (float((a - b).square().mean().sqrt()) for a, b in zip(told(), before))
    return first, second


def spread(values: list[float]) -> float:
    return max(values) / min(values)


def test_the_width_changes_little(book: Path, tmp_path: Path) -> None:
    found = [change(book, tmp_path, width, 4, rates=True) for width in WIDTHS]
    assert spread([features for features, _ in found]) < 1.3, found
    assert spread([logits for _, logits in found]) < 1.3, found
    plain = [change(book, tmp_path, width, 4, rates=False)[1] for width in WIDTHS]
    assert spread(plain) > 1.6, "AdamW at one rate, which does not carry over, is to be seen"


def test_the_depth_changes_little(book: Path, tmp_path: Path) -> None:
    found = [change(book, tmp_path, 64, depth, rates=True) for depth in DEPTHS]
    assert spread([features for features, _ in found]) < 1.6, found


def test_recipes_say_their_rates() -> None:
    asked: Recipe = recipe("text")
    rates = scale_of("text").learning_rates(asked, 512, 16)  # type: ignore[union-attr]
    assert rates == {"optim.lr": pytest.approx(0.006), "optim.head_lr": pytest.approx(0.003 / 4)}
