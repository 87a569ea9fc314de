"""Text <-> token ids: words, subwords, characters and bytes, each as one tokenizer.json."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.lazily import lazily

if TYPE_CHECKING:
    from headway.codecs.base import Codec, Kind, StreamDecoder
    from headway.codecs.marks import RoleTokens
    from headway.codecs.published import check_fits, load_codec, published_codec
    from headway.codecs.tokenizer import END_OF_TEXT, FILE, TokenizerCodec
    from headway.codecs.training import Split, sentence_codec, train_codec

__all__ = [
    "END_OF_TEXT",
    "FILE",
    "Codec",
    "Kind",
    "RoleTokens",
    "Split",
    "StreamDecoder",
    "TokenizerCodec",
    "check_fits",
    "load_codec",
    "published_codec",
    "sentence_codec",
    "train_codec",
]
lazily(
    __name__,
    {
        ".base": ("Codec", "Kind", "StreamDecoder"),
        ".marks": ("RoleTokens",),
        ".published": ("check_fits", "load_codec", "published_codec"),
        ".tokenizer": ("END_OF_TEXT", "FILE", "TokenizerCodec"),
        ".training": ("Split", "sentence_codec", "train_codec"),
    },
)
