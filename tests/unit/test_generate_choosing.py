"""Choosing for many rows with settings of their own: each gets what its sampler alone would pick."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headway.engine.pool import pool
from headway.errors import UserError
from headway.generate import Sampler, Sampling
from headway.generate.sampling import row_keys
from headway.generate.torch_sampling import sample_rows

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


@pytest.mark.parametrize("symbols", [40, 64, 3001])
def test_each_row_gets_what_its_sampler_alone_picks(symbols: int) -> None:
    """Whatever the threads, and wherever its logits stand."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(len(SAMPLINGS), generator=generator).tolist()

    def samplers(top: int) -> list[Sampler]:
        return [Sampler(s, key, prompt, top=top) for s, key, prompt in zip(SAMPLINGS, row_keys(PROMPTS), PROMPTS)]

    plain, choosers = samplers(0), samplers(3)
    for _ in range(12):
        logits = 2 * torch.randn(len(SAMPLINGS), symbols, generator=generator)
        logits[:, :3] = 9.0  # equal ones
        exact = logits.double().log_softmax(-1)
        found = sample_rows(logits, places, choosers, pool(1))
        assert sample_rows(logits, places, choosers, pool(3)) == found
        for n, (place, choice) in enumerate(zip(places, found)):
            assert choice.id is not None
            [by_itself] = sample_rows(logits[place : place + 1], [0], [plain[n]], pool(1))
            assert (choice.id, choice.logprob) == (by_itself.id, by_itself.logprob)
            assert choice.logprob == pytest.approx(float(exact[place, choice.id]), abs=1e-6)
            ordered = exact[place].sort(descending=True, stable=True)
            assert [symbol for symbol, _ in choice.top] == ordered.indices[:3].tolist()
            assert [value for _, value in choice.top] == pytest.approx(ordered.values[:3].tolist(), abs=1e-6)
            choosers[n].take(choice.id)
            plain[n].take(choice.id)


def test_as_many_of_the_likeliest_are_told_as_are_asked_for() -> None:
    symbols = 700
    logits = torch.randn(4, symbols, generator=torch.Generator().manual_seed(3)).mul(4).round()  # with many equal ones
    logits[3, 5:] = -torch.inf
    wanted = [0, 1, 20, symbols]
    choosers = [Sampler(SAMPLINGS[0], 0, top=n) for n in wanted]
    for row, count, choice in zip(logits, wanted, sample_rows(logits, range(4), choosers, pool(1))):
        assert choice.id is not None
        ordered = row.double().log_softmax(0).sort(descending=True, stable=True)
        assert [symbol for symbol, _ in choice.top] == ordered.indices[:count].tolist()
        assert [value for _, value in choice.top] == pytest.approx(ordered.values[:count].tolist(), abs=1e-5)


class Allowing:
    """Lets some symbols come."""

    def __init__(self, allowed: list[int]) -> None:
        self.allowed = allowed

    def fill(self, mask: np.ndarray) -> None:
        if not self.allowed:
            raise UserError("nothing was asked for")
        for symbol in self.allowed:
            mask.view(np.uint32)[symbol // 32] |= np.uint32(1 << symbol % 32)

    def take(self, token: int) -> None:
        assert token in self.allowed


@pytest.mark.parametrize("symbols", [40, 3001])
@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_masks_leave_the_allowed_symbols(symbols: int, temperature: float) -> None:
    logits = torch.randn(5, symbols, generator=torch.Generator().manual_seed(1))
    rules = [None, Allowing([0, 31, 32, 39]), Allowing([symbols - 1]), Allowing([symbols]), Allowing([])]
    sampling = Sampling(temperature, seed=1)
    choosers = [Sampler(sampling, n, rule=rule) for n, rule in enumerate(rules)]
    free, some, last, nothing, failed = sample_rows(logits, range(5), choosers, pool(1))
    assert free.id is not None
    assert some.id is not None
    assert last.id is not None
    assert free.id == sample_rows(logits[:1], [0], [Sampler(sampling, 0)], pool(1))[0].id
    assert some.id in (0, 31, 32, 39)
    assert temperature > 0 or some.id == max((0, 31, 32, 39), key=lambda symbol: float(logits[1, symbol]))
    assert some.logprob == pytest.approx(float(logits[1].double().log_softmax(0)[some.id]), abs=1e-6)
    assert last.id == symbols - 1
    assert (nothing.id, nothing.error) == (None, None), "what lies beyond the symbols is none"
    assert failed.id is None
    assert isinstance(failed.error, UserError)
