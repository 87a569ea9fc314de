"""What a run needs of memory, told from its recipe, and that it keeps what it has."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from headway.config import shortcuts
from headway.learn.optim import Optimizer
from headway.learn.recipe import Recipe
from headway.learn.start import prepared
from headway.memory import check_room
from headway.nn.models import build

_TRIM, _MAPPED = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_KEPT = (1 << 31) - 1  # bytes
_USUAL_TRIM, _USUAL_MAPPED = 1 << 26, 1 << 25  # where glibc's own adaption ends up with large blocks


@contextmanager
def kept_heap() -> Iterator[None]:
    """Within this context freed memory is used again instead of being returned to the system.

    Every step frees and takes the same blocks. glibc gives large ones back at once, and the system clears each page
    before it hands it out again: a sixth of a step of a small model.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MAPPED, _KEPT)
    libc.mallopt(_TRIM, _KEPT)
    try:
        yield
    finally:
        libc.mallopt(_MAPPED, _USUAL_MAPPED)
        libc.mallopt(_TRIM, _USUAL_TRIM)
        libc.malloc_trim(ctypes.c_size_t(0))


def _glibc() -> Any:
    """The C library with glibc's functions; None where it is another."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if all(hasattr(libc, name) for name in ("mallopt", "malloc_trim", "gnu_get_libc_version")) else None


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
