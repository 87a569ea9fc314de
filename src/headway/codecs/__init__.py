"""Text <-> token ids: words, subwords, characters and bytes, each as one tokenizer.json."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazy_exports

if TYPE_CHECKING:
    from headway.codecs.base import Codec, Kind, StreamDecoder
    from headway.codecs.marks import SpecialTokens
    from headway.codecs.published import check_vocab_size, load_codec, published_codec
    from headway.codecs.tokenizer import END_OF_TEXT, FILE, TokenizerCodec
    from headway.codecs.training import Split, sentence_codec, train_codec

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
    "published_codec",
    "sentence_codec",
    "train_codec",
]
lazy_exports(
    __name__,
    {
        ".base": ("Codec", "Kind", "StreamDecoder"),
        ".marks": ("SpecialTokens",),
        ".published": ("check_vocab_size", "load_codec", "published_codec"),
        ".tokenizer": ("END_OF_TEXT", "FILE", "TokenizerCodec"),
        ".training": ("Split", "sentence_codec", "train_codec"),
    },
)
