"""Rows for language models: every token of a corpus once, crops, or contiguous streams."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np

from headway.errors import ConfigError, UserError

IGNORED = -100
"""The label of a place that has no target (padding)."""

_PADDING_LIMIT = 0.04


class Spans(NamedTuple):
    """Documents as places in an array of ids: int64 [N] first tokens, int64 [N] lengths."""

    starts: np.ndarray
    lengths: np.ndarray

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def of(self, numbers: np.ndarray) -> Spans:
        """Those of these numbers, int64 [M]."""
        return Spans(self.starts[numbers], self.lengths[numbers])


class TokenWindows(NamedTuple):
    """A batch of rows, int64 [B, context] each: `labels` are the next tokens, -100 at padding; `positions`
    restart at 0 where a document (or a later part of one) starts, and are -1 at padding, where `inputs`
    are 0."""

    inputs: np.ndarray
    labels: np.ndarray
    positions: np.ndarray


class Packing:
    """Rows of `context` tokens over documents: long ones cut into consecutive windows, short ones packed
    together.

    A document of n tokens holds n - 1 predictions, and each is in exactly one row, so the pieces of a
    document share the token at which they are cut. Full windows are found by arithmetic. What is left of long
    documents and short ones whole are placed by best fit, longest first; if that leaves over 4 % padding, the
    emptiest rows are filled by cutting their pieces where a row ends. The plan takes some 30 bytes a document
    and none for a full window, and row k is the same row in every epoch and process: draw rows by
    `order.sample_at`.
    """

    def __init__(self, ids: np.ndarray, spans: Spans, context: int) -> None:
        if context < 1:
            raise ConfigError(f"context {context} holds no token; give a whole number above 0")
        self.ids, self.context = ids, context
        steps = np.maximum(spans.lengths - 1, 0)
        full, rest = steps // context, steps % context
        self._starts = spans.starts
        self._full_before = np.concatenate([[0], np.cumsum(full)])
        left = np.flatnonzero(rest)
        self._piece_starts, self._piece_sizes, self._row_ends = _plan(
            (spans.starts + full * context)[left], rest[left], context, int(self._full_before[-1])
        )
        self.targets = int(steps.sum())
        """Predictions in all rows together."""
        if self.targets == 0:
            raise UserError(
                f"{len(spans.lengths)} documents of 1 token at most hold nothing to predict; give longer ones"
            )

    def __len__(self) -> int:
        return int(self._full_before[-1]) + len(self._row_ends) - 1

    @property
    def padding(self) -> float:
        """The share of all tokens in the rows that is padding."""
        return 1 - self.targets / (len(self) * self.context)

    def windows(self, rows: np.ndarray) -> TokenWindows:
        """Rows by number, int64 [B]."""
        rows = np.asarray(rows, dtype=np.int64)
        full_rows = int(self._full_before[-1])
        full = np.flatnonzero(rows < full_rows)
        owners = np.searchsorted(self._full_before, rows[full], side="right") - 1
        starts = self._starts[owners] + (rows[full] - self._full_before[owners]) * self.context
        sizes = np.full(len(full), self.context)
        shared = np.flatnonzero(rows >= full_rows)
        first = self._row_ends[rows[shared] - full_rows]
        pieces, owner = ranges(first, self._row_ends[rows[shared] - full_rows + 1] - first)
        return gather(
            self.ids,
            np.concatenate([full, shared[owner]]),
            np.concatenate([starts, self._piece_starts[pieces]]),
            np.concatenate([sizes, self._piece_sizes[pieces]]),
            (len(rows), self.context),
        )


class Crops:
    """Windows of `context` tokens at any offset of long documents, as nanoGPT draws them; documents of
    `context` tokens or fewer have no such window and are left out."""

    def __init__(self, ids: np.ndarray, spans: Spans, context: int) -> None:
        self.ids, self.context = ids, context
        self._starts = spans.starts
        self._before = np.concatenate([[0], np.cumsum(np.maximum(spans.lengths - context, 0))])
        if len(self) == 0:
            longest = int(spans.lengths.max(initial=0))
            raise UserError(f"the longest document has {longest} tokens and context is {context}; choose a shorter one")

    def __len__(self) -> int:
        return int(self._before[-1])

    def windows(self, offsets: np.ndarray) -> TokenWindows:
        """Windows by offset, int64 [B] below `len`."""
        offsets = np.asarray(offsets, dtype=np.int64)
        owners = np.searchsorted(self._before, offsets, side="right") - 1
        starts = self._starts[owners] + offsets - self._before[owners]
        whole = self.ids[starts[:, None] + np.arange(self.context + 1)].astype(np.int64)
        positions = np.broadcast_to(np.arange(self.context), (len(offsets), self.context))
        return TokenWindows(whole[:, :-1], whole[:, 1:], positions)


def gather(
    ids: np.ndarray, rows: np.ndarray, starts: np.ndarray, sizes: np.ndarray, shape: tuple[int, int]
) -> TokenWindows:
    """Lay pieces of `ids` side by side in their rows; pieces of a row are in order."""
    places, piece = ranges(np.zeros_like(sizes), sizes)
    row_sizes = np.bincount(rows, sizes, minlength=shape[0]).astype(np.int64)
    # The columns of a piece follow those of the row's earlier pieces, which stand before it in a stable
    # order.
    by_row = np.argsort(rows, kind="stable")
    ends = np.cumsum(sizes[by_row])
    row_starts = np.concatenate([[0], np.cumsum(row_sizes)])
    columns = np.empty_like(sizes)
    columns[by_row] = ends - sizes[by_row] - row_starts[rows[by_row]]
    inputs = np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    positions = np.full(shape, -1, np.int64)
    where = rows[piece], columns[piece] + places
    source = starts[piece] + places
    inputs[where], labels[where], positions[where] = ids[source], ids[source + 1], places
    return TokenWindows(inputs, labels, positions)


def ranges(starts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of many ranges one after the other, and the range each belongs to."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    before = np.cumsum(sizes) - sizes
    return np.arange(int(sizes.sum())) - before[owner] + starts[owner], owner


def _plan(
    starts: np.ndarray, sizes: np.ndarray, room: int, full_rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces in the order of their rows: starts, sizes, and where in them each row begins, int64 [rows + 1]."""
    if len(sizes) == 0:
        return starts, sizes, np.zeros(1, np.int64)
    rows = best_fit(sizes, room)
    fill = np.bincount(rows, sizes).astype(np.int64)
    emptiest = np.argsort(fill, kind="stable")
    recut = np.zeros(len(fill), bool)
    recut[emptiest[: _rows_to_recut(fill[emptiest], room, full_rows)]] = True
    order = np.argsort(rows, kind="stable")
    kept, cut = order[~recut[rows[order]]], order[recut[rows[order]]]
    _, kept_rows = np.unique(rows[kept], return_inverse=True)
    cut_starts, cut_sizes, cut_rows = _stream(starts[cut], sizes[cut], room)
    rows = np.concatenate([kept_rows, cut_rows + (kept_rows[-1] + 1 if len(kept_rows) else 0)])
    ends = np.concatenate([[0], np.cumsum(np.bincount(rows))])
    return np.concatenate([starts[kept], cut_starts]), np.concatenate([sizes[kept], cut_sizes]), ends


def _rows_to_recut(fill: np.ndarray, room: int, full_rows: int) -> int:
    """How many of the emptiest rows (`fill` ascends) to fill by cutting, so that padding falls below the limit."""
    many = np.arange(len(fill) + 1)
    held = np.concatenate([[0], np.cumsum(fill)])
    rows = full_rows + len(fill) - many + -(-held // room)
    padding = 1 - (held[-1] + full_rows * room) / (rows * room)
    few_enough = np.flatnonzero(padding <= _PADDING_LIMIT)
    return int(few_enough[0]) if len(few_enough) else len(fill)


def _stream(starts: np.ndarray, sizes: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces one after the other, cut where a row of `room` is full: their starts, sizes and rows."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    edges = np.union1d(ends - sizes, np.arange(0, total, room))
    owner = np.searchsorted(ends, edges, side="right")
    new_sizes = np.diff(np.append(edges, total))
    return (starts + sizes - ends)[owner] + edges, new_sizes, edges // room


def best_fit(sizes: np.ndarray, room: int) -> np.ndarray:
    """The row of each piece: longest first, each into the fullest row that still holds it. All of one size at once."""
    rows = np.empty(len(sizes), np.int64)
    order = np.argsort(-sizes, kind="stable")
    values, firsts = np.unique(-sizes[order], return_index=True)
    open_rows: dict[int, list[np.ndarray]] = {}
    spaces: list[int] = []  # the keys of open_rows, ascending
    used = 0
    for size, members in zip((-values).tolist(), np.split(order, firsts[1:])):
        while len(members):
            place = bisect_left(spaces, size)
            if place < len(spaces):
                space = spaces.pop(place)
                free = np.concatenate(open_rows.pop(space))
            else:
                space = room
                free = np.arange(used, used - (-len(members) // (room // size)))
                used += len(free)
            each = space // size
            whole, part = divmod(len(members), each)
            whole, part = (whole, part) if whole < len(free) else (len(free), 0)
            taken = whole * each + part
            rows[members[:taken]] = np.repeat(free[: whole + (part > 0)], each)[:taken]
            members = members[taken:]
            left = (free[:whole], space - each * size), (free[whole : whole + 1], space - part * size)
            left += ((free[whole + 1 :], space),)
            for group, remaining in left:
                if len(group) and remaining:
                    if remaining not in open_rows:
                        insort(spaces, remaining)
                    open_rows.setdefault(remaining, []).append(group)
    return rows


class Streams:
    """Documents, one after the other, cut into `rows` streams of equal length (give or take a token), which are read in
    windows of at most `context` tokens: a row of a window goes on where it ended in the one before.

    A document of n tokens holds n - 1 predictions, and each is in exactly one window, of which all are equally long
    (give or take a token), so that none at the end of an epoch learns from few. Documents are cut where a stream ends.
    With `limit` only so many predictions are read, the first.
    """

    def __init__(self, ids: np.ndarray, spans: Spans, context: int, rows: int, limit: int | None = None) -> None:
        if context < 1:
            raise ConfigError(f"context {context} holds no token; give a whole number above 0")
        self.ids, self.context = ids, context
        self._starts = spans.starts
        self._before = np.concatenate([[0], np.cumsum(np.maximum(spans.lengths - 1, 0))])
        self.targets = int(self._before[-1]) if limit is None else min(limit, int(self._before[-1]))
        """Predictions in all windows together."""
        if self.targets < rows:
            raise UserError(
                f"{self.targets:,} predictions cannot be cut into {rows:,} streams; give more text, "
                "or lower train.batch_tokens, train.batch_size or train.accumulate"
            )
        self._edges = np.arange(rows + 1) * self.targets // rows
        self._longest = -(-self.targets // rows)

    def __len__(self) -> int:
        """Windows of a stream."""
        return -(-self._longest // self.context)

    def windows(self, streams: slice, number: int) -> TokenWindows:
        """The window of this number, from 0, in some of the streams. Positions count from a document's start, wherever
        the stream begins.
        """
        first, last = (n * self._longest // len(self) for n in (number, number + 1))
        places = self._edges[:-1][streams, None] + np.arange(first, last)
        held = places < self._edges[1:][streams, None]
        places = np.minimum(places, self.targets - 1)
        owners = np.searchsorted(self._before, places, side="right") - 1
        positions = places - self._before[owners]
        source = self._starts[owners] + positions
        inputs, labels = self.ids[source].astype(np.int64), self.ids[source + 1].astype(np.int64)
        return TokenWindows(np.where(held, inputs, 0), np.where(held, labels, IGNORED), np.where(held, positions, -1))
