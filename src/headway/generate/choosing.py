"""The next symbol of each of many sequences, each with settings of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headway.engine.drawing import MASK, TOP
from headway.engine.pool import Pool
from headway.errors import UserError
from headway.generate.sampling import Sampler, uniforms
from headway.generate.tables import choose_by


class Rule(Protocol):
    """What one sequence may go on with."""

    def fill(self, mask: np.ndarray) -> None:
        """Set the bits of the symbols that may come next, int32 [ceil(C / 32)], the lowest bit first."""
        ...

    def take(self, symbol: int) -> None:
        """The symbol that was chosen, one of those; an end symbol too."""
        ...


class Chosen(NamedTuple):
    """A symbol, its log probability, and the likeliest ones with theirs, in nats under the model as it is."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


class Chooser:
    """Chooses the symbols of one sequence one after the other. `sampler` has its one row, and draws by an engine."""

    def __init__(self, sampler: Sampler, rule: Rule | None, top: int, symbols: int) -> None:
        """`top` is how many of the likeliest of the `symbols` are told with each."""
        assert sampler.table is not None
        self.sampler, self.rule, self.table = sampler, rule, sampler.table
        self.step = 0
        self.table.fields[:, TOP] = top
        self._mask = np.zeros(0 if rule is None else -(-symbols // 32), np.int32)

    def allow(self) -> None:
        """Let come what the rule allows. UserError where it fails."""
        if self.rule is not None:
            self._mask[:] = 0
            self.rule.fill(self._mask)
            self.table.fields[:, MASK] = self._mask.ctypes.data

    def take(self, symbol: int) -> None:
        """Go on after this symbol."""
        self.step += 1
        self.table.add([symbol])
        if self.rule is not None:
            self.rule.take(symbol)


def choose(
    logits: Float[Tensor, "N C"], places: Sequence[int], choosers: Sequence[Chooser], pool: Pool
) -> list[Chosen | UserError | None]:
    """What each goes on with by the logits of its place, as its sampler alone would pick it; None where its rule leaves
    nothing, or what its rule fails with.
    """
    failed: dict[int, UserError] = {}
    for number, chooser in enumerate(choosers):
        try:
            chooser.allow()
        except UserError as error:
            failed[number] = error
    keys = np.concatenate([chooser.sampler.keys for chooser in choosers])
    uniform = uniforms(keys, np.array([chooser.step for chooser in choosers], np.uint64))
    fields = np.concatenate([chooser.table.fields for chooser in choosers])
    numbers = np.concatenate([chooser.table.numbers for chooser in choosers])
    symbols, logprobs, top, top_logprobs = choose_by(fields, numbers, logits, places, uniform, pool)
    found: list[Chosen | UserError | None] = []
    for symbol, logprob, count, ids, values in zip(
        symbols.tolist(), logprobs.tolist(), fields[:, TOP].tolist(), top.tolist(), top_logprobs.tolist()
    ):
        likeliest = list(zip(ids[:count], values[:count])) if count else []
        found.append(None if symbol < 0 else Chosen(symbol, logprob, likeliest))
    for number, error in failed.items():
        found[number] = error
    return found
