"""The order of samples: a keyed permutation that is computed, not stored, so that any index can be asked for alone."""

from __future__ import annotations

from typing import TypeVar, overload

import numpy as np

Index = TypeVar("Index", int, np.ndarray)

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
    """A bijection of 64-bit numbers whose every output bit hangs on every input bit (SplitMix64's)."""
    x = np.atleast_1d(np.asarray(numbers, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
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
