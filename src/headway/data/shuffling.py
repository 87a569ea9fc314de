"""The order of samples: permutations that are computed, not stored, and token-budget batches of pairs with almost no
padding.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar, overload

import numpy as np

from headway.errors import ConfigError, UserError

Index = TypeVar("Index", int, np.ndarray)

GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's increment
_ROUNDS = 6
_SMALL = 256  # below this, the halves have too few bits to mix, and a table is cheap


@overload
def permute(index: int, size: int, seed: int) -> int: ...
@overload
def permute(index: np.ndarray, size: int, seed: int) -> np.ndarray: ...
def permute(index: int | np.ndarray, size: int, seed: int) -> int | np.ndarray:
    """Map an index or an array of indices through the permutation of range(size) that `seed` selects.

    A Feistel network permutes the smallest power of two that is at least `size`; results outside the range pass
    through it again until they fall inside (cycle walking, under two passes on average). Small ranges are sorted by
    random keys instead.
    """
    indices = np.atleast_1d(np.asarray(index, dtype=np.uint64))
    if indices.size and int(indices.max()) >= size:
        raise ValueError(f"index {int(indices.max())} is outside a permutation of {size}")
    salt = splitmix64(np.uint64(seed % (1 << 64)))
    if size <= _SMALL:
        result = np.argsort(splitmix64(np.arange(size, dtype=np.uint64) ^ salt))[indices]
    else:
        keys = splitmix64(np.arange(1, _ROUNDS + 1, dtype=np.uint64) + salt)
        bits = (size - 1).bit_length()
        result = _feistel(indices, bits, keys)
        outside = np.flatnonzero(result >= size)
        while outside.size:
            mapped = _feistel(result[outside], bits, keys)
            result[outside] = mapped
            outside = outside[mapped >= size]
    result = result.astype(np.int64)
    return result.reshape(index.shape) if isinstance(index, np.ndarray) else int(result[0])


def shuffled_indices(index: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The samples at positions of an endless stream of epochs, each a new permutation of range(size)."""
    epochs, positions = np.divmod(np.asarray(index, dtype=np.int64), size)
    result = np.empty_like(positions)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        result[in_epoch] = permute(positions[in_epoch], size, epoch_seed(seed, int(epoch)))
    return result


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch; unlike `seed + epoch` it does not collide with another run's epochs."""
    mixed_seed = splitmix64(np.uint64(seed % (1 << 64))) + np.uint64(epoch)
    return int(splitmix64(mixed_seed[None])[0])


def splitmix64(values: np.ndarray | np.uint64) -> np.ndarray:
    """A step of SplitMix64 (Steele et al. 2014): a bijection in which every input bit affects every output bit."""
    x = np.atleast_1d(np.asarray(values, dtype=np.uint64)) + np.uint64(GOLDEN_GAMMA)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return x if np.ndim(values) else x[0]


def noise(seed: int, indices: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Numbers in [0, 1), float64 [B, count]: a pure function of the seed, each sample's index and the stream."""
    salt = splitmix64(splitmix64(np.uint64(seed % (1 << 64))) + np.uint64(stream))
    keys = splitmix64(np.asarray(indices, dtype=np.uint64) ^ salt)
    return (splitmix64(keys[:, None] + np.arange(count, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53


def _feistel(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """Permute integers of `bits` bits. The halves may differ by a bit, because each round updates one half in place."""
    low = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    left, right = values >> low, values & low_mask
    for round_index, key in enumerate(keys):
        if round_index % 2:
            left = left ^ (splitmix64(right ^ key) & high_mask)
        else:
            right = right ^ (splitmix64(left ^ key) & low_mask)
    return (left << low) | right


_WIDTHS = (1, 2, 3)


class Padding(NamedTuple):
    """Fractions of computed tokens that are padding: in sources, in targets, and in both together."""

    source: float
    target: float
    both: float


class PairBatches:
    """Epochs of batches over pairs with the given lengths (int [N] each, special tokens included).

    A batch of n pairs uses n times its longest source or target, whichever is longer, of `batch_tokens`: neither
    padded side exceeds the budget. Pairs are sorted by target length, then by source length. Target lengths are sorted
    in steps of 1, 2 or 3, whichever pads least: with few pairs, a step of 1 mixes too many source lengths in a batch.
    The cuts between batches depend only on the lengths. Each epoch shuffles pairs of equal lengths and the order of
    the batches, as a pure function of (seed, epoch).
    """

    def __init__(self, source_lengths: np.ndarray, target_lengths: np.ndarray, batch_tokens: int, seed: int) -> None:
        source = np.asarray(source_lengths, dtype=np.int64)
        target = np.asarray(target_lengths, dtype=np.int64)
        if len(source) != len(target):
            raise ValueError(f"{len(source)} source lengths and {len(target)} target lengths")
        if len(source) == 0:
            raise UserError("there are no pairs to batch; pass at least one")
        longer = np.maximum(source, target)
        if longer.max() > batch_tokens:
            pair = int(longer.argmax())
            raise ConfigError(
                f"pair {pair} has {source[pair]} source and {target[pair]} target tokens, more than batch_tokens "
                f"{batch_tokens}; raise batch_tokens or drop long pairs"
            )
        self._seed = seed
        # The rest works on cells of equal lengths: there are few cells, however many pairs.
        radix = int(source.max()) + 1
        cells, cell_of, counts = np.unique(target * radix + source, return_inverse=True, return_counts=True)
        lengths = np.stack([cells % radix, cells // radix])
        plans = [_plan_batches(lengths, counts, batch_tokens, width) for width in _WIDTHS]
        self._padding, order, self._edges = min(plans, key=lambda plan: plan[0].both)
        rank = np.empty(len(cells), dtype=np.uint64)
        rank[order] = np.arange(len(cells), dtype=np.uint64)
        self._rank = rank[cell_of]

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._edges) - 1

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, in order: arrays of pair indices."""
        seed = epoch_seed(self._seed, epoch)
        # Random low bits and the cell's rank in the high bits: one sort shuffles only inside the cells.
        noise = splitmix64(np.arange(len(self._rank), dtype=np.uint64) ^ np.uint64(seed)) >> np.uint64(32)
        batches = np.split(np.argsort((self._rank << np.uint64(32)) | noise), self._edges[1:-1])
        return [batches[index] for index in permute(np.arange(len(batches)), len(batches), seed)]

    def in_order(self) -> list[np.ndarray]:
        """Every pair once, unshuffled, for evaluation: the same batches, from short to long."""
        return np.split(np.argsort(self._rank, kind="stable"), self._edges[1:-1])

    def padding(self) -> Padding:
        """The padding fractions of the batches; equal in every epoch."""
        return self._padding


def _plan_batches(
    lengths: np.ndarray, counts: np.ndarray, budget: int, width: int
) -> tuple[Padding, np.ndarray, np.ndarray]:
    """Padding, the order of the cells (int64 [cells]), and the edges between batches (int64 [batches + 1]).

    `lengths` int64 [2, cells] are source and target lengths, `counts` int64 [cells] the number of pairs per cell.
    """
    source, target = lengths
    step = -(-target // width)
    # Source lengths alternately rise and fall, so that neighbours stay similar where the target's step changes.
    alternating = np.where(step % 2, source, source.max() - source)
    order = np.lexsort((target, alternating, step))
    sorted_lengths = np.repeat(lengths[:, order], counts[order], axis=1)
    longer = sorted_lengths.max(0)
    edges, start, lookahead = [0], 0, 64
    while start < len(longer):
        stop = min(len(longer), start + lookahead)
        area = np.maximum.accumulate(longer[start:stop]) * np.arange(1, stop - start + 1)
        fits = int(np.searchsorted(area, budget, side="right"))
        if fits == stop - start and stop < len(longer):
            lookahead *= 2
            continue
        start += fits
        lookahead = 2 * fits
        edges.append(start)
    edges = np.array(edges, dtype=np.int64)
    computed = np.maximum.reduceat(sorted_lengths, edges[:-1], axis=1) @ np.diff(edges)
    real_tokens = sorted_lengths.sum(1)
    source_share, target_share = (1 - real_tokens / computed).tolist()
    return Padding(source_share, target_share, float(1 - real_tokens.sum() / computed.sum())), order, edges
