"""The memory that a run needs, computed from its recipe, and a context that keeps freed memory in the process."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from headway.config import shortcuts
from headway.io.machine_memory import check_free_memory, glibc
from headway.learn.adapters import frozen_format, frozen_formats
from headway.learn.fine_tuning import prepare_for_training
from headway.learn.frozen_base import check_frozen_base
from headway.learn.optim import Optimizer
from headway.learn.recipe import Recipe
from headway.nn.models import outline

_TRIM_OPTION, _MMAP_OPTION = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_NEVER = (1 << 31) - 1  # bytes
_DEFAULT_TRIM, _DEFAULT_MMAP = 1 << 26, 1 << 25  # where glibc's adaptive thresholds end with large blocks


@contextmanager
def retained_heap() -> Iterator[None]:
    """Reuse freed memory inside the context instead of returning it to the system.

    Every step frees and allocates the same blocks. glibc returns large ones to the system at once, and the system
    zeroes each page before reuse, which takes a sixth of a small model's step.
    """
    libc = glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_OPTION, _NEVER)
    libc.mallopt(_TRIM_OPTION, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_OPTION, _DEFAULT_MMAP)
        libc.mallopt(_TRIM_OPTION, _DEFAULT_TRIM)
        libc.malloc_trim(ctypes.c_size_t(0))


def training_bytes(recipe: Recipe, model: nn.Module, fresh: Collection[str] = ()) -> dict[str, int]:
    """Bytes of memory that a run holds throughout: weights, gradients, optimiser state, moving average and exact sums.
    Batches need more.

    `model` is the outline of the recipe's model, and `fresh` are the parameters trained in addition to an adapter.
    """
    if recipe.adapter is not None:  # an adapter changes the modules
        model = outline(recipe.model)
    formats = frozen_formats(model, recipe.adapter, fresh)
    model = prepare_for_training(model, recipe, fresh)
    optimizer = Optimizer(recipe.optim, model)
    trained = optimizer.flat.data.nbytes
    frozen_sizes = {name: part.nbytes for name, part in model.named_parameters() if not part.requires_grad}
    if formats:
        from headway.engine.packed_weights import packed_bytes  # imports LLVM

        frozen_sizes |= {name: packed_bytes(model.get_parameter(name), dtype) for name, dtype in formats.items()}
    frozen = sum(frozen_sizes.values())
    return {
        "weights": trained + frozen,
        "gradients": optimizer.flat.grads_and_tail.nbytes,
        "optimiser": sum(buffer.nbytes for rule in optimizer.rules for buffer in rule.buffers.values()),
        "moving average": 0 if recipe.train.ema is None else trained,
        "exact sums": 8 * optimizer.flat.data.numel() if recipe.parallel.exact else 0,
    }


def check_memory(
    recipe: Recipe,
    model: nn.Module,
    fresh: Collection[str],
    device: torch.device,
    shards: int = 1,
    evaluates: bool = True,
) -> int:
    """The bytes of memory that a process of a run holds throughout; with `shards`, the one that `evaluates` also holds
    a copy of the whole model. Raises UserError if they do not fit in free memory, or if the adapter's frozen weights
    cannot be quantised there.
    """
    check_frozen_base(frozen_format(recipe.adapter), device, shards, recipe.train.compile)
    parts = training_bytes(recipe, model, fresh)
    if shards > 1:
        whole = {"weights for evaluation": parts["weights"]} if evaluates else {}
        parts = {name: -(-size // shards) for name, size in parts.items()} | whole
    remedy = "lower model.width or model.depth"
    if "cells" in shortcuts(type(recipe.model)):
        remedy = "lower model.width, model.depth or model.cells"
    if recipe.adapter is not None and frozen_format(recipe.adapter) == "fp32" and device.type == "cpu":
        remedy = "store the frozen weights in 8 or 4 bits with adapter.base=int8 or int4"
    if parts["optimiser"]:
        remedy += ", or use optim=sgd, which has no optimiser state"
    check_free_memory(f"training {recipe.name} (without batches)", parts, device, remedy)
    return sum(parts.values())
