"""Ids with the characters that each stands for, of text between special symbols."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer

from headway.codecs.guard import GUARD, SHIELD, Guard
from headway.codecs.tokenizer import TokenizerCodec


class Token(NamedTuple):
    """An id, and where its characters start and stop."""

    id: int
    start: int
    stop: int

    def within(self, span: tuple[int, int]) -> bool:
        """Whether any of its characters lies in a span of the text."""
        return self.start < span[1] and self.stop > span[0]


class Locator:
    """Reads a text in which special symbols are symbols, as published pipelines read what a chat template writes.

    A spelling that holds a GUARD, or stands behind a SHIELD, stays text; these themselves are no part of the text.
    """

    def __init__(self, codec: TokenizerCodec) -> None:
        tokens = codec.tokenizer.get_added_tokens_decoder()
        self._special = {token.content: (i, token) for i, token in tokens.items() if token.special}
        self.guard = Guard(self._special)
        self._first = _beside(codec.tokenizer, continued=False)
        self._later = _beside(codec.tokenizer, continued=True)

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids of special symbols."""
        return frozenset(i for i, _ in self._special.values())

    def tokens(self, text: str) -> list[Token]:
        """The symbols of a text, with places in it as it stands, guards included."""
        found: list[Token] = []
        done = 0
        for match in self.guard.pattern.finditer(text):
            symbol, token = self._special[match[0]]
            start, stop = match.span()
            if start < done:  # white space that the symbol before has taken
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip())
            found += self._plain(text, done, start)
            if token.rstrip:
                stop += len(text[stop:]) - len(text[stop:].lstrip())
            found.append(Token(symbol, start, stop))
            done = stop
        found += self._plain(text, done, len(text))
        return found

    def _plain(self, text: str, start: int, stop: int) -> Iterator[Token]:
        places = [i for i in range(start, stop) if text[i] not in (GUARD, SHIELD)]
        if not places:
            return
        section = "".join(text[i] for i in places)
        places.append(stop)
        tokenizer, ids = self._later if start else self._first
        encoding = tokenizer.encode(section, add_special_tokens=False)
        for symbol, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            yield Token(ids.get(symbol, symbol), places[first], places[last])


def _beside(tokenizer: Tokenizer, continued: bool) -> tuple[Tokenizer, dict[int, int]]:
    """A tokenizer that shares the model, without what changes places afterwards; and its ids that are others there.

    A `continued` one puts no prefix before what stands amid a text, where the original does so at its start alone.
    """
    other = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        other.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        other.pre_tokenizer = _unprefixed(tokenizer.pre_tokenizer) if continued else tokenizer.pre_tokenizer
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    for _, token in added:
        (other.add_special_tokens if token.special else other.add_tokens)([token])
    other.encode_special_tokens = True
    pairs = [(other.token_to_id(token.content), i) for i, token in added]
    return other, {own: i for own, i in pairs if own is not None and own != i}


def _unprefixed(step: PreTokenizer) -> PreTokenizer:
    state = step.__getstate__().decode()
    if _AT_START not in state:
        return step
    model = '{"type": "BPE", "vocab": {}, "merges": []}'
    never = state.replace(_AT_START, _AT_START.replace("first", "never"))
    return Tokenizer.from_str(f'{{"added_tokens": [], "pre_tokenizer": {never}, "model": {model}}}').pre_tokenizer


_AT_START = '"prepend_scheme":"first"'
