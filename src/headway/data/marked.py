"""Conversations tokenised once, with a loss mask of the assistant's tokens, and packed uncut into rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headway.data.files import File
from headway.data.fingerprint import Encoder, fingerprint
from headway.data.packing import IGNORED, TokenWindows, best_fit, gather, ranges
from headway.data.splits import key_of, side_number
from headway.data.store import Columns, cache_key, cache_root, open_or_build, read_column, read_info, write_info
from headway.data.tokens import ids_type
from headway.errors import UserError

_FORMAT = 1


class Marked(NamedTuple):
    """The token ids of a conversation, and the (start, stop) spans of the tokens to train on."""

    ids: Sequence[int]
    spans: Sequence[tuple[int, int]]


class MarkedSample(NamedTuple):
    """One conversation, or two endings of one, with the key that decides its split, and its line in the file."""

    key: str
    line: int
    parts: Sequence[Marked]


@dataclass(frozen=True)
class MarkedCache:
    """Samples of `chats_per_sample` conversations as token ids, concatenated; arrays are memory-mapped and read-only.

    `ids` [tokens]; `loss_mask` uint8 [tokens], 1 for tokens to train on; `offsets` int64 [conversations + 1]; `keys`
    uint64 and `named_splits` uint8 [samples], as in PairCache; `lines` uint32 [samples], line numbers in the files.
    """

    directory: Path
    each: int
    ids: np.ndarray
    marks: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray
    named: np.ndarray
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per conversation, int64 [samples, chats_per_sample]."""
        return np.diff(self.offsets).reshape(len(self), self.each)

    def part(self, sample: int, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The token ids and the loss mask of a conversation."""
        place = sample * self.each + number
        where = slice(int(self.offsets[place]), int(self.offsets[place + 1]))
        return self.ids[where], self.marks[where]

    def fitting(self, samples: np.ndarray, limit: int, drop_long: bool, what: str) -> tuple[np.ndarray, int]:
        """The `samples` with at most `limit` tokens per conversation, and how many were dropped.

        UserError if some are longer and `drop_long` is not set, or if no sample remains.
        """
        longest = self.lengths[samples].max(1)
        long = longest > limit
        if long.any() and not drop_long:
            worst = int(longest.argmax())
            raise UserError(
                f"{int(long.sum()):,} of {len(samples):,} {what} are longer than the limit of {limit} tokens: line "
                f"{self.lines[samples[worst]]} has {longest[worst]}; raise task.context, or drop long ones with "
                "task.drop_long=true"
            )
        if long.all():
            raise UserError(
                f"all {len(samples):,} {what} are longer than the limit of {limit} tokens; raise task.context"
            )
        return samples[~long], int(long.sum())


def open_marked(
    sources: Sequence[File], each: int, codec: Encoder, samples: Callable[[File], Iterator[MarkedSample]], how: str
) -> MarkedCache:
    """The samples of files, from the cache if these contents have been tokenised in this way before.

    `samples` reads a file; `variant` identifies everything else that decides the ids (the template).
    """
    key = cache_key("marked", _FORMAT, each, fingerprint(sources), codec.fingerprint(), how)
    kind = ids_type(codec.size)
    folder = open_or_build(cache_root() / key, lambda part: _build(part, sources, each, kind, samples))
    info = read_info(folder)
    count, tokens = info["samples"], info["tokens"]
    return MarkedCache(
        folder,
        each,
        read_column(folder, "ids", info["type"], tokens),
        read_column(folder, "marks", np.uint8, tokens),
        read_column(folder, "offsets", np.int64, count * each + 1),
        read_column(folder, "keys", np.uint64, count),
        read_column(folder, "named", np.uint8, count),
        read_column(folder, "lines", np.uint32, count),
    )


def _build(
    part: Path, sources: Iterable[File], each: int, kind: np.dtype, samples: Callable[[File], Iterator[MarkedSample]]
) -> None:
    kinds = {"ids": kind, "marks": np.uint8, "offsets": np.int64}
    kinds |= {"keys": np.uint64, "named": np.uint8, "lines": np.uint32}
    count = tokens = 0
    with Columns(part, kinds) as columns:
        columns.append("offsets", [0])
        for file in sources:
            named = 0 if file.side is None else side_number(file.side)
            for sample in samples(file):
                for ids, spans in sample.parts:
                    marks = np.zeros(len(ids), np.uint8)
                    for start, end in spans:
                        marks[start:end] = 1
                    tokens += len(ids)
                    columns.append("ids", ids)
                    columns.append("marks", marks)
                    columns.append("offsets", [tokens])
                columns.append("keys", np.array([key_of(sample.key)], np.uint64))
                columns.append("named", [named])
                columns.append("lines", [sample.line])
                count += 1
    if count == 0:
        raise UserError(f"{', '.join(map(str, sources))}: there are no samples; pass files with some")
    write_info(part, {"samples": count, "tokens": tokens, "type": kind.name})


class WholeRows:
    """Pack uncut conversations into rows of up to `context` tokens (best fit).

    The first token of a conversation is not predicted, so n tokens take n - 1 positions. Conversations are assigned to
    rows once, by their lengths alone.
    """

    def __init__(self, cache: MarkedCache, samples: np.ndarray, context: int) -> None:
        steps = cache.lengths[samples, 0] - 1
        rows = best_fit(steps, context)
        order = np.argsort(rows, kind="stable")
        self.cache = cache
        self._starts, self._sizes = np.asarray(cache.offsets[:-1])[samples][order], steps[order]
        self._ends = np.concatenate([[0], np.cumsum(np.bincount(rows))])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def windows(self, rows: np.ndarray) -> TokenWindows:
        """The rows with these indices, int64 [B], as wide as the longest; `labels` only for the assistant's tokens."""
        first = self._ends[rows]
        pieces, owner = ranges(first, self._ends[rows + 1] - first)
        starts, sizes = self._starts[pieces], self._sizes[pieces]
        shape = len(rows), int(np.bincount(owner, sizes).max())
        windows = gather(self.cache.ids, owner, starts, sizes, shape)
        marks = gather(self.cache.marks, owner, starts, sizes, shape).labels
        return windows._replace(labels=np.where(marks == 1, windows.labels, IGNORED))
