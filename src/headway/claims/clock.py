"""Time and memory of a model's work."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def seconds(work: Callable[[], Any], enough: float = 0.1, least: int = 3) -> float:
    """The time of `work`: the best of at least `least` runs that take `enough` seconds in all, after one to warm up.

    What else runs on the machine can only lengthen a run, so the shortest comes nearest to the cost.
    """
    work()
    gc.collect()
    times: list[float] = []
    while len(times) < least or (sum(times) < enough and len(times) < 100):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def step_seconds(model: nn.Module, inputs: Tensor, enough: float = 0.1) -> tuple[float, float]:
    """(forward, backward) of one step; the backward's time is that of both without the forward's."""

    def forward() -> Tensor:
        return model(inputs).x.square().mean()

    def both() -> None:
        forward().backward()

    ahead, whole = seconds(forward, enough), seconds(both, enough)
    return ahead, max(whole - ahead, 1e-9)


def kept_bytes(model: nn.Module, inputs: Tensor) -> int:
    """What the forward pass keeps for the backward one, weights aside: counted, not measured."""
    weights = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(inputs).x.square().mean()  # held, so that no place in memory is used twice
    del out
    return sum(kept.values())


@contextmanager
def one_thread() -> Iterator[None]:
    """torch works on one thread, so that the processor's time is that of one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
