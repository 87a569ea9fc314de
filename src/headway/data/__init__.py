"""Data for all domains: stream users' files, tokenise them once, split by hash, pack and batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.data.catalogue import KnownSet
    from headway.data.order import Padding, PairBatches, epoch_seed, permuted, sample_at
    from headway.data.packing import IGNORED, Crops, Packing, Spans, Streams, TokenWindows
    from headway.data.parallel import Column, FittingPairs, PairCache, grouped, load_pairs, open_pairs, split_pairs
    from headway.data.registry import find_set, get, is_present, known_set, known_sets
    from headway.data.sources import (
        Chunk,
        Pair,
        characters,
        chunks,
        documents,
        pair_sources,
        pairs,
        read_pairs,
        text_sources,
    )
    from headway.data.splits import SIDES, ClassSplitConfig, SplitConfig, Splits, fraction, sides_of
    from headway.data.tables import Table, Tagged, TaggedText, read_conll, read_table
    from headway.data.tokens import TokenCache, load_tokens, open_tokens

__all__ = [
    "IGNORED",
    "SIDES",
    "Chunk",
    "ClassSplitConfig",
    "Column",
    "Crops",
    "FittingPairs",
    "KnownSet",
    "Packing",
    "Padding",
    "Pair",
    "PairBatches",
    "PairCache",
    "Spans",
    "SplitConfig",
    "Splits",
    "Streams",
    "Table",
    "Tagged",
    "TaggedText",
    "TokenCache",
    "TokenWindows",
    "characters",
    "chunks",
    "documents",
    "epoch_seed",
    "find_set",
    "fraction",
    "get",
    "grouped",
    "is_present",
    "known_set",
    "known_sets",
    "load_pairs",
    "load_tokens",
    "open_pairs",
    "open_tokens",
    "pair_sources",
    "pairs",
    "permuted",
    "read_conll",
    "read_pairs",
    "read_table",
    "sample_at",
    "sides_of",
    "split_pairs",
    "text_sources",
]
lazily(
    __name__,
    {
        ".catalogue": ("KnownSet",),
        ".order": ("Padding", "PairBatches", "epoch_seed", "permuted", "sample_at"),
        ".packing": ("Crops", "IGNORED", "Packing", "Spans", "Streams", "TokenWindows"),
        ".parallel": ("Column", "FittingPairs", "PairCache", "grouped", "load_pairs", "open_pairs", "split_pairs"),
        ".registry": ("find_set", "get", "is_present", "known_set", "known_sets"),
        ".sources": (
            "Chunk",
            "Pair",
            "characters",
            "chunks",
            "documents",
            "pair_sources",
            "pairs",
            "read_pairs",
            "text_sources",
        ),
        ".splits": ("SIDES", "ClassSplitConfig", "SplitConfig", "Splits", "fraction", "sides_of"),
        ".tables": ("Table", "Tagged", "TaggedText", "read_conll", "read_table"),
        ".tokens": ("TokenCache", "load_tokens", "open_tokens"),
    },
)
