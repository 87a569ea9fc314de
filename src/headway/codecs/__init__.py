"""Text <-> symbol ids: words, subwords, characters and bytes, each as one tokenizer.json."""

from headway.codecs.base import Codec, StreamDecoder
from headway.codecs.tokenizer import END_OF_TEXT, FILE, TokenizerCodec, load_codec
from headway.codecs.training import Kind, Split, train_codec

__all__ = [
    "END_OF_TEXT",
    "FILE",
    "Codec",
    "Kind",
    "Split",
    "StreamDecoder",
    "TokenizerCodec",
    "load_codec",
    "train_codec",
]
