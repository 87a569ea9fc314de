"""Choosing for many rows with settings of their own: each gets what its sampler alone would pick."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headway.errors import UserError
from headway.generate import Sampler, Sampling
from headway.generate.choosing import Choice, Chooser, choose
from headway.generate.sampling import row_keys

SAMPLINGS = [
    Sampling(0.0),
    Sampling(0.7, seed=3),
    Sampling(0.7, seed=4),
    Sampling(1.0, top_k=5, seed=1),
    Sampling(0.9, top_p=0.8, repetition_penalty=1.2, seed=5),
    Sampling(1.1, min_p=0.1, presence_penalty=1.5, frequency_penalty=-0.5, seed=2),
    Sampling(0.0, frequency_penalty=0.7, logit_bias={4: 9.0, 7: -100}),
]
PROMPTS = [[n, 2 * n] for n in range(len(SAMPLINGS))]


@pytest.mark.parametrize("symbols", [40, 3001])
def test_each_row_gets_what_its_sampler_alone_picks(symbols: int) -> None:
    """On both sides of where a processor takes a row at a time."""
    generator = torch.Generator().manual_seed(0)

    def samplers() -> list[Sampler]:
        keys = row_keys(PROMPTS)
        return [Sampler(s, [key], [prompt], symbols) for s, key, prompt in zip(SAMPLINGS, keys, PROMPTS)]

    plain, choosers = samplers(), [Chooser(sampler, None, top=3) for sampler in samplers()]
    for step in range(12):
        logits = 2 * torch.randn(len(SAMPLINGS), symbols, generator=generator)
        logits[:, :3] = 9.0  # equal ones
        before = logits.clone()
        for n, choice in enumerate(choose(logits, choosers)):
            chosen, logprob = plain[n].pick(before[n : n + 1], step)
            assert isinstance(choice, Choice)
            assert (choice.id, choice.logprob) == (int(chosen), float(logprob))
            ordered = before[n].log_softmax(0).sort(descending=True, stable=True)
            assert choice.top == list(zip(ordered.indices[:3].tolist(), ordered.values[:3].tolist()))
            choosers[n].take(choice.id)


class Allowing:
    """Lets some symbols come."""

    def __init__(self, allowed: list[int]) -> None:
        self.allowed = allowed

    def fill(self, mask: np.ndarray) -> None:
        if not self.allowed:
            raise UserError("nothing was asked for")
        for symbol in self.allowed:
            mask.view(np.uint32)[symbol // 32] |= np.uint32(1 << symbol % 32)

    def take(self, symbol: int) -> None:
        assert symbol in self.allowed


@pytest.mark.parametrize("symbols", [40, 3001])
@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_masks_leave_the_allowed_symbols(symbols: int, temperature: float) -> None:
    logits = torch.randn(5, symbols, generator=torch.Generator().manual_seed(1))
    rules = [None, Allowing([0, 31, 32, 39]), Allowing([symbols - 1]), Allowing([symbols]), Allowing([])]
    sampling = Sampling(temperature, seed=1)
    choosers = [Chooser(Sampler(sampling, [n], [[]], symbols), rule, 0) for n, rule in enumerate(rules)]
    before = logits.clone()
    free, some, last, nothing, failed = choose(logits, choosers)
    assert isinstance(free, Choice)
    assert isinstance(some, Choice)
    assert isinstance(last, Choice)
    assert free.id == int(Sampler(sampling, [0], [[]], symbols).pick(before[:1], 0)[0])
    assert some.id in (0, 31, 32, 39)
    assert temperature > 0 or some.id == max((0, 31, 32, 39), key=lambda symbol: float(before[1, symbol]))
    assert some.logprob == float(before[1].log_softmax(0)[some.id])
    assert last.id == symbols - 1
    assert nothing is None, "what lies beyond the symbols is none"
    assert isinstance(failed, UserError)
