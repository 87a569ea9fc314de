"""Which places of a row are hidden, and what stands there instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from headway.config import checked
from headway.data import IGNORED
from headway.data.order import mixed
from headway.domains.masked.symbols import Symbols
from headway.errors import ConfigError

SPAN_STOP, SPAN_LONGEST = 0.2, 10  # words (Joshi et al. 2020, section 3.1)
_ORDER, _CHANGE, _SYMBOL, _SPANS = range(4)  # streams of random numbers


@checked
@dataclass(frozen=True)
class MaskingConfig:
    """Devlin et al. 2019, section 3.1: a share `rate` of the text is to be predicted; of it, the share `mask` becomes
    the mask, `random` by any symbol of text, and the rest is left as it is. (ModernBERT's rate is 0.3.)

    `unit` is what is hidden together: `tokens`, whole `words`, or `spans` of words of geometric lengths (p = 0.2,
    at most 10) and which are replaced in one way (SpanBERT, Joshi et al. 2020).
    """

    rate: float = 0.15  # share of the text that is to be predicted
    mask: float = 0.8  # share of that which becomes the mask
    random: float = 0.1  # share of that which becomes any symbol
    unit: Literal["tokens", "words", "spans"] = "tokens"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"masking.rate is {self.rate}; give a share between 0 and 1 such as 0.15")
        if self.mask < 0 or self.random < 0 or self.mask + self.random > 1 + 1e-9:
            raise ConfigError(
                f"masking.mask {self.mask} and masking.random {self.random} are no shares of one whole; give two that "
                "sum to 1 at most"
            )


class MaskedRows(NamedTuple):
    """int64 [B, T] each: what the model reads, and the symbols to foretell, IGNORED elsewhere."""

    inputs: np.ndarray
    labels: np.ndarray


class Masking:
    """Hides parts of rows: a pure function of (seed, number of the sample), computed and never stored."""

    def __init__(self, config: MaskingConfig, symbols: Symbols) -> None:
        self.config, self.symbols = config, symbols
        self._text = np.flatnonzero(symbols.text)

    def __call__(self, ids: np.ndarray, positions: np.ndarray, numbers: np.ndarray, seed: int) -> MaskedRows:
        """Mask rows int [B, T], each with what its number [B] draws. A row with text has at least one label."""
        units = self._units(ids, positions, numbers, seed)
        order = noise(seed, numbers, _ORDER, ids.shape[1])
        chosen = np.stack([_choose(row, keys, self.config.rate) for row, keys in zip(units, order)])
        draws = noise(seed, numbers, _CHANGE, ids.shape[1])
        if self.config.unit == "spans":  # a span is replaced in one way
            draws = np.take_along_axis(draws, np.maximum(units, 0), axis=1)
        others = self._text[(noise(seed, numbers, _SYMBOL, ids.shape[1]) * len(self._text)).astype(np.int64)]
        written = np.where(draws < self.config.mask, self.symbols.mask, others)
        changed = chosen & (draws < self.config.mask + self.config.random)
        return MaskedRows(np.where(changed, written, ids), np.where(chosen, ids, IGNORED))

    def _units(self, ids: np.ndarray, positions: np.ndarray, numbers: np.ndarray, seed: int) -> np.ndarray:
        """The number of the unit that a place belongs to, counted within its row; -1 where nothing is hidden."""
        text = (positions >= 0) & self.symbols.text[ids]
        if self.config.unit == "tokens":
            return _numbered(text, text)
        after_text = np.zeros_like(text)
        after_text[:, 1:] = text[:, :-1]
        words = text & (self.symbols.word_starts(ids) | ~after_text)
        if self.config.unit == "words":
            return _numbered(words, text)
        lengths = _span_lengths(noise(seed, numbers, _SPANS, ids.shape[1]))
        opens = np.zeros((len(ids), ids.shape[1] + 1), bool)
        np.put_along_axis(opens, np.minimum(lengths.cumsum(1), ids.shape[1]), True, axis=1)
        opens[:, 0] = True
        opening = np.take_along_axis(opens, np.maximum(words.cumsum(1) - 1, 0), axis=1)
        return _numbered(words & (opening | ~after_text), text)


def _numbered(starts: np.ndarray, text: np.ndarray) -> np.ndarray:
    return np.where(text, starts.cumsum(1) - 1, -1)


def _span_lengths(draws: np.ndarray) -> np.ndarray:
    """Lengths from 1 to SPAN_LONGEST with p(n) in proportion to (1 - p)^(n - 1), from numbers in [0, 1)."""
    weights = (1 - SPAN_STOP) ** np.arange(SPAN_LONGEST)
    return np.searchsorted(weights.cumsum() / weights.sum(), draws, side="right") + 1


def _choose(units: np.ndarray, keys: np.ndarray, rate: float) -> np.ndarray:
    """Places whose units are hidden, bool [T]: units by ascending key, each that still fits into the row's share.

    Where not even one fits, the smallest is hidden.
    """
    sizes = np.bincount(units[units >= 0])
    taken = np.zeros(len(sizes) + 1, bool)  # the last is for places of no unit
    room = max(1, int(rate * sizes.sum() + 0.5))
    if len(sizes) and sizes.min() > room:
        taken[sizes.argmin()] = True
        return taken[units]
    for unit in np.argsort(keys[: len(sizes)]).tolist():
        if room == 0:
            break
        if sizes[unit] <= room:
            taken[unit] = True
            room -= sizes[unit]
    return taken[units]


def noise(seed: int, numbers: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Numbers in [0, 1), float64 [B, count]: a pure function of the seed, each sample's number and the stream."""
    salt = mixed(mixed(np.uint64(seed % (1 << 64))) + np.uint64(stream))
    keys = mixed(np.asarray(numbers, dtype=np.uint64) ^ salt)
    return (mixed(keys[:, None] + np.arange(count, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53
