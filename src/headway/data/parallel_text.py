"""Pairs tokenised once, into memory-mapped source and target ids; and the text of a split's pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
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
from headway.data.corpus import Pair, PairSource, pair_sources, read_pairs
from headway.data.splits import SPLITS, SplitConfig, Splits, assign_splits, split_code, text_key
from headway.data.token_cache import Progress, ids_dtype
from headway.errors import UserError

_FORMAT = 1
_BATCH = 1 << 19  # source and target characters tokenised at once


class UsablePairs(NamedTuple):
    """Usable pairs, int64 [N], and how many were dropped because they are too long or have an empty side."""

    pairs: np.ndarray
    too_long: int
    empty: int


class TokenColumn(NamedTuple):
    """The sources or targets of all pairs: ids [tokens], and the start of each, int64 [pairs + 1]."""

    ids: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per entry, int64 [pairs]."""
        return np.diff(self.offsets)

    def __getitem__(self, pair: int) -> np.ndarray:
        return self.ids[self.offsets[pair] : self.offsets[pair + 1]]


@dataclass(frozen=True)
class PairCache:
    """Parallel text as token ids, without begin and end tokens.

    `keys` uint64 [pairs] hash the sources' text; `named_splits` uint8 [pairs] is the split in the file's name.
    Arrays are memory-mapped and read-only. Pairs keep their order in the files.
    """

    directory: Path
    source: TokenColumn
    target: TokenColumn
    keys: np.ndarray
    named_splits: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def splits(self, config: SplitConfig) -> Splits:
        """The pairs of each split; equal sources are always in the same split."""
        named_splits = np.asarray(self.named_splits)
        present = frozenset(np.unique(named_splits).tolist())
        split_codes = assign_splits(np.asarray(self.keys), named_splits, present, config)
        indices = {split: np.flatnonzero(split_codes == split_code(split)) for split in SPLITS}
        return Splits(indices, np.arange(len(self)), "pairs")

    def within_limits(self, pairs: np.ndarray, source_limit: int, target_limit: int, drop_long: bool) -> UsablePairs:
        """The `pairs` within the limits (tokens, without special tokens) and without an empty side.

        UserError if some are too long and `drop_long` is not set, or if no pair remains.
        """
        sources, targets = self.source.lengths[pairs], self.target.lengths[pairs]
        too_long = (sources > source_limit) | (targets > target_limit)
        empty = (sources == 0) | (targets == 0)
        if too_long.any() and not drop_long:
            worst = int(np.maximum(sources, targets).argmax())
            raise UserError(
                f"{int(too_long.sum()):,} of {len(pairs):,} pairs are too long: pair {pairs[worst]:,} has "
                f"{sources[worst]} source and {targets[worst]} target tokens, over {source_limit} and {target_limit}; "
                "raise the limit, or drop long pairs"
            )
        usable = pairs[~(too_long | empty)]
        if len(usable) == 0:
            raise UserError(
                f"no pairs remain: of {len(pairs):,}, {int(too_long.sum()):,} are longer than {source_limit} source or "
                f"{target_limit} target tokens and {int(empty.sum()):,} have an empty side; raise the limit or use "
                "other pairs"
            )
        return UsablePairs(usable, int(too_long.sum()), int((empty & ~too_long).sum()))


def split_pairs(paths: Iterable[Path | str], split: str, config: SplitConfig) -> Iterator[Pair]:
    """Stream the text of a split's pairs, in the order of `PairCache.splits`."""
    sources = pair_sources(paths)
    present = frozenset(_split_code(source) for source in sources)
    code = split_code(split)
    return (
        pair
        for batch, split_codes in _batches(sources)
        for pair, assigned_code in zip(
            batch, assign_splits(_keys(batch), np.array(split_codes, np.uint8), present, config)
        )
        if assigned_code == code
    )


def group_references(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    """Each source with all its targets, in order: several references for one source."""
    references: dict[str, list[str]] = {}
    for source, target in pairs:
        references.setdefault(source, []).append(target)
    return references


def open_pairs(
    paths: Iterable[Path | str],
    source_codec: Encoder,
    target_codec: Encoder,
    progress: Progress | None = None,
) -> PairCache:
    """The tokens of pairs, from the cache if these contents have been tokenised by these codecs before."""
    sources = pair_sources(paths)
    codecs = (source_codec.fingerprint(), target_codec.fingerprint())
    key = cache_key("pairs", _FORMAT, fingerprint(sources), *codecs)
    return load_pairs(
        open_or_build(cache_root() / key, lambda part: _build(part, sources, source_codec, target_codec, progress))
    )


def load_pairs(folder: Path) -> PairCache:
    """A pair cache from its folder."""
    info = read_info(folder)
    count = info["pairs"]

    def column(side: str) -> TokenColumn:
        ids = read_column(folder, f"{side}_ids", info[f"{side}_type"], info[f"{side}_tokens"])
        return TokenColumn(ids, read_column(folder, f"{side}_offsets", np.int64, count + 1))

    keys = read_column(folder, "keys", np.uint64, count)
    return PairCache(folder, column("source"), column("target"), keys, read_column(folder, "named", np.uint8, count))


def _build(
    part: Path,
    sources: Sequence[PairSource],
    source_codec: Encoder,
    target_codec: Encoder,
    progress: Progress | None,
) -> None:
    codecs = {"source": source_codec, "target": target_codec}
    dtypes = {f"{side}_ids": ids_dtype(codec.vocab_size) for side, codec in codecs.items()}
    offsets = {f"{side}_offsets": np.int64 for side in codecs}
    tokens = dict.fromkeys(codecs, 0)
    count = done = 0
    with ColumnWriter(part, {**dtypes, **offsets, "keys": np.uint64, "named": np.uint8}) as columns:
        for side in codecs:
            columns.append(f"{side}_offsets", [0])
        for batch, split_codes in _batches(sources):
            for side, codec in codecs.items():
                rows = codec.encode_batch([getattr(pair, side) for pair in batch])
                lengths = np.fromiter(map(len, rows), np.int64, len(rows))
                flat = np.fromiter(chain.from_iterable(rows), np.uint32, int(lengths.sum()))
                columns.append(f"{side}_ids", flat)
                columns.append(f"{side}_offsets", tokens[side] + np.cumsum(lengths))
                tokens[side] += len(flat)
            columns.append("keys", _keys(batch))
            columns.append("named", split_codes)
            count += len(batch)
            done += sum(len(text.encode()) for pair in batch for text in pair)
            if progress is not None:
                progress(done, 0)
    if count == 0:
        raise UserError(f"{', '.join(map(str, sources[:3]))}: there are no pairs; pass files with some")
    types = {f"{side}_type": dtypes[f"{side}_ids"].name for side in codecs}
    write_info(part, {"pairs": count, **types, **{f"{side}_tokens": tokens[side] for side in codecs}})


def _batches(sources: Iterable[PairSource]) -> Iterator[tuple[list[Pair], list[int]]]:
    """Pairs with the codes of their named splits, about half a million characters at a time."""
    batch: list[Pair] = []
    split_codes: list[int] = []
    characters = 0
    for source in sources:
        for pair in read_pairs(source):
            batch.append(pair)
            split_codes.append(_split_code(source))
            characters += len(pair.source) + len(pair.target)
            if characters >= _BATCH:
                yield batch, split_codes
                batch, split_codes, characters = [], [], 0
    if batch:
        yield batch, split_codes


def _split_code(source: PairSource) -> int:
    return 0 if source.named_split is None else split_code(source.named_split)


def _keys(batch: Sequence[Pair]) -> np.ndarray:
    return np.array([text_key(pair.source) for pair in batch], np.uint64)
