"""Tensors whose rows are spread over processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headway.io.machine_memory import release_freed_memory
from headway.nn.parts.init import after_sampling

SHAPE, _START = "whole_shape", "first_row"  # attributes of a parameter of which only rows are left
_RELEASED = 1 << 26  # bytes after which freed memory is returned to the system


class Rows(NamedTuple):
    """The rows of a tensor of shape `shape` that this process has: those from `start` on, as many as `local` has.

    A tensor is split along its first dimension; a process may have no rows. Processes with the same rows are replicas.
    """

    local: Tensor
    start: int
    shape: torch.Size


def span(rows: int, shard: int, shards: int) -> tuple[int, int]:
    """The first row that a shard has of a tensor, and how many it has: those of FSDP, the last ones fewer."""
    size = -(-rows // shards)
    start = min(shard * size, rows)
    return start, min(size, rows - start)


@contextmanager
def sampled_rows(shard: int, shards: int) -> Iterator[None]:
    """Inside the context, a model that is built keeps only a shard's rows of each matrix that is sampled, so that no
    process has all of them at once. Their shape before is `whole_shape`.
    """

    freed = 0

    def keep(parameter: nn.Parameter) -> None:
        nonlocal freed
        if parameter.dim() >= 2 and not hasattr(parameter, SHAPE):
            start, count = span(parameter.shape[0], shard, shards)
            setattr(parameter, SHAPE, parameter.shape)
            setattr(parameter, _START, start)
            freed += parameter.nbytes
            parameter.data = parameter.data[start : start + count].clone()
        if freed > _RELEASED:  # small blocks stay in the heap, and their pages in memory
            release_freed_memory()
            freed = 0

    with after_sampling(keep):
        yield
    release_freed_memory()


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of a tensor, or of the one of whose rows it is."""
    return getattr(tensor, SHAPE, tensor.shape)


def copy_rows(tensor: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into `tensor`, or those of its rows that are left of it."""
    start = getattr(tensor, _START, 0)
    tensor.copy_(whole[start : start + tensor.shape[0]] if hasattr(tensor, _START) else whole)


def load(target: Tensor | Rows, name: str, saved: Mapping[str, Tensor]) -> None:
    """Copy a saved tensor, or the rows that this process has, into `target`. A mapping with a method
    `rows(name, start, count)` reads no others.
    """
    if isinstance(target, Tensor):
        target.copy_(saved[name])
        return
    source: Any = saved
    start, count = target.start, target.local.shape[0]
    has_rows = hasattr(source, "rows")
    target.local.copy_(source.rows(name, start, count) if has_rows else source[name][start : start + count])
