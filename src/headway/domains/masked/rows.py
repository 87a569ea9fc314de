"""Rows to mask: documents in framed pieces, packed side by side, or pairs of segments."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from headway.codecs import Codec
from headway.data import Spans, TokenCache
from headway.data.packing import best_fit, ranges
from headway.domains.masked.masking import noise
from headway.errors import UserError

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


class Source(Protocol):
    """Rows by number. What a row draws at random depends on the seed and on the number of the sample."""

    def __len__(self) -> int: ...

    def rows(self, rows: np.ndarray, numbers: np.ndarray, seed: int) -> Sequences: ...


class Texts(NamedTuple):
    """Documents without their frames, as places in an array of ids, and the frame."""

    ids: np.ndarray
    spans: Spans
    begin: int | None
    end: int | None

    @property
    def frame(self) -> int:
        """How many symbols a frame has."""
        return (self.begin is not None) + (self.end is not None)


def texts_of(cache: TokenCache, spans: Spans, codec: Codec) -> Texts:
    """The documents (or parts of them) at `spans`. Raises UserError where they hold no text."""
    starts, ends = spans.starts.copy(), spans.starts + spans.lengths
    if len(starts) and codec.begin is not None:
        starts += cache.ids[starts] == codec.begin
    if len(starts) and codec.end is not None:
        ends -= (ends > starts) & (cache.ids[ends - 1] == codec.end)
    held = ends > starts
    if not held.any():
        raise UserError("the documents hold no text beside special symbols; give longer ones")
    return Texts(cache.ids, Spans(starts[held], (ends - starts)[held]), codec.begin, codec.end)


class Pieces:
    """Documents cut into pieces that fill a row, each framed; short ones side by side in a row (Liu et al. 2019,
    "full sentences", but that documents do not see each other). Row k holds the same text in every epoch.
    """

    def __init__(self, texts: Texts, context: int) -> None:
        room = context - texts.frame
        _check_room(room, context)
        counts = -(-texts.spans.lengths // room)
        places, document = ranges(np.zeros_like(counts), counts)
        starts = texts.spans.starts[document] + places * room
        sizes = np.minimum(texts.spans.lengths[document] - places * room, room)
        rows = best_fit(sizes + texts.frame, context)
        order = np.argsort(rows, kind="stable")
        self.texts, self.context = texts, context
        self._starts, self._sizes = starts[order], sizes[order]
        self._row_ends = np.concatenate([[0], np.cumsum(np.bincount(rows))])

    def __len__(self) -> int:
        return len(self._row_ends) - 1

    @property
    def padding(self) -> float:
        """The share of all tokens in the rows that is padding."""
        return 1 - int((self._sizes + self.texts.frame).sum()) / (len(self) * self.context)

    def rows(self, rows: np.ndarray, numbers: np.ndarray, seed: int) -> Sequences:
        first = self._row_ends[rows]
        pieces, owner = ranges(first, self._row_ends[rows + 1] - first)
        sizes = self._sizes[pieces] + self.texts.frame
        before = np.cumsum(sizes) - sizes
        columns = before - before[np.searchsorted(owner, owner)]
        ids, positions = np.zeros((len(rows), self.context), np.int64), np.full((len(rows), self.context), -1)
        _write(ids, self.texts, owner, columns, self._starts[pieces], self._sizes[pieces])
        places, piece = ranges(np.zeros_like(sizes), sizes)
        positions[owner[piece], columns[piece] + places] = places
        return Sequences(ids, positions)


class Pairs:
    """Two segments a row: begin A end B end, of types 0 and 1 (Devlin et al. 2019, section 3.1).

    Documents are cut into segments of about equal lengths, at least two each. In half of the rows B is the segment
    after A; in the others it is one of another document, or, where there is one document only, from elsewhere in it.
    """

    def __init__(self, texts: Texts, context: int) -> None:
        if texts.begin is None or texts.end is None:
            raise UserError(
                "pairs need a tokenizer with a begin and an end symbol; use another, or set task.next=false"
            )
        _check_room((context - 3) // 2, context)
        self.texts, self.context = texts, context
        lengths = texts.spans.lengths
        kept = lengths > 1
        starts, lengths = texts.spans.starts[kept], lengths[kept]
        counts = np.maximum(2, -(-lengths // ((context - 3) // 2)))
        places, document = ranges(np.zeros_like(counts), counts)
        edges = lengths[document] * places // counts[document], lengths[document] * (places + 1) // counts[document]
        self._starts, self._sizes = starts[document] + edges[0], edges[1] - edges[0]
        self._document = document
        self._first = np.cumsum(counts) - counts  # of each document's segments
        self._counts = counts
        self._pairs = np.flatnonzero(places + 1 < counts[document])  # segments that another follows
        if len(self._starts) < 3:
            raise UserError(f"{len(self._starts)} segments make no wrong pairs; give more text, or set task.next=false")

    def __len__(self) -> int:
        return len(self._pairs)

    def rows(self, rows: np.ndarray, numbers: np.ndarray, seed: int) -> Sequences:
        first = self._pairs[rows]
        following = noise(seed, numbers, _PAIRS, 1)[:, 0] < 0.5
        second = np.where(following, first + 1, self._others(first, noise(seed, numbers, _OTHERS, 1)[:, 0]))
        sizes = self._sizes[first], self._sizes[second]
        lengths, owner, zero = sizes[0] + sizes[1] + 3, np.arange(len(rows)), np.zeros_like(first)
        columns = np.arange(int(lengths.max()))
        ids = np.zeros((len(rows), len(columns)), np.int64)
        # B is written without a begin: its frame starts on A's end, which is written again.
        _write(ids, self.texts, owner, sizes[0] + 1, self._starts[second], sizes[1])
        _write(ids, self.texts, owner, zero, self._starts[first], sizes[0])
        positions = np.where(columns < lengths[:, None], columns, -1)
        types = ((columns > sizes[0][:, None] + 1) & (positions >= 0)).astype(np.int64)
        return Sequences(ids, positions, types, 1 - following.astype(np.int64))

    def _others(self, first: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Segments that do not follow `first`: any but those of its document, or but itself and the next."""
        several = len(self._counts) > 1
        low = self._first[self._document[first]] if several else first
        left_out = self._counts[self._document[first]] if several else 2
        drawn = (draws * (len(self._starts) - left_out)).astype(np.int64)
        return np.where(drawn < low, drawn, drawn + left_out)


def _check_room(room: int, context: int) -> None:
    if room < 1:
        raise UserError(f"a context of {context} leaves no room for text beside special symbols; give more")


def _write(
    ids: np.ndarray, texts: Texts, rows: np.ndarray, columns: np.ndarray, starts: np.ndarray, sizes: np.ndarray
) -> None:
    """Write pieces of text with their frames into rows, from the given columns on."""
    ahead = int(texts.begin is not None)
    if texts.begin is not None:
        ids[rows, columns] = texts.begin
    if texts.end is not None:
        ids[rows, columns + ahead + sizes] = texts.end
    places, piece = ranges(np.zeros_like(sizes), sizes)
    ids[rows[piece], columns[piece] + ahead + places] = texts.ids[starts[piece] + places]
