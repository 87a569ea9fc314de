"""The order of samples: a permutation that is computed, not stored; and batches of pairs by tokens, with almost no
padding.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar, overload

import numpy as np

from headway.errors import ConfigError, UserError

Index = TypeVar("Index", int, np.ndarray)

GOLDEN = 0x9E3779B97F4A7C15  # how far SplitMix64 goes on in a step
_ROUNDS = 6
_SMALL = 256  # the halves of smaller numbers have too few values to mix; a table costs nothing there


@overload
def permuted(index: int, size: int, seed: int) -> int: ...
@overload
def permuted(index: np.ndarray, size: int, seed: int) -> np.ndarray: ...
def permuted(index: int | np.ndarray, size: int, seed: int) -> int | np.ndarray:
    """Where a permutation of range(size), chosen by `seed`, sends an index or an array of indices.

    A Feistel network permutes the smallest power of two that holds `size`; a result outside the range is sent
    through again until it falls inside (cycle walking, under two passes on average). A few are
    sorted by random keys.
    """
    numbers = np.atleast_1d(np.asarray(index, dtype=np.uint64))
    if numbers.size and int(numbers.max()) >= size:
        raise ValueError(f"index {int(numbers.max())} is outside a permutation of {size}")
    salt = mixed(np.uint64(seed % (1 << 64)))
    if size <= _SMALL:
        result = np.argsort(mixed(np.arange(size, dtype=np.uint64) ^ salt))[numbers]
    else:
        result = _walked(numbers, size, mixed(np.arange(1, _ROUNDS + 1, dtype=np.uint64) + salt))
    result = result.astype(np.int64)
    return result.reshape(index.shape) if isinstance(index, np.ndarray) else int(result[0])


def sample_at(index: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The samples at places of an endless stream of epochs, each a permutation of its own of range(size)."""
    epochs, places = np.divmod(np.asarray(index, dtype=np.int64), size)
    result = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        result[here] = permuted(places[here], size, epoch_seed(seed, int(epoch)))
    return result


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch; unlike `seed + epoch` it never meets the epochs of another run."""
    both = mixed(np.uint64(seed % (1 << 64))) + np.uint64(epoch)
    return int(mixed(both[None])[0])


def mixed(numbers: np.ndarray | np.uint64) -> np.ndarray:
    """A step of SplitMix64 (Steele et al. 2014): a bijection in which every bit of a number moves every other."""
    x = np.atleast_1d(np.asarray(numbers, dtype=np.uint64)) + np.uint64(GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return x if np.ndim(numbers) else x[0]


def _walked(numbers: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    bits = (size - 1).bit_length()
    result = _feistel(numbers, bits, keys)
    outside = np.flatnonzero(result >= size)
    while outside.size:
        walked = _feistel(result[outside], bits, keys)
        result[outside] = walked
        outside = outside[walked >= size]
    return result


def _feistel(numbers: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """Permute numbers of `bits` bits. The halves may differ by a bit: each round changes one of them in place."""
    low = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    left, right = numbers >> low, numbers & low_mask
    for turn, key in enumerate(keys):
        if turn % 2:
            left = left ^ (mixed(right ^ key) & high_mask)
        else:
            right = right ^ (mixed(left ^ key) & low_mask)
    return (left << low) | right


_WIDTHS = (1, 2, 3)


class Padding(NamedTuple):
    """Shares of the tokens computed that are padding: in the sources, the targets, and both together."""

    source: float
    target: float
    both: float


class PairBatches:
    """Epochs of batches over pairs of the given lengths (int [N] each, special symbols included).

    A batch of n pairs takes n times its longest source or its longest target, whichever is longer, of
    `batch_tokens`: neither padded side exceeds the budget. Pairs are sorted by target length, then source
    length. Target lengths may be sorted in steps of 1, 2 or 3, whichever pads least: over few pairs a step of
    1 leaves sources of too many lengths in a batch. Where the sorted row is cut depends on the lengths alone.
    What an epoch draws anew, as a pure function of (seed, epoch), is which of the pairs of equal lengths
    stand where, and the order of the batches.
    """

    def __init__(self, source_lengths: np.ndarray, target_lengths: np.ndarray, batch_tokens: int, seed: int) -> None:
        source = np.asarray(source_lengths, dtype=np.int64)
        target = np.asarray(target_lengths, dtype=np.int64)
        _check(source, target, batch_tokens)
        self._seed = seed
        # Everything below is decided on cells of equal lengths, of which there are few, however
        # many the pairs.
        radix = int(source.max()) + 1
        cells, cell_of, counts = np.unique(target * radix + source, return_inverse=True, return_counts=True)
        lengths = np.stack([cells % radix, cells // radix])
        plans = [_plan(lengths, counts, batch_tokens, width) for width in _WIDTHS]
        self._padding, order, self._edges = min(plans, key=lambda plan: plan[0].both)
        rank = np.empty(len(cells), dtype=np.uint64)
        rank[order] = np.arange(len(cells), dtype=np.uint64)
        self._rank = rank[cell_of]

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._edges) - 1

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, in order: arrays of pair numbers."""
        seed = epoch_seed(self._seed, epoch)
        # Random numbers below, the cell's rank above: one sort shuffles inside the cells and nowhere else.
        noise = mixed(np.arange(len(self._rank), dtype=np.uint64) ^ np.uint64(seed)) >> np.uint64(32)
        batches = np.split(np.argsort((self._rank << np.uint64(32)) | noise), self._edges[1:-1])
        return [batches[place] for place in permuted(np.arange(len(batches)), len(batches), seed)]

    def in_order(self) -> list[np.ndarray]:
        """Every pair once, without shuffling, for evaluation: the same batches, from short to long."""
        return np.split(np.argsort(self._rank, kind="stable"), self._edges[1:-1])

    def padding(self) -> Padding:
        """How much of the batches is padding; the same in every epoch."""
        return self._padding


def _check(source: np.ndarray, target: np.ndarray, budget: int) -> None:
    if len(source) != len(target):
        raise ValueError(f"{len(source)} source lengths and {len(target)} target lengths")
    if len(source) == 0:
        raise UserError("there are no pairs to batch; give at least one")
    longer = np.maximum(source, target)
    if longer.max() > budget:
        pair = int(longer.argmax())
        raise ConfigError(
            f"pair {pair} has {source[pair]} source and {target[pair]} target tokens, more than batch_tokens "
            f"{budget}; raise batch_tokens or leave long pairs out"
        )


def _plan(lengths: np.ndarray, counts: np.ndarray, budget: int, width: int) -> tuple[Padding, np.ndarray, np.ndarray]:
    """Cells in the order of the row, and where to cut it: padding, int64 [cells], int64 [batches + 1].

    `lengths` int64 [2, cells] are source and target, `counts` int64 [cells] the pairs of each.
    """
    source, target = lengths
    step = -(-target // width)
    # Sources run up and down in turn, so that neighbours stay alike where the target's step changes.
    turned = np.where(step % 2, source, source.max() - source)
    order = np.lexsort((target, turned, step))
    row = np.repeat(lengths[:, order], counts[order], axis=1)
    edges = _cuts(row.max(0), budget)
    computed = np.maximum.reduceat(row, edges[:-1], axis=1) @ np.diff(edges)
    kept = row.sum(1)
    source_share, target_share = (1 - kept / computed).tolist()
    return Padding(source_share, target_share, float(1 - kept.sum() / computed.sum())), order, edges


def _cuts(longer: np.ndarray, budget: int) -> np.ndarray:
    """Where to cut a row so that each part is as long as fits: int64 [batches + 1], 0 and N included."""
    edges, start, ahead = [0], 0, 64
    while start < len(longer):
        stop = min(len(longer), start + ahead)
        area = np.maximum.accumulate(longer[start:stop]) * np.arange(1, stop - start + 1)
        fits = int(np.searchsorted(area, budget, side="right"))
        if fits == stop - start and stop < len(longer):
            ahead *= 2
            continue
        start += fits
        ahead = 2 * fits
        edges.append(start)
    return np.array(edges, dtype=np.int64)
