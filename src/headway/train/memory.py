"""What a run needs of memory, told from its recipe without allocating a weight."""

from __future__ import annotations

from collections.abc import Collection

import torch

from headway.config import shortcuts
from headway.memory import check_room
from headway.models import build
from headway.train.freezing import prepared
from headway.train.optim import Optimizer
from headway.train.recipe import Recipe


def training_bytes(recipe: Recipe, fresh: Collection[str] = ()) -> dict[str, int]:
    """Bytes that a run keeps all the time: weights, gradients, what the optimiser keeps, and the moving average.

    `fresh` are the parameters that are trained beside an adapter. What a batch takes comes on top.
    """
    with torch.device("meta"):
        model = build(recipe.model, seed=None)
    model = prepared(model, recipe, fresh)
    optimizer = Optimizer(recipe.optim, model)
    trained = optimizer.flat.data.nbytes
    frozen = sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad)
    return {
        "weights": trained + frozen,
        "gradients": optimizer.flat.grads_and_tail.nbytes,
        "optimiser": sum(buffer.nbytes for rule in optimizer.rules for buffer in rule.buffers.values()),
        "moving average": 0 if recipe.train.ema is None else trained,
    }


def check_memory(recipe: Recipe, fresh: Collection[str], device: torch.device) -> None:
    """UserError for a run that does not fit into the memory that is free, before it takes any."""
    parts = training_bytes(recipe, fresh)
    smaller = "set model.width or model.depth lower"
    if "cells" in shortcuts(type(recipe.model)):
        smaller = "set model.width, model.depth or model.cells lower"
    if parts["optimiser"]:
        smaller += ", or optim=sgd, which keeps nothing"
    check_room(f"training {recipe.name}, without its batches,", parts, device, smaller)
