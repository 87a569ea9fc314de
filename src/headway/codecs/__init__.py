"""Encoders of inputs: tokenizers of words, subwords, characters and bytes, image preprocessing, and chess boards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazy_imports import lazy_exports

if TYPE_CHECKING:
    from headway.codecs.published_tokenizers import check_vocab_size, load_codec, load_codecs, published_codec
    from headway.codecs.special_tokens import SpecialTokens
    from headway.codecs.tokenizer import END_OF_TEXT, FILE, Codec, Kind, StreamDecoder, TokenizerCodec
    from headway.codecs.tokenizer_training import Split, sentence_codec, train_codec

__all__ = [
    "END_OF_TEXT",
    "FILE",
    "Codec",
    "Kind",
    "SpecialTokens",
    "Split",
    "StreamDecoder",
    "TokenizerCodec",
    "check_vocab_size",
    "load_codec",
    "load_codecs",
    "published_codec",
    "sentence_codec",
    "train_codec",
]
lazy_exports(
    __name__,
    {
        ".special_tokens": ("SpecialTokens",),
        ".published_tokenizers": ("check_vocab_size", "load_codec", "load_codecs", "published_codec"),
        ".tokenizer": ("END_OF_TEXT", "FILE", "Codec", "Kind", "StreamDecoder", "TokenizerCodec"),
        ".tokenizer_training": ("Split", "sentence_codec", "train_codec"),
    },
)
