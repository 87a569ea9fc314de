"""Evaluation by all processes: each computes some of the batches, and all of them get every result in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from headway.learn.parallel.processes import Processes


class EvaluationStoppedError(KeyboardInterrupt):
    """A signal to one process stops an evaluation in all of them."""


class _Group(NamedTuple):
    processes: Processes
    stops: Callable[[], bool]
    breakable: Callable[[], AbstractContextManager[None]]


_GROUP: ContextVar[_Group | None] = ContextVar("evaluation_group", default=None)


@contextmanager
def shared_evaluation(
    processes: Processes, stops: Callable[[], bool], breakable: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Inside this context, which all processes enter, they share the batches of `share_batches`.

    All of them raise EvaluationStoppedError if `stops` is true in one, or if a signal interrupts what the main process
    computes alone, in the context `breakable`.
    """
    token = _GROUP.set(_Group(processes, stops, breakable))
    try:
        yield
    finally:
        _GROUP.reset(token)


def share_batches(batches: Sequence[Any], compute: Callable[[Any], Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    """`compute(batch)`, a few numbers and tensors, for each batch in order; tensors on the CPU if processes share it.

    Process r of n computes batches r, r + n, ... Sums over the results are the same, bit for bit, for any n.
    """
    group = _GROUP.get()
    if group is None:
        for batch in batches:
            yield tuple(compute(batch))
        return
    processes, own = group.processes, dict[str, Tensor]()
    for index in range(processes.rank, len(batches), processes.world):
        if group.stops():
            break
        for place, value in enumerate(compute(batches[index])):
            tensor = torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
            own[f"{index}.{place}"] = tensor.cpu().contiguous()
    own["stopped"] = torch.tensor(group.stops())
    parts = [load(data) for data in processes.gather_bytes(save(own))]
    if any(part["stopped"] for part in parts):
        raise EvaluationStoppedError
    for index in range(len(batches)):
        part, results = parts[index % processes.world], list[Any]()
        while (key := f"{index}.{len(results)}") in part:
            results.append(part[key] if part[key].dim() else part[key].item())
        yield tuple(results)


def on_main_process(compute: Callable[[], Any]) -> Any:
    """The JSON value `compute()`; if processes share an evaluation, the main process computes it for all."""
    group = _GROUP.get()
    if group is None:
        return compute()
    result = None
    if group.processes.is_main and not group.stops():
        with suppress(KeyboardInterrupt), group.breakable():
            result = [compute()]
    result = group.processes.broadcast_object(result)
    if result is None:
        raise EvaluationStoppedError
    return result[0]
