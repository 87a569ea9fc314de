"""The symbols that may be drawn, and the draw: for all rows together, or on a processor row by row.

Filters are thresholds, so that equal symbols share their fate and no order among them matters. All rows together go
through the same tensors, which suits an accelerator, and a processor where symbols are few. Where they are many,
a row at a time is quicker there: what a filter drops is left out of all that follows, no vocabulary is sorted, and
numpy wakes no other threads, for which the engine's own would have to wait.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_MANY = 2048  # symbols from which on a processor takes row by row
_NUCLEUS = 256  # symbols looked at first for top_p: a nucleus is seldom larger, and sorting a vocabulary is slow
_COLDEST, _HOTTEST = 1e-30, 1e30  # what lies beyond draws as these do, and would make numbers that are none


class Filters(Protocol):
    """What `Sampling` says of them."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...


def draw(logits: Float[Tensor, "B C"], filters: Filters, uniform: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """A symbol of each row, by the inverse of the cumulative distribution at `uniform`, numbers in [0, 1).

    Rows with a NaN or a +inf have no distribution; any symbol comes of them.
    """
    if logits.device.type != "cpu" or logits.shape[-1] < _MANY:
        return _draw(weigh(logits, filters), uniform)
    numbers = zip(logits.numpy(), uniform.tolist())
    return torch.tensor([draw_row(row, filters, number) for row, number in numbers])


def weigh(logits: Float[Tensor, "B C"], filters: Filters) -> Float[Tensor, "B C"]:
    """Probabilities up to a factor, 0 for what the filters drop."""
    logits = logits / _temperature(filters)
    if filters.top_k is not None and filters.top_k < logits.shape[-1]:
        least = logits.topk(filters.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if filters.min_p > 0:
        least = logits.amax(-1, keepdim=True) + math.log(filters.min_p)
        logits = logits.masked_fill(logits < least, -math.inf)
    weights = logits.softmax(-1)
    if filters.top_p < 1:
        weights = weights.masked_fill(weights < _nucleus(weights, filters.top_p), 0.0)
    return weights


def draw_row(logits: Float[np.ndarray, "C"], filters: Filters, uniform: float) -> int:
    """The same for one row."""
    symbols, weights = kept(logits, filters)
    if not len(weights):
        return 0
    heights = torch.from_numpy(weights).cumsum(0).numpy()  # in double precision, and quicker than numpy's
    target = min(np.float32(uniform) * heights[-1], np.nextafter(heights[-1], np.float32(0)))
    place = int(np.searchsorted(heights, target, side="right"))
    return place if symbols is None else int(symbols[place])


def kept(
    logits: Float[np.ndarray, "C"], filters: Filters
) -> tuple[Int[np.ndarray, "N"] | None, Float[np.ndarray, "N"]]:
    """The symbols that the filters keep, None for all, and their probabilities up to a factor; no weights where there
    is no distribution.
    """
    scaled = logits / np.float32(_temperature(filters))
    largest, least, symbols = scaled.max(), -np.inf, None
    if not np.isfinite(largest):
        return None, scaled[:0]
    if filters.top_k is not None and filters.top_k < len(scaled):
        least = np.partition(scaled, -filters.top_k)[-filters.top_k]
    if filters.min_p > 0:
        least = max(least, largest + np.float32(math.log(filters.min_p)))
    if least > -np.inf:
        symbols = np.flatnonzero(scaled >= least)
        scaled = scaled[symbols]
    weights = torch.from_numpy(scaled).softmax(0).numpy()
    if filters.top_p < 1:
        inside = np.flatnonzero(weights >= _nucleus_of_row(weights, filters.top_p))
        symbols, weights = inside if symbols is None else symbols[inside], weights[inside]
    return symbols, weights


def _temperature(filters: Filters) -> float:
    return min(max(filters.temperature, _COLDEST), _HOTTEST)


def _nucleus(weights: Float[Tensor, "B C"], top_p: float) -> Float[Tensor, "B 1"]:
    """The least weight of each row's nucleus."""
    symbols = weights.shape[-1]
    count = min(_NUCLEUS, symbols)
    while True:
        largest = weights.topk(count).values
        inside = largest.cumsum(-1) - largest < top_p
        if count == symbols or not bool(inside[:, -1].any()):
            return largest.gather(1, (inside.sum(-1, keepdim=True) - 1).clamp_(min=0))  # NaN is inside of nothing
        count = symbols


def _nucleus_of_row(weights: Float[np.ndarray, "N"], top_p: float) -> np.float32:
    """The least weight of the nucleus, from a sort of what can be in it alone: what is below its share of 1 - top_p
    cannot, as all of that together is less than 1 - top_p.
    """
    total = float(torch.from_numpy(weights).sum(dtype=torch.float64))
    places = np.flatnonzero(weights >= 0.5 * (1 - top_p) * total / len(weights))  # quicker than a mask as an index
    possible = np.sort(weights[places])[::-1]
    reached = possible.cumsum(dtype=np.float64)
    return possible[min(int(np.searchsorted(reached, top_p * total)), len(possible) - 1)]


def _draw(weights: Float[Tensor, "B C"], uniform: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """A symbol of weight 0 is never drawn, as the target stays below the whole."""
    heights = weights.cumsum(-1)
    whole = heights[:, -1:]
    target = torch.minimum(uniform[:, None] * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(heights, target, right=True)[:, 0].clamp_(max=weights.shape[-1] - 1)
