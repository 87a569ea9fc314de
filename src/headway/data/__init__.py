"""Data for all domains: stream users' files, tokenise them once, split by hash, pack and batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.data.corpus import (
        Chunk,
        Pair,
        count_characters,
        iter_chunks,
        iter_documents,
        iter_pairs,
        pair_sources,
        read_pairs,
        text_sources,
    )
    from headway.data.packing import IGNORE_INDEX, Crops, Packing, Spans, Streams, TokenWindows
    from headway.data.registry import KnownSet, find_set, get_set, is_present, known_set, known_sets
    from headway.data.shuffling import Padding, PairBatches, epoch_seed, permute, shuffled_indices
    from headway.data.splits import SPLITS, ClassSplitConfig, SplitConfig, Splits, hash_fraction, split_by_text
    from headway.data.table_files import Table, TaggedCorpus, TaggedSentence, read_conll, read_table
    from headway.data.token_store import (
        PairCache,
        TokenCache,
        TokenColumn,
        UsablePairs,
        group_references,
        load_pairs,
        load_tokens,
        open_pairs,
        open_tokens,
        split_pairs,
    )

__all__ = [
    "IGNORE_INDEX",
    "SPLITS",
    "Chunk",
    "ClassSplitConfig",
    "Crops",
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
    "TaggedCorpus",
    "TaggedSentence",
    "TokenCache",
    "TokenColumn",
    "TokenWindows",
    "UsablePairs",
    "count_characters",
    "epoch_seed",
    "find_set",
    "get_set",
    "group_references",
    "hash_fraction",
    "is_present",
    "iter_chunks",
    "iter_documents",
    "iter_pairs",
    "known_set",
    "known_sets",
    "load_pairs",
    "load_tokens",
    "open_pairs",
    "open_tokens",
    "pair_sources",
    "permute",
    "read_conll",
    "read_pairs",
    "read_table",
    "shuffled_indices",
    "split_by_text",
    "split_pairs",
    "text_sources",
]
lazy_exports(
    __name__,
    {
        ".shuffling": ("Padding", "PairBatches", "epoch_seed", "permute", "shuffled_indices"),
        ".packing": ("Crops", "IGNORE_INDEX", "Packing", "Spans", "Streams", "TokenWindows"),
        ".registry": ("KnownSet", "find_set", "get_set", "is_present", "known_set", "known_sets"),
        ".corpus": (
            "Chunk",
            "Pair",
            "count_characters",
            "iter_chunks",
            "iter_documents",
            "pair_sources",
            "iter_pairs",
            "read_pairs",
            "text_sources",
        ),
        ".splits": ("SPLITS", "ClassSplitConfig", "SplitConfig", "Splits", "hash_fraction", "split_by_text"),
        ".table_files": ("Table", "TaggedSentence", "TaggedCorpus", "read_conll", "read_table"),
        ".token_store": (
            "TokenColumn",
            "UsablePairs",
            "PairCache",
            "TokenCache",
            "group_references",
            "load_pairs",
            "load_tokens",
            "open_pairs",
            "open_tokens",
            "split_pairs",
        ),
    },
)
