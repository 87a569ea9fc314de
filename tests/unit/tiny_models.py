"""What tests do to small models: train them on one batch, or give them weights in which everything matters."""

from __future__ import annotations

from typing import Any

import torch

from headway.learn import Recipe
from headway.nn.models import build


def overfit(task: Any, recipe: Recipe, steps: int = 80) -> tuple[torch.nn.Module, Any, float]:
    """A model after some steps on the first batch, the batch, and the loss there."""
    model = build(task.adapt(recipe.model))
    batch = next(task.batches("train"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = task.loss(model, batch)["loss"]
        (loss.total / loss.count).backward()
        optimizer.step()
    return model, batch, loss.total.item() / loss.count


def stirred(task: Any, recipe: Recipe, share: float) -> Any:
    """The model of a recipe for a task, its weights moved by chance, a `share` of a standard normal number each."""
    model: Any = build(task.adapt(recipe.model), 1)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * share)
    return model.eval()
