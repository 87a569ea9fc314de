"""What a model was trained to see around a text or between two: the marks of its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from headway.codecs.base import Codec
from headway.codecs.tokenizer import TokenizerCodec


class Frame(NamedTuple):
    """Symbols before a text, between two texts, and after them; `typed` where the second has a token type of its own.

    BERT's are [CLS] a [SEP] b [SEP], with types 0 and 1; RoBERTa's <s> a </s></s> b </s>, without types.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    typed: bool = True

    def marks(self, texts: int) -> int:
        """How many symbols it adds to one or two texts."""
        return len(self.before) + len(self.after) + (len(self.between) if texts == 2 else 0)

    def around(self, first: Sequence[int], second: Sequence[int] | None = None) -> list[int]:
        """The ids of a text, or of two, with their marks."""
        if second is None:
            return [*self.before, *first, *self.after]
        return [*self.before, *first, *self.between, *second, *self.after]


def frame_of(codec: Codec) -> Frame:
    """The marks that a tokenizer was published with; of one that says nothing, its begin, end and end."""
    begin, end = (() if mark is None else (mark,) for mark in (codec.begin, codec.end))
    plain = Frame(begin, end, end)
    if not isinstance(codec, TokenizerCodec) or codec.tokenizer.post_processor is None:
        return plain
    probe = codec.tokenizer.encode("a", "b", add_special_tokens=True)
    places = [[i for i, text in enumerate(probe.sequence_ids) if text == number] for number in (0, 1)]
    if not all(places) or len(places[0]) + len(places[1]) == len(probe.ids):
        return plain
    (start, stop), (second, last) = ((found[0], found[-1] + 1) for found in places)
    ids = probe.ids
    typed = probe.type_ids[second] == 1
    return Frame(tuple(ids[:start]), tuple(ids[stop:second]), tuple(ids[last:]), typed)


def framed(codec: Codec, text: str) -> list[int]:
    """Ids of a text with the marks that a published tokenizer puts around it."""
    if not isinstance(codec, TokenizerCodec):
        return codec.encode(text)
    return codec.tokenizer.encode(text, add_special_tokens=True).ids
