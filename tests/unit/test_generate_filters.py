"""The sets that filters keep are those of a full sort, and draws follow what is kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from headway.generate import Sampling
from headway.generate.sampling import draw, draw_row, kept, weigh

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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-6, 0.3, 1.0, 50.0, 1e38, 1e300])
def test_what_is_kept_is_what_a_full_sort_keeps(size: int, temperature: float) -> None:
    for name, logits in rows(size).items():
        for settings in (*SETTINGS, {"top_p": 1 - 1e-9}):
            sampling = Sampling(temperature, **settings)  # type: ignore[arg-type]
            wanted = by_full_sort(logits, sampling)
            symbols, weights = kept(logits.numpy(), sampling)
            symbols = np.arange(size) if symbols is None else symbols
            assert wanted, (name, settings)
            assert set(symbols[weights > 0].tolist()) == wanted, (name, settings)
            if sampling.top_p in (
                1,
                *(given.get("top_p") for given in SETTINGS),
            ):  # in single precision, as all rows together are, the last 1e-7 is lost
                assert set(weigh(logits[None], sampling)[0].nonzero()[:, 0].tolist()) == wanted, (name, settings)


@pytest.mark.parametrize("settings", SETTINGS)
def test_both_forms_draw_the_same(settings: dict[str, float]) -> None:
    """All rows together, and a row at a time where symbols are many; each draw lies where the distribution says."""
    generator = torch.Generator().manual_seed(1)
    logits, uniform = torch.randn(40, 3000, generator=generator) * 2, torch.rand(40, generator=generator)
    sampling = Sampling(0.8, **settings)  # type: ignore[arg-type]
    chosen = draw(logits, sampling, uniform)
    few = torch.cat([draw(half, sampling, numbers) for half, numbers in zip(logits.split(7), uniform.split(7))])
    assert torch.equal(chosen, few), "a draw depends on the batch"
    heights = weigh(logits, sampling).double().cumsum(-1)
    heights = torch.cat([torch.zeros(40, 1, dtype=torch.float64), heights], -1) / heights[:, -1:]
    low, high = (heights.gather(1, (chosen + move)[:, None])[:, 0] for move in (0, 1))
    assert (low - 1e-6 <= uniform).all()
    assert (uniform < high + 1e-6).all()
    assert (high > low).all(), "a symbol of weight 0 was drawn"


@pytest.mark.parametrize("size", SIZES)
def test_the_ends_of_the_range_draw_what_has_weight(size: int) -> None:
    for name in ("infinities", "one", "far", "peaked"):
        logits = rows(size)[name]
        for temperature in (1e-40, 1.0, 1e40):
            for uniform in (0.0, 1 - 2.0**-24):
                sampling = Sampling(temperature)
                together = draw(logits[None], sampling, torch.tensor([uniform]))
                for chosen in (draw_row(logits.numpy(), sampling, uniform), int(together)):
                    assert logits[chosen] > -math.inf, (name, temperature, uniform)


def test_a_temperature_near_zero_takes_the_likeliest() -> None:
    """Divided by 1e-40, numbers overflow."""
    for size in SIZES:
        logits = rows(size)["smooth"]
        for temperature in (5e-324, 1e-40, 1e-20):
            assert int(draw(logits[None], Sampling(temperature), torch.tensor([0.999]))) == int(logits.argmax())


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
            chosen = int(draw(logits[None], Sampling(**settings), torch.tensor([0.4])))  # type: ignore[arg-type]
            assert 0 <= chosen < size
