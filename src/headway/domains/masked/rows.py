"""Rows of documents or of segment pairs, and the masking of their tokens."""

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
    """Devlin et al. 2019, section 3.1: the model predicts a share `rate` of the text; of that, the share `mask` becomes
    the mask token, `random` becomes any text token, and the rest is unchanged. (ModernBERT's rate is 0.3.)

    `unit` is masked as one: `tokens`, whole `words`, or `spans` of words with geometric lengths (p = 0.2, at most 10),
    each span replaced in one way (SpanBERT, Joshi et al. 2020).
    """

    rate: float = 0.15  # share of the text to predict
    mask: float = 0.8  # share of that replaced by the mask token
    random: float = 0.1  # share of that replaced by a random token
    unit: Literal["tokens", "words", "spans"] = "tokens"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"masking.rate is {self.rate}; choose a share between 0 and 1, such as 0.15")
        if self.mask < 0 or self.random < 0 or self.mask + self.random > 1 + 1e-9:
            raise ConfigError(
                f"masking.mask {self.mask} and masking.random {self.random} are not valid shares; choose two of at "
                "least 0 that sum to at most 1"
            )


class MaskedRows(NamedTuple):
    """int64 [B, T] each: the model's inputs, and the tokens to predict, IGNORED elsewhere."""

    inputs: np.ndarray
    labels: np.ndarray


class Masking:
    """Masks rows: a pure function of (seed, index of the sample), never stored."""

    def __init__(self, config: MaskingConfig, symbols: Symbols) -> None:
        self.config, self.symbols = config, symbols
        self._text = np.flatnonzero(symbols.text)

    def __call__(self, ids: np.ndarray, positions: np.ndarray, numbers: np.ndarray, seed: int) -> MaskedRows:
        """Mask rows, int [B, T], with the random numbers of their indices [B]. A row with text has at least one
        label.
        """
        units = self._units(ids, positions, numbers, seed)
        order = noise(seed, numbers, _ORDER, ids.shape[1])
        chosen = np.stack([_choose(row, keys, self.config.rate) for row, keys in zip(units, order)])
        draws = noise(seed, numbers, _CHANGE, ids.shape[1])
        if self.config.unit == "spans":  # one replacement per span
            draws = np.take_along_axis(draws, np.maximum(units, 0), axis=1)
        others = self._text[(noise(seed, numbers, _SYMBOL, ids.shape[1]) * len(self._text)).astype(np.int64)]
        written = np.where(draws < self.config.mask, self.symbols.mask, others)
        changed = chosen & (draws < self.config.mask + self.config.random)
        return MaskedRows(np.where(changed, written, ids), np.where(chosen, ids, IGNORED))

    def _units(self, ids: np.ndarray, positions: np.ndarray, numbers: np.ndarray, seed: int) -> np.ndarray:
        """The unit of each position, counted within its row; -1 where nothing is masked."""
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
    """Lengths from 1 to SPAN_LONGEST with p(n) proportional to (1 - p)^(n - 1), from numbers in [0, 1)."""
    weights = (1 - SPAN_STOP) ** np.arange(SPAN_LONGEST)
    return np.searchsorted(weights.cumsum() / weights.sum(), draws, side="right") + 1


def _choose(units: np.ndarray, keys: np.ndarray, rate: float) -> np.ndarray:
    """The positions to mask, bool [T]: units by ascending key, each that still fits into the row's share.

    If not even one fits, the smallest is masked.
    """
    sizes = np.bincount(units[units >= 0])
    taken = np.zeros(len(sizes) + 1, bool)  # the last is for positions without a unit
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
    """Numbers in [0, 1), float64 [B, count]: a pure function of the seed, each sample's index and the stream."""
    salt = mixed(mixed(np.uint64(seed % (1 << 64))) + np.uint64(stream))
    keys = mixed(np.asarray(numbers, dtype=np.uint64) ^ salt)
    return (mixed(keys[:, None] + np.arange(count, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53


_PAIRS, _OTHERS = 16, 17  # streams of random numbers, separate from those of masking


class Sequences(NamedTuple):
    """Rows of tokens, int64 [B, T]: `positions` restart at 0 at the start of each chunk and are -1 at padding, where
    ids are 0.

    Only pairs have `types` (0 and 1) and `unrelated`, int64 [B]: 0 if the second segment follows the first, otherwise
    1, as in BERT's published weights.
    """

    ids: np.ndarray
    positions: np.ndarray
    types: np.ndarray | None = None
    unrelated: np.ndarray | None = None


class RowSource(Protocol):
    """Rows by index. A row's random numbers depend on the seed and on the index of the sample."""

    def __len__(self) -> int: ...

    def rows(self, rows: np.ndarray, numbers: np.ndarray, seed: int) -> Sequences: ...


class Texts(NamedTuple):
    """Documents without special tokens, as slices of an array of ids, and the special tokens around them in rows."""

    ids: np.ndarray
    spans: Spans
    frame: Frame


def texts_of(cache: TokenCache, spans: Spans, codec: Codec) -> Texts:
    """The documents (or parts of them) at `spans`. Raises UserError if they contain no text."""
    starts, ends = spans.starts.copy(), spans.starts + spans.lengths
    if codec.begin is not None:
        starts += cache.ids[starts] == codec.begin
    if codec.end is not None:
        ends -= (ends > starts) & (cache.ids[ends - 1] == codec.end)
    held = ends > starts
    if not held.any():
        raise UserError("the documents have no text besides special tokens; add longer ones")
    return Texts(cache.ids, Spans(starts[held], (ends - starts)[held]), frame_of(codec))


class FramedPieces:
    """Documents cut into chunks that fill a row, each with special tokens; short ones share a row (Liu et al. 2019,
    "full sentences", except that documents do not see each other). Row k holds the same text in every epoch.
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
        """The share of padding among all tokens."""
        return 1 - int((self._sizes + self.texts.frame.marks(1)).sum()) / (len(self) * self.context)

    def rows(self, rows: np.ndarray, numbers: np.ndarray, seed: int) -> Sequences:
        before, _, after, _ = self.texts.frame
        first = self._row_ends[rows]
        pieces, owner = ranges(first, self._row_ends[rows + 1] - first)
        sizes = self._sizes[pieces]
        framed = sizes + self.texts.frame.marks(1)
        ends = np.cumsum(framed)
        columns = ends - framed - (ends - framed)[np.searchsorted(owner, owner)]  # relative to the row's first chunk
        ids, positions = np.zeros((len(rows), self.context), np.int64), np.full((len(rows), self.context), -1)
        _mark(ids, owner, columns, before)
        _write(ids, owner, columns + len(before), self.texts.ids, self._starts[pieces], sizes)
        _mark(ids, owner, columns + len(before) + sizes, after)
        places, piece = ranges(np.zeros_like(framed), framed)
        positions[owner[piece], columns[piece] + places] = places
        return Sequences(ids, positions)


class SegmentPairs:
    """Two segments per row with the special tokens of a pair and types 0 and 1 (Devlin et al. 2019, section 3.1).

    Documents are cut into at least two segments of about equal lengths. In half of the rows B is the segment after A;
    in the others it is from another document or, with only one document, from elsewhere in it.
    """

    def __init__(self, texts: Texts, context: int) -> None:
        if not texts.frame.between:
            raise UserError("pairs need a tokenizer with a separator token; use another, or set task.next=false")
        half = _room((context - texts.frame.marks(2)) // 2, context)
        long = texts.spans.lengths > 1
        starts, lengths = texts.spans.starts[long], texts.spans.lengths[long]
        counts = np.maximum(2, -(-lengths // half))
        if counts.sum() < 3:
            raise UserError(f"{counts.sum()} segments are too few for unrelated pairs; add text or set task.next=false")
        places, document = ranges(np.zeros_like(counts), counts)
        low, high = (lengths[document] * (places + k) // counts[document] for k in (0, 1))
        self.texts, self.context = texts, context
        self._starts, self._sizes, self._document = starts[document] + low, high - low, document
        self._firsts, self._counts = np.cumsum(counts) - counts, counts  # of each document's segments
        self._pairs = np.flatnonzero(places + 1 < counts[document])  # segments with a successor

    def __len__(self) -> int:
        return len(self._pairs)

    def rows(self, rows: np.ndarray, numbers: np.ndarray, seed: int) -> Sequences:
        before, between, after, typed = self.texts.frame
        first = self._pairs[rows]
        unrelated = noise(seed, numbers, _PAIRS, 1)[:, 0] < 0.5
        second = np.where(unrelated, self._others(first, noise(seed, numbers, _OTHERS, 1)[:, 0]), first + 1)
        ends = len(before) + self._sizes[first]
        seconds = ends + len(between)  # start of B
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
        """Segments that do not follow `first`: any outside its document or, in a single document, any but itself and
        the next.
        """
        several = len(self._counts) > 1
        low = self._firsts[self._document[first]] if several else first
        left_out = self._counts[self._document[first]] if several else 2
        drawn = (draws * (len(self._starts) - left_out)).astype(np.int64)
        return np.where(drawn < low, drawn, drawn + left_out)


def _room(room: int, context: int) -> int:
    if room < 1:
        raise UserError(f"a context of {context} is too short for text and special tokens; choose a longer one")
    return room


def _mark(ids: np.ndarray, rows: np.ndarray, columns: np.ndarray, marks: tuple[int, ...]) -> None:
    """Write the same tokens into rows, starting at the given columns."""
    for place, mark in enumerate(marks):
        ids[rows, columns + place] = mark


def _write(
    ids: np.ndarray, rows: np.ndarray, columns: np.ndarray, source: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> None:
    """Write chunks of `source` into rows, starting at the given columns."""
    places, piece = ranges(np.zeros_like(sizes), sizes)
    ids[rows[piece], columns[piece] + places] = source[starts[piece] + places]
