"""Data for all domains: streamed from what users have, tokenised once, split by hash, packed and batched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.data.batching import Padding, PairBatches
    from headway.data.catalogue import KnownSet
    from headway.data.conll import Tagged, TaggedText, read_conll
    from headway.data.download import get
    from headway.data.order import epoch_seed, permuted, sample_at
    from headway.data.packing import IGNORED, Crops, Packing, Spans, Windows
    from headway.data.parallel import Column, Fitting, PairCache, grouped, load_pairs, open_pairs, split_pairs
    from headway.data.registry import find_set, is_present, known_set, known_sets
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
    from headway.data.splits import SIDES, SplitConfig, Splits, fraction, sides_of
    from headway.data.streams import Streams
    from headway.data.tables import Table, read_table
    from headway.data.tokens import TokenCache, load_tokens, open_tokens

__all__ = [
    "IGNORED",
    "SIDES",
    "Chunk",
    "Column",
    "Crops",
    "Fitting",
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
    "Windows",
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
        ".batching": ("Padding", "PairBatches"),
        ".catalogue": ("KnownSet",),
        ".conll": ("Tagged", "TaggedText", "read_conll"),
        ".download": ("get",),
        ".order": ("epoch_seed", "permuted", "sample_at"),
        ".packing": ("IGNORED", "Crops", "Packing", "Spans", "Windows"),
        ".parallel": ("Column", "Fitting", "PairCache", "grouped", "load_pairs", "open_pairs", "split_pairs"),
        ".registry": ("find_set", "is_present", "known_set", "known_sets"),
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
        ".splits": ("SIDES", "SplitConfig", "Splits", "fraction", "sides_of"),
        ".streams": ("Streams",),
        ".tables": ("Table", "read_table"),
        ".tokens": ("TokenCache", "load_tokens", "open_tokens"),
    },
)
