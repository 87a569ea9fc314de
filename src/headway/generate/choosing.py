"""The next symbol of each of many sequences, each with settings of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headway.errors import UserError
from headway.generate.sampling import Sampler, draw, likeliest, uniforms

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_BOUNDS = np.where(_BITS == 1, np.float32(np.inf), np.float32(-np.inf))  # of eight symbols, for each byte of a mask
_GROUP = 64  # symbols of which only the largest is looked at first for `top`


class Rule(Protocol):
    """What one sequence may go on with."""

    def fill(self, mask: np.ndarray) -> None:
        """Set the bits of the symbols that may come next, int32 [ceil(C / 32)], the lowest bit first."""
        ...

    def take(self, symbol: int) -> None:
        """The symbol that was chosen, one of those; an end symbol too."""
        ...


class Choice(NamedTuple):
    """A symbol, its log probability, and the likeliest ones with theirs, in nats under the model as it is."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


class Chooser:
    """Chooses the symbols of one sequence one after the other. `sampler` has its one row."""

    def __init__(self, sampler: Sampler, rule: Rule | None, top: int) -> None:
        """`top` is how many of the likeliest symbols are told with each."""
        self.sampler, self.rule, self.top = sampler, rule, top
        self.step = 0

    def forbid(self, logits: Float[Tensor, "C"]) -> bool:
        """Make what the rule does not allow impossible; whether anything is left."""
        if self.rule is None:
            return True
        mask = np.zeros(-(-len(logits) // 32), np.int32)
        self.rule.fill(mask)
        bounds = _BOUNDS.take(mask.view(np.uint8), 0).ravel()[: len(logits)]
        np.minimum(logits.numpy(), bounds, out=logits.numpy())  # ten times as quick as writing where a mask says
        return bool(bounds.max() > 0)

    def take(self, symbol: int) -> None:
        """Go on after this symbol."""
        self.step += 1
        if self.sampler.sampling.adjusts:
            self.sampler.add(torch.tensor([symbol]))
        if self.rule is not None:
            self.rule.take(symbol)


def choose(logits: Float[Tensor, "N C"], choosers: Sequence[Chooser]) -> list[Choice | UserError | None]:
    """What each goes on with, as its sampler alone would pick it; None where its rule leaves nothing, or what its rule
    fails with. The logits are written over.
    """
    logprobs, found = logits.log_softmax(-1), cast("list[Choice | UserError | None]", [None] * len(choosers))
    groups: dict[object, list[int]] = {}  # of rows that are drawn alike
    for n, chooser in enumerate(choosers):
        sampling = chooser.sampler.sampling
        if sampling.adjusts:
            logits[n : n + 1] = chooser.sampler.adjusted(logits[n : n + 1])
        try:
            possible = chooser.forbid(logits[n])
        except UserError as error:
            found[n] = error
            continue
        if possible:
            filters = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
            groups.setdefault(filters if sampling.temperature else None, []).append(n)
    for places in groups.values():
        some = logits if len(places) == len(choosers) else logits[places]
        chosen = _together(some, [choosers[n] for n in places]).tolist()
        values = logprobs[places, chosen].tolist()
        for n, symbol, value in zip(places, chosen, values):
            found[n] = Choice(symbol, value, _largest(logprobs[n].numpy(), choosers[n].top))
    return found


def _largest(values: Float[np.ndarray, "C"], count: int) -> list[tuple[int, float]]:
    """The places of the largest and what is there, the largest first and equal ones in their order. Whatever is among
    the largest stands in one of as many groups that have the largest maxima.
    """
    if not count:
        return []
    starts = np.arange(0, len(values), _GROUP)
    groups = np.argsort(-np.maximum.reduceat(values, starts), kind="stable")[:count]
    places = np.sort((starts[groups, None] + np.arange(_GROUP)).ravel())
    places = places[places < len(values)]
    places = places[np.argsort(-values[places], kind="stable")[:count]]
    return list(zip(places.tolist(), values[places].tolist()))


def _together(logits: Float[Tensor, "R C"], choosers: Sequence[Chooser]) -> Int[Tensor, "R"]:
    """Symbols of rows whose filters are equal."""
    sampling = choosers[0].sampler.sampling
    if sampling.temperature == 0:
        return likeliest(logits)
    keys = np.concatenate([chooser.sampler.keys for chooser in choosers])
    steps = np.array([chooser.step for chooser in choosers], np.uint64)
    return draw(logits, sampling, uniforms(keys, steps))
