"""Rows of documents or of segment pairs, and the masking of their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from headway.codecs import Codec
from headway.codecs.tokenizer import SequenceTemplate, sequence_template
from headway.config import deferred_check
from headway.data import IGNORE_INDEX, Spans, TokenCache
from headway.data.packing import best_fit_rows, expand_ranges
from headway.data.shuffling import splitmix64
from headway.domains.masked.fill import TokenTables
from headway.errors import ConfigError, UserError

SPAN_STOP, MAX_SPAN = 0.2, 10  # words (Joshi et al. 2020, section 3.1)
_ORDER_STREAM, _ACTION_STREAM, _TOKEN_STREAM, _SPAN_STREAM = range(4)  # streams of random numbers


@deferred_check
@dataclass(frozen=True)
class MaskingConfig:
    """Devlin et al. 2019, section 3.1: the model predicts a share `rate` of the text. Of that, a share `mask` becomes
    the mask token, a share `random` becomes random text tokens, and the rest is unchanged. (ModernBERT's rate is 0.3.)

    `unit` sets the units to mask: `tokens`, whole `words`, or `spans` of words with geometric lengths (p = 0.2, at
    most 10). The tokens in a span are all replaced in the same way (SpanBERT, Joshi et al. 2020).
    """

    rate: float = 0.15  # share of the text to predict
    mask: float = 0.8  # share of the predicted tokens that become the mask token
    random: float = 0.1  # share of the predicted tokens that become random tokens
    unit: Literal["tokens", "words", "spans"] = "tokens"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"masking.rate is {self.rate}; choose a fraction between 0 and 1, such as 0.15")
        if self.mask < 0 or self.random < 0 or self.mask + self.random > 1 + 1e-9:
            raise ConfigError(
                f"masking.mask={self.mask} and masking.random={self.random} are not valid; choose shares of at least 0 "
                "that sum to at most 1"
            )


class MaskedRows(NamedTuple):
    """int64 [B, T] each: the model's inputs, and the tokens to predict, IGNORED elsewhere."""

    inputs: np.ndarray
    labels: np.ndarray


class Masking:
    """Masks rows. Masks are a pure function of the seed and the sample index, and never stored."""

    def __init__(self, config: MaskingConfig, tables: TokenTables) -> None:
        self.config, self.tables = config, tables
        self._text = np.flatnonzero(tables.text)

    def __call__(self, ids: np.ndarray, positions: np.ndarray, indices: np.ndarray, seed: int) -> MaskedRows:
        """Mask rows, int [B, T], with random numbers determined by their indices [B]. A row with text has at least one
        label.
        """
        units = self._units(ids, positions, indices, seed)
        order = noise(seed, indices, _ORDER_STREAM, ids.shape[1])
        is_target = np.stack([_choose_masked(row, keys, self.config.rate) for row, keys in zip(units, order)])
        uniform = noise(seed, indices, _ACTION_STREAM, ids.shape[1])
        if self.config.unit == "spans":  # one replacement per span
            uniform = np.take_along_axis(uniform, np.maximum(units, 0), axis=1)
        random_tokens = self._text[
            (noise(seed, indices, _TOKEN_STREAM, ids.shape[1]) * len(self._text)).astype(np.int64)
        ]
        replacements = np.where(uniform < self.config.mask, self.tables.mask, random_tokens)
        changed = is_target & (uniform < self.config.mask + self.config.random)
        return MaskedRows(np.where(changed, replacements, ids), np.where(is_target, ids, IGNORE_INDEX))

    def _units(self, ids: np.ndarray, positions: np.ndarray, indices: np.ndarray, seed: int) -> np.ndarray:
        """The unit of each position, counted within its row; -1 where nothing is masked."""
        text = (positions >= 0) & self.tables.text[ids]
        if self.config.unit == "tokens":
            return _unit_indices(text, text)
        after_text = np.zeros_like(text)
        after_text[:, 1:] = text[:, :-1]
        words = text & (self.tables.word_starts(ids) | ~after_text)
        if self.config.unit == "words":
            return _unit_indices(words, text)
        lengths = _span_lengths(noise(seed, indices, _SPAN_STREAM, ids.shape[1]))
        span_starts = np.zeros((len(ids), ids.shape[1] + 1), bool)
        np.put_along_axis(span_starts, np.minimum(lengths.cumsum(1), ids.shape[1]), True, axis=1)
        span_starts[:, 0] = True
        starts_span = np.take_along_axis(span_starts, np.maximum(words.cumsum(1) - 1, 0), axis=1)
        return _unit_indices(words & (starts_span | ~after_text), text)


def _unit_indices(starts: np.ndarray, text: np.ndarray) -> np.ndarray:
    return np.where(text, starts.cumsum(1) - 1, -1)


def _span_lengths(uniform: np.ndarray) -> np.ndarray:
    """Lengths from 1 to MAX_SPAN with p(n) proportional to (1 - p)^(n - 1), from numbers in [0, 1)."""
    weights = (1 - SPAN_STOP) ** np.arange(MAX_SPAN)
    return np.searchsorted(weights.cumsum() / weights.sum(), uniform, side="right") + 1


def _choose_masked(units: np.ndarray, keys: np.ndarray, rate: float) -> np.ndarray:
    """The positions to mask, bool [T]: units in ascending order of key, if they still fit into the row's share.

    If not even one fits, the smallest is masked.
    """
    sizes = np.bincount(units[units >= 0])
    chosen = np.zeros(len(sizes) + 1, bool)  # the last is for positions without a unit
    remaining = max(1, int(rate * sizes.sum() + 0.5))
    if len(sizes) and sizes.min() > remaining:
        chosen[sizes.argmin()] = True
        return chosen[units]
    for unit in np.argsort(keys[: len(sizes)]).tolist():
        if remaining == 0:
            break
        if sizes[unit] <= remaining:
            chosen[unit] = True
            remaining -= sizes[unit]
    return chosen[units]


def noise(seed: int, indices: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Numbers in [0, 1), float64 [B, count]: a pure function of the seed, each sample's index and the stream."""
    salt = splitmix64(splitmix64(np.uint64(seed % (1 << 64))) + np.uint64(stream))
    keys = splitmix64(np.asarray(indices, dtype=np.uint64) ^ salt)
    return (splitmix64(keys[:, None] + np.arange(count, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53


_PAIR_STREAM, _SEGMENT_STREAM = 16, 17  # streams of random numbers, separate from those for masking


class TokenRowBatch(NamedTuple):
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

    def rows(self, rows: np.ndarray, indices: np.ndarray, seed: int) -> TokenRowBatch: ...


class DocumentSpans(NamedTuple):
    """Documents without special tokens, as slices of an id array, and the special tokens that surround them in rows."""

    ids: np.ndarray
    spans: Spans
    frame: SequenceTemplate


def document_spans(cache: TokenCache, spans: Spans, codec: Codec) -> DocumentSpans:
    """The documents (or parts of them) at `spans`. Raises UserError if they do not contain text."""
    starts, stops = spans.starts.copy(), spans.starts + spans.lengths
    if codec.bos_id is not None:
        starts += cache.ids[starts] == codec.bos_id
    if codec.eos_id is not None:
        stops -= (stops > starts) & (cache.ids[stops - 1] == codec.eos_id)
    nonempty = stops > starts
    if not nonempty.any():
        raise UserError("the documents have only special tokens; add longer documents")
    return DocumentSpans(cache.ids, Spans(starts[nonempty], (stops - starts)[nonempty]), sequence_template(codec))


class PackedDocuments:
    """Documents cut into chunks that fill a row, each with special tokens; short ones share a row ("full sentences" in
    Liu et al. 2019, except that documents do not attend to each other). Row k has the same text in every epoch.
    """

    def __init__(self, documents: DocumentSpans, context: int) -> None:
        num_special = documents.frame.num_special_tokens(1)
        capacity = _check_room(context - num_special, context)
        counts = -(-documents.spans.lengths // capacity)
        chunk_indices, document = expand_ranges(np.zeros_like(counts), counts)
        starts = documents.spans.starts[document] + chunk_indices * capacity
        sizes = np.minimum(documents.spans.lengths[document] - chunk_indices * capacity, capacity)
        rows = best_fit_rows(sizes + num_special, context)
        order = np.argsort(rows, kind="stable")
        self.documents, self.context = documents, context
        self._starts, self._sizes = starts[order], sizes[order]
        self._row_ends = np.concatenate([[0], np.cumsum(np.bincount(rows))])

    def __len__(self) -> int:
        return len(self._row_ends) - 1

    @property
    def padding(self) -> float:
        """The share of padding among all tokens."""
        return 1 - int((self._sizes + self.documents.frame.num_special_tokens(1)).sum()) / (len(self) * self.context)

    def rows(self, rows: np.ndarray, indices: np.ndarray, seed: int) -> TokenRowBatch:
        before, _, after, _ = self.documents.frame
        first_chunk = self._row_ends[rows]
        chunks, row_of = expand_ranges(first_chunk, self._row_ends[rows + 1] - first_chunk)
        sizes = self._sizes[chunks]
        framed_sizes = sizes + self.documents.frame.num_special_tokens(1)
        stops = np.cumsum(framed_sizes)
        columns = (
            stops - framed_sizes - (stops - framed_sizes)[np.searchsorted(row_of, row_of)]
        )  # relative to the row's first chunk
        ids, positions = np.zeros((len(rows), self.context), np.int64), np.full((len(rows), self.context), -1)
        _write_tokens(ids, row_of, columns, before)
        _write_chunks(ids, row_of, columns + len(before), self.documents.ids, self._starts[chunks], sizes)
        _write_tokens(ids, row_of, columns + len(before) + sizes, after)
        offsets, chunk = expand_ranges(np.zeros_like(framed_sizes), framed_sizes)
        positions[row_of[chunk], columns[chunk] + offsets] = offsets
        return TokenRowBatch(ids, positions)


class SegmentPairs:
    """Two segments per row, with the special tokens for pairs and types 0 and 1 (Devlin et al. 2019, section 3.1).

    Documents are cut into at least two segments of about equal lengths. In half of the rows B is the segment after A;
    in the others it comes from another document or, if there is only one, from elsewhere in it.
    """

    def __init__(self, documents: DocumentSpans, context: int) -> None:
        if not documents.frame.between:
            raise UserError(
                "segment pairs need a tokenizer with a separator token; use another, or set task.next=false"
            )
        max_length = _check_room((context - documents.frame.num_special_tokens(2)) // 2, context)
        splittable = documents.spans.lengths > 1
        starts, lengths = documents.spans.starts[splittable], documents.spans.lengths[splittable]
        counts = np.maximum(2, -(-lengths // max_length))
        if counts.sum() < 3:
            raise UserError(f"{counts.sum()} segments are too few for unrelated pairs; add text or set task.next=false")
        segment_indices, document = expand_ranges(np.zeros_like(counts), counts)
        low, high = (lengths[document] * (segment_indices + k) // counts[document] for k in (0, 1))
        self.documents, self.context = documents, context
        self._starts, self._sizes, self._document = starts[document] + low, high - low, document
        self._firsts, self._counts = np.cumsum(counts) - counts, counts  # of each document's segments
        self._pairs = np.flatnonzero(segment_indices + 1 < counts[document])  # segments with a successor

    def __len__(self) -> int:
        return len(self._pairs)

    def rows(self, rows: np.ndarray, indices: np.ndarray, seed: int) -> TokenRowBatch:
        before, between, after, typed = self.documents.frame
        first = self._pairs[rows]
        unrelated = noise(seed, indices, _PAIR_STREAM, 1)[:, 0] < 0.5
        second = np.where(unrelated, self._unrelated(first, noise(seed, indices, _SEGMENT_STREAM, 1)[:, 0]), first + 1)
        first_stops = len(before) + self._sizes[first]
        second_starts = first_stops + len(between)  # where B starts
        lengths = second_starts + self._sizes[second] + len(after)
        row_indices, columns = np.arange(len(rows)), np.arange(int(lengths.max()))
        ids = np.zeros((len(rows), len(columns)), np.int64)
        _write_tokens(ids, row_indices, np.zeros_like(row_indices), before)
        _write_chunks(
            ids,
            row_indices,
            np.full_like(row_indices, len(before)),
            self.documents.ids,
            self._starts[first],
            self._sizes[first],
        )
        _write_tokens(ids, row_indices, first_stops, between)
        _write_chunks(ids, row_indices, second_starts, self.documents.ids, self._starts[second], self._sizes[second])
        _write_tokens(ids, row_indices, lengths - len(after), after)
        inside = columns < lengths[:, None]
        types = (inside & (columns >= second_starts[:, None])).astype(np.int64) if typed else None
        return TokenRowBatch(ids, np.where(inside, columns, -1), types, unrelated.astype(np.int64))

    def _unrelated(self, first: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Segments that do not follow `first`: any from other documents or, if there is only one, any except itself and
        the next.
        """
        multiple = len(self._counts) > 1
        low = self._firsts[self._document[first]] if multiple else first
        num_excluded = self._counts[self._document[first]] if multiple else 2
        sampled = (uniform * (len(self._starts) - num_excluded)).astype(np.int64)
        return np.where(sampled < low, sampled, sampled + num_excluded)


def _check_room(capacity: int, context: int) -> int:
    if capacity < 1:
        raise UserError(f"a context of {context} is too short for text and special tokens; choose a longer one")
    return capacity


def _write_tokens(ids: np.ndarray, rows: np.ndarray, columns: np.ndarray, tokens: tuple[int, ...]) -> None:
    """Write the same tokens into rows, starting at the given columns."""
    for offset, token in enumerate(tokens):
        ids[rows, columns + offset] = token


def _write_chunks(
    ids: np.ndarray, rows: np.ndarray, columns: np.ndarray, source: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> None:
    """Write chunks of `source` into rows, starting at the given columns."""
    offsets, chunk = expand_ranges(np.zeros_like(sizes), sizes)
    ids[rows[chunk], columns[chunk] + offsets] = source[starts[chunk] + offsets]
