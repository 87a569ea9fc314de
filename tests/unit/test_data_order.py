"""Orders, splits, packing and batches: pure functions of their seeds that lose nothing and pad little."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway.codecs import train_codec
from headway.data import (
    Crops,
    Packing,
    PairBatches,
    Spans,
    SplitConfig,
    hash_fraction,
    iter_pairs,
    permute,
    shuffled_indices,
)
from headway.data.splits import assign_splits, hash_fractions, text_key
from headway.errors import ConfigError, UserError


def spans_of(lengths: np.ndarray) -> Spans:
    lengths = np.asarray(lengths, np.int64)
    return Spans(np.cumsum(lengths) - lengths, lengths)


@pytest.mark.parametrize("size", [1, 2, 3, 17, 256, 257, 1000, 99_991])
@pytest.mark.parametrize("seed", [0, 1, -5, 1 << 70])
def test_permuted_is_a_permutation_index_by_index(size: int, seed: int) -> None:
    whole = permute(np.arange(size), size, seed)
    assert np.array_equal(np.sort(whole), np.arange(size))
    assert [permute(i, size, seed) for i in range(min(size, 20))] == whole[:20].tolist()


def test_permutations_of_few_are_all_alike_frequent() -> None:
    seen = Counter(tuple(permute(np.arange(4), 4, seed).tolist()) for seed in range(2400))
    assert len(seen) == 24
    assert sum((count - 100) ** 2 / 100 for count in seen.values()) < 50  # chi-square, 23 degrees: p = 0.001


def test_places_in_a_permutation_are_all_alike_likely() -> None:
    firsts = np.bincount([permute(0, 300, seed) for seed in range(6000)], minlength=300)
    assert ((firsts - 20) ** 2 / 20).sum() < 380  # chi-square, 299 degrees: p = 0.001


def test_neighbours_of_a_permutation_are_far_apart() -> None:
    steps = np.abs(np.diff(permute(np.arange(100_000), 100_000, 7)))
    assert abs(steps.mean() / 100_000 - 1 / 3) < 0.01


def test_a_permutation_outside_its_range_is_an_error() -> None:
    with pytest.raises(ValueError, match="index 5 is outside"):
        permute(5, 5, 0)


def test_samples_are_epochs_of_permutations() -> None:
    drawn = shuffled_indices(np.arange(300), 100, seed=3).reshape(3, 100)
    assert all(np.array_equal(np.sort(epoch), np.arange(100)) for epoch in drawn)
    assert not np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(shuffled_indices(np.array([250, 7]), 100, 3), drawn.reshape(-1)[[250, 7]])


def test_fractions_are_stable_and_even() -> None:
    assert hash_fraction("the cat sat", 1) == pytest.approx(0.9255976197843147)  # a split never moves between versions
    keys = np.array([text_key(f"sentence {i}") for i in range(20_000)], np.uint64)
    counts, _ = np.histogram(hash_fractions(keys, 5), bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 44  # chi-square, 19 degrees: p = 0.001
    assert abs(np.corrcoef(hash_fractions(keys, 5), hash_fractions(keys, 6))[0, 1]) < 0.03


def test_named_sides_are_kept_and_missing_ones_drawn_from_training() -> None:
    keys = np.array([text_key(str(i)) for i in range(1000)], np.uint64)
    named = np.repeat(np.array([1, 3], np.uint8), 500)
    sides = assign_splits(keys, named, {1, 3}, SplitConfig(validation=0.1, test=0.5))
    assert (sides[500:] == 3).all()
    assert Counter(sides[:500].tolist()).keys() == {1, 2}
    assert 30 < (sides == 2).sum() < 70


@pytest.mark.parametrize("shares", [{"validation": 1.0}, {"test": -0.1}, {"validation": 0.5, "test": 0.5}])
def test_shares_must_leave_some_to_train_on(shares: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SplitConfig(**shares)


def lengths_of(kind: str, context: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return {
        "short": random.integers(1, 30, 5000),
        "long": random.integers(context * 3, context * 9, 300),
        "mixed": random.lognormal(4, 1.5, 3000).astype(int) + 1,
        "awkward": np.full(1000, int(context * 0.6) + 1),
        "one": np.array([context * 40 + 7]),
        "full": np.full(50, context + 1),
    }[kind]


@pytest.mark.parametrize("context", [64, 500])
@pytest.mark.parametrize("kind", ["short", "long", "mixed", "awkward", "one", "full"])
def test_packing_has_every_prediction_once_and_little_padding(kind: str, context: int) -> None:
    spans = spans_of(lengths_of(kind, context))
    ids = np.arange(spans.tokens, dtype=np.uint32)
    packing = Packing(ids, spans, context)
    rows = packing.windows(np.arange(len(packing)))
    kept = rows.labels >= 0
    assert np.array_equal(np.sort(rows.labels[kept]), np.setdiff1d(ids, spans.starts))
    assert np.array_equal(rows.inputs[kept] + 1, rows.labels[kept])
    assert np.array_equal(kept, rows.positions >= 0)
    assert packing.padding == pytest.approx(1 - kept.mean())
    assert packing.padding < 0.05
    # positions restart where the input does not follow the one before, and count on where it does
    follows = (np.diff(rows.inputs, axis=1) == 1) & kept[:, 1:]
    restarts = rows.positions[:, 1:] == 0
    assert (rows.positions[kept[:, 0], 0] == 0).all()
    assert (np.diff(rows.positions, axis=1)[follows & ~restarts] == 1).all()
    assert (follows | restarts | ~kept[:, 1:]).all()


def test_short_documents_are_not_cut_where_they_fit() -> None:
    spans = spans_of(np.random.default_rng(1).integers(5, 60, 4000))
    packing = Packing(np.arange(spans.tokens), spans, 128)
    rows = packing.windows(np.arange(len(packing)))
    assert (rows.positions == 0).sum() == 4000


def test_a_window_is_the_same_whoever_asks() -> None:
    spans = spans_of(lengths_of("mixed", 100))
    packing = Packing(np.arange(spans.tokens), spans, 100)
    chosen = shuffled_indices(np.arange(64), len(packing), 9)
    whole = packing.windows(chosen)
    for place in (0, 31, 63):
        alone = packing.windows(chosen[place : place + 1])
        assert all(np.array_equal(one[0], many[place]) for one, many in zip(alone, whole))


def test_crops_are_windows_at_any_offset_of_long_documents() -> None:
    spans = spans_of(np.array([30, 5, 20]))
    crops = Crops(np.arange(55, dtype=np.uint16), spans, 10)
    assert len(crops) == 30
    rows = crops.windows(np.arange(30))
    assert rows.inputs[:, 0].tolist() == [*range(20), *range(35, 45)]
    assert (rows.labels == rows.inputs + 1).all()
    assert (rows.positions == np.arange(10)).all()


def test_nothing_to_predict_is_an_error() -> None:
    with pytest.raises(UserError, match="nothing to predict"):
        Packing(np.arange(3), spans_of(np.array([1, 1, 1])), 8)
    with pytest.raises(UserError, match="longest document has 8 tokens, too few for a context of 8"):
        Crops(np.arange(8), spans_of(np.array([8])), 8)
    with pytest.raises(ConfigError, match="context is 0"):
        Packing(np.arange(8), spans_of(np.array([8])), 0)


@pytest.fixture(scope="module")
def lengths(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Multi30k's training side in tokens of an 8,000-symbol BPE of a fifth of it, end symbols included."""
    found = list(iter_pairs(data_dir / f"translation/multi30k-train.{language}.gz" for language in ("en", "de")))
    codec = train_codec("bpe", (text for pair in found[::5] for text in pair), 8000)
    sides = [codec.encode_batch(side) for side in zip(*found)]
    source, target = (np.array([len(ids) + 1 for ids in side]) for side in sides)
    return source, target


def test_batches_of_multi30k_are_padded_by_less_than_a_twentieth(lengths: tuple[np.ndarray, np.ndarray]) -> None:
    batches = PairBatches(*lengths, batch_tokens=4096, seed=1)
    assert batches.padding().both < 0.05
    computed = [sum(side[b].max() * len(b) for b in batches.epoch(2)) for side in lengths]
    kept = [side.sum() for side in lengths]
    assert batches.padding().both == pytest.approx(1 - sum(kept) / sum(computed))
    assert batches.padding().source == pytest.approx(1 - kept[0] / computed[0])


def test_an_epoch_has_every_pair_once_within_the_budget(lengths: tuple[np.ndarray, np.ndarray]) -> None:
    batches = PairBatches(*lengths, batch_tokens=1000, seed=1)
    for epoch in (batches.epoch(0), batches.in_order()):
        assert len(epoch) == len(batches)
        assert np.array_equal(np.sort(np.concatenate(epoch)), np.arange(len(lengths[0])))
        assert max(len(b) * max(side[b].max() for side in lengths) for b in epoch) <= 1000


def test_an_epoch_is_a_pure_function_of_seed_and_number(lengths: tuple[np.ndarray, np.ndarray]) -> None:
    def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(one, other))

    batches = PairBatches(*lengths, batch_tokens=4096, seed=1)
    again = PairBatches(*lengths, batch_tokens=4096, seed=1)
    first = batches.epoch(3)
    batches.epoch(0)
    assert same(first, again.epoch(3))
    assert not same(first, batches.epoch(4))
    assert not same(first, PairBatches(*lengths, batch_tokens=4096, seed=2).epoch(3))
    members = {frozenset(batch.tolist()) for batch in first}
    assert sum(frozenset(batch.tolist()) in members for batch in batches.epoch(4)) < len(first) / 2


def test_a_pair_over_the_budget_is_named() -> None:
    with pytest.raises(ConfigError, match="pair 1 has 9 source and 50 target tokens, more than batch_tokens 40"):
        PairBatches(np.array([3, 9]), np.array([4, 50]), 40, 0)
    with pytest.raises(UserError, match="no pairs"):
        PairBatches(np.array([]), np.array([]), 40, 0)
