"""Sums of gradients over processes that start while the backward pass computes the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from headway.learn.optim import FlatParameters
from headway.learn.parallel.processes import Processes

_BUCKET_BYTES = 25 << 20  # enough for the full rate of a network, few enough to start early


class _Bucket(NamedTuple):
    """Neighbours in the flat gradients, which one operation sums."""

    names: list[str]
    values: Tensor


class OverlappedSum:
    """Sums the flat gradients and the tail over processes in buckets (Li et al. 2020, PyTorch Distributed).

    Buckets start in one order, so that it is the same in all processes, and the bits in all runs: first those whose
    layers come late in the model, because the backward pass computes them first. The last bucket contains the tail.
    """

    def __init__(self, flat: FlatParameters, model: nn.Module, processes: Processes) -> None:
        self._start = processes.start_sum
        parameters = {name: parameter for name, parameter in model.named_parameters() if name in flat.offsets}
        order = {name: index for index, name in enumerate(parameters)}
        *buckets, last = _buckets(flat)
        buckets.sort(key=lambda bucket: -min(order[name] for name in bucket.names))
        self._buckets = [*buckets, last]
        self._missing: list[set[str]] = []  # by bucket: the gradients that the last backward pass has yet to compute
        self._pending: list[Callable[[], None]] = []  # by bucket whose sum has started: a function that waits for it
        for index, bucket in enumerate(self._buckets):
            for name in bucket.names:
                parameters[name].register_post_accumulate_grad_hook(partial(self._computed, index, name))

    @contextmanager
    def last_backward(self) -> Iterator[None]:
        """The backward pass of the last micro-batch, after which no gradient changes."""
        self._missing = [set(bucket.names) for bucket in self._buckets]
        try:
            yield
        finally:
            self._missing = []

    def _computed(self, index: int, name: str, parameter: Tensor) -> None:
        if not self._missing:
            return
        if index < len(self._pending):
            raise RuntimeError(f"the gradient of {name} changed after its sum over processes had started")
        self._missing[index].discard(name)
        while len(self._pending) < len(self._buckets) - 1 and not self._missing[len(self._pending)]:
            self._pending.append(self._start(self._buckets[len(self._pending)].values))

    def sum_gradients(self) -> None:
        """Start the sums that are left, and wait for all of them."""
        for bucket in self._buckets[len(self._pending) :]:
            self._pending.append(self._start(bucket.values))
        for wait in self._pending:
            wait()
        self._pending = []


def _buckets(flat: FlatParameters) -> list[_Bucket]:
    """The parameters of each update rule in buckets; the last bucket ends with the tail."""
    starts = {segment.start for segment in flat.segments}
    size = _BUCKET_BYTES // flat.grads.element_size()
    groups: list[list[str]] = []
    for name in flat.names:
        offset = flat.offsets[name]
        if not groups or offset in starts or offset - flat.offsets[groups[-1][0]] >= size:
            groups.append([])
        groups[-1].append(name)
    bounds = [*(flat.offsets[group[0]] for group in groups), flat.grads_and_tail.numel()]
    return [_Bucket(names, flat.grads_and_tail[a:b]) for names, (a, b) in zip(groups, pairwise(bounds))]
