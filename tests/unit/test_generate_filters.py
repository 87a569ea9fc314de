"""The sets that filters keep are those of a full sort, and draws follow what is kept; by torch and by the engine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from headway.engine.pool import pool
from headway.engine.sampling_batch import SampledTokens, SamplingBatch
from headway.engine.sampling_kernels import UNIFORM
from headway.generate import Sampling
from headway.generate.compiled_sampling import SamplingTable
from headway.generate.torch_sampling import sample, weigh

SIZES = (5, 300, 5000)
SETTINGS = [
    {"top_k": 1},
    {"top_k": 40},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_p": 1e-9},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"top_k": 40, "top_p": 0.8},
    {"top_k": 100, "min_p": 0.01, "top_p": 0.95},
    {},
]


def rows(size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    smooth = torch.randn(size, generator=generator) * 3
    steps = smooth.clone()
    steps[torch.randperm(size, generator=generator)[: size // 2]] = -math.inf
    peaked = smooth.clone()
    peaked[size // 3] = 60.0
    return {
        "smooth": smooth,
        "ties": (smooth * 2).round() / 2,
        "flat": torch.zeros(size),
        "infinities": steps,
        "peaked": peaked,
        "far": smooth * 1e4,
        "one": torch.full((size,), -math.inf).index_fill(0, torch.tensor([size - 2]), 1.5),
        "a few": torch.full((size,), -math.inf).index_copy(0, torch.arange(min(size, 70)), smooth[:70]),
    }


def by_full_sort(logits: torch.Tensor, sampling: Sampling) -> set[int]:
    """The definition: everything sorted, nothing left out."""
    scaled = logits / min(max(sampling.temperature, 1e-30), 1e30)
    largest = scaled.sort(descending=True).values
    keep = torch.ones_like(logits, dtype=torch.bool)
    if sampling.top_k is not None:
        keep &= scaled >= largest[min(sampling.top_k, len(largest)) - 1]
    if sampling.min_p > 0:
        keep &= scaled >= largest[0] + math.log(sampling.min_p)
    weights = scaled.masked_fill(~keep, -math.inf).softmax(-1)
    if sampling.top_p < 1:
        falling = weights.double().sort(descending=True).values
        before = torch.cat([torch.zeros(1, dtype=torch.float64), falling.cumsum(0)[:-1]])
        keep &= weights >= falling[before < sampling.top_p * falling.sum()].min()
    return set((keep & (weights > 0)).nonzero()[:, 0].tolist())


def sampled(logits: torch.Tensor, sampling: Sampling, uniform: np.ndarray, threads: int = 1) -> SampledTokens:
    """What the engine's code gives for each row of logits at its number."""
    table = SamplingTable(sampling, len(uniform))
    table.floats[:, UNIFORM] = uniform
    return SamplingBatch([(address, row) for row, address in enumerate(table.addresses)]).run(logits, pool(threads))


def by_engine(logits: torch.Tensor, sampling: Sampling, uniform: np.ndarray) -> list[int]:
    """What one row's logits give at each of some numbers."""
    return sampled(logits.expand(len(uniform), -1), sampling, uniform).tokens.tolist()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-6, 0.3, 1.0, 50.0, 1e38, 1e300])
def test_what_is_kept_is_what_a_full_sort_keeps(size: int, temperature: float) -> None:
    """By the engine a number in the middle of a symbol's share draws that symbol: of the likeliest and the least likely
    that are kept, and of others. One symbol more or less would move the shares.
    """
    chance = np.random.default_rng(size)
    for name, logits in rows(size).items():
        for settings in (*SETTINGS, {"top_p": 1 - 1e-9}):
            sampling = Sampling(temperature, **settings)  # type: ignore[arg-type]
            wanted = by_full_sort(logits, sampling)
            assert wanted, (name, settings)
            if sampling.top_p in (
                1,
                *(given.get("top_p") for given in SETTINGS),
            ):  # in single precision, as torch has it, the last 1e-7 is lost
                assert set(weigh(logits[None], sampling)[0].nonzero()[:, 0].tolist()) == wanted, (name, settings)
            symbols = np.array(sorted(wanted))
            scaled = logits.double().numpy()[symbols] / min(max(temperature, 1e-30), 1e30)
            shares = np.exp(scaled - scaled.max())
            shares /= shares.sum()
            seen = np.flatnonzero(shares > 1e-5)
            tried = np.unique([*seen[np.argsort(shares[seen])[[0, -1]]], *chance.choice(seen, min(len(seen), 12))])
            middle = shares.cumsum()[tried] - shares[tried] / 2
            assert by_engine(logits, sampling, middle) == symbols[tried].tolist(), (name, settings)


@pytest.mark.parametrize("settings", SETTINGS)
def test_both_forms_draw_the_same(settings: dict[str, float]) -> None:
    """Each draw lies where the distribution says."""
    generator = torch.Generator().manual_seed(1)
    logits, uniform = torch.randn(40, 3000, generator=generator) * 2, torch.rand(40, generator=generator)
    sampling = Sampling(0.8, **settings)  # type: ignore[arg-type]
    chosen = sample(logits, sampling, uniform)
    few = torch.cat([sample(half, sampling, numbers) for half, numbers in zip(logits.split(7), uniform.split(7))])
    assert torch.equal(chosen, few), "a draw depends on the batch"
    by_table = sampled(logits, sampling, uniform.numpy()).tokens
    assert (sampled(logits, sampling, uniform.numpy(), 2).tokens == by_table).all(), "a draw depends on threads"
    heights = weigh(logits, sampling).double().cumsum(-1)
    heights = torch.cat([torch.zeros(40, 1, dtype=torch.float64), heights], -1) / heights[:, -1:]
    for drawn in (chosen, torch.from_numpy(by_table)):
        low, high = (heights.gather(1, (drawn + move)[:, None])[:, 0] for move in (0, 1))
        assert (low - 1e-6 <= uniform).all()
        assert (uniform < high + 1e-6).all()
        assert (high > low).all(), "a symbol of weight 0 was drawn"


@pytest.mark.parametrize("size", SIZES)
def test_the_ends_of_the_range_draw_what_has_weight(size: int) -> None:
    for name in ("infinities", "one", "far", "peaked"):
        logits = rows(size)[name]
        for temperature in (1e-40, 1.0, 1e40):
            ends = np.array([0.0, 1 - 2.0**-24])
            together = sample(logits.expand(2, -1), Sampling(temperature), torch.from_numpy(ends).float())
            for chosen in (*by_engine(logits, Sampling(temperature), ends), *together.tolist()):
                assert logits[chosen] > -math.inf, (name, temperature)


def test_a_temperature_near_zero_takes_the_likeliest() -> None:
    """Divided by 1e-40, numbers overflow."""
    for size in SIZES:
        logits = rows(size)["smooth"]
        for temperature in (5e-324, 1e-40, 1e-20):
            sampling, uniform = Sampling(temperature), torch.tensor([0.999])
            drawn = [int(sample(logits[None], sampling, uniform)), *by_engine(logits, sampling, uniform.numpy())]
            assert drawn == [int(logits.argmax())] * 2


@pytest.mark.parametrize("size", SIZES)
def test_no_distribution_gives_some_symbol_and_no_error(size: int) -> None:
    """Its probability is NaN, which sessions refuse."""
    for value in (math.nan, math.inf, -math.inf):
        logits = (
            torch.full((size,), value)
            if value == -math.inf
            else rows(size)["smooth"].index_fill(0, torch.tensor([3]), value)
        )
        for settings in SETTINGS:
            sampling, uniform = Sampling(**settings), torch.tensor([0.4])  # type: ignore[arg-type]
            found = sampled(logits[None], sampling, uniform.numpy())
            assert math.isnan(found.logprobs[0])
            for chosen in (int(sample(logits[None], sampling, uniform)), int(found.tokens[0])):
                assert 0 <= chosen < size
