"""Drawing symbols: filters, penalties, and draws that depend on nothing but the row."""

from __future__ import annotations

import math

import pytest
import torch
from generate_models import Rows, language_model

from headway.engine.pool import Pool, pool
from headway.errors import ConfigError, UserError
from headway.generate import GREEDY, Sampling, Session
from headway.generate.sampling import row_keys

PROBABILITIES = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
ROWS, STEPS = 1000, 20  # a row takes longer to begin than to draw


@pytest.fixture(params=["torch", "engine"])
def threads(request: pytest.FixtureRequest) -> Pool | None:
    """Who chooses: torch, or the engine by these threads."""
    return pool(1) if request.param == "engine" else None


def counts(
    sampling: Sampling, threads: Pool | None = None, probabilities: torch.Tensor = PROBABILITIES
) -> torch.Tensor:
    """How often each symbol is drawn by many rows in their first steps, as a fraction."""
    sampler = Rows(sampling, row_keys([[i] for i in range(ROWS)]), [[]] * ROWS, threads)
    logits = probabilities.log().expand(ROWS, -1)
    chosen = torch.cat([sampler.pick(logits, step)[0] for step in range(STEPS)])
    return torch.bincount(chosen, minlength=len(probabilities)) / (ROWS * STEPS)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(seed=1), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Sampling(temperature=0.5, seed=1), [0.16, 0.09, 0.0225, 0.01, 0.0025]),
        (Sampling(top_k=2, seed=2), [0.4, 0.3, 0, 0, 0]),
        (Sampling(top_p=0.69, seed=3), [0.4, 0.3, 0, 0, 0]),
        (Sampling(top_p=0.71, seed=3), [0.4, 0.3, 0.15, 0, 0]),
        (Sampling(min_p=0.3, seed=4), [0.4, 0.3, 0.15, 0, 0]),
        (Sampling(top_k=4, top_p=0.5, min_p=0.01, seed=4), [0.4, 0.3, 0, 0, 0]),
        (Sampling(top_k=99, top_p=1e-9, seed=5), [1, 0, 0, 0, 0]),
        (GREEDY, [1, 0, 0, 0, 0]),
    ],
)
def test_draws_follow_the_filtered_distribution(
    sampling: Sampling, expected: list[float], threads: Pool | None
) -> None:
    wanted = torch.tensor(expected) / sum(expected)
    found = counts(sampling, threads)
    assert (found[wanted == 0] == 0).all()
    assert (found - wanted).abs().max() < 5 * math.sqrt(0.25 / (ROWS * STEPS))


def test_a_large_nucleus_is_found_too(threads: Pool | None) -> None:
    """The first look at the 256 largest does not suffice for a flat distribution, nor for one flat row among others."""
    flat = torch.full((1000,), 1e-3)
    assert (counts(Sampling(top_p=0.9, seed=1), threads, flat) > 0).sum() > 890
    peaked = torch.cat([torch.tensor([0.99]), torch.full((999,), 0.01 / 999)])
    both = torch.stack([flat, peaked]).log()
    samplers = [Rows(Sampling(top_p=0.9, seed=s), [1, 2], [[], []], threads) for s in range(20)]
    chosen = [sampler.pick(both, 0)[0].tolist() for sampler in samplers]
    assert {second for _, second in chosen} == {0}
    assert len({first for first, _ in chosen}) > 10


def test_draws_depend_on_seed_row_and_step_alone(threads: Pool | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 50, generator=generator)
    keys = row_keys([[i, 2 * i] for i in range(8)])

    def draw(rows: list[int], seed: int = 7) -> list[list[int]]:
        sampler = Rows(Sampling(top_p=0.9, seed=seed), [keys[r] for r in rows], [[]] * len(rows), threads)
        return [sampler.pick(logits[rows], step)[0].tolist() for step in range(6)]

    whole = draw(list(range(8)))
    assert [[step[r] for r in (5, 2)] for step in whole] == draw([5, 2])
    assert whole != draw(list(range(8)), seed=8)
    assert len({tuple(column) for column in zip(*whole)}) == 8
    assert len({tuple(step) for step in whole}) == 6


def test_rows_that_leave_do_not_change_the_others(threads: Pool | None) -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    sampling = Sampling(repetition_penalty=1.5, seed=3)
    keys, prompts = row_keys([[1], [2], [3], [4]]), [[0], [1], [2], [3]]
    one, other = (Rows(sampling, keys, prompts, threads) for _ in range(2))
    one.pick(logits, 0), other.pick(logits, 0)
    rows = torch.tensor([3, 1])
    other.select(rows.tolist())
    assert torch.equal(one.pick(logits, 1)[0][rows], other.pick(logits[rows], 1)[0])


def test_equal_prompts_draw_differently_and_keys_are_stable() -> None:
    first, second, third = row_keys([[1, 2], [1, 2], [3]])
    assert len({first, second, third}) == 3
    assert row_keys([[3], [1, 2]]) == [third, first]
    assert row_keys([[1, 2]], [[5]]) != row_keys([[1, 2]], [[6]])
    assert row_keys([[1, 23]]) != row_keys([[12, 3]])
    assert all(0 <= key < 1 << 63 for key in (first, second, third))


def test_without_a_seed_each_call_differs() -> None:
    flat = torch.zeros(64, 1000)
    keys = row_keys([[i] for i in range(64)])
    first, second = (Rows(Sampling(), keys, [[]] * 64).pick(flat, 0)[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_repetition_penalty_counts_prompt_and_text(threads: Pool | None) -> None:
    logits = torch.tensor([[2.0, 1.9, 1.8, -1.0]])
    sampler = Rows(Sampling(temperature=0.0, repetition_penalty=2.0), [0], [[0]], threads)
    chosen = [int(sampler.pick(logits, step)[0]) for step in range(3)]
    assert chosen == [1, 2, 0]  # 0 stands in the prompt; all three seen, the largest is first again
    below = Rows(Sampling(temperature=0.0, repetition_penalty=2.0), [0], [[0]], threads)
    assert int(below.pick(torch.tensor([[-1.0, -1.5]]), 0)[0]) == 1  # a penalty lowers what is below 0 as well


def test_presence_and_frequency_count_the_text_alone(threads: Pool | None) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    written = {}
    for presence, frequency in ((1.5, 0.0), (0.0, 0.6), (-2.0, 0.0)):
        sampling = Sampling(0.0, presence_penalty=presence, frequency_penalty=frequency)
        sampler = Rows(sampling, [0], [[0]], threads)
        written[presence, frequency] = [int(sampler.pick(logits, step)[0]) for step in range(6)]
    assert written[1.5, 0.0] == [0, 1, 0, 0, 0, 0]  # the penalty comes once, and 0.5 is more than what is left
    assert written[0.0, 0.6] == [0, 0, 1, 0, 1, 0]  # 2, 1.4, then 0.8 against 1, 0.8 against 0.4 ...
    assert written[-2.0, 0.0] == [0] * 6


def test_biases_are_of_single_symbols_and_rows_have_counts_of_their_own(threads: Pool | None) -> None:
    banned = Sampling(1.0, seed=1, logit_bias={0: -100, 2: -100.0, 3: -100, 4: -100})
    assert counts(banned, threads).tolist() == [0, 1, 0, 0, 0]
    sampler = Rows(Sampling(0.0, frequency_penalty=2.0), [0, 0], [[], []], threads)
    logits = torch.tensor([[1.0, 0.0], [9.0, 0.0]])
    chosen = [sampler.pick(logits, step)[0].tolist() for step in range(2)]
    assert chosen == [[0, 0], [1, 0]]
    assert sampler.ahead(logits[:1], [1, 1]) == 0
    sampler.select([1])
    assert [sampler.pick(logits[1:], step)[0].tolist() for step in range(4)] == [[0], [0], [0], [1]]


def test_both_forms_count_the_same() -> None:
    """Over a text that says many symbols more than once, with rows that leave."""
    sampling = Sampling(
        0.0, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3, logit_bias={3: 1.5, 40: -100}
    )
    prompts = [[1, 2, 2], [], [7]]
    forms = [Rows(sampling, [0, 1, 2], prompts, threads) for threads in (None, pool(1))]
    generator = torch.Generator().manual_seed(4)
    for step in range(80):
        logits = torch.randn(len(forms[0].samplers), 60, generator=generator)
        if step == 40:
            for sampler in forms:
                sampler.select([1])
            logits = logits[:1]
        if step >= 40:
            ahead, same = (sampler.ahead(logits[:, :50], [5, 5]) for sampler in forms)
            assert ahead == same
        (chosen, logprobs), (other, values) = (sampler.pick(logits, step) for sampler in forms)
        assert torch.equal(chosen, other)
        torch.testing.assert_close(logprobs, values, rtol=0, atol=1e-6)


def test_many_symbols_are_chosen_alike_whoever_makes_the_logits() -> None:
    logits, keys = 3 * torch.randn(3, 20_000, generator=torch.Generator().manual_seed(5)), row_keys([[1], [2], [3]])
    for sampling in (GREEDY, Sampling(0.9, top_k=50, seed=1), Sampling(1.0, top_p=0.8, repetition_penalty=1.1, seed=2)):
        one, other = (Rows(sampling, keys, [[1], [2], [3]], threads) for threads in (None, pool(2)))
        for step in range(3):
            for found, wanted in zip(one.pick(logits, step), other.pick(logits, step)):
                assert torch.equal(found, wanted)


def test_log_probabilities_are_the_models_own(threads: Pool | None) -> None:
    sampling = Sampling(temperature=0.1, top_k=1, repetition_penalty=3.0, seed=0)
    sampler = Rows(sampling, [0], [[]], threads)
    chosen, logp = sampler.pick(PROBABILITIES.log()[None], 0)
    assert int(chosen) == 0
    torch.testing.assert_close(logp, torch.tensor([0.4]).log())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", math.nan),
    ],
)
def test_values_out_of_range_are_refused(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is {value}"):
        Sampling(**{setting: value})


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({-1: 1.0}, "an id of logit_bias is -1"),
        ({"7": 1.0}, "an id of logit_bias is '7'"),
        ({7: 101}, "the logit_bias of 7 is 101"),
        ({7: math.nan}, "the logit_bias of 7 is nan"),
        ({7: "1"}, "the logit_bias of 7 is '1'"),
        ([7], "logit_bias is a list"),
    ],
)
def test_biases_that_are_none_are_refused(bias: dict[int, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(logit_bias=bias)


def test_a_bias_of_an_unknown_symbol_is_refused() -> None:
    with pytest.raises(UserError, match="logit_bias contains id 23, but this model has ids 0 to 22"):
        Session(language_model()).events([[2]], Sampling(logit_bias={2: 1.0, 23: 1.0}))
