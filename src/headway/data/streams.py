"""Rows for recurrent language models: a corpus as contiguous streams that are read side by side."""

from __future__ import annotations

import numpy as np

from headway.data.packing import IGNORED, Spans, Windows
from headway.errors import ConfigError, UserError


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

    def windows(self, streams: slice, number: int) -> Windows:
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
        return Windows(np.where(held, inputs, 0), np.where(held, labels, IGNORED), np.where(held, positions, -1))
