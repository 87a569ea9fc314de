"""Synthetic problems for the experiments. Each returns a function that samples a batch of fresh examples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from headway.claims.networks import Draw, DrawnExamples
from headway.layout import Layout
from headway.nn.kernels import IGNORED


def cut_off(examples: DrawnExamples, last: int | None) -> DrawnExamples:
    """The examples with only their `last` tokens, as if the state before them were lost."""
    if last is None:
        return examples
    inputs = examples.inputs[:, -last:]
    targets = examples.targets if examples.targets.dim() == 1 else examples.targets[:, -last:]
    return DrawnExamples(inputs, Layout.full(inputs.shape[0], last), targets)


def adding(rows: int, length: int, last: int | None = None) -> Draw:
    """Hochreiter and Schmidhuber 1997, experiment 4: the sum of the two marked numbers, from 0 to 1, one in each half.
    The state before the `last` tokens is lost. A constant answer has an error of 1 / 6.
    """
    layout = Layout.full(rows, length)

    def draw(source: torch.Generator) -> DrawnExamples:
        numbers = torch.rand(rows, length, generator=source)
        half = length // 2
        first = torch.randint(half, (rows, 1), generator=source)
        second = torch.randint(half, length, (rows, 1), generator=source)
        marks = torch.zeros(rows, length).scatter_(1, first, 1.0).scatter_(1, second, 1.0)
        return cut_off(DrawnExamples(torch.stack([numbers, marks], -1), layout, (numbers * marks).sum(1)), last)

    return draw


def copying(rows: int, symbols: int, count: int, delay: int, last: int | None = None) -> Draw:
    """Hochreiter and Schmidhuber 1997, Arjovsky et al. 2016: `count` symbols, `delay` blanks, then a cue for each
    symbol to repeat. Symbols are 0 ... n_symbols - 1, the blank is `n_symbols`, the cue `n_symbols` + 1.
    """
    length = 2 * count + delay
    layout = Layout.full(rows, length)

    def draw(source: torch.Generator) -> DrawnExamples:
        kept = torch.randint(symbols, (rows, count), generator=source)
        ids = torch.full((rows, length), symbols)
        ids[:, :count] = kept
        ids[:, -count:] = symbols + 1
        targets = torch.full((rows, length), IGNORED)
        targets[:, -count:] = kept
        return cut_off(DrawnExamples(ids, layout, targets), last)

    return draw


def recall(rows: int, symbols: int, noise: int, distance: int) -> Draw:
    """Recall the first symbol at a cue `distance` tokens later; random other symbols are in between."""

    def draw(source: torch.Generator) -> DrawnExamples:
        first = torch.randint(symbols, (rows, 1), generator=source)
        between = torch.randint(symbols, symbols + noise, (rows, distance - 1), generator=source)
        sign = torch.full((rows, 1), symbols + noise)
        return DrawnExamples(torch.cat([first, between, sign], 1), Layout.full(rows, distance + 1), first[:, 0])

    return draw


def latest(rows: int, symbols: int, length: int) -> Draw:
    """Recall the last marked symbol: a memory must be overwritten by marked symbols, and not by others.

    Symbol s is s, or `n_symbols` + s if it is marked; one in five is. The last token is a cue.
    """

    def draw(source: torch.Generator) -> DrawnExamples:
        ids = torch.randint(symbols, (rows, length), generator=source)
        marked = torch.rand(rows, length, generator=source) < 0.2
        marked[:, 0] = True
        last = (marked * torch.arange(length)).argmax(1, keepdim=True)
        sign = torch.full((rows, 1), 2 * symbols)
        return DrawnExamples(
            torch.cat([ids + symbols * marked, sign], 1), Layout.full(rows, length + 1), ids.gather(1, last)[:, 0]
        )

    return draw


class KeyValuePairs(NamedTuple):
    """Pairs of keys and values, one per position, and a last position that queries `queries` of the keys at once.

    Each of `keys` different keys is written `times` times with new values; the last value counts.
    """

    keys: int
    values: int
    times: int = 1
    asked: int = 1
    known: int = 32  # number of possible keys

    @property
    def channels(self) -> int:
        """Numbers per position: the key and the value to write, and the queried keys."""
        return self.known * (1 + self.asked) + self.values

    @property
    def length(self) -> int:
        return self.keys * self.times + 1

    def draw(self, rows: int, source: torch.Generator) -> tuple[DrawnExamples, Int[Tensor, "B A"]]:
        """Examples, and the positions of the answers in each row."""
        writes = self.length - 1
        keys = torch.rand(rows, self.known, generator=source).argsort(1)[:, : self.keys]
        order = torch.rand(rows, writes, generator=source).argsort(1) % self.keys
        written = keys.gather(1, order)
        values = torch.randint(self.values, (rows, writes), generator=source)
        asked = torch.rand(rows, self.keys, generator=source).argsort(1)[:, : self.asked]
        match = (order[:, None] == asked[:, :, None]) * torch.arange(1, writes + 1)
        places = match.argmax(2)
        inputs = torch.zeros(rows, self.length, self.channels)
        inputs[:, :-1].scatter_(2, written[..., None], 1.0)
        inputs[:, :-1].scatter_(2, self.known + values[..., None], 1.0)
        slots = self.known + self.values + self.known * torch.arange(self.asked)
        inputs[:, -1].scatter_(1, slots + keys.gather(1, asked), 1.0)
        targets = values.gather(1, places)
        return DrawnExamples(inputs, Layout.full(rows, self.length), targets), places


def pairs(problem: KeyValuePairs, rows: int) -> Draw:
    """Associative recall."""
    return lambda source: problem.draw(rows, source)[0]


def totals(rows: int, length: int) -> Draw:
    """The sum of all numbers, scaled to the variance of one of them: a constant answer has an error of 1 / 12."""
    layout = Layout.full(rows, length)

    def draw(source: torch.Generator) -> DrawnExamples:
        numbers = torch.rand(rows, length, generator=source)
        inputs = torch.stack([numbers, torch.zeros(rows, length)], -1)
        return DrawnExamples(inputs, layout, (numbers - 0.5).sum(1) / length**0.5)

    return draw
