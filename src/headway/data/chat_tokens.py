"""Conversations tokenised once, with a loss mask for the assistant's tokens, and packed into rows without cuts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headway.data.array_store import (
    ColumnWriter,
    cache_key,
    cache_root,
    open_or_build,
    read_column,
    read_info,
    write_info,
)
from headway.data.content_hash import Encoder, fingerprint
from headway.data.input_files import File
from headway.data.packing import IGNORE_INDEX, TokenWindows, best_fit_rows, expand_ranges, gather_windows
from headway.data.splits import split_code, text_key
from headway.data.token_cache import ids_dtype
from headway.errors import UserError

_FORMAT = 1


class TokenizedChat(NamedTuple):
    """The token ids of a conversation, and the (start, stop) spans of the tokens to train on."""

    ids: Sequence[int]
    spans: Sequence[tuple[int, int]]


class ChatSample(NamedTuple):
    """One conversation, or two endings of one, with the key that determines its split, and its line in the file."""

    key: str
    line: int
    chats: Sequence[TokenizedChat]


@dataclass(frozen=True)
class ChatCache:
    """Samples of `chats_per_sample` conversations as token ids, concatenated; arrays are memory-mapped and read-only.

    `ids` [tokens]; `loss_mask` uint8 [tokens], 1 for tokens to train on; `offsets` int64 [conversations + 1]; `keys`
    uint64 and `named_splits` uint8 [samples], as in PairCache; `lines` uint32 [samples], line numbers in the files.
    """

    directory: Path
    chats_per_sample: int
    ids: np.ndarray
    loss_mask: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray
    named_splits: np.ndarray
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per conversation, int64 [samples, chats_per_sample]."""
        return np.diff(self.offsets).reshape(len(self), self.chats_per_sample)

    def chat(self, sample: int, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The token ids and the loss mask of a conversation."""
        position = sample * self.chats_per_sample + index
        span = slice(int(self.offsets[position]), int(self.offsets[position + 1]))
        return self.ids[span], self.loss_mask[span]

    def within_limit(self, samples: np.ndarray, limit: int, drop_long: bool, noun: str) -> tuple[np.ndarray, int]:
        """The `samples` with at most `limit` tokens per conversation, and how many were dropped.

        UserError if some are longer and `drop_long` is not set, or if no sample remains.
        """
        max_lengths = self.lengths[samples].max(1)
        too_long = max_lengths > limit
        if too_long.any() and not drop_long:
            worst = int(max_lengths.argmax())
            raise UserError(
                f"{int(too_long.sum()):,} of {len(samples):,} {noun} are longer than the limit of {limit} tokens: line "
                f"{self.lines[samples[worst]]} has {max_lengths[worst]}; raise task.context, or drop long ones with "
                "task.drop_long=true"
            )
        if too_long.all():
            raise UserError(
                f"all {len(samples):,} {noun} are longer than the limit of {limit} tokens; raise task.context"
            )
        return samples[~too_long], int(too_long.sum())


def open_chats(
    sources: Sequence[File],
    chats_per_sample: int,
    codec: Encoder,
    samples: Callable[[File], Iterator[ChatSample]],
    variant: str,
) -> ChatCache:
    """The samples of files, from the cache if these contents have been tokenised in this way before.

    `samples` reads a file; `variant` identifies everything else that determines the ids (the template).
    """
    key = cache_key("marked", _FORMAT, chats_per_sample, fingerprint(sources), codec.fingerprint(), variant)
    dtype = ids_dtype(codec.vocab_size)
    folder = open_or_build(cache_root() / key, lambda part: _build(part, sources, chats_per_sample, dtype, samples))
    info = read_info(folder)
    count, tokens = info["samples"], info["tokens"]
    return ChatCache(
        folder,
        chats_per_sample,
        read_column(folder, "ids", info["type"], tokens),
        read_column(folder, "marks", np.uint8, tokens),
        read_column(folder, "offsets", np.int64, count * chats_per_sample + 1),
        read_column(folder, "keys", np.uint64, count),
        read_column(folder, "named", np.uint8, count),
        read_column(folder, "lines", np.uint32, count),
    )


def _build(
    part: Path,
    sources: Iterable[File],
    chats_per_sample: int,
    ids_dtype: np.dtype,
    samples: Callable[[File], Iterator[ChatSample]],
) -> None:
    dtypes = {"ids": ids_dtype, "marks": np.uint8, "offsets": np.int64}
    dtypes |= {"keys": np.uint64, "named": np.uint8, "lines": np.uint32}
    count = tokens = 0
    with ColumnWriter(part, dtypes) as columns:
        columns.append("offsets", [0])
        for file in sources:
            code = 0 if file.named_split is None else split_code(file.named_split)
            for sample in samples(file):
                for ids, spans in sample.chats:
                    loss_mask = np.zeros(len(ids), np.uint8)
                    for start, end in spans:
                        loss_mask[start:end] = 1
                    tokens += len(ids)
                    columns.append("ids", ids)
                    columns.append("marks", loss_mask)
                    columns.append("offsets", [tokens])
                columns.append("keys", np.array([text_key(sample.key)], np.uint64))
                columns.append("named", [code])
                columns.append("lines", [sample.line])
                count += 1
    if count == 0:
        raise UserError(f"{', '.join(map(str, sources))}: there are no samples; pass files with some")
    write_info(part, {"samples": count, "tokens": tokens, "type": ids_dtype.name})


class ChatPacking:
    """Pack uncut conversations into rows of up to `context` tokens (best fit).

    The first token of a conversation is not predicted, so n tokens take n - 1 positions. Conversations are assigned to
    rows once, by length only.
    """

    def __init__(self, cache: ChatCache, samples: np.ndarray, context: int) -> None:
        steps = cache.lengths[samples, 0] - 1
        rows = best_fit_rows(steps, context)
        order = np.argsort(rows, kind="stable")
        self.cache = cache
        self._starts, self._sizes = np.asarray(cache.offsets[:-1])[samples][order], steps[order]
        self._row_ends = np.concatenate([[0], np.cumsum(np.bincount(rows))])

    def __len__(self) -> int:
        return len(self._row_ends) - 1

    def windows(self, rows: np.ndarray) -> TokenWindows:
        """The rows with these indices, int64 [B], as wide as the longest; `labels` only for the assistant's tokens."""
        first = self._row_ends[rows]
        chunks, owner = expand_ranges(first, self._row_ends[rows + 1] - first)
        starts, sizes = self._starts[chunks], self._sizes[chunks]
        shape = len(rows), int(np.bincount(owner, sizes).max())
        windows = gather_windows(self.cache.ids, owner, starts, sizes, shape)
        loss_mask = gather_windows(self.cache.loss_mask, owner, starts, sizes, shape).labels
        return windows._replace(labels=np.where(loss_mask == 1, windows.labels, IGNORE_INDEX))
