"""Rows for language models: every token of a corpus once, random crops, or contiguous streams."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np

from headway.errors import ConfigError, UserError

IGNORE_INDEX = -100
"""The label of positions without a target (padding)."""

_MAX_PADDING = 0.04


class Spans(NamedTuple):
    """Documents as spans of an array of ids: int64 [N] first tokens, int64 [N] lengths."""

    starts: np.ndarray
    lengths: np.ndarray

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def select(self, indices: np.ndarray) -> Spans:
        """The spans with these indices, int64 [M]."""
        return Spans(self.starts[indices], self.lengths[indices])


class TokenWindows(NamedTuple):
    """A batch of rows, each int64 [B, context]: `labels` are the next tokens, -100 at padding; `positions` restart at 0
    at the start of each document or later part of one, and are -1 at padding, where `inputs` are 0."""

    inputs: np.ndarray
    labels: np.ndarray
    positions: np.ndarray


class Packing:
    """Rows of `context` tokens over documents: long documents are cut into consecutive windows, short ones packed
    together.

    A document of n tokens has n - 1 predictions, each in exactly one row, so adjacent chunks of a document share the
    token at which they are cut. Full windows are computed. Short documents and the ends of long ones are placed by best
    fit, longest first; if that leaves over 4 % padding, the emptiest rows are filled by cutting chunks at row ends. The
    plan takes about 30 bytes per document and none for a full window. Row k is the same row in every epoch and process:
    sample rows with `shuffled_indices`.
    """

    def __init__(self, ids: np.ndarray, spans: Spans, context: int) -> None:
        if context < 1:
            raise ConfigError(f"context is {context}; set an integer above 0")
        self.ids, self.context = ids, context
        steps = np.maximum(spans.lengths - 1, 0)
        full, remainders = steps // context, steps % context
        self._starts = spans.starts
        self._cumulative_full = np.concatenate([[0], np.cumsum(full)])
        partial = np.flatnonzero(remainders)
        self._chunk_starts, self._chunk_sizes, self._row_ends = _pack_chunks(
            (spans.starts + full * context)[partial], remainders[partial], context, int(self._cumulative_full[-1])
        )
        self.targets = int(steps.sum())
        """Predictions in all rows."""
        if self.targets == 0:
            raise UserError(
                f"{len(spans.lengths)} documents have at most 1 token, so there is nothing to predict; add longer ones"
            )

    def __len__(self) -> int:
        return int(self._cumulative_full[-1]) + len(self._row_ends) - 1

    @property
    def padding(self) -> float:
        """The fraction of tokens in the rows that are padding."""
        return 1 - self.targets / (len(self) * self.context)

    def windows(self, rows: np.ndarray) -> TokenWindows:
        """The rows with these indices, int64 [B]."""
        rows = np.asarray(rows, dtype=np.int64)
        full_rows = int(self._cumulative_full[-1])
        full = np.flatnonzero(rows < full_rows)
        owners = np.searchsorted(self._cumulative_full, rows[full], side="right") - 1
        starts = self._starts[owners] + (rows[full] - self._cumulative_full[owners]) * self.context
        sizes = np.full(len(full), self.context)
        packed_rows = np.flatnonzero(rows >= full_rows)
        first = self._row_ends[rows[packed_rows] - full_rows]
        chunks, owner = expand_ranges(first, self._row_ends[rows[packed_rows] - full_rows + 1] - first)
        return gather_windows(
            self.ids,
            np.concatenate([full, packed_rows[owner]]),
            np.concatenate([starts, self._chunk_starts[chunks]]),
            np.concatenate([sizes, self._chunk_sizes[chunks]]),
            (len(rows), self.context),
        )


class Crops:
    """Windows of `context` tokens at any offset of long documents, as in nanoGPT. Documents of `context` tokens or
    fewer have no such window and are skipped."""

    def __init__(self, ids: np.ndarray, spans: Spans, context: int) -> None:
        self.ids, self.context = ids, context
        self._starts = spans.starts
        self._cumulative_windows = np.concatenate([[0], np.cumsum(np.maximum(spans.lengths - context, 0))])
        if len(self) == 0:
            max_length = int(spans.lengths.max(initial=0))
            raise UserError(
                f"the longest document has {max_length} tokens, too few for a context of {context}; lower task.context"
            )

    def __len__(self) -> int:
        return int(self._cumulative_windows[-1])

    def windows(self, offsets: np.ndarray) -> TokenWindows:
        """The windows at these offsets, int64 [B], below `len`."""
        offsets = np.asarray(offsets, dtype=np.int64)
        owners = np.searchsorted(self._cumulative_windows, offsets, side="right") - 1
        starts = self._starts[owners] + offsets - self._cumulative_windows[owners]
        tokens = self.ids[starts[:, None] + np.arange(self.context + 1)].astype(np.int64)
        positions = np.broadcast_to(np.arange(self.context), (len(offsets), self.context))
        return TokenWindows(tokens[:, :-1], tokens[:, 1:], positions)


class CutRows:
    """Rows of `context` tokens over concatenated documents, cut wherever a row is full: their number follows from the
    number of targets alone.

    A document of n tokens has n - 1 predictions, each in exactly one row. Parts of documents in a row have positions
    from 0; only the last row has padding.
    """

    def __init__(self, ids: np.ndarray, offsets: np.ndarray, context: int) -> None:
        """`offsets` int64 [documents + 1]: the start of each document, and the end."""
        self.ids, self.context = ids, context
        self._starts = offsets[:-1]
        self._cumulative_targets = offsets - np.arange(len(offsets))
        self.targets = int(self._cumulative_targets[-1])
        """Predictions in all rows."""

    def windows(self, rows: np.ndarray) -> TokenWindows:
        """The rows with these indices, int64 [B]."""
        first = np.asarray(rows, dtype=np.int64)[:, None] * self.context
        targets = first + np.arange(self.context)
        valid = targets < self.targets
        targets = np.minimum(targets, self.targets - 1)
        owners = np.searchsorted(self._cumulative_targets, targets, side="right") - 1
        before = self._cumulative_targets[owners]
        source = self._starts[owners] + targets - before
        inputs, labels = self.ids[source].astype(np.int64), self.ids[source + 1].astype(np.int64)
        positions = targets - np.maximum(before, first)
        return TokenWindows(
            np.where(valid, inputs, 0), np.where(valid, labels, IGNORE_INDEX), np.where(valid, positions, -1)
        )


def gather_windows(
    ids: np.ndarray, rows: np.ndarray, starts: np.ndarray, sizes: np.ndarray, shape: tuple[int, int]
) -> TokenWindows:
    """Copy chunks of `ids` next to each other into their rows; the chunks of a row are in order."""
    offsets, chunk = expand_ranges(np.zeros_like(sizes), sizes)
    row_sizes = np.bincount(rows, sizes, minlength=shape[0]).astype(np.int64)
    # A chunk's columns follow those of the row's earlier chunks, which precede it in a stable sort.
    by_row = np.argsort(rows, kind="stable")
    ends = np.cumsum(sizes[by_row])
    row_starts = np.concatenate([[0], np.cumsum(row_sizes)])
    columns = np.empty_like(sizes)
    columns[by_row] = ends - sizes[by_row] - row_starts[rows[by_row]]
    inputs = np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORE_INDEX, np.int64)
    positions = np.full(shape, -1, np.int64)
    destination = rows[chunk], columns[chunk] + offsets
    source = starts[chunk] + offsets
    inputs[destination], labels[destination], positions[destination] = ids[source], ids[source + 1], offsets
    return TokenWindows(inputs, labels, positions)


def expand_ranges(starts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integers of many ranges, concatenated, and the range that each belongs to."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    first_index = np.cumsum(sizes) - sizes
    return np.arange(int(sizes.sum())) - first_index[owner] + starts[owner], owner


def _pack_chunks(
    starts: np.ndarray, sizes: np.ndarray, capacity: int, full_rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chunks in the order of their rows: starts, sizes, and the first chunk of each row, int64 [rows + 1]."""
    if len(sizes) == 0:
        return starts, sizes, np.zeros(1, np.int64)
    rows = best_fit_rows(sizes, capacity)
    fill = np.bincount(rows, sizes).astype(np.int64)
    emptiest = np.argsort(fill, kind="stable")
    recut = np.zeros(len(fill), bool)
    fill = fill[emptiest]
    counts = np.arange(len(fill) + 1)
    cumulative_fill = np.concatenate([[0], np.cumsum(fill)])
    num_rows = full_rows + len(fill) - counts + -(-cumulative_fill // capacity)
    padding = 1 - (cumulative_fill[-1] + full_rows * capacity) / (num_rows * capacity)
    below_limit = np.flatnonzero(padding <= _MAX_PADDING)
    recut[emptiest[: (int(below_limit[0]) if len(below_limit) else len(fill))]] = True
    order = np.argsort(rows, kind="stable")
    uncut, to_cut = order[~recut[rows[order]]], order[recut[rows[order]]]
    _, uncut_rows = np.unique(rows[uncut], return_inverse=True)
    cut_starts, cut_sizes, cut_rows = _cut_stream(starts[to_cut], sizes[to_cut], capacity)
    rows = np.concatenate([uncut_rows, cut_rows + (uncut_rows[-1] + 1 if len(uncut_rows) else 0)])
    ends = np.concatenate([[0], np.cumsum(np.bincount(rows))])
    return np.concatenate([starts[uncut], cut_starts]), np.concatenate([sizes[uncut], cut_sizes]), ends


def _cut_stream(starts: np.ndarray, sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chunks in sequence, cut whenever a row of `capacity` is full: their starts, sizes and rows."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    edges = np.union1d(ends - sizes, np.arange(0, total, capacity))
    owner = np.searchsorted(ends, edges, side="right")
    new_sizes = np.diff(np.append(edges, total))
    return (starts + sizes - ends)[owner] + edges, new_sizes, edges // capacity


def best_fit_rows(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each chunk: longest first, each into the fullest row with enough space. Equal sizes are placed at
    once.
    """
    rows = np.empty(len(sizes), np.int64)
    order = np.argsort(-sizes, kind="stable")
    values, firsts = np.unique(-sizes[order], return_index=True)
    open_rows: dict[int, list[np.ndarray]] = {}
    spaces: list[int] = []  # the keys of open_rows, ascending
    used = 0
    for size, members in zip((-values).tolist(), np.split(order, firsts[1:])):
        while len(members):
            slot = bisect_left(spaces, size)
            if slot < len(spaces):
                space = spaces.pop(slot)
                free = np.concatenate(open_rows.pop(space))
            else:
                space = capacity
                free = np.arange(used, used - (-len(members) // (capacity // size)))
                used += len(free)
            per_row = space // size
            full_rows, remainder = divmod(len(members), per_row)
            full_rows, remainder = (full_rows, remainder) if full_rows < len(free) else (len(free), 0)
            placed = full_rows * per_row + remainder
            rows[members[:placed]] = np.repeat(free[: full_rows + (remainder > 0)], per_row)[:placed]
            members = members[placed:]
            leftovers = (
                (free[:full_rows], space - per_row * size),
                (free[full_rows : full_rows + 1], space - remainder * size),
            )
            leftovers += ((free[full_rows + 1 :], space),)
            for group, remaining in leftovers:
                if len(group) and remaining:
                    if remaining not in open_rows:
                        insort(spaces, remaining)
                    open_rows.setdefault(remaining, []).append(group)
    return rows


class Streams:
    """Concatenated documents, cut into `rows` streams of equal length (within one token) and read in windows of at most
    `context` tokens: each row of a window continues the same row of the previous window.

    A document of n tokens has n - 1 predictions, each in exactly one window. All windows are equally long (within one
    token), so the last window is not short. Documents are cut at the ends of streams. `limit` keeps only the
    first predictions.
    """

    def __init__(self, ids: np.ndarray, spans: Spans, context: int, rows: int, limit: int | None = None) -> None:
        if context < 1:
            raise ConfigError(f"context is {context}; set an integer above 0")
        self.ids, self.context = ids, context
        self._starts = spans.starts
        self._cumulative_targets = np.concatenate([[0], np.cumsum(np.maximum(spans.lengths - 1, 0))])
        self.targets = (
            int(self._cumulative_targets[-1]) if limit is None else min(limit, int(self._cumulative_targets[-1]))
        )
        """Predictions in all windows."""
        if self.targets < rows:
            raise UserError(
                f"{self.targets:,} predictions are too few for {rows:,} streams; add more text, "
                "or lower train.batch_tokens, train.batch_size or train.accumulate"
            )
        self._edges = np.arange(rows + 1) * self.targets // rows
        self._stream_length = -(-self.targets // rows)

    def __len__(self) -> int:
        """Windows per stream."""
        return -(-self._stream_length // self.context)

    def windows(self, streams: slice, index: int) -> TokenWindows:
        """The window with this index in some of the streams. Positions count from the start of the document, wherever
        the stream starts.
        """
        first, last = (n * self._stream_length // len(self) for n in (index, index + 1))
        offsets = self._edges[:-1][streams, None] + np.arange(first, last)
        valid = offsets < self._edges[1:][streams, None]
        offsets = np.minimum(offsets, self.targets - 1)
        owners = np.searchsorted(self._cumulative_targets, offsets, side="right") - 1
        positions = offsets - self._cumulative_targets[owners]
        source = self._starts[owners] + positions
        inputs, labels = self.ids[source].astype(np.int64), self.ids[source + 1].astype(np.int64)
        return TokenWindows(
            np.where(valid, inputs, 0), np.where(valid, labels, IGNORE_INDEX), np.where(valid, positions, -1)
        )
