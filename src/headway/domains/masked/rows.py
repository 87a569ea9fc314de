"""Rows of documents or of pairs of segments, and which of their symbols are hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from headway.codecs import Codec
from headway.codecs.tokenizer import Frame, frame_of
from headway.config import checked
from headway.data import IGNORED, Spans, TokenCache
from headway.data.order import mixed
from headway.data.packing import best_fit, ranges
from headway.domains.masked.fill import Symbols
from headway.errors import ConfigError, UserError

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


_PAIRS, _OTHERS = 16, 17  # streams of random numbers, apart from those of masking


class Sequences(NamedTuple):
    """Rows of symbols, int64 [B, T]: `positions` restart at 0 where a piece starts, -1 at padding, where ids are 0.

    Of pairs only are `types` (0 and 1) and `unrelated`, int64 [B]: 0 where the second segment follows the first, else
    1, as BERT's published weights have it.
    """

    ids: np.ndarray
    positions: np.ndarray
    types: np.ndarray | None = None
    unrelated: np.ndarray | None = None


class RowSource(Protocol):
    """Rows by number. What a row draws at random depends on the seed and on the number of the sample."""

    def __len__(self) -> int: ...

    def rows(self, rows: np.ndarray, numbers: np.ndarray, seed: int) -> Sequences: ...


class Texts(NamedTuple):
    """Documents without marks, as places in an array of ids, and the marks that stand around them in rows."""

    ids: np.ndarray
    spans: Spans
    frame: Frame


def texts_of(cache: TokenCache, spans: Spans, codec: Codec) -> Texts:
    """The documents (or parts of them) at `spans`. Raises UserError where they hold no text."""
    starts, ends = spans.starts.copy(), spans.starts + spans.lengths
    if codec.begin is not None:
        starts += cache.ids[starts] == codec.begin
    if codec.end is not None:
        ends -= (ends > starts) & (cache.ids[ends - 1] == codec.end)
    held = ends > starts
    if not held.any():
        raise UserError("the documents have no text besides special tokens; give longer ones")
    return Texts(cache.ids, Spans(starts[held], (ends - starts)[held]), frame_of(codec))


class FramedPieces:
    """Documents cut into pieces that fill a row, each framed; short ones side by side in a row (Liu et al. 2019,
    "full sentences", but that documents do not see each other). Row k holds the same text in every epoch.
    """

    def __init__(self, texts: Texts, context: int) -> None:
        marks = texts.frame.marks(1)
        room = _room(context - marks, context)
        counts = -(-texts.spans.lengths // room)
        places, document = ranges(np.zeros_like(counts), counts)
        starts = texts.spans.starts[document] + places * room
        sizes = np.minimum(texts.spans.lengths[document] - places * room, room)
        rows = best_fit(sizes + marks, context)
        order = np.argsort(rows, kind="stable")
        self.texts, self.context = texts, context
        self._starts, self._sizes = starts[order], sizes[order]
        self._row_ends = np.concatenate([[0], np.cumsum(np.bincount(rows))])

    def __len__(self) -> int:
        return len(self._row_ends) - 1

    @property
    def padding(self) -> float:
        """The share of all tokens in the rows that is padding."""
        return 1 - int((self._sizes + self.texts.frame.marks(1)).sum()) / (len(self) * self.context)

    def rows(self, rows: np.ndarray, numbers: np.ndarray, seed: int) -> Sequences:
        before, _, after, _ = self.texts.frame
        first = self._row_ends[rows]
        pieces, owner = ranges(first, self._row_ends[rows + 1] - first)
        sizes = self._sizes[pieces]
        framed = sizes + self.texts.frame.marks(1)
        ends = np.cumsum(framed)
        columns = ends - framed - (ends - framed)[np.searchsorted(owner, owner)]  # from the first piece of a row on
        ids, positions = np.zeros((len(rows), self.context), np.int64), np.full((len(rows), self.context), -1)
        _mark(ids, owner, columns, before)
        _write(ids, owner, columns + len(before), self.texts.ids, self._starts[pieces], sizes)
        _mark(ids, owner, columns + len(before) + sizes, after)
        places, piece = ranges(np.zeros_like(framed), framed)
        positions[owner[piece], columns[piece] + places] = places
        return Sequences(ids, positions)


class SegmentPairs:
    """Two segments a row with the marks of a pair, of types 0 and 1 (Devlin et al. 2019, section 3.1).

    Documents are cut into segments of about equal lengths, at least two each. In half of the rows B is the segment
    after A; in the others it is one of another document, or, where there is one document only, from elsewhere in it.
    """

    def __init__(self, texts: Texts, context: int) -> None:
        if not texts.frame.between:
            raise UserError("pairs need a tokenizer with an end symbol between texts; use another, or task.next=false")
        half = _room((context - texts.frame.marks(2)) // 2, context)
        long = texts.spans.lengths > 1
        starts, lengths = texts.spans.starts[long], texts.spans.lengths[long]
        counts = np.maximum(2, -(-lengths // half))
        if counts.sum() < 3:
            raise UserError(f"{counts.sum()} segments make no wrong pairs; give more text, or set task.next=false")
        places, document = ranges(np.zeros_like(counts), counts)
        low, high = (lengths[document] * (places + k) // counts[document] for k in (0, 1))
        self.texts, self.context = texts, context
        self._starts, self._sizes, self._document = starts[document] + low, high - low, document
        self._firsts, self._counts = np.cumsum(counts) - counts, counts  # of each document's segments
        self._pairs = np.flatnonzero(places + 1 < counts[document])  # segments that another follows

    def __len__(self) -> int:
        return len(self._pairs)

    def rows(self, rows: np.ndarray, numbers: np.ndarray, seed: int) -> Sequences:
        before, between, after, typed = self.texts.frame
        first = self._pairs[rows]
        unrelated = noise(seed, numbers, _PAIRS, 1)[:, 0] < 0.5
        second = np.where(unrelated, self._others(first, noise(seed, numbers, _OTHERS, 1)[:, 0]), first + 1)
        ends = len(before) + self._sizes[first]
        seconds = ends + len(between)  # where B starts
        lengths = seconds + self._sizes[second] + len(after)
        every, columns = np.arange(len(rows)), np.arange(int(lengths.max()))
        ids = np.zeros((len(rows), len(columns)), np.int64)
        _mark(ids, every, np.zeros_like(every), before)
        _write(ids, every, np.full_like(every, len(before)), self.texts.ids, self._starts[first], self._sizes[first])
        _mark(ids, every, ends, between)
        _write(ids, every, seconds, self.texts.ids, self._starts[second], self._sizes[second])
        _mark(ids, every, lengths - len(after), after)
        inside = columns < lengths[:, None]
        types = (inside & (columns >= seconds[:, None])).astype(np.int64) if typed else None
        return Sequences(ids, np.where(inside, columns, -1), types, unrelated.astype(np.int64))

    def _others(self, first: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Segments that do not follow `first`: any but those of its document, or but itself and the next."""
        several = len(self._counts) > 1
        low = self._firsts[self._document[first]] if several else first
        left_out = self._counts[self._document[first]] if several else 2
        drawn = (draws * (len(self._starts) - left_out)).astype(np.int64)
        return np.where(drawn < low, drawn, drawn + left_out)


def _room(room: int, context: int) -> int:
    if room < 1:
        raise UserError(f"a context of {context} leaves no room for text besides special tokens; give more")
    return room


def _mark(ids: np.ndarray, rows: np.ndarray, columns: np.ndarray, marks: tuple[int, ...]) -> None:
    """Write the same symbols into rows, from the given columns on."""
    for place, mark in enumerate(marks):
        ids[rows, columns + place] = mark


def _write(
    ids: np.ndarray, rows: np.ndarray, columns: np.ndarray, source: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> None:
    """Write pieces of `source` into rows, from the given columns on."""
    places, piece = ranges(np.zeros_like(sizes), sizes)
    ids[rows[piece], columns[piece] + places] = source[starts[piece] + places]
